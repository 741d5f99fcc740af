"""Gives calls to Upstash 20 seconds by default, in every Python process that finds this folder."""

from upstash_middleware import settings

settings.DEFAULTS.update(deadline=20.0, cache_deadline=20.0)
