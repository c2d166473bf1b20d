"""What the quickstart learns over several seeds and both data types: mean and worst value.

Runs `mgpt pipeline recipe=quickstart` once for each (dtype, seed), each in a folder of its own, and
prints a Markdown table and JSON. A run that was stopped resumes; one that is complete is only read.
`--avx2` imitates a processor without AVX-512 and bfloat16; then only float32 makes sense.

    python tests/benchmarks/quickstart_seeds.py --output outputs/seeds --seeds 0 1 2
    python tests/benchmarks/quickstart_seeds.py --output outputs/seeds --dtypes float32 --avx2
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

# ATen's and oneDNN's AVX2 kernels; MKL chooses its own kernels.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def run(output: Path, dtype: str, seed: int, avx2: bool, overrides: list[str]) -> dict:
    """Runs or resumes one pipeline and returns its report."""
    folder = output / f"{dtype}{'_avx2' if avx2 else ''}_{seed}"
    command = [sys.executable, "-m", "mgpt", "pipeline", "recipe=quickstart", f"seed={seed}"]
    command += [f"parallel.dtype={dtype}", f"output={folder}", "tracking=disabled", *overrides]
    with (output / f"{folder.name}.log").open("a") as log:
        env = os.environ | (AVX2 if avx2 else {})
        subprocess.run(command, check=True, env=env, stdout=log, stderr=subprocess.STDOUT)
    report = json.loads((folder / "report.json").read_text())
    return report | {"folder": folder.name}


def rows(reports: list[dict]) -> list[dict]:
    """Mean and worst over the runs of each metric, with its constant, ceiling and goal."""
    found = []
    for task, measured in reports[0]["measures"]["tasks"].items():
        for name, metric in measured["metrics"].items():
            values = [one["measures"]["tasks"][task]["metrics"][name]["model"] for one in reports]
            worst = min(values) if metric["higher_is_better"] else max(values)
            found.append(
                {
                    "task": task,
                    "metric": name,
                    "unit": metric["unit"],
                    "mean": statistics.mean(values),
                    "worst": worst,
                    "values": values,
                    "constant": metric["constant"],
                    "ceiling": metric["ceiling"],
                    "goal": metric.get("goal"),
                    "higher_is_better": metric["higher_is_better"],
                }
            )
    return found


def print_table(by_dtype: dict[str, list[dict]]) -> None:
    names = list(by_dtype)
    head = ["task", "metric", *(f"{name}: mean, worst" for name in names)]
    print("| " + " | ".join([*head, "constant", "ceiling", "goal"]) + " |")
    print("|" + "---|" * (len(head) + 3))
    for place, first in enumerate(by_dtype[names[0]]):
        cells = [first["task"], first["metric"]]
        for name in names:
            row = by_dtype[name][place]
            cells.append(f"{row['mean']:.3f}, {row['worst']:.3f}{_mark(row)}")
        goal = "" if first["goal"] is None else f"{first['goal']:g}"
        cells += [f"{first['constant']:.3f}", f"{first['ceiling']:.3f}", goal]
        print("| " + " | ".join(cells) + " |")


def _mark(row: dict) -> str:
    if row["goal"] is None:
        return ""
    gap = row["worst"] - row["goal"]
    return "" if (gap >= 0) == row["higher_is_better"] or gap == 0 else " (missed)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("overrides", nargs="*", help="fields of the pipeline, after --")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    by_dtype, times = {}, {}
    for dtype in args.dtypes:
        reports = []
        for seed in args.seeds:
            report = run(args.output, dtype, seed, args.avx2, args.overrides)
            stages = report["conditions"].get("stages", [])
            total_s = sum(stage["seconds"] for stage in stages)
            times[report["folder"]] = {stage["name"]: stage["seconds"] for stage in stages}
            print(f"{report['folder']}: {total_s:,.0f} s in all", flush=True)
            reports.append(report)
        by_dtype[dtype] = rows(reports)
    print_table(by_dtype)
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    result = {"metrics": by_dtype, "seconds": times, "largest_process_mb": round(peak_mb)}
    (args.output / "seeds.json").write_text(json.dumps(result, indent=1))
    print(f"largest process: {peak_mb:,.0f} MB; all values in {args.output / 'seeds.json'}")


if __name__ == "__main__":
    main()
