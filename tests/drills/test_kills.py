"""Tokenising under SIGKILL and on a full disk: the bytes of an undisturbed run, or nothing.

Four workers, each a start of the job by itself, are killed at random moments and started again
until the job is done: 10 kills in the short form, 200 in the long one (`-m long`). Then a lone
worker is killed, or its disk is full, at each write, fsync, link and rename in turn: at every
twelfth in the short form. Each prints a line of JSON for the record.
"""

import contextlib
import io
import itertools
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tarfile
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parent))
from faulty_disk import FULL_DISK_STATUS, break_disk

from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from data_pipeline.tokenizing.workers import WORK_FOLDER
from data_pipeline.verify import Config as VerifyConfig
from data_pipeline.verify import verify
from mgpt.data.shards import Shard
from mgpt.data.verify import verify_shard
from mgpt.errors import MgptError
from mgpt.files import atomic, storage
from mgpt.tokenizers.folder import save_tokenizer
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig
from mgpt.tracking.tracker import Tracker, TrackingConfig

WORKERS, SHARDS, SAMPLES = 4, 24, 24
ROUND_S = 120.0  # a round that takes longer hangs
# Workers that start in a moment: forked off a process that has imported all, and run nothing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["data_pipeline.tokenize", "data_pipeline.verify"])


def write_raw_shard(path: Path, samples: int, seed: int) -> None:
    """Noise of two sizes, one of them too small for the larger resolution, and a broken picture."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(samples):
            side = 32 if number % 3 else 20
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "PNG")
            data = buffer.getvalue() if number else b"no picture"
            for name, content in (("png", data), ("json", b'{"caption": "noise"}')):
                info = tarfile.TarInfo(f"{seed}-{number:03d}.v1.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw/, one/ (a single raw shard), vq/, and what undisturbed runs make of both."""
    root = tmp_path_factory.mktemp("kills")
    for number in range(SHARDS):
        write_raw_shard(root / "raw" / f"{number:05d}.tar", SAMPLES, number)
    write_raw_shard(root / "one" / "00000.tar", SAMPLES, 0)
    torch.manual_seed(0)
    small = {"ch": 8, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "z_channels": 8, "embed_dim": 8}
    save_tokenizer(Vqgan(VqganConfig(**small, n_embed=64, num_groups=4)).eval(), root / "vq")
    for name in ("raw", "one"):
        worker = CONTEXT.Process(target=run, args=(root, name, f"{name}-whole"))
        worker.start()
        worker.join(timeout=ROUND_S)
        assert worker.exitcode == 0
    return root


def run(root: Path, raw: str, output: str) -> None:
    """One start of the job, in a process of its own."""
    logging.disable()  # each start would say again what it rejects
    tracker = Tracker(TrackingConfig(mode="disabled"), root, "tokenize", record=False)
    cfg = TokenizeConfig(
        input=str(root / raw),
        output=str(root / output),
        vq=str(root / "vq"),
        resolution=[16, 32],
        device="cpu",
    )
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        tokenize(cfg, tracker)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def quiet() -> Tracker:
    return Tracker(TrackingConfig(mode="disabled"), Path("."), "verify", record=False)


# ------------------------------------------------------------------ kills at random moments


class Crowd:
    """Workers that are killed at random moments and replaced, until the job ends without them."""

    def __init__(self, root: Path, output: str, rng: random.Random) -> None:
        self._root, self._output, self._rng = root, output, rng
        self._workers: list[ForkServerProcess] = []
        self.kills = self.kills_at_work = 0

    def run(self, most_kills: int) -> None:
        """Until every worker has come to the end of the job by itself."""
        deadline = time.monotonic() + ROUND_S
        self._workers = [self._start() for _ in range(WORKERS)]
        try:
            while self._workers:
                assert time.monotonic() < deadline, "the job hangs"
                self._workers[0].join(timeout=self._rng.uniform(0.05, 0.6))
                for worker in [one for one in self._workers if one.exitcode is not None]:
                    assert worker.exitcode == 0, worker.exitcode
                    self._workers.remove(worker)
                if self._workers and self.kills < most_kills and self._has_begun():
                    self._kill(self._rng.randrange(len(self._workers)))
        finally:
            for worker in self._workers:
                worker.kill()
                worker.join()

    def _has_begun(self) -> bool:
        return any((self._root / self._output / WORK_FOLDER).glob("0*.*"))

    def _start(self) -> ForkServerProcess:
        worker = CONTEXT.Process(target=run, args=(self._root, "raw", self._output))
        worker.start()
        return worker

    def _kill(self, place: int) -> None:
        worker = self._workers[place]
        worker.kill()
        worker.join()
        if worker.exitcode != -signal.SIGKILL:
            return  # it had come to its end
        self.kills += 1
        self.kills_at_work += _has_claim(self._root / self._output / WORK_FOLDER, worker.pid)
        self._workers[place] = self._start()


def _has_claim(work: Path, pid: int | None) -> bool:
    for claim in work.glob("0*.*") if work.is_dir() else ():
        try:
            if json.loads(claim.read_bytes()).get("pid") == pid:
                return True
        except (OSError, ValueError):
            continue
    return False


def drill_kills(root: Path, wanted: int) -> None:
    rng = random.Random(0)
    whole, began = tree(root / "raw-whole"), time.monotonic()
    kills = at_work = rounds = 0
    while kills < wanted:
        crowd = Crowd(root, f"round-{rounds}", rng)
        crowd.run(wanted - kills)
        kills, at_work, rounds = kills + crowd.kills, at_work + crowd.kills_at_work, rounds + 1
        output = root / f"round-{rounds - 1}"
        assert tree(output) == whole
        result = verify(VerifyConfig(input=str(output), raw=str(root / "raw")), quiet())
        assert result["ok"], result["problems"]
        assert result["inputs"] == result["written"] + result["rejected"] == SHARDS * SAMPLES
        assert result["duplicates"] == 0
    figures = {
        "drill": "kills",
        "kills": kills,
        "kills_of_a_holder": at_work,
        "rounds": rounds,
        "workers": WORKERS,
        "raw_shards": SHARDS,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(figures))
    assert at_work >= wanted // 5, "kills that hit nobody at work show nothing"


def test_ten_kills_change_no_byte(place: Path) -> None:
    drill_kills(place, 10)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_hundred_kills_change_no_byte(place: Path) -> None:
    drill_kills(place, 200)


# ------------------------------------------------------------------ the n-th write, fsync, rename


def run_faulty(root: Path, output: str, fatal: int, how: str) -> None:
    """A start of the job whose `fatal`-th step on the disk kills it, or finds the disk full."""
    break_disk(fatal, how, ("fsync", "replace", "link"), openers=(atomic, storage))
    try:
        run(root, "one", output)
    except MgptError as error:
        assert "No space left" in str(error), error
        sys.exit(FULL_DISK_STATUS)


def whole_or_not_there(folder: Path, expected: dict[str, bytes]) -> None:
    """Whatever a reader takes for a finished shard is one, and each of its files is whole."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith(".") and WORK_FOLDER not in path.parts:
            assert path.read_bytes() == expected[str(path.relative_to(folder))], path
    for manifest in folder.glob("[0-9]*/*.json"):
        assert verify_shard(manifest.parent, manifest.stem) == []
        Shard(manifest.parent, manifest.stem)


def drill_steps(root: Path, how: str, stride: int) -> None:
    whole, tried = tree(root / "one-whole"), 0
    for fatal in itertools.count(0, stride):
        output = f"{how}-{fatal}"
        worker = CONTEXT.Process(target=run_faulty, args=(root, output, fatal, how))
        worker.start()
        worker.join(timeout=60)
        assert worker.exitcode is not None, "it hangs"
        if worker.exitcode == 0:  # the job has fewer steps
            break
        assert worker.exitcode == (-signal.SIGKILL if how == "kill" else FULL_DISK_STATUS)
        tried += 1
        whole_or_not_there(root / output, whole)
        again = CONTEXT.Process(target=run, args=(root, "one", output))
        again.start()
        again.join(timeout=60)
        assert again.exitcode == 0 and tree(root / output) == whole, f"step {fatal}"
    assert tree(root / output) == whole
    print(json.dumps({"drill": how, "steps": fatal, "tried": tried}))
    assert tried >= 60 // stride


@pytest.fixture(params=["kill", "full_disk"])
def how(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_at_every_twelfth_step_on_the_disk_nothing_half_written_is_read(place: Path, how: str):
    drill_steps(place, how, stride=12)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_at_every_step_on_the_disk_nothing_half_written_is_read(place: Path, how: str) -> None:
    drill_steps(place, how, stride=1)
