#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/env.sh

# A real Slurm for tests/slurm, which are skipped without: installed where that can be done at once,
# as root on Debian or Ubuntu.
install_slurm() {
  local packages="slurmctld slurmd slurm-client munge iproute2"
  if command -v slurmctld > /dev/null || [ -x /usr/sbin/slurmctld ]; then
    return 0
  fi
  if [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ] && command -v apt-get > /dev/null; then
    echo "tests: installing Slurm with apt, for the tests that start a cluster of their own"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    if timeout 120 apt-get -qq update < /dev/null &&
      timeout 300 apt-get -qq install -y --no-install-recommends $packages < /dev/null > /dev/null; then
      return 0
    fi
  fi
  echo "tests: no Slurm here and none could be installed; tests/slurm will be skipped"
}

mgpt_env test
install_slurm
export OMP_NUM_THREADS=1 # the distributed tests start several processes each
exec python -m pytest "$@"
