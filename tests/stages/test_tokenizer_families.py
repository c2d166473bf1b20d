"""Released picture tokenizers through the commands: import, encode, decode, tokenize."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mgpt.cli import command
from mgpt.tokenizers.folder import load_tokenizer, save_tokenizer
from mgpt.tokenizers.magvit2 import OpenMagvit2
from mgpt.tokenizers.vqgan_config import VqganConfig

VECTORS = Path(__file__).parents[1] / "vectors" / "tokenizers"
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """`run(word, …)`: the command line in this process, in an empty folder; what it printed."""
    monkeypatch.chdir(tmp_path)

    def run_command(*words: str, status: int = 0) -> str:
        found = command.main(words)
        shown = capsys.readouterr()
        assert found == status, shown.err
        return shown.out + shown.err

    return run_command


@pytest.mark.parametrize("name", ["movqgan", "magvit2", "cosmos/dv"])
def test_imported_with_its_licence_it_gives_the_authors_codes_and_pixels(
    run: Run, name: str
) -> None:
    shutil.copytree(VECTORS / name, "released")
    Path("released/LICENSE.md").write_text("Terms of the weights.")
    said = run("import", "input=released", "output=own")
    assert said.count("LICENSE.md") == 1
    assert Path("own/LICENSE.md").read_text() == "Terms of the weights."
    assert not [path for path in Path("own").iterdir() if path.suffix in (".ckpt", ".pt")]
    expected = json.loads((VECTORS / name / "expected.json").read_text())
    # Sides that are no multiples of a grid of two codes among them.
    pictures = sorted(expected)
    listed = ",".join(f"released/{picture}" for picture in pictures)
    run("encode", "vq=own", f"input=[{listed}]", "output=codes.json", "dtype=bfloat16")
    codes = json.loads(Path("codes.json").read_text())
    assert codes == {picture: expected[picture]["codes"] for picture in pictures}
    run("decode", "vq=released", "input=codes.json", "output=decoded")
    for picture in pictures:
        found, theirs = (
            np.asarray(Image.open(path)).astype(int)
            for path in (f"decoded/{picture}", f"released/{picture[:-4]}.decoded.png")
        )
        assert np.abs(found - theirs).max() <= 1


def test_float32_is_said_where_bfloat16_is_asked(run: Run) -> None:
    picture = VECTORS / "emu3/image1.png"
    said = run("encode", f"vq={VECTORS / 'emu3'}", f"input={picture}", "output=c.json")
    assert "in float32, whatever" not in said
    words = (f"vq={VECTORS / 'emu3'}", f"input={picture}", "output=c.json", "dtype=bfloat16")
    assert "Emu3's vision tokenizer: pictures are encoded in float32" in run("encode", *words)


def test_a_picture_larger_than_the_authors_encode_is_refused(run: Run) -> None:
    Image.new("RGB", (1032, 1032)).save("large.png")
    words = (f"vq={VECTORS / 'emu3'}", "input=large.png", "output=c.json")
    said = run("encode", *words, status=2)
    assert "takes 1048576 at most" in said and "resolution=1024" in said


def test_a_picture_of_one_code_is_refused_where_it_has_no_spread(run: Run) -> None:
    Path("codes.json").write_text('{"a.png": [[5]], "b.png": [[5, 6]]}')
    words = (f"vq={VECTORS / 'magvit2'}", "input=codes.json", "output=out")
    said = run("decode", *words, status=2)
    assert "Open-MAGVIT2 tokenizer decodes 2 codes or more" in said
    assert "a.png: 1 code" in said and "b.png" not in said


def test_codes_of_more_than_16_bits(run: Run) -> None:
    """A codebook of 2^18: codes pass encode and decode whole, and too large ones are named."""
    sizes = {"ch": 4, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "num_groups": 2, "z_channels": 18}
    torch.manual_seed(0)
    save_tokenizer(OpenMagvit2(VqganConfig(**sizes, embed_dim=18, n_embed=2**18)), "vq")
    noise_HW3 = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise_HW3).save("a.png")
    run("encode", "vq=vq", "input=a.png", "output=codes.json")
    codes = np.array(json.loads(Path("codes.json").read_text())["a.png"])
    assert codes.max() >= 2**16
    run("decode", "vq=vq", "input=codes.json", "output=out")
    tokenizer = load_tokenizer("vq")
    want_HW3 = tokenizer.pixels.to_levels(tokenizer.decode(torch.from_numpy(codes)[None]))[0]
    assert np.array_equal(np.asarray(Image.open("out/a.png")), want_HW3)
    Path("codes.json").write_text(json.dumps({"a.png": [[2**18, 0]]}))
    assert f"holds {2**18} where codes from 0 to {2**18 - 1}" in run(
        "decode", "vq=vq", "input=codes.json", "output=out", status=2
    )
