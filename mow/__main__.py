"""`python -m mow COMMAND` is `mow COMMAND`."""

import sys

from mow.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
