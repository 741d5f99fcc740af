"""The errors that a person who starts a local Upstash can meet.

Only exceptions may live here.
"""


class LocalUpstashError(Exception):
    """The local Upstash could not be started; the text says why, and what would help."""
