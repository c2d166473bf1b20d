"""What showing a step in Weights & Biases costs, while the service is well, ill, silent or away.

    python tests/benchmarks/tracking.py

Each row is a process of its own, with the real client and a stand-in of the service on loopback
that falls ill after the run has begun. Steps of some work alternate with steps of the same work
whose figures are shown, so that what else the machine does meets both alike; compared are their
sums, by the process's CPU time and by the clock.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from corpora import conditions, show

sys.path.append(str(Path(__file__).parents[1] / "tracking"))
from wandb_service import KEY, Service

from mgpt.tracking.tracker import Tracker, TrackingConfig

NUM_FIGURES = 60  # of a step of training: losses by task, source and kind, times
MOODS = ("offline", "well", "500", "silent", "away at the start")


def steps(service: Path, mode: str, folder: Path, num_steps: int, repeats: int) -> None:
    """A run in this process; prints one JSON line."""
    figures = {f"figure_{n}": n / 7 for n in range(NUM_FIGURES)}
    sums = {"alone": [0.0, 0.0], "shown": [0.0, 0.0]}
    slowest_ms = 0.0
    matrix = np.ones((256, 256), np.float32)
    with Tracker(TrackingConfig(mode=mode), folder, "pretrain", record=False) as tracker:
        tracker.log(0, figures)
        service.touch()  # from here on it is ill
        time.sleep(1)
        for step in range(1, num_steps + 1):
            for kind, cell in sums.items():
                cpu, clock = time.process_time(), time.perf_counter()
                for _ in range(repeats):
                    matrix = matrix @ matrix / 256
                if kind == "shown":
                    began = time.perf_counter()
                    tracker.log(step, figures)
                    slowest_ms = max(slowest_ms, 1e3 * (time.perf_counter() - began))
                cell[0] += time.process_time() - cpu
                cell[1] += time.perf_counter() - clock
        began = time.perf_counter()
    end_s = time.perf_counter() - began
    print(json.dumps({**sums, "slowest_ms": slowest_ms, "end_s": end_s}))


def measure(mood: str, num_steps: int, repeats: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder, Service().running() as service:
        sign = Path(folder) / "begun"
        mode = "offline" if mood == "offline" else "online"
        environment = {**os.environ, **service.environment}
        if mood == "away at the start":
            environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
        words = ["--one", str(sign), mode, folder, str(num_steps), str(repeats)]
        run = subprocess.Popen(
            [sys.executable, __file__, *words], env=environment, stdout=subprocess.PIPE, text=True
        )
        while not sign.exists() and run.poll() is None:
            time.sleep(0.02)
        if mood in ("500", "silent"):
            service.mood = mood  # type: ignore[assignment]
        output, _ = run.communicate(timeout=900)
    told = json.loads(output.splitlines()[-1])
    alone, shown = told["alone"], told["shown"]
    return {
        "service": mood,
        "step_ms": 1e3 * alone[0] / num_steps,
        "shown_cpu_ms": 1e3 * (shown[0] - alone[0]) / num_steps,
        "cpu ratio": shown[0] / alone[0],
        "clock ratio": shown[1] / alone[1],
        "slowest_log_ms": told["slowest_ms"],
        "end_s": told["end_s"],
    }


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        sign, mode, folder, *numbers = sys.argv[2:]
        steps(Path(sign), mode, Path(folder), *map(int, numbers))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=60, help="matrix products of a step")
    parser.add_argument("--services", nargs="+", default=MOODS, choices=MOODS)
    arguments = parser.parse_args()
    rows = [measure(mood, arguments.steps, arguments.repeats) for mood in arguments.services]
    show(rows, conditions())


if __name__ == "__main__":
    main()
