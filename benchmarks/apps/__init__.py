"""The applications under measurement, one module per framework; each serves the row it is told."""
