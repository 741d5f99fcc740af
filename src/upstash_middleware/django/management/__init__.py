"""Where Django looks for management commands; nothing is here."""
