"""Freed memory stays with the process, and a setting of the environment's own is left alone."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource, sys
from mgpt.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    blocks = [b"x" * (4 << 20) for _ in range(3)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(mode: str, **environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    clean.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, "-c", CODE, mode]
    run = subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    done, faults = run.stdout.split()
    return done, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_block_that_was_freed_is_used_again_without_new_pages():
    done, faults = _page_faults("keep")
    _, before = _page_faults("plain")
    if done == "False":
        pytest.skip("another allocator than glibc's")
    assert faults < before / 2


def test_the_environment_decides_where_it_says_something():
    assert _page_faults("keep", MALLOC_ARENA_MAX="2")[0] == "False"
