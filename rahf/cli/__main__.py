"""`python -m rahf.cli`."""

import sys

from rahf.cli.main import main

sys.exit(main())
