"""``python -m spectrascope``."""

from spectrascope.cli import main

if __name__ == "__main__":
    main()
