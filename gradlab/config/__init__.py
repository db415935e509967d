"""experiment.yaml: positions, strict schema, and errors with carets."""
