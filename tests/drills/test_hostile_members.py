"""A raw shard made to do harm: every member refused by name, no code run, memory bounded.

What is asserted of time is work: how many bytes were read, how many pictures decoded. As a script
it prints how long each refusal took: `python tests/drills/test_hostile_members.py [folder]`.
"""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from data_pipeline.raw.sample_texts import MAX_JSON_PARTS
from data_pipeline.raw.shards import MAX_TEXT_BYTES, RawShardReader, Rejected
from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from data_pipeline.tokenizing.admission import Admission
from data_pipeline.tokenizing.filters import FilterConfig
from data_pipeline.verify import Config as VerifyConfig
from data_pipeline.verify import verify
from mgpt.data.shards import read_manifest
from mgpt.images.pixels import BYTES_A_PIXEL, MAX_PIXELS
from mgpt.tracking.tracker import Tracker, TrackingConfig

MOST_BYTES_ABOVE_NORMAL = 256 << 20


def photo(width: int = 96, height: int = 64, form: str = "JPEG", **options: object) -> bytes:
    levels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    image = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, rows: int) -> bytes:
    """A PNG whose header claims a size and whose data inflates to `rows` rows of black."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    deflate = zlib.compressobj(9)
    data = b"".join(deflate.compress(bytes(1 + 3 * width)) for _ in range(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", data + deflate.flush()), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, part) for name, part in parts)


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose frame header claims another size."""
    data = bytearray(photo())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


class Harm:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self._target}",)


def hostile_members(owned: Path) -> list[tuple[str, bytes, str]]:
    """(member name, content, reason of its key or `written`), in the order of the shard."""
    good, harm = photo(), pickle.dumps(Harm(owned))
    postscript = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({owned}) (w) file".encode()
    zipped = zlib.compress(bytes(50 << 20), 9)
    bomb_in_text = good[:2] + b"\xff\xfe" + struct.pack(">H", 40_000) + zipped[:39_998] + good[2:]
    return [
        ("pickled.pkl", harm, "missing_picture"),
        ("pickle_as_json.jpg", good, "text_not_utf8"),
        ("pickle_as_json.json", harm, "text_not_utf8"),
        ("pickle_as_picture.jpg", harm, "undecodable"),
        ("postscript.jpg", postscript, "undecodable"),
        ("beside.jpg", good, "written"),
        ("beside.pth", harm, "written"),
        ("../escaped.jpg", good, "unsafe_name"),
        ("/tmp/escaped.jpg", good, "unsafe_name"),
        ("a/../../escaped.jpg", good, "unsafe_name"),
        ("bell\a.jpg", good, "unsafe_name"),
        ("twice.jpg", good, "duplicate_member"),
        ("twice.png", good, "duplicate_member"),
        ("bomb.png", png(9_000, 9_000, 9_000), "too_many_pixels"),
        ("gigapixel.png", png(200_000, 200_000, 1), "too_many_pixels"),
        ("gigapixel_jpeg.jpg", jpeg_of_size(65_500, 65_500), "too_many_pixels"),
        ("more_data_than_rows.png", png(64, 64, 3_000), "written"),
        ("bomb_in_comment.jpg", bomb_in_text, "written"),
        ("truncated.jpg", photo(512, 512)[:-2_000], "undecodable"),
        ("truncated_png.png", photo(form="PNG")[:-300], "undecodable"),
        ("half_header.jpg", good[:20], "undecodable"),
        ("zero.jpg", b"", "undecodable"),
        ("zero_json.jpg", good, "bad_json"),
        ("zero_json.json", b"", "bad_json"),
        ("latin.jpg", good, "text_not_utf8"),
        ("latin.txt", "Köln".encode("latin-1"), "text_not_utf8"),
        ("lists.jpg", good, "text_too_large"),
        ("lists.json", b"[" + b"[]," * (MAX_TEXT_BYTES // 3) + b"[]]", "text_too_large"),
        ("many_lists.jpg", good, "text_too_large"),
        ("many_lists.json", b"[" + b"[]," * MAX_JSON_PARTS + b"[]]", "text_too_large"),
        ("some_lists.jpg", good, "bad_json"),
        ("some_lists.json", b"[" + b"[]," * (MAX_JSON_PARTS // 2 - 9) + b"[]]", "bad_json"),
        ("deep.jpg", good, "bad_json"),
        ("deep.json", b'{"a":' * 100_000, "bad_json"),
        ("long_number.jpg", good, "bad_json"),
        ("long_number.json", b'{"a": ' + b"9" * 1_000_000 + b"}", "bad_json"),
        *[(f"many.view_{n}.png", png(4_000, 4_000, 9), "too_many_pixels") for n in range(9)],
        ("large.jpg", photo(6_000, 5_000), "written"),
        ("beside.jpg", good, "duplicate_key"),
        ("last.jpg", good, "written"),
    ]


def write_hostile(path: Path, owned: Path) -> dict[str, str]:
    """Write the shard, with links and devices; the outcome of each key, its last one."""
    outcomes = {}
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"special{kind.decode()}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
            outcomes[info.name.removesuffix(".jpg")] = "not_a_file"
        for name, data, outcome in hostile_members(owned):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            key = name.rpartition(".")[0]
            outcomes[key.partition(".view_")[0] if ".view_" in key else key] = outcome
    return outcomes


def write_good(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(20):
            data = photo(640, 480, quality=60 + number)
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def admit_all(path: Path) -> list[tuple[str, str, float]]:
    """(key, outcome, processor seconds) of everything in a raw shard."""
    admission = Admission(FilterConfig(drop_duplicates=False))
    filters, found = admission.filters(None), []
    with RawShardReader.open(path) as reader:
        items, started = iter(reader), time.process_time()
        while (item := next(items, None)) is not None:
            admitted = admission.admit(item, filters)
            outcome = admitted.reason if isinstance(admitted, Rejected) else "written"
            found.append((item.key, outcome, time.process_time() - started))
            del item, admitted
            started = time.process_time()
    return found


def test_every_member_is_refused_by_its_reason_and_no_code_runs(tmp_path, monkeypatch):
    outcomes = write_hostile(tmp_path / "00000.tar", tmp_path / "owned")
    loaded = []
    load = ImageFile.ImageFile.load

    def counted(self):
        loaded.append(self.size)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    before = sorted(path.name for path in tmp_path.iterdir())
    found = admit_all(tmp_path / "00000.tar")
    names = {key.encode().decode("unicode_escape"): outcome for key, outcome, _ in found}
    assert names == outcomes
    assert [why for key, why, _ in found if key == "beside"] == ["written", "duplicate_key"]
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "nothing was written"
    large = {size for size in loaded if max(size) > 512}
    assert large == {(6_000, 5_000)}, "bombs are refused by their headers, none is decoded"


def test_memory_stays_near_that_of_a_good_shard(tmp_path):
    write_hostile(tmp_path / "hostile.tar", tmp_path / "owned")
    write_good(tmp_path / "good.tar")
    shards = [str(tmp_path / name) for name in ("good.tar", "hostile.tar")]
    run = subprocess.run(
        [sys.executable, __file__, "memory", *shards], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    above = json.loads(run.stdout)["bytes_above_normal"]
    assert above <= MOST_BYTES_ABOVE_NORMAL
    assert above > 40 << 20, "the largest picture that is decoded is in the measure"


@pytest.mark.parametrize("claim", ["header", "pax"])
def test_a_claim_of_ten_gigabytes_costs_no_more_than_the_shard(tmp_path, claim):
    good = tarfile.TarInfo("good.jpg")
    good.size = len(photo())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(good, io.BytesIO(photo()))
    info = tarfile.TarInfo("big.jpg")
    if claim == "header":
        info.size = 10 << 30
        header = info.tobuf(tarfile.GNU_FORMAT)
    else:
        info.pax_headers = {"size": str(10 << 30)}
        header = info.tobuf(tarfile.PAX_FORMAT)
    begun = buffer.getvalue()[: 512 + -(-good.size // 512) * 512]
    (tmp_path / "0.tar").write_bytes(begun + header + b"x" * 3_000)
    largest = []

    class Watched(io.BytesIO):
        def read(self, num_bytes: int | None = -1) -> bytes:
            largest.append(num_bytes)
            return super().read(num_bytes)

    reader = RawShardReader(Watched((tmp_path / "0.tar").read_bytes()), "0.tar")
    found = [(item.key, getattr(item, "reason", "whole")) for item in reader]
    assert found == [("good", "whole"), ("big", "cut_short")]
    assert reader.damaged is not None and "big.jpg" in reader.damaged
    assert reader.num_bytes == (tmp_path / "0.tar").stat().st_size
    assert max(largest) <= 1 << 20, "never asked for more than a piece"


def test_a_hostile_shard_is_tokenised_and_proven(tmp_path):
    (tmp_path / "raw").mkdir()
    outcomes = write_hostile(tmp_path / "raw" / "00000.tar", tmp_path / "owned")
    tracker = Tracker(TrackingConfig(mode="disabled"), tmp_path, "drill", record=False)
    raw, output = str(tmp_path / "raw"), str(tmp_path / "out")
    tokenize(TokenizeConfig(input=raw, output=output, vq="scenes_f8", resolution=[32]), tracker)
    manifest = read_manifest(tmp_path / "out" / "32", "00000")
    assert manifest.samples == sum(outcome == "written" for outcome in outcomes.values()) + 1
    assert manifest.raw["ignored"] == {"pkl": 1, "pth": 1}
    proof = verify(VerifyConfig(input=output, raw=raw), tracker)
    assert (
        proof["ok"] and proof["inputs"] == len(outcomes) + 1 and not (tmp_path / "owned").exists()
    )


# ------------------------------------------------------------------ as a script


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _measure_memory(good: Path, hostile: Path) -> dict[str, int]:
    """What the hostile shard takes above the good one, in another start of this process."""
    admit_all(good)
    normal = _status_bytes("VmHWM")
    admit_all(hostile)
    return {"normal_bytes": normal, "bytes_above_normal": _status_bytes("VmHWM") - normal}


def _print_times(folder: Path) -> None:
    outcomes = write_hostile(folder / "00000.tar", folder / "owned")
    best: dict[str, float] = {}
    for _ in range(3):
        for key, _, seconds in admit_all(folder / "00000.tar"):
            best[key] = min(best.get(key, 9e9), seconds)
    rows = sorted(best.items(), key=lambda row: -row[1])
    for key, seconds in rows:
        print(f"{1e3 * seconds:9.2f} ms  {outcomes.get(key, ''):18} {key}")
    limit = {"max_pixels": MAX_PIXELS, "bytes_a_pixel": BYTES_A_PIXEL}
    print(json.dumps({"slowest_ms": round(1e3 * rows[0][1], 2), "members": len(rows), **limit}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        print(json.dumps(_measure_memory(Path(sys.argv[2]), Path(sys.argv[3]))))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            _print_times(Path(sys.argv[1] if sys.argv[1:] else temporary))
