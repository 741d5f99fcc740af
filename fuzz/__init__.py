"""Coverage-guided fuzzing with atheris; `make fuzz` runs it, and what it finds is kept in cases."""
