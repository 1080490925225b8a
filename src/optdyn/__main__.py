"""``python -m optdyn``: the command line."""

import sys

from optdyn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
