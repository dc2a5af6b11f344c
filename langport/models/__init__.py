"""Model families, checkpoints and weights. Importing this package loads none of them."""
