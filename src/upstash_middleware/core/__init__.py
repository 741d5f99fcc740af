"""What decides: no I/O, no clock of its own, no environment, no framework.

Everything that must reach the world is awaited as an effect (``effects``) and performed by a
driver; everything else is values and functions on values.
"""
