"""Kernels behind one signature; portable torch here, chosen once at start."""
