"""Import and export hold one tensor at a time; a 7B folder is planned from its headers."""

import json
import struct
import sys
from math import prod
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from peak_memory import write_peak
from released_layouts import repeated_state, transformers_json, write_meta, write_transformers

from mgpt.cli import command
from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer
from mgpt.models.transformer_config import TransformerConfig

MB = 1 << 20
# 8 layers of 20 MB and 4 MB of embeddings: 164 MB, whose largest tensors have 4 MB.
WIDE = TransformerConfig(
    hidden=1024,
    ffn=2048,
    layers=8,
    heads=8,
    kv_heads=8,
    head_dim=128,
    vocab_size=1024,
    qk_norm_groups=4,
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as a transformers folder of 13 files and as Meta's four shards."""
    folder = tmp_path_factory.mktemp("wide")
    state = repeated_state(WIDE)
    assert sum(t.numel() * 2 for t in state.values()) > 160 * MB
    write_transformers(folder / "hf", WIDE, state, files=13)
    write_meta(folder / "meta", WIDE, state)
    return folder


@pytest.mark.parametrize("kind", ["hf", "meta"])
def test_memory_is_that_of_a_tensor(wide: Path, kind: str, tmp_path: Path) -> None:
    """A load of everything would take over 160 MB; measured 25 MB at most, of which several are
    the first use of torch's parts."""
    mapped = 1 * MB  # in proportion to shards of 41 MB
    assert write_peak("import", wide / kind, tmp_path / "own", mapped).grown_bytes < 50 * MB
    if kind == "hf":
        assert write_peak("export", tmp_path / "own", tmp_path / "out").grown_bytes < 50 * MB


PLANNED = [
    *("resolution=512", "parallel.dtype=bfloat16", "parallel.recompute=full", "nodes=8"),
    *("steps=100", "output=out", "data.sources.a.path=not_here"),
    "data.sources.a.tasks.text_to_image=1",
]
# The published counts are those without qk-norm, of which a layer has two: weights and biases of
# 128 for each group.
PLANS = {
    "7b": [
        f"{7_013_142_528 + 32 * 4 * 128:,} parameters",
        "hidden 4096, ffn 11008, 32 layers, 32/32 heads of 128, vocabulary 65,536, norms pre",
        "qk-norm: 1 group(s)",
        "become 419 (419 bfloat16)",
        "14,026,317,824 bytes in 4 file(s)",
    ],
    "34b": [
        f"{34_293_424_128 + 48 * 4 * 4 * 128:,} parameters",
        "hidden 8192, ffn 22016, 48 layers, 64/8 heads of 128, vocabulary 65,536, norms post",
        "qk-norm: 4 group(s)",
        "become 627 (627 bfloat16)",
        f"{2 * (34_293_424_128 + 48 * 4 * 4 * 128):,} bytes in 17 file(s)",
    ],
}


@pytest.mark.parametrize("kind", ["transformers", "Meta"])
@pytest.mark.parametrize("size", PLANS)
def test_the_released_sizes_are_planned_without_reading_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str, kind: str
) -> None:
    folder, cfg = tmp_path / size, SIZES[size]
    if kind == "transformers":
        sparse_folder(folder, cfg, files=3)
        on_disk = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
        assert on_disk < 2 * MB < sum(path.stat().st_size for path in folder.iterdir()) // 5_000
    else:
        with torch.device("meta"):
            state = Transformer(cfg).to(torch.bfloat16).state_dict()
        write_meta(folder, cfg, state, shards=cfg.qk_norm_groups)
    assert (
        command.main(["import", f"input={folder}", f"output={tmp_path / 'o'}", "dry_run=true"]) == 0
    )
    shown = capsys.readouterr().out
    for words in PLANS[size]:
        assert words in shown
    assert not (tmp_path / "o").exists()
    words = ["init_from=" + str(folder), *PLANNED]
    assert command.main(["plan", "fp_sft", *words]) == 0
    assert PLANS[size][0].split()[0] in capsys.readouterr().out


def sparse_folder(folder: Path, cfg: TransformerConfig, files: int) -> Path:
    """A transformers folder with real headers and holes where the values would be."""
    folder.mkdir()
    with torch.device("meta"):
        shapes = {name: list(t.shape) for name, t in Transformer(cfg).state_dict().items()}
    for name in shapes:
        if ".q_norm." in name or ".k_norm." in name:
            shapes[name] = [cfg.heads if ".q_norm." in name else cfg.kv_heads, cfg.head_dim]
    names, places = sorted(shapes), {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        header, end = {}, 0
        for name in names[number::files]:
            start, end = end, end + 2 * prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [start, end]}
            places[name] = file
        text = json.dumps(header).encode()
        with open(folder / file, "wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(transformers_json(cfg)))
    return folder
