"""The command ``upstash-middleware``: a person's or a script's way to ask and to tell.

``entry`` imports nothing beyond the package, so that it can say which extra is missing; ``local``
needs no extra of the command line's. All else stands on typer and rich.
"""
