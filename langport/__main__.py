"""`python -m langport` is the `langport` command."""

import sys

from langport.cli import main

sys.exit(main())
