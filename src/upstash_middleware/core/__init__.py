"""The decisions, without I/O: clocks and settings are passed in, and no framework is imported.

Everything that needs I/O is awaited as an effect (``effects``) and performed by a
driver; everything else is values and functions on values.
"""
