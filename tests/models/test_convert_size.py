"""Import and export hold one tensor at a time; a 7B folder is planned from its headers."""

import json
import struct
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from released_layouts import transformers_json, write_meta, write_transformers

from mgpt import cli
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
CHILD = """
import sys
from pathlib import Path
from mgpt.models.convert import meta
from mgpt.stages.released import plan_export, plan_import

meta._MAPPED_BYTES = 1 << 20  # in proportion to shards of 41 MB

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

source, output = Path(sys.argv[2]), Path(sys.argv[3])
planned = plan_import(source) if sys.argv[1] == "import" else plan_export(source)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kilobytes("VmRSS")
planned.write(output)
print(kilobytes("VmHWM") - before)
"""


def peak_kb(action: str, source: Path, output: Path) -> int:
    """How far a process's memory rises above what planning left, while it writes."""
    run = subprocess.run(
        [sys.executable, "-c", CHILD, action, str(source), str(output)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return int(run.stdout)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as a transformers folder of 13 files and as Meta's four shards."""
    folder = tmp_path_factory.mktemp("wide")
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in Transformer(WIDE).state_dict().items()}
    drawn = torch.randn(WIDE.hidden * WIDE.ffn).bfloat16()
    state = {name: drawn[: prod(shape)].reshape(shape).clone() for name, shape in shapes.items()}
    assert sum(t.numel() * 2 for t in state.values()) > 160 * MB
    write_transformers(folder / "hf", WIDE, state, files=13)
    write_meta(folder / "meta", WIDE, state)
    return folder


@pytest.mark.parametrize("kind", ["hf", "meta"])
def test_memory_is_that_of_a_tensor(wide: Path, kind: str, tmp_path: Path) -> None:
    """A load of everything would take over 160 MB; measured 25 MB at most, of which several are
    the first use of torch's parts."""
    limit_kb = 50 * MB // 1024
    assert peak_kb("import", wide / kind, tmp_path / "own") < limit_kb
    if kind == "hf":
        assert peak_kb("export", tmp_path / "own", tmp_path / "out") < limit_kb


def test_seven_billion_parameters_are_planned_without_reading_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sparse_folder(tmp_path / "7b", SIZES["7b"], files=3)
    on_disk = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    assert on_disk < MB < sum(path.stat().st_size for path in folder.iterdir()) // 10_000
    assert cli.main(["import", f"input={folder}", f"output={tmp_path / 'o'}", "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    # FACTS: 7,013,142,528 without qk-norm; 32 layers of two norms of 128 weights and biases.
    assert f"{7_013_142_528 + 32 * 2 * 2 * 128:,} parameters" in shown
    assert "hidden 4096, ffn 11008, 32 layers, 32/32 heads of 128, vocabulary 65,536" in shown
    assert "norms pre" in shown and "qk-norm: 1 group(s)" in shown
    assert "419 stored tensors become 419 (419 bfloat16)" in shown
    assert "14,026,317,824 bytes in 4 file(s)" in shown
    assert not (tmp_path / "o").exists()


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
