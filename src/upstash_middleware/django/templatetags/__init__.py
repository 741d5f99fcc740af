"""Tags for templates; Django finds them by this package's name."""
