"""`python -m kdlab`, as torchrun starts it."""

import sys

from kdlab.cli import main

sys.exit(main())
