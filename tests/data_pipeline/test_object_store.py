"""The whole way over s3://, against moto's server: the bytes of a local run, each sample once."""

import json
import os
import re
import shlex
import signal
import threading
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pytest

from data_pipeline.pack import pack
from data_pipeline.scenes.corpus import CorpusConfig
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import TokenizeJob, tokenize
from data_pipeline.tokenizing.claims import ClaimLost, Claims
from data_pipeline.tokenizing.unit_stamps import UNITS_FILE
from data_pipeline.tokenizing.workers import WORK_FOLDER
from data_pipeline.verify import Config as VerifyConfig
from data_pipeline.verify import verify
from mgpt.cli.command import main
from mgpt.data.dataset import open_dataset
from mgpt.errors import DataError
from mgpt.files.storage import Location, create, locate, relative, write_whole

SCENES = CorpusConfig(num_scenes=24, split="train", area_px=32)


def pack_config(output: str, **changes) -> PackConfig:
    settings = {"source": "scenes", "samples_per_shard": 6, "scenes": SCENES, **changes}
    return PackConfig(output=output, **settings)


def tokenize_config(place: str, vq: str, **changes) -> TokenizeConfig:
    settings = {"resolution": [16, 32], "device": "cpu", **changes}
    return TokenizeConfig(input=f"{place}/raw", output=f"{place}/tokens", vq=vq, **settings)


def content(folder: Location) -> dict[str, bytes]:
    """All files but the stamps of raw shards: a store has versions where a disk has times."""
    return {
        str(relative(path, folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != UNITS_FILE
    }


@pytest.fixture
def local(tmp_path: Path, vq: str, tracker) -> Path:
    """What a local run makes of the same scenes."""
    pack(pack_config(str(tmp_path / "raw")), tracker)
    tokenize(tokenize_config(str(tmp_path), vq), tracker)
    return tmp_path


def kill_one(when: Callable[[], bool], killed: list[int]) -> threading.Thread:
    """SIGKILL one worker of this process, once `when` holds."""
    stop_at = threading.Event()

    def hunt() -> None:
        while not killed and not stop_at.wait(0.005):
            children = active_children()
            if children and when():
                os.kill(children[0].pid, signal.SIGKILL)
                killed.append(children[0].pid)

    thread = threading.Thread(target=hunt, daemon=True)
    thread.start()
    return thread


def test_two_workers_one_of_them_killed_make_what_a_local_run_makes(s3, local, vq, tracker):
    place = "s3://corpus"
    assert pack(pack_config(f"{place}/raw"), tracker) == pack(
        pack_config(str(local / "raw")), tracker
    )
    assert content(locate(f"{place}/raw")) == content(local / "raw")
    killed: list[int] = []
    claimed = f"/tokens/{WORK_FOLDER}/0000"
    hunter = kill_one(
        lambda: any(method == "PUT" and claimed in path for method, path in s3.seen), killed
    )
    cfg = tokenize_config(place, vq, workers=2)
    first = tokenize(cfg, tracker)
    hunter.join(timeout=5)
    assert killed
    assert content(locate(f"{place}/tokens")) == content(local / "tokens")

    s3.seen.clear()
    assert tokenize(cfg, tracker) == first
    assert {method for method, _ in s3.seen} <= {"GET", "HEAD"}, "a rerun changes nothing"

    result = verify(VerifyConfig(input=f"{place}/tokens", raw=f"{place}/raw"), tracker)
    assert result["ok"], result["problems"]
    assert (result["inputs"], result["duplicates"]) == (24, 0)

    ours, theirs = open_dataset(local / "tokens" / "32"), open_dataset(f"{place}/tokens/32")
    assert ours.fingerprint == theirs.fingerprint and len(ours) == len(theirs) > 0
    s3.seen.clear()
    for index in range(len(ours)):
        a, b = ours.sample(index), theirs.sample(index)
        assert (a.key, a.meta) == (b.key, b.meta)
        assert all((a.codes[name] == b.codes[name]).all() for name in a.codes)
    samples = [path for method, path in s3.seen if method == "GET" and path.endswith(".tar")]
    assert len(samples) == len(ours), "a sample is one ranged read"


def test_mixed_places(s3, local, vq, tracker):
    """Raw shards on the store, tokens on the disk: the same bytes."""
    pack(pack_config("s3://corpus/raw"), tracker)
    cfg = TokenizeConfig(
        input="s3://corpus/raw/*.tar",
        output=str(local / "mixed"),
        vq=vq,
        resolution=[16, 32],
        device="cpu",
    )
    tokenize(cfg, tracker)
    assert content(local / "mixed") == content(local / "tokens")


def test_a_worker_that_was_overtaken_publishes_nothing(s3, vq, tracker):
    pack(pack_config("s3://corpus/raw"), tracker)
    job = TokenizeJob.prepare(tokenize_config("s3://corpus", vq))
    worker = job.open(0)
    with Claims(job.output / WORK_FOLDER) as claims:
        claim = claims.take("00000")
        assert create(job.output / WORK_FOLDER / "00000.1", b"somebody else")
        with pytest.raises(ClaimLost):
            worker.work("00000", claim, lambda count: None)
    assert not job.is_done("00000") and not (job.folder(16) / "00000.tar").exists()


def test_answers_that_fail_change_no_byte(s3, local, vq, tracker):
    for end in ("00000.tar", "00001.json", "00002.index.npy"):
        s3.spoil("PUT", end, "unavailable")
        s3.spoil("PUT", end, "lost")
    s3.spoil("GET", "00003.tar", "unavailable", 2)
    pack(pack_config("s3://corpus/raw"), tracker)
    tokenize(tokenize_config("s3://corpus", vq), tracker)
    assert content(locate("s3://corpus/tokens")) == content(local / "tokens")


def test_what_a_dead_worker_left_of_a_shard_is_no_shard(s3, local, vq, tracker):
    """A tar without its manifest, of other bytes, is not read and is replaced."""
    pack(pack_config("s3://corpus/raw"), tracker)
    write_whole(locate("s3://corpus/tokens/32/00000.tar"), b"of a worker that died")
    with pytest.raises(DataError, match="no finished shard"):
        open_dataset("s3://corpus/tokens/32")
    tokenize(tokenize_config("s3://corpus", vq), tracker)
    assert content(locate("s3://corpus/tokens")) == content(local / "tokens")


def test_damage_on_the_store_is_reported(s3, vq, tracker):
    pack(pack_config("s3://corpus/raw"), tracker)
    tokenize(tokenize_config("s3://corpus", vq), tracker)
    path = locate("s3://corpus/tokens/32/00001.tar")
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    write_whole(path, bytes(data))
    result = verify(VerifyConfig(input="s3://corpus/tokens"), tracker)
    assert not result["ok"]
    assert "s3://corpus/tokens/32/00001.tar: sha256" in result["problems"][0]


def test_the_commands_write_there_and_a_finished_one_changes_nothing(s3, vq, capsys):
    def run(line: str) -> None:
        assert main([*shlex.split(line), "tracking=disabled"]) == 0

    pack_line = "pack source=scenes output=s3://corpus/raw scenes.num_scenes=6 scenes.area_px=32"
    tokenize_line = (
        f"tokenize input=s3://corpus/raw output=s3://corpus/tokens vq={vq} resolution=[32]"
    )
    run(pack_line)
    run(tokenize_line)
    assert main(["verify", "input=s3://corpus/tokens", "raw=s3://corpus/raw"]) == 0
    said = capsys.readouterr().out
    assert json.loads(said.splitlines()[-1])["ok"]
    (record,) = re.findall("tokenize: the record of s3://corpus/tokens stands in (.+)", said)
    assert (Path(record) / "metrics.jsonl").is_file()
    s3.seen.clear()
    run(pack_line)
    run(tokenize_line)
    assert "s3://corpus/tokens is complete" in capsys.readouterr().out
    assert {method for method, _ in s3.seen} <= {"GET", "HEAD"}


def test_one_object_is_one_file_and_names_are_names(s3, tmp_path, vq, tracker, write_tar, picture):
    data = write_tar(tmp_path / "a.tar", {"a.png": picture()}).read_bytes()
    keys = ["raw/00000.tar", "odd/[1].tar", "odd/q?.tar", "LAION [2B]/0.tar"]
    for key in keys:
        write_whole(locate(f"s3://corpus/{key}"), data)
    given = {
        "one": "s3://corpus/raw/00000.tar",
        "list": ["s3://corpus/raw/00000.tar", "s3://corpus/odd/[1].tar"],
        "odd": "s3://corpus/odd",
        "folder": "s3://corpus/LAION [2B]",
    }
    for name, source in given.items():
        output = f"s3://corpus/tokens [{name}]"
        cfg = TokenizeConfig(input=source, output=output, vq=vq, resolution=[32], device="cpu")
        tokenize(cfg, tracker)
        assert verify(VerifyConfig(input=output, raw=source), tracker)["ok"], name
    chat = [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]
    write_whole(locate("s3://corpus/rec/train.json"), json.dumps(chat).encode())
    cfg = PackConfig(source="chat", input="s3://corpus/rec/train.json", output=str(tmp_path / "o"))
    assert pack(cfg, tracker)["samples"] == 1
