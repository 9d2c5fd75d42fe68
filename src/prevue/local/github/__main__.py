"""`python -m prevue.local.github`."""

import sys

from prevue.local.github.server import main

if __name__ == "__main__":
    sys.exit(main())
