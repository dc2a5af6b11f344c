"""What can be set (`tree`, `upstreams`), how it is written, read and shown."""
