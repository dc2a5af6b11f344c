"""Tries against the real commands over raw sockets: what docs/security.md promises."""
