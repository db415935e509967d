"""Lightning modules built from nn layers and functional activations."""
