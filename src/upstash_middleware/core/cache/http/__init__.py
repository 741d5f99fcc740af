"""RFC 9111 as functions of messages, with their tables and profiles."""
