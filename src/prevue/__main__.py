"""`python -m prevue` is `prevue`."""

import sys

from prevue.cli import main

if __name__ == "__main__":
    sys.exit(main())
