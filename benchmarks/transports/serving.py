"""`pdrouter`, on a chosen transport: `python -m benchmarks.transports.serving http2 serve ...`."""

import sys

from benchmarks.transports.contenders import TRANSPORTS
from pdrouter.cli import main

if __name__ == "__main__":
    TRANSPORTS[sys.argv[1]].install()
    sys.exit(main(sys.argv[2:]))
