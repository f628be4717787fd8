"""`python -m rsfuse` is the `rsfuse` command."""

import sys

from rsfuse.cli.main import main

sys.exit(main())
