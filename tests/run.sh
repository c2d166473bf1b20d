#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/env.sh
mgpt_env test
export OMP_NUM_THREADS=1 # the distributed tests start several processes each
exec python -m pytest "$@"
