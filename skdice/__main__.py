"""``python -m skdice``."""

import sys

from skdice.cli import main

sys.exit(main())
