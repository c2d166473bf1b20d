"""Peak memory of an import or export, in a process of its own.

peak = write_peak("import", Path("data/models/30b"), Path("out"))
peak.grown_bytes            # above what planning had left
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CHILD = """
import sys
from pathlib import Path
from mgpt.weights import meta
from mgpt.stages.released import plan_import
from mgpt.stages.transformers_export import plan_export

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

action, source, output, mapped_bytes = sys.argv[1:]
if mapped_bytes != "None":
    meta._MAPPED_BYTES = int(mapped_bytes)
planned = plan_import(Path(source)) if action == "import" else plan_export(source)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kilobytes("VmRSS")
planned.write(Path(output))
print(kilobytes("VmHWM") - before, kilobytes("VmHWM"))
"""


@dataclass(frozen=True)
class Peak:
    grown_bytes: int
    """How far the process rose above what planning had left."""
    whole_bytes: int


def write_peak(
    action: str, source: Path, output: Path, mapped_bytes: int | None = None, timeout_s: int = 1800
) -> Peak:
    """Runs `action` ("import" or "export"). `mapped_bytes` is how much of one of Meta's files is
    read before it is mapped anew; None leaves it."""
    run = subprocess.run(
        [sys.executable, "-c", CHILD, action, str(source), str(output), str(mapped_bytes)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=True,
    )
    grown, whole = (int(word) * 1024 for word in run.stdout.split())
    return Peak(grown, whole)
