"""``python -m multimae_eo.cli``."""

import sys

from multimae_eo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
