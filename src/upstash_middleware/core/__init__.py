"""The decisions, without I/O: clocks and settings are passed in, and no framework is imported.

Whatever needs I/O is awaited as an effect (``flow``) and performed by a driver (``drivers``);
everything else is values and functions on values.
"""
