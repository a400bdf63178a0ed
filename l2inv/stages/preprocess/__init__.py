"""preprocess: run the command that prepares an OP, here or on the cluster."""
