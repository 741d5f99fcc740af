"""The project: settings, URLs, and what servers load."""
