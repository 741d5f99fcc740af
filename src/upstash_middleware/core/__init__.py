"""The decisions, without I/O. Clocks and settings are passed in, and no framework is imported.

All I/O is awaited as an effect (``flow``), which a driver performs (``drivers``). Everything else
are values, and functions of values.
"""
