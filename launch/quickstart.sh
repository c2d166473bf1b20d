#!/usr/bin/env bash
# From nothing to generated pictures: makes .venv, installs, and runs every stage at a small size.
#   ./launch/quickstart.sh [overrides of `mgpt pipeline recipe=quickstart`]
# Safe to stop and start again; the result is outputs/quickstart/report.html.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/env.sh
mgpt_env
exec mgpt pipeline recipe=quickstart "$@"
