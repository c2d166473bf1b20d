"""Which code runs: the package's version and, in a checkout, its commit and whether it was edited.

>>> code_version()
{'version': '0.1.0', 'commit': '0123456789abcdef…', 'dirty': False}
"""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 10


@cache  # the code of this process is what it was when it began
def code_version() -> dict[str, Any]:
    """version, commit and dirty; the last two null where this is no checkout or git is missing."""
    try:
        package = version("mgpt")
    except PackageNotFoundError:  # run from a checkout that is not installed
        package = "not installed"
    commit = _git("rev-parse", "HEAD")
    edited = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "version": package,
        "commit": commit,
        "dirty": None if commit is None else bool(edited),
    }


def in_words(code: dict[str, Any]) -> str:
    """`0.1.0, commit 0123456789ab, edited`."""
    words = [f"mgpt {code['version']}"]
    if code["commit"]:
        words.append(f"commit {code['commit'][:12]}")
    if code["dirty"]:
        words.append("edited")
    return ", ".join(words)


@cache
def edits() -> str:
    """The difference between the checkout and its commit, as a patch."""
    return _git("diff", "HEAD", "--no-color") or ""


def _git(*words: str) -> str | None:
    if not (ROOT / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(ROOT), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
