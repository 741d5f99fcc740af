"""The command ``upstash-middleware``."""
