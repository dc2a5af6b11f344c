"""The bundled demo models and the scripts that trained them."""
