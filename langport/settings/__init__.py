"""Parts of the settings that have a file of their own; `config.py` makes one tree of all."""
