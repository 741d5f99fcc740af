"""`make demo`: every example started as a real server and played through over HTTP."""
