"""The management commands, one module each; nothing is here."""
