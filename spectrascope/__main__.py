"""``python -m spectrascope``."""

import sys

from spectrascope.cli import main

if __name__ == "__main__":
    sys.exit(main())
