# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Many trainings from one plan, a ledger of what came out, and a report.

A *plan* names tasks, methods and seeds; a *trial* is one training of it, a
config in a folder of its own; the *ledger* is the table of all results. See
``docs/sweeps.md``.
"""
