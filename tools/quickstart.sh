#!/usr/bin/env bash
# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
#
# From a bare machine to the main result: sets up the environment, trains
# three tasks with cross-entropy and with Balanced Softmax on the embedded
# digits, prints the table and writes the report. A second run installs
# nothing and goes on where the first one stopped. Arguments are passed to
# `tools/sweep.py run`, e.g. --jobs 2.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_env.sh
exec python tools/sweep.py run benchmarks/sweeps/embedded.yaml --only \
    {classification,detection,segmentation}/{cross_entropy,balanced_softmax}/0 \
    "$@"
