"""Tokenising: every key written or refused, the same bytes whoever does it, nothing done twice."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.raw.shards import Picture, RawSample
from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import TokenizeJob, tokenize
from data_pipeline.tokenizing.claims import Claims
from data_pipeline.tokenizing.encoding import vq_codes
from data_pipeline.tokenizing.filters import FilterConfig
from data_pipeline.tokenizing.fitting import Target, decode, fit_fields
from data_pipeline.tokenizing.workers import WORK_FOLDER
from mgpt.data.dataset import open_dataset
from mgpt.data.shards import Shard, read_manifest
from mgpt.dtypes import CODES
from mgpt.errors import ConfigError, DataError, MachineError
from mgpt.images.pixels import MAX_PIXELS
from mgpt.tokenizers.folder import load_tokenizer, save_tokenizer
from mgpt.tokenizers.vqgan import Vqgan


@pytest.fixture
def raw(tmp_path, write_tar, picture) -> Path:
    """Three raw shards of twelve samples: several sizes, a depth field, some bad ones."""
    for shard in range(3):
        members = {}
        for number in range(12):
            key = f"{shard}-{number:02d}.v1"
            size = [(40, 32), (32, 32), (20, 20)][number % 3]
            members[f"{key}.png"] = picture(*size, seed=100 * shard + number)
            if number % 4 == 0:
                members[f"{key}.depth.png"] = picture(*size, seed=number, mode="L")
            members[f"{key}.json"] = json.dumps({"caption": f"picture {number}"}).encode()
        members[f"{shard}-bad.png"] = b"no picture"
        members[f"{shard}-text.json"] = b'{"dialog": [["hello", "hi"]]}'
        members[f"{shard}-tasks.png"] = picture()
        members[f"{shard}-tasks.json"] = b'{"tasks": ["juggling"]}'
        write_tar(tmp_path / "raw" / f"{shard:05d}.tar", members)
    return tmp_path / "raw"


@pytest.fixture
def config(tmp_path, raw, vq) -> Callable[..., TokenizeConfig]:
    def make(output: str, **changes) -> TokenizeConfig:
        settings = {"input": str(raw), "vq": vq, "resolution": [32, 16], "device": "cpu"}
        return TokenizeConfig(output=str(tmp_path / output), **(settings | changes))

    return make


def test_every_key_is_written_or_refused_at_every_resolution(tmp_path, config, tracker):
    summary = tokenize(config("out"), tracker)
    refused = {"undecodable": 3, "unknown_task": 3}
    assert summary == {
        "shards": 3,
        "inputs": 45,
        "damaged": [],
        "written": {"16": 39, "32": 27},
        "rejected": {"16": refused, "32": {**refused, "too_small": 12}},
        "dtype": f"float32 ({CODES})",
    }
    for px in (16, 32):
        for name in ("00000", "00001", "00002"):
            shard = Shard(tmp_path / "out" / str(px), name)
            keys = [shard.key(i) for i in range(len(shard))]
            refused_keys = [key for key, _ in shard.manifest.rejected]
            assert len(keys) + len(refused_keys) == shard.manifest.raw["inputs"] == 15
            assert not set(keys) & set(refused_keys)
            assert keys == [key for key in keys if "text" in key or key.endswith(".v1")]


def test_codes_are_those_of_the_fitted_picture_alone(tmp_path, config, tracker, vq, picture):
    tokenize(config("out"), tracker)
    dataset = open_dataset(tmp_path / "out" / "32")
    sample = dataset.sample(0)
    assert (dataset.identity(0), sample.key) == (("00000", "0-00.v1"), "0-00.v1")
    raw = {
        "image": Picture(picture(40, 32, seed=0), "png"),
        "depth": Picture(picture(40, 32, seed=0, mode="L"), "png"),
    }
    pictures = decode(RawSample("0-00.v1", raw, {}), True, MAX_PIXELS)
    fitted = fit_fields(pictures, Target(32, 8), "00000/0-00.v1", seed=0)
    model = load_tokenizer(vq)
    assert set(sample.codes) == {"image", "depth"}
    for name, codes_HW in sample.codes.items():
        # A batch may differ from one picture alone in rounding, and so in a near tie.
        alone_HW = vq_codes(model, fitted.levels[name][None])[0]
        assert codes_HW.dtype == np.uint16
        assert np.mean(codes_HW == alone_HW) > 0.95
    assert sample.meta["caption"] == "picture 0"
    assert sample.meta["geometry"] == {"image": fitted.crops["image"].to_json()}


def test_two_workers_give_the_bytes_of_one(tmp_path, config, tracker, tree):
    one = tokenize(config("one"), tracker)
    two = tokenize(config("two", workers=2), tracker)
    assert one == two and tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_rerun_changes_nothing_and_leaves_no_claims(tmp_path, config, tracker):
    first = tokenize(config("out"), tracker)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert tokenize(config("out"), tracker) == first
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert not (tmp_path / "out" / WORK_FOLDER).exists()


def test_killed_and_started_again_gives_the_same_bytes(tmp_path, raw, vq, config, tracker, tree):
    tokenize(config("whole"), tracker)
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from data_pipeline.tokenizing import encoding\n"
        "from data_pipeline.tokenize import Config as TokenizeConfig, tokenize\n"
        "from mgpt.tracking.tracker import Tracker, TrackingConfig\n"
        "write = encoding.ShardEncoder.finish\n"
        "def slow(self):\n"
        "    import time\n"
        "    time.sleep(0.3)\n"
        "    write(self)\n"
        "encoding.ShardEncoder.finish = slow\n"
        "tracker = Tracker(TrackingConfig(mode='disabled'), Path('.'), 't', record=False)\n"
        "tokenize(TokenizeConfig(input=sys.argv[1], output=sys.argv[2], vq=sys.argv[3],\n"
        "                        resolution=[16, 32], device='cpu'), tracker)\n"
    )
    output = tmp_path / "killed"
    command = [sys.executable, str(script), str(raw), str(output), vq]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (output / "16" / "00001.json").exists():  # 00001 is done at 16 and not at 32
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    assert not (output / "32" / "00001.json").exists()
    tokenize(config("killed"), tracker)
    assert tree(output) == tree(tmp_path / "whole")


def test_a_worker_that_was_overtaken_publishes_nothing(tmp_path, config):
    job = TokenizeJob.prepare(config("out"))
    worker = job.open(0)
    with Claims(job.output / WORK_FOLDER) as claims:
        claim = claims.take("00000")
        (job.output / WORK_FOLDER / "00000.1").write_text("somebody else")
        with pytest.raises(Exception, match="00000"):
            worker.work("00000", claim, lambda count: None)
    assert not job.is_done("00000")
    assert not list((job.output / "16").iterdir())


def test_other_settings_and_models_are_refused_by_name(tmp_path, config, tracker, vq):
    tokenize(config("out"), tracker)
    with pytest.raises(ConfigError, match="seed=0 there, 1 here"):
        tokenize(config("out", seed=1), tracker)
    with pytest.raises(ConfigError, match=r"filters\.min_side_px=0 there, 8 here"):
        tokenize(config("out", filters=FilterConfig(min_side_px=8)), tracker)
    torch.manual_seed(1)
    save_tokenizer(Vqgan(load_tokenizer(vq).cfg).eval(), tmp_path / "other")
    with pytest.raises(ConfigError, match="vq_fingerprint"):
        tokenize(config("out", vq=str(tmp_path / "other")), tracker)


def test_a_raw_shard_that_changed_is_refused(config, raw, tracker, write_tar, picture):
    tokenize(config("out"), tracker)
    write_tar(raw / "00001.tar", {f"{n}.png": picture(seed=n) for n in range(40)})
    with pytest.raises(DataError, match=r"00001\.tar"):
        tokenize(config("out"), tracker)


def test_a_damaged_shard_keeps_its_whole_samples(tmp_path, config, raw, tracker):
    data = (raw / "00002.tar").read_bytes()
    (raw / "00002.tar").write_bytes(data[: len(data) // 2])
    summary = tokenize(config("out"), tracker)
    assert summary["damaged"] == ["00002"]
    manifest = read_manifest(tmp_path / "out" / "16", "00002")
    assert "end marker" in manifest.raw["damaged"]
    assert [reason for _, reason in manifest.rejected] == ["cut_short"]
    assert manifest.samples + 1 == manifest.raw["inputs"] > 4


def test_more_raw_shards_may_come_later(tmp_path, config, raw, tracker, write_tar, picture):
    before = tokenize(config("out"), tracker)
    write_tar(raw / "00003.tar", {"new.png": picture(seed=7)})
    after = tokenize(config("out"), tracker)
    assert after["written"]["32"] == before["written"]["32"] + 1
    assert after["shards"] == 4


def test_settings_that_cannot_be(config):
    with pytest.raises(ValueError, match="twice"):
        config("out", resolution=[32, 32])
    with pytest.raises(ValueError, match="workers"):
        config("out", workers=0)


@pytest.mark.parametrize("filters", [{}, {"drop_duplicates": True, "max_look_bits": 3}])
def test_decoding_ahead_gives_the_same_bytes(tmp_path, config, tracker, tree, filters):
    filters = FilterConfig(**filters)
    in_turn = tokenize(config("in_turn", filters=filters, batch_pixels=2048), tracker)
    ahead = tokenize(config("ahead", filters=filters, batch_pixels=2048, decoders=3), tracker)
    assert in_turn == ahead and tree(tmp_path / "in_turn") == tree(tmp_path / "ahead")


def test_an_error_in_a_thread_is_that_of_the_job(config, tracker, monkeypatch):
    def broken(*_):
        raise MachineError("CUDA error: out of memory")

    monkeypatch.setattr("data_pipeline.tokenizing.worker.vq_codes", broken)
    with pytest.raises(MachineError, match="out of memory"):
        tokenize(config("out", decoders=2), tracker)


def test_compiled_layers_see_full_batches_only(tmp_path, config, tracker, monkeypatch, caplog):
    """All of compiling but the making of machine code; so every code is the exact one."""
    seen: list[torch.Size] = []

    def as_it_is(graph, inputs):
        seen.append(next(one.shape for one in inputs if one.ndim == 4 and one.shape[1] == 3))
        return graph.forward

    compile_as_it_is = functools.partial(torch.compile, backend=as_it_is)
    monkeypatch.setattr("data_pipeline.tokenizing.encoding.torch.compile", compile_as_it_is)
    monkeypatch.setattr("data_pipeline.tokenizing.encoding.COMPARED_PICTURES", 8)
    torch._dynamo.reset()
    tokenize(config("exact", resolution=[32], batch_pixels=2048), tracker)
    tokenize(config("compiled", resolution=[32], batch_pixels=2048, compile=True), tracker)
    assert seen and len({shape[2:] for shape in seen}) == len(seen), "one program a size"
    assert all(num == -(-2048 // (high * wide)) for num, _, high, wide in seen)
    (said,) = [line for line in caplog.messages if "exact mode" in line]
    assert float(said.split(" %")[0]) > 99  # a fuller batch rounds otherwise: a rare near tie
    exact, fast = (open_dataset(tmp_path / name / "32") for name in ("exact", "compiled"))
    assert len(exact) == len(fast)
    assert exact.manifests[0].settings_fingerprint != fast.manifests[0].settings_fingerprint


def test_bf16_says_how_many_codes_are_exact(tmp_path, config, tracker, caplog, monkeypatch):
    monkeypatch.setattr("data_pipeline.tokenizing.encoding.COMPARED_PICTURES", 8)
    tokenize(config("exact", resolution=[32]), tracker)
    tokenize(config("fast", resolution=[32], dtype="bfloat16"), tracker)
    (said,) = [line for line in caplog.messages if "exact mode" in line]
    share = float(said.split(" %")[0])
    assert 50 < share <= 100
    exact, fast = (open_dataset(tmp_path / name / "32") for name in ("exact", "fast"))
    same = [exact.codes(i)["image"] == fast.codes(i)["image"] for i in (0, 1, 2)]
    assert 0.5 < np.mean(np.concatenate([one.ravel() for one in same])) <= 1
    assert exact.manifests[0].settings_fingerprint != fast.manifests[0].settings_fingerprint


def test_an_output_of_an_older_version_keeps_its_way_with_palettes(
    tmp_path, tracker, vq, write_tar, picture, tree
):
    form = {f"{n}.png": picture(64, 64, n, mode="P") for n in range(2)}
    write_tar(tmp_path / "raw" / "0.tar", form)
    given = {"input": str(tmp_path / "raw"), "vq": vq, "resolution": [32], "device": "cpu"}
    new = TokenizeConfig(output=str(tmp_path / "new"), **given)
    older = TokenizeConfig(output=str(tmp_path / "old"), convert_palette=False, **given)
    tokenize(new, tracker)
    tokenize(older, tracker)
    assert "convert_palette" not in json.loads((tmp_path / "old/settings.json").read_bytes())
    kept = tree(tmp_path / "old")
    (tmp_path / "old" / "32" / "0.json").unlink()
    tokenize(dataclasses.replace(older, convert_palette=True), tracker)
    assert tree(tmp_path / "old") == kept
    assert kept["32/0.tar"] != tree(tmp_path / "new")["32/0.tar"]
