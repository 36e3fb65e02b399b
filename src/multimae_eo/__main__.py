"""``python -m multimae_eo`` is the command ``multimae-eo``."""

import sys

from multimae_eo.cli import main

if __name__ == "__main__":
    sys.exit(main())
