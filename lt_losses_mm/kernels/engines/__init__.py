# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Ways to compute the formulas; :mod:`.reference` is what they agree with."""
