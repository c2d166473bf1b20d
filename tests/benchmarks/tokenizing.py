"""`mgpt tokenize` against a straightforward loop, and what bad samples cost.

    python tests/benchmarks/tokenizing.py --px 64 256 512 --images 1600 800 240

Both sides read the same raw shards, decode, crop to the same buckets and encode with the same
VQGAN; the loop takes one picture after another, torch using every core, and writes one pickle a
picture. The codes are compared. `mgpt tokenize` runs with a worker a core; what it takes to start
processes and load the model (a job of one sample a worker) is measured apart and taken off. Both
sides run in turn, and the best of `--repeats` counts.

A busy machine falsifies times by the clock, so both sides also run with one thread in one process,
in CPU seconds: that ratio leaves out what a worker a core gains over torch's threads. Bad samples
are cut JPEGs, one after each hundred, in pairs of runs with and without, likewise in CPU seconds.
"""

import argparse
import io
import math
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpora import conditions, show
from PIL import Image

from data_pipeline.raw.shards import Picture, RawSample, RawShardReader, RawShardWriter
from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from data_pipeline.tokenizing.encoding import vq_codes
from data_pipeline.tokenizing.fitting import Target, bucket
from mgpt.data.dataset import open_dataset
from mgpt.images.pixels import fit, open_image
from mgpt.tokenizers.folder import load_tokenizer
from mgpt.tokenizers.vqgan import Vqgan
from mgpt.tracking.tracker import Tracker, TrackingConfig


def write_raw(folder: Path, px: int, images: int, shards: int, bad_every: int = 0) -> None:
    """JPEGs of 1.2 to 1.6 times the target, of many aspect ratios: smooth noise with grain."""
    rng = np.random.default_rng(px)
    for shard in range(shards):
        with RawShardWriter(folder / f"{shard:05d}.tar") as writer:
            for number in range(images // shards):
                scale, aspect = rng.uniform(1.2, 1.6), rng.uniform(0.6, 1.6)
                size = round(px * scale * aspect**0.5), round(px * scale / aspect**0.5)
                coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
                levels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
                grain = rng.integers(-12, 13, levels.shape, dtype=np.int16)
                noise = Image.fromarray((levels + grain).clip(0, 255).astype(np.uint8))
                buffer = io.BytesIO()
                noise.save(buffer, "JPEG", quality=90)
                data = buffer.getvalue()
                members = {f"{number:06d}": data}
                if bad_every and number % bad_every == 0:
                    members[f"{number:06d}-cut"] = data[: len(data) // 2]
                for key, data in members.items():
                    picture = Picture(data, "jpg")
                    writer.add(RawSample(key, {"image": picture}, {"caption": "noise"}))
            writer.close()


def straightforward(raw: Path, output: Path, vq: Vqgan, px: int) -> dict[str, np.ndarray]:
    """One picture at a time, one pickle each."""
    output.mkdir()
    found = {}
    target = Target(px, 2 * vq.cfg.downsample)
    for path in sorted(raw.glob("*.tar")):
        with RawShardReader.open(path) as reader:
            for sample in reader:
                key = f"{path.stem}/{sample.key}"
                picture = open_image(sample.pictures["image"].data)
                fitted, _ = fit(picture, bucket(*picture.size, target), key, seed=0)
                codes_HW = vq_codes(vq, np.asarray(fitted)[None])[0]
                record = {"token": codes_HW.flatten().tolist(), "text": sample.meta["caption"]}
                (output / f"{path.stem}-{sample.key}.pkl").write_bytes(pickle.dumps(record))
                found[key] = codes_HW
    return found


def run_tokenize(raw: Path, output: Path, vq: str, px: int, workers: int, tracker: Tracker) -> None:
    cfg = TokenizeConfig(
        input=str(raw), output=str(output), vq=vq, resolution=[px], workers=workers
    )
    tokenize(cfg, tracker)


def timed(call: Callable[[], Any], clock: Callable[[], float]) -> tuple[float, Any]:
    """Seconds of one call, and what it gave."""
    started = clock()
    result = call()
    return clock() - started, result


def compare(root: Path, px: int, images: int, vq: str, tracker: Tracker, repeats: int) -> dict:
    """One row: both sides in turn, the best of `repeats` each."""
    cores = os.cpu_count() or 1
    raw, few, model = root / f"raw{px}", root / f"few{px}", load_tokenizer(vq)
    write_raw(raw, px, images, shards=4 * cores)
    write_raw(few, px, cores, shards=cores)
    row: dict[str, Any] = {"px": px, "vq": vq}
    for per, clock, size in (("", time.perf_counter, cores), ("cpu_", time.process_time, 1)):
        best = {"loop": math.inf, "start": math.inf, "job": math.inf}
        for repeat in range(repeats):
            end = f"{px}.{per}{repeat}"
            calls: dict[str, Callable[[], Any]] = {
                "loop": partial(straightforward, raw, root / f"pickles{end}", model, px),
                "start": partial(run_tokenize, few, root / f"start{end}", vq, px, size, tracker),
                "job": partial(run_tokenize, raw, root / f"tokens{end}", vq, px, size, tracker),
            }
            for name, call in calls.items():
                torch.set_num_threads(size)
                seconds, result = timed(call, clock)
                best[name] = min(best[name], seconds)
                if name == "loop":
                    codes = result
        job_s = best["job"] - best["start"]
        row["images"] = len(codes)
        row[f"loop_images_per_{per}s"] = round(len(codes) / best["loop"], 1)
        row[f"tokenize_images_per_{per}s"] = round(len(codes) / job_s, 1)
        row[f"{per}ratio"] = round(best["loop"] / job_s, 2)
        row[f"{per}start_s"] = round(best["start"], 1)
    row["same_codes"] = f"{_agreement(codes, root / f'tokens{px}.0' / str(px)):.4%}"
    return row


def _agreement(theirs: dict[str, np.ndarray], folder: Path) -> float:
    """Share of equal codes; every picture must be on both sides."""
    dataset = open_dataset(folder)
    assert len(dataset) == len(theirs), (len(dataset), len(theirs))
    same = total = 0
    for index in range(len(dataset)):
        codes_HW = theirs["/".join(dataset.identity(index))]
        ours_HW = dataset.sample(index).codes["image"]
        same += int((codes_HW == ours_HW).sum()) if codes_HW.shape == ours_HW.shape else 0
        total += codes_HW.size
    return same / total


def bad_samples(root: Path, px: int, images: int, vq: str, tracker: Tracker, repeats: int) -> dict:
    """What one bad sample in a hundred costs, in CPU time: pairs of runs side by side.

    The bad ones come on top of the good ones: fewer good ones would fill other batches, and what
    torch prepares for each new shape is more than 3 % of a short run. A run's start is in both of
    a pair. The median of the pairs and its quartiles tell what a cost is to be seen against.
    """
    torch.set_num_threads(1)
    write_raw(root / "good", px, images, shards=1)
    write_raw(root / "bad", px, images, shards=1, bad_every=100)
    seconds: dict[str, list[float]] = {"good": [], "bad": []}
    for repeat in range(repeats):
        for name in seconds if repeat % 2 else reversed(seconds):
            output = root / f"{name}{repeat}"
            run = partial(run_tokenize, root / name, output, vq, px, 1, tracker)
            seconds[name].append(timed(run, time.process_time)[0])
    costs = np.array(seconds["bad"]) / np.array(seconds["good"]) - 1
    low, median, high = np.quantile(costs, [0.25, 0.5, 0.75])
    return {
        "px": px,
        "images": images,
        "pairs": repeats,
        "all_good_images_per_cpu_s": round(images / min(seconds["good"]), 1),
        "one_percent_bad_images_per_cpu_s": round(images / min(seconds["bad"]), 1),
        "cost_of_the_best": f"{min(seconds['bad']) / min(seconds['good']) - 1:+.1%}",
        "cost": f"{median:+.1%}",
        "quartiles": f"{low:+.1%} to {high:+.1%}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--px", type=int, nargs="*", default=[64, 256, 512])
    parser.add_argument("--images", type=int, nargs="*", default=[1600, 800, 240])
    parser.add_argument("--vq", default="photos_f16", help="for both sides")
    parser.add_argument("--bad", type=int, default=1000, help="samples of the part with bad ones")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=9, help="of runs with and without bad ones")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        tracker = Tracker(
            TrackingConfig(mode="disabled"), root / "run", "benchmark", record=False, is_main=False
        )
        rows = [
            compare(root, px, images, arguments.vq, tracker, arguments.repeats)
            for px, images in zip(arguments.px, arguments.images, strict=True)
        ]
        if rows:
            show(rows, conditions(torch=torch.__version__))
        if arguments.bad:
            row = bad_samples(root, 64, arguments.bad, arguments.vq, tracker, arguments.pairs)
            show([row], conditions(torch=torch.__version__, vq=arguments.vq))


if __name__ == "__main__":
    main()
