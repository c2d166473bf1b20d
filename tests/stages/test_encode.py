"""mgpt encode and mgpt decode: the released vectors through the command, and what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mgpt.cli import command
from mgpt.errors import DataError
from mgpt.images.buckets import choose_bucket
from mgpt.images.pixels import fit, normalise
from mgpt.stages.codes_file import read_codes, stated_vq, write_codes
from mgpt.tokenizers.folder import load_tokenizer, save_tokenizer
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig

VECTORS = Path(__file__).parents[1] / "vectors" / "vqgan"
NAMES = ["image0.png", "image1.png", "image2.png"]
EXPECTED = json.loads((VECTORS / "expected.json").read_text())
Run = Callable[..., str]


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A VQGAN of 4x: its grid is 8 px."""
    torch.manual_seed(0)
    widths = {"ch": 8, "ch_mult": (1, 1, 1), "num_groups": 4, "z_channels": 8, "embed_dim": 8}
    folder = tmp_path_factory.mktemp("vq")
    save_tokenizer(Vqgan(VqganConfig(**widths, num_res_blocks=1, n_embed=64)), folder)
    return str(folder)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """`run(word, …)`: the command line in this process, in an empty folder; its stderr."""
    monkeypatch.chdir(tmp_path)

    def run_command(*words: str, status: int = 0) -> str:
        found = command.main(words)
        shown = capsys.readouterr()
        assert found == status, shown.err
        return shown.err

    return run_command


def save_noise(path: Path, width: int = 32, height: int = 24, seed: int = 0) -> np.ndarray:
    levels_HW3 = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(levels_HW3).save(path)
    return levels_HW3


def codes_of(vq: str, levels_HW3: np.ndarray) -> list[list[int]]:
    return load_tokenizer(vq).encode(torch.from_numpy(normalise(levels_HW3))[None])[0].tolist()


def assert_decoded_as_published(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    for name in NAMES:
        ours, published = (
            np.asarray(Image.open(path)).astype(int)
            for path in (folder / name, VECTORS / name.replace(".png", ".decoded.png"))
        )
        assert ours.shape == published.shape
        assert np.abs(ours - published).max() <= 1


def test_the_released_vectors_through_the_command_line(tmp_path: Path) -> None:
    """Encoded with Meta's folder, decoded with the same model as safetensors."""
    save_tokenizer(load_tokenizer(VECTORS), tmp_path / "ours")
    pictures = ",".join(str(VECTORS / name) for name in NAMES)
    for words in (
        ["encode", f"vq={VECTORS}", f"input=[{pictures}]", "output=codes.json"],
        ["decode", "vq=ours", "input=codes.json", "output=decoded"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "mgpt", *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(VECTORS.parents[2])},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "3/3 pictures" in done.stdout
    codes = json.loads((tmp_path / "codes.json").read_text())
    assert list(codes) == NAMES
    assert codes == {name: EXPECTED[name]["codes"] for name in NAMES}
    assert_decoded_as_published(tmp_path / "decoded")


def test_the_released_vectors_the_other_way_round(run: Run) -> None:
    """Encoded with safetensors, decoded with Meta's folder."""
    save_tokenizer(load_tokenizer(VECTORS), "ours")
    run("encode", "vq=ours", f"input={VECTORS}/image?.png", "output=codes.json")
    assert json.loads(Path("codes.json").read_text()) == {
        name: EXPECTED[name]["codes"] for name in NAMES
    }
    run("decode", f"vq={VECTORS}", "input=codes.json", "output=decoded")
    assert_decoded_as_published(Path("decoded"))
    run("decode", f"vq={VECTORS}", "input=codes.json", "output=decoded")  # the same again


def test_files_folders_and_globs(run: Run, vq: str) -> None:
    for seed, name in enumerate(["b.png", "a.PNG", "it's [1], (2).jpg", "c.webp"]):
        save_noise(Path("folder", name), seed=seed)
    Path("folder", "words.txt").write_text("no picture")
    Path("folder", "inner").mkdir()
    run("encode", f"vq={vq}", "input=folder", "output=folder/codes.json")
    everything = json.loads(Path("folder/codes.json").read_text())
    assert list(everything) == ["a.PNG", "b.png", "c.webp", "it's [1], (2).jpg"]
    run("encode", f"vq={vq}", "input=[folder/b.png,folder/?.*]", "output=some.json")
    some = json.loads(Path("some.json").read_text())
    assert list(some) == ["b.png", "a.PNG", "c.webp"]
    assert all(some[name] == everything[name] for name in some)
    run("encode", f"vq={vq}", "input=folder/it's [1], (2).jpg", "output=one.json")
    assert list(json.loads(Path("one.json").read_text())) == ["it's [1], (2).jpg"]


def test_codes_are_those_of_the_picture(run: Run, vq: str) -> None:
    whole = save_noise(Path("a.png"), 40, 24)
    run("encode", f"vq={vq}", "input=a.png", "output=codes.json")
    assert json.loads(Path("codes.json").read_text()) == {"a.png": codes_of(vq, whole)}
    assert np.shape(codes_of(vq, whole)) == (6, 10)


def test_resolution_crops_to_the_bucket(run: Run, vq: str) -> None:
    save_noise(Path("a.png"), 61, 37)
    words = [f"vq={vq}", "input=a.png", "output=codes.json", "resolution=32"]
    for seed in (0, 3):
        run("encode", *words, f"seed={seed}")
        size_wh = choose_bucket(61, 37, 32, 8)
        fitted, _ = fit(Image.open("a.png"), size_wh, "a.png", seed)
        expected = codes_of(vq, np.asarray(fitted))
        assert json.loads(Path("codes.json").read_text()) == {"a.png": expected}


def test_exif_rotation_can_be_left_out(run: Run, vq: str) -> None:
    save_noise(Path("a.png"), 32, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open("a.png").save("turned.png", exif=exif)
    shapes = {}
    for rotate in ("true", "false"):
        run("encode", f"vq={vq}", "input=turned.png", "output=c.json", f"rotate_exif={rotate}")
        shapes[rotate] = np.shape(json.loads(Path("c.json").read_text())["turned.png"])
    assert shapes == {"true": (8, 4), "false": (4, 8)}


def test_every_picture_that_cannot_be_encoded_is_named(run: Run, vq: str) -> None:
    save_noise(Path("folder/good.png"))
    save_noise(Path("folder/odd.png"), 33, 24)
    save_noise(Path("folder/half.png"), 32, 20)
    Path("folder/cut.png").write_bytes(Path("folder/good.png").read_bytes()[:500])
    error = run("encode", f"vq={vq}", "input=folder", "output=codes.json", status=2)
    assert "3 of 4 pictures" in error and "good.png" not in error
    for words in ("odd.png: 33 x 24 px where multiples of 8 px", "half.png: 32 x 20", "cut.png"):
        assert words in error
    assert not list(Path().glob("*codes*"))
    error = run("encode", f"vq={VECTORS}", "input=folder/odd.png", "output=c.json", status=2)
    assert "multiples of 32 px" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["input=[x/a.png,y/a.png]"], "x/a.png and y/a.png have the same name"),
        (["input=nowhere"], "nowhere is no file, folder or glob"),
        (["input=empty"], "empty holds no pictures"),
        (["input=[]"], "names no picture"),
        (["input=x/a.png", "output=empty"], "empty is a folder"),
        (["input=x/a.png", "output=x/a.png"], "exists and is no file of codes"),
        (["input=x/a.png", "resolution=7"], "at least one grid must fit"),
        (["input=x/a.png", "vq=nowhere"], "neither a folder nor a VQGAN"),
    ],
)
def test_what_encode_refuses(run: Run, vq: str, words: list[str], said: str) -> None:
    save_noise(Path("x/a.png"))
    save_noise(Path("y/a.png"), seed=1)
    Path("empty").mkdir()
    before = Path("x/a.png").read_bytes()
    assert said in run("encode", f"vq={vq}", "output=codes.json", *words, status=2)
    assert not Path("codes.json").exists() and Path("x/a.png").read_bytes() == before


def test_the_same_file_named_twice_is_one_picture(run: Run, vq: str) -> None:
    save_noise(Path("x/a.png"))
    run("encode", f"vq={vq}", "input=[x/a.png,x/../x/a.png]", "output=codes.json")
    assert list(json.loads(Path("codes.json").read_text())) == ["a.png"]


def test_another_picture_is_not_written_over(run: Run, vq: str) -> None:
    save_noise(Path("a.png"))
    original = Path("a.png").read_bytes()
    run("encode", f"vq={vq}", "input=a.png", "output=codes.json")
    words = ["decode", f"vq={vq}", "input=codes.json", "output=."]
    assert "a.png is another picture already" in run(*words, status=2)
    assert Path("a.png").read_bytes() == original
    run(*words, "redo=true")
    assert Path("a.png").read_bytes() != original


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "holds a list where picture names"),
        ('{"a.png": [[1, 2]', "no JSON of codes"),
        ('{"a.png": [[1]], "a.png": [[2]]}', "'a.png' stands twice"),
        ('{"a.png": 5}', "a.png: a list of rows"),
        ('{"a.png": []}', "a.png: a list of rows"),
        ('{"a.png": [[1, 2], [3]]}', "rows have 1, 2 codes"),
        ('{"a.png": [[1, 2], [3, 64]]}', "row 1 holds 64 where codes from 0 to 63"),
        ('{"a.png": [[-1]]}', "holds -1"),
        ('{"a.png": [[1.0]]}', "holds 1.0"),
        ('{"a.png": [[true]]}', "holds True"),
        ('{"a.png": [[1]], "a.jpg": [[2]]}', "a.png and a.jpg would both be a.png"),
        ('{"../a.png": [[1]]}', "is no file name"),
        ('{"": [[1]]}', "is no file name"),
    ],
)
def test_what_decode_refuses(run: Run, vq: str, content: str, said: str) -> None:
    Path("codes.json").write_text(content)
    error = run("decode", f"vq={vq}", "input=codes.json", "output=out", status=2)
    assert said in error
    assert not Path("out").exists()


def test_codes_of_any_size_decode(run: Run, vq: str) -> None:
    Path("codes.json").write_text('{"strip.jpg": [[1, 2, 3]]}')
    run("decode", f"vq={vq}", "input=codes.json", "output=out")
    assert Image.open("out/strip.png").size == (12, 4)


def test_codes_of_another_vqgan_are_refused(run: Run, vq: str, tmp_path: Path) -> None:
    other = Vqgan(load_tokenizer(vq).cfg)
    save_tokenizer(other, tmp_path / "other")
    Image.new("RGB", (8, 8), "red").save("a.png")
    run("encode", f"vq={vq}", "input=a.png", "output=codes.json")
    said = run("decode", f"vq={tmp_path / 'other'}", "input=codes.json", "output=out", status=2)
    assert "vq_mismatch" in said and other.fingerprint() in said
    assert load_tokenizer(vq).fingerprint() in said and not Path("out").exists()
    run("decode", f"vq={vq}", "input=codes.json", "output=out")
    # Another file under the name is another's: nothing says whose.
    Path("codes.json").write_text('{"a.png": [[1, 2], [3, 4]]}')
    run("decode", f"vq={tmp_path / 'other'}", "input=codes.json", "output=elsewhere")


def test_the_file_read_is_the_file_written(tmp_path: Path) -> None:
    codes = {'ä\n"b".png': np.array([[1, 2], [3, 4]]), "c": np.array([[5]])}
    write_codes(tmp_path / "codes.json", codes, "0123456789abcdef")
    assert stated_vq(tmp_path / "codes.json") == "0123456789abcdef"
    again = read_codes(tmp_path / "codes.json", 6)
    assert list(again) == list(codes)
    assert all(np.array_equal(again[name], codes[name]) for name in codes)
    with pytest.raises(DataError, match="row 0 holds 5"):
        read_codes(tmp_path / "codes.json", 5)
