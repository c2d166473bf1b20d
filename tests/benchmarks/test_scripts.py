"""The benchmarks run, in their smallest form, and print a table and JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.parametrize(
    ("command", "figure"),
    [
        ("packing.py --most 16384", "fill"),
        ("storage.py --samples 8", "shards_bytes_a_token"),
        ("reading.py --samples 8 --repeats 1", "codes ratio"),
        (
            "resume.py --samples 1000 --step-rows 1 --repeats 1 --foretold 9000",
            "first_batch_wall_ms",
        ),
        ("tokenizing.py --px --images --bad 8 --pairs 1", "cost"),
        (
            "loss_memory.py --tokens 64 --vocab-size 512 --widths 32 --checked 8 "
            "--checked-vocabulary 64",
            "ratio_beyond_gradients",
        ),
        (
            "throughput.py --hidden 32 --layers 1 --vocab-size 512 --documents 2 "
            "--batch-documents 2 --shorter 64 --threads 1 --repeats 1",
            "ratio_of_cpu_seconds",
        ),
        ("scenes_vq.py scenes_f8 --scenes 12", "decoded"),
        ("saving.py --layers 1 --tokens 8 --rounds 1", "stalled ratio"),
        ("optimizers.py --size debug --row-tokens 64 --steps 1", "update_share"),
    ],
)
def test_prints_its_table_and_json(command: str, figure: str) -> None:
    script, *arguments = command.split()
    run = subprocess.run(
        [sys.executable, str(FOLDER / script), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    *_, last = run.stdout.splitlines()
    told = json.loads(last)
    assert all(figure in row for row in told["results"]) and told["conditions"]["cores"]
    assert f"| {figure.replace('_', ' ')}" in run.stdout
