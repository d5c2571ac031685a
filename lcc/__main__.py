"""`python -m lcc` is `lcc`."""

from __future__ import annotations

import sys

from lcc.cli import main

sys.exit(main())
