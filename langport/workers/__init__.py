"""Several processes behind one port: `--workers N`. What must be one for all of them is the supervisor's.

The supervisor answers no HTTP. It counts limits and places, keeps the books, adds up figures, owns engines, and starts
a worker again that dies. Workers ask it over a socket each (`link.py`, `messages.py`). See docs/adr/0009-workers.md.
"""
