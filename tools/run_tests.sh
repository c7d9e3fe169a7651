#!/usr/bin/env bash
# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
#
# Sets up the environment and runs the tests, the fast ones by default.
# Arguments are passed to pytest: `bash tools/run_tests.sh -m slow`. In the
# other environment: `bash tools/run_tests.sh --stack classic -m slow`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_env.sh
# Two processes with one thread each, instead of two that fight for cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec python -m pytest -n 2 "$@"
