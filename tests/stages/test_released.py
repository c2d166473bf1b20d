"""mgpt import, mgpt export and training from released folders, through the command line.

The commands of mgpt/weights/README.md run as they stand there, on small folders of the same layout.
"""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path += [str(Path(__file__).parents[1] / room) for room in ("weights", "tokens")]
from chameleon_layout import chameleon_json, chameleon_names
from released_layouts import small, vq_json, write_meta, write_meta_vqgan, write_transformers

from mgpt.cli import command
from mgpt.data.shards import ShardWriter, TokenisedSample
from mgpt.tokenizers import released_files
from mgpt.tokenizers.folder import load_tokenizer
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig
from mgpt.tokens.vocab import Vocabulary

VQ = VqganConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=8, embed_dim=4, n_embed=8192)
LARGE: dict[str, Any] = {
    "hidden": 16,
    "ffn": 32,
    "heads": 4,
    "kv_heads": 4,
    "head_dim": 4,
    "vocab_size": 65536,
    "max_positions": 4096,
}
"""Sizes of a model small but for Chameleon's vocabulary."""
ROOT = Path(__file__).parents[2]


def mgpt(*words: object) -> None:
    assert command.main([str(word) for word in words]) == 0


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused; what it says."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert command.main([str(word) for word in words]) == 2
        said = capsys.readouterr().err
        assert said.startswith("mgpt: ") and said.count("\n") == 1, "one message"
        return said

    return run


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/models/7b and data/tokenizer, as Meta's download has them, and chameleon-7b."""
    folder = tmp_path_factory.mktemp("released")
    cfg, state = small(**LARGE)
    write_meta(folder / "data/models/7b", cfg, state, shards=4)
    torch.manual_seed(0)
    vq = Vqgan(VQ)
    tokenizer = write_meta_vqgan(folder / "data/tokenizer", vq)
    (tokenizer / "text_tokenizer.json").write_bytes(chameleon_json(extra={"<|image|>": 65536}))
    encoder = {
        f"model.vqmodel.{name}": tensor.contiguous()
        for name, tensor in vq.state_dict().items()
        if not name.startswith("decoder.")
    }
    # transformers' own conversion gives a reserved name to the place of a picture.
    names = ["<image>" if name == "<reserved08707>" else name for name in chameleon_names()]
    hf = write_transformers(
        folder / "chameleon-7b",
        cfg,
        state,
        more=encoder,
        vq_config=vq_json(VQ),
        vocabulary_map={name: token for token, name in enumerate(names)},
    )
    (hf / "tokenizer.json").write_bytes(chameleon_json(lambda _: names))
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for path in sorted(folder.glob("model*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same_folder(one: Path, other: Path) -> None:
    """Configuration, tensors, vocabulary and VQGAN of two model folders are the same."""
    assert (one / "config.json").read_text() == (other / "config.json").read_text()
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name])
    for place in ("vocabulary/vocabulary.json", "vq/config.json", "vq_encoder/config.json"):
        assert (one / place).exists() == (other / place).exists()
        if (one / place).exists():
            assert (one / place).read_text() == (other / place).read_text()
    encoders = [folder / "vq_encoder/model.safetensors" for folder in (one, other)]
    if encoders[0].exists():
        assert encoders[0].read_bytes() == encoders[1].read_bytes()


@pytest.mark.parametrize("source", ["chameleon-7b", "data/models/7b"])
def test_import_export_import_is_bit_equal(released: Path, source: str, tmp_path: Path) -> None:
    mgpt("import", f"input={released / source}", f"output={tmp_path / 'own'}")
    assert Vocabulary.load(tmp_path / "own" / "vocabulary").layout == "chameleon"
    mgpt("export", f"ckpt={tmp_path / 'own'}", f"output={tmp_path / 'out'}")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocabulary_map"]["<image>"] == 8711
    assert config["vocabulary_map"]["IMGIMGAZ"] == 4 and len(config["vocabulary_map"]) == 65536
    assert "model.vqmodel.quant_conv.weight" in weights(tmp_path / "out")
    mgpt("import", f"input={tmp_path / 'out'}", f"output={tmp_path / 'again'}")
    assert_same_folder(tmp_path / "own", tmp_path / "again")
    has_decoder = source != "chameleon-7b"
    assert (tmp_path / "own" / ("vq" if has_decoder else "vq_encoder")).is_dir()
    if has_decoder:
        want = load_tokenizer(released / "data/tokenizer").fingerprint()
        assert load_tokenizer(tmp_path / "again" / "vq").fingerprint() == want


def test_the_exported_tokenizer_is_transformers_too(released: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    mgpt("import", f"input={released / 'chameleon-7b'}", f"output={tmp_path / 'own'}")
    mgpt("export", f"ckpt={tmp_path / 'own'}", f"output={tmp_path / 'out'}")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = Vocabulary.load(tmp_path / "own" / "vocabulary")
    text = "a red cube,  two cones"
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode_text(text)
    assert theirs.pad_token_id == ours.pad and theirs.bos_token_id == ours.bos


def test_a_folder_without_tokenizer_imports_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_transformers(tmp_path / "m", *small())
    mgpt("import", f"input={folder}", f"output={tmp_path / 'own'}")
    assert f"no tokenizer in {folder}" in capsys.readouterr().out
    assert not (tmp_path / "own" / "vocabulary").exists()
    mgpt("export", f"ckpt={tmp_path / 'own'}", f"output={tmp_path / 'out'}")
    mgpt("import", f"input={tmp_path / 'out'}", f"output={tmp_path / 'again'}")
    assert_same_folder(tmp_path / "own", tmp_path / "again")


def test_a_wrong_tokenizer_is_named(
    released: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = write_transformers(tmp_path / "m", *small())
    (folder / "tokenizer.json").write_bytes(chameleon_json())
    said = refused("import", f"input={folder}", f"output={tmp_path / 'own'}")
    assert f"{folder}/tokenizer.json has 65536 ids, the weights in {folder} 96" in said
    names = chameleon_names()
    names[8196], names[8197] = names[8197], names[8196]
    (folder / "tokenizer.json").write_bytes(chameleon_json(lambda _: names))
    said = refused("import", f"input={folder}", f"output={tmp_path / 'own'}")
    assert f"{folder}/tokenizer.json" in said and "<eoss> has id 8197" in said
    hf = released / "chameleon-7b"
    said = refused(
        "import", f"input={hf}", f"output={tmp_path / 'own'}", f"vq={_other_vq(tmp_path)}"
    )
    assert "is not that of vq=" in said and "differs" in said


def _other_vq(folder: Path) -> Path:
    from mgpt.tokenizers.folder import save_tokenizer

    torch.manual_seed(5)
    save_tokenizer(Vqgan(VQ), folder / "other_vq")
    return folder / "other_vq"


@pytest.mark.parametrize("damage", ["cut", "not finite", "pickle cut"])
def test_a_failed_import_leaves_no_model(
    released: Path, tmp_path: Path, refused: Callable[..., str], damage: str
) -> None:
    cfg, state = small(max_positions=4096)
    if damage == "pickle cut":
        folder = write_meta(tmp_path / "m", cfg, state)
        file = folder / "consolidated.02.pth"
        file.write_bytes(file.read_bytes()[:-5000])
    else:
        folder = write_transformers(tmp_path / "m", cfg, state)
        file = folder / "model-00003-of-00003.safetensors"
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-100])
        else:
            tensors = load_file(file)
            next(iter(tensors.values())).view(-1)[0] = torch.inf
            save_file(tensors, file)
    said = refused("import", f"input={folder}", f"output={tmp_path / 'own'}")
    assert file.name in said or "not finite" in said
    left = {path.name for path in (tmp_path / "own").glob("*")}
    assert damage == "not finite" or not left, "seen before the output is touched"
    assert not left & {"config.json", "DONE", "vocabulary", "vq"}
    assert not [name for name in left if "safetensors" in name]


def test_metas_vqgan_alone(
    released: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    released_files._warn_once.cache_clear()
    mgpt("import", f"input={released / 'data/tokenizer'}", f"output={tmp_path / 'vq'}")
    assert caplog.text.count("vqgan.ckpt is a pickle, which can carry code") == 1
    want = load_tokenizer(released / "data/tokenizer").fingerprint()
    assert load_tokenizer(tmp_path / "vq").fingerprint() == want
    assert not list((tmp_path / "vq").glob("*.ckpt"))


def test_what_is_no_release_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "m").mkdir()
    said = refused("import", f"input={tmp_path / 'm'}", f"output={tmp_path / 'own'}")
    assert "is no released folder" in said


def test_no_model_is_written_over(
    released: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = write_transformers(tmp_path / "m", *small())
    other = write_transformers(tmp_path / "other", *small(), files=1)
    for output in (folder, other):
        said = refused("import", f"input={folder}", f"output={output}")
        assert f"output={output} holds a model already" in said
    mgpt("import", f"input={folder}", f"output={tmp_path / 'own'}")
    for output in (other, tmp_path / "own"):
        refused("export", f"ckpt={tmp_path / 'own'}", f"output={output}")
    said = refused("export", f"ckpt={tmp_path / 'own'}", f"output={tmp_path / 'own'}", "redo=true")
    assert f"output={tmp_path / 'own'} is the input {tmp_path / 'own'}" in said
    assert len(weights(folder)) == len(weights(other)) == len(weights(tmp_path / "own"))


def test_what_can_be_checked_is_said(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hf, own, out = released / "chameleon-7b", tmp_path / "own", tmp_path / "out"
    mgpt("import", f"input={hf}", f"output={own}", "dry_run=true")
    assert f"note: no SHA256SUMS in {hf}: files that are cut short" in capsys.readouterr().out
    mgpt("import", f"input={hf}", f"output={own}")
    mgpt("export", f"ckpt={own}", f"output={out}")
    capsys.readouterr()
    mgpt("import", f"input={out}", f"output={tmp_path / 'again'}", "dry_run=true")
    assert "note: SHA256SUMS: the files are held against it" in capsys.readouterr().out


def test_released_weights_are_imported_first(
    released: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    rest = ("vq=photos_f16", "prompt=x", f"output={tmp_path / 'o'}")
    for name in ("chameleon-7b", "data/models/7b"):
        assert "mgpt import makes" in refused("generate", f"ckpt={released / name}", *rest)


def make_tokens(folder: Path, released: Path) -> None:
    """Tokenised shards of a few captions, with pictures of the released VQGAN."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, "00000") as writer:
        for index in range(24):
            height, width = (int(n) for n in rng.choice([2, 4], size=2))
            codes = rng.integers(0, VQ.n_embed, (height, width)).astype(np.uint16)
            meta = {"caption": f"a red cube {index}", "width": width * 16, "height": height * 16}
            writer.add(TokenisedSample(f"{index:06d}", meta, {"image": codes}))
        writer.close(
            {
                "raw": {"name": "00000.tar", "sha256": "0" * 64},
                "rejected": [],
                "resolution_px": 512,
                "latent_px": 16,
                "num_codes": VQ.n_embed,
                "vq_fingerprint": load_tokenizer(released / "data/tokenizer").fingerprint(),
                "settings_fingerprint": "0" * 16,
            }
        )


QUICK = [
    "parallel=single",
    "tracking=disabled",
    "data.row_tokens=192",
    "data.step_rows=2",
    "data.window_documents=8",
    "save_every=1",
]


@pytest.fixture(scope="module")
def own(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "model"
    mgpt("import", f"input={released / 'chameleon-7b'}", f"output={folder}")
    return folder


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        ("pretrain", "data/models/7b"),
        ("omni_sft", "chameleon-7b"),
        ("fp_sft", "own"),
        ("omni_sft", "a step"),
    ],
)
def test_training_starts_from_any_form(
    released: Path, own: Path, tmp_path: Path, stage: str, kind: str
) -> None:
    """With the image rows at 0 and only them training, the rest is the released model's."""
    make_tokens(tmp_path / "tokens" / "512", released)
    path = tmp_path / ("tokens" if stage == "fp_sft" else "tokens/512")
    task = "image_text" if stage == "pretrain" else "text_to_image"
    source = [f"data.sources.a.path={path}", f"data.sources.a.tasks.{task}=1"]
    start = own if kind == "own" else released / kind
    if kind == "a step":
        words = [f"init_from={own}", "steps=1", f"output={tmp_path / 'before'}"]
        mgpt("omni_sft", *words, "optim.lr=1e-30", *source, *QUICK)  # the weights stay
        start = tmp_path / "before" / "step_00000001"
    mgpt(
        stage,
        f"init_from={start}",
        "image_rows=zero",
        "train=image_head",
        "steps=1",
        "optim.lr=1e-3",
        "schedule.warmup_steps=0",
        *source,
        f"output={tmp_path / 'run'}",
        *QUICK,
    )
    trained, want = weights(tmp_path / "run" / "model"), small(**LARGE)[1]
    for name in want.keys() - {"lm_head.weight"}:
        assert torch.equal(trained[name], want[name].float()), name
    head, before = trained["lm_head.weight"], want["lm_head.weight"].float()
    image = torch.zeros(65536, dtype=torch.bool)
    image[4 : 4 + 8192] = True
    assert torch.equal(head[~image], before[~image])
    assert bool((head[image] != 0).any()) and float(head[image].abs().max()) <= 1.01e-3
    assert Vocabulary.load(tmp_path / "run" / "model" / "vocabulary").layout == "chameleon"


def test_weights_without_tokenizer_need_one_to_train(
    released: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    make_tokens(tmp_path / "tokens", released)
    folder = write_transformers(tmp_path / "m", *small(**LARGE))
    words = [
        f"init_from={folder}",
        "steps=1",
        f"data.sources.a.path={tmp_path / 'tokens'}",
        "data.sources.a.tasks.text_to_image=1",
        f"output={tmp_path / 'run'}",
        *QUICK,
    ]
    assert "has no vocabulary; give vocabulary=" in refused("omni_sft", *words)
    mgpt("omni_sft", *words, f"vocabulary={released / 'data/tokenizer'}", "redo=true")
    assert (tmp_path / "run" / "model" / "vocabulary" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("page", "heading"),
    [("README.md", "Released weights"), ("mgpt/weights/README.md", "Import, train, export")],
)
def test_the_documented_commands_run(
    page: str, heading: str, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = (ROOT / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    block = re.findall(r"```bash\n(.*?)```", section, re.S)[0]
    lines = [
        shlex.split(line, comments=True)
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    ]
    monkeypatch.chdir(tmp_path)
    for name in ("data", "chameleon-7b"):
        (tmp_path / name).symlink_to(released / name)
    make_tokens(tmp_path / "tokens" / "512", released)
    assert {words[1] for words in lines} == {"import", "fp_sft", "export"}
    for program, stage, *fields in lines:
        assert program == "mgpt"
        if stage == "fp_sft":
            fields = [re.sub(r"^steps=\d+", "steps=1", f) for f in fields]
            fields = [f for f in fields if not f.startswith("parallel")] + QUICK
        mgpt(stage, *fields)
    exported = next(f for f in lines[-1] if f.startswith("output=")).partition("=")[2]
    config = json.loads((tmp_path / exported / "config.json").read_text())
    assert config["model_type"] == "chameleon" and config["dtype"] == "bfloat16"
    assert weights(tmp_path / exported)["lm_head.weight"].dtype == torch.bfloat16
