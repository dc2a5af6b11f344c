"""`python -m langport.openai_api_gateway` is `langport gateway`, under the name that older documents use."""

import sys

from langport.cli import main

if __name__ == "__main__":
    sys.exit(main(["gateway", *sys.argv[1:]]))
