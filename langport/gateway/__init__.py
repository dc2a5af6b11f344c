"""The HTTP side: keys, routes, limits and upstreams. Knows no model, no engine and no torch."""
