# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""``python -m lt_losses_mm.kernels``: compile the kernels ahead of their use.

It ends with the path of the library, or, where none can be had, with status 1
and a line of the log that says why.
"""

import sys

from .engines import native

library = native.load()
if library is None:
    sys.exit(1)
print(library._name)
