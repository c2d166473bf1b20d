"""The data jobs with tokenizers of other families: grids, 32-bit codes, rounding, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.roundtrip import Config as RoundtripConfig
from data_pipeline.roundtrip import roundtrip
from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from data_pipeline.tokenizing.decoding import CodeDecoder
from data_pipeline.tokenizing.job_settings import read_settings
from data_pipeline.verify import Config as VerifyConfig
from data_pipeline.verify import verify
from mgpt.data.shards import Shard
from mgpt.errors import ConfigError
from mgpt.files.storage import locate
from mgpt.images.pixels import open_image
from mgpt.tokenizers.folder import load_tokenizer, save_tokenizer
from mgpt.tokenizers.magvit2 import OpenMagvit2
from mgpt.tokenizers.vqgan_config import VqganConfig

VECTORS = Path(__file__).parents[1] / "vectors" / "tokenizers"


@pytest.fixture
def raw(tmp_path: Path, write_tar, picture) -> Path:
    members = {f"{n}.png": picture(140, 100 + 20 * n, seed=n) for n in range(3)}
    write_tar(tmp_path / "raw" / "00000.tar", members)
    return tmp_path / "raw"


def job(raw: Path, vq: Path, **changes) -> TokenizeConfig:
    settings = {"input": str(raw), "output": str(raw.parent / "tok"), "vq": str(vq)}
    return TokenizeConfig(**(settings | {"resolution": [96]} | changes))


@pytest.mark.parametrize(("name", "grid_px"), [("movqgan", 32), ("emu3", 16), ("cosmos/di", 32)])
def test_shards_of_another_family(raw: Path, tracker, name: str, grid_px: int) -> None:
    """Written, verified with codes decoded again, and compared with their pictures."""
    vq = VECTORS / name
    tokenizer = load_tokenizer(vq)
    tokenize(job(raw, vq), tracker)
    shard = Shard(raw.parent / "tok/96", "00000")
    assert shard.manifest.num_codes == tokenizer.num_codes
    assert shard.manifest.vq_fingerprint == tokenizer.fingerprint()
    for number in range(3):
        codes_hw = next(iter(shard.codes(number).values()))
        sides_px = [side * tokenizer.downsample for side in codes_hw.shape]
        assert all(side % grid_px == 0 for side in sides_px)
    result = verify(
        VerifyConfig(input=str(raw.parent / "tok"), raw=str(raw), vq=str(vq), samples=2), tracker
    )
    assert result["ok"] and result["decoded"]
    rows = roundtrip(
        RoundtripConfig(
            input=str(raw.parent / "tok"),
            raw=str(raw),
            vq=str(vq),
            output=str(raw.parent / "out"),
        ),
        tracker,
    )
    assert len(rows) == 3
    decoded = np.asarray(open_image(raw.parent / "out" / rows[0]["decoded"]))
    decode = CodeDecoder(str(vq), tokenizer.fingerprint(), "here")
    first = next(n for n in range(3) if shard.key(n) == rows[0]["key"])
    codes_hw = next(iter(shard.codes(first).values()))
    assert np.array_equal(decoded, decode(codes_hw))


def test_codes_are_those_of_encode_whatever_the_dtype(raw: Path, tracker, caplog) -> None:
    result = tokenize(job(raw, VECTORS / "llamagen/vq16", dtype="bfloat16"), tracker)
    assert "encoded in float32, whatever dtype= says" in caplog.text
    assert result["dtype"].startswith("float32")
    # The same output as without: nothing is left to do, and no setting differs.
    settings = read_settings(locate(str(raw.parent / "tok")))
    assert "precision" not in settings
    tokenize(job(raw, VECTORS / "llamagen/vq16"), tracker)


def test_a_codebook_beyond_16_bits(raw: Path, tracker) -> None:
    sizes = {"ch": 4, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1, "num_groups": 2}
    torch.manual_seed(0)
    cfg = VqganConfig(**sizes, z_channels=18, embed_dim=18, n_embed=2**18)
    save_tokenizer(OpenMagvit2(cfg).eval(), raw.parent / "vq")
    tokenize(job(raw, raw.parent / "vq"), tracker)
    shard = Shard(raw.parent / "tok/96", "00000")
    codes = [next(iter(shard.codes(number).values())) for number in range(3)]
    assert {c_hw.dtype for c_hw in codes} == {np.dtype(np.uint32)}
    assert max(int(c_hw.max()) for c_hw in codes) >= 2**16
    assert verify(VerifyConfig(input=str(raw.parent / "tok"), raw=str(raw)), tracker)["ok"]


def test_a_resolution_larger_than_the_authors_encode_is_refused(raw: Path, tracker) -> None:
    with pytest.raises(ConfigError, match="Emu3's vision tokenizer encodes 1048576 at most"):
        tokenize(job(raw, VECTORS / "emu3", resolution=[1040]), tracker)
