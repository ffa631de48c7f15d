"""Lets `python -m pdrouter` do what `pdrouter` does."""

import sys

from pdrouter.cli import main

if __name__ == "__main__":
    sys.exit(main())
