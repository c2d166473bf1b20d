# shellcheck shell=bash
# The project's virtual environment, for the other scripts to source: after `mgpt_env [extra]` the
# checkout's .venv exists, holds the package with its pinned dependencies, and is on PATH.
# It installs only when setup.py, the pins, the Python or the extra have changed since last time.
#   MGPT_PYTHON   the Python to make .venv with (default: the newest of python3.10 to 3.13 found)
#   MGPT_VENV     where the environment stands (default: <checkout>/.venv)
# pip's own variables hold too: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gives torch's
# CPU build, which the pin matches and pip prefers (2.13.0+cpu ranks above 2.13.0).

MGPT_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

mgpt_find_python() {
  local candidate
  for candidate in ${MGPT_PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  echo "mgpt: no Python from 3.10 to 3.13 found; install one, or name it: MGPT_PYTHON=/path/to/python" >&2
  return 1
}

mgpt_env() {
  local extra="${1:-}" venv="${MGPT_VENV:-$MGPT_ROOT/.venv}" python stamp want
  if [ ! -x "$venv/bin/python" ]; then
    python="$(mgpt_find_python)" || return
    echo "mgpt: making $venv with $python"
    "$python" -m venv "$venv" || {
      echo "mgpt: could not make $venv; on Debian and Ubuntu the package python3-venv is needed" >&2
      return 1
    }
  fi
  stamp="$venv/mgpt-installed${extra:+-$extra}"
  want="$(cat "$MGPT_ROOT/setup.py" "$MGPT_ROOT/launch/constraints.txt" | cksum)"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
    echo "mgpt: installing the package and its pinned dependencies (a few minutes, once)"
    PIP_CONSTRAINT="$MGPT_ROOT/launch/constraints.txt" "$venv/bin/python" -m pip install \
      --disable-pip-version-check --quiet --editable "$MGPT_ROOT${extra:+[$extra]}" || return
    echo "$want" > "$stamp"
  fi
  export PATH="$venv/bin:$PATH"
}
