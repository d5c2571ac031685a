"""Whether the soak is the long one, of `make soak`."""

import os

IS_LONG = bool(os.environ.get("LCC_SOAK"))
