"""RFC 9111 as functions of messages, and the tables and profiles that they work with."""
