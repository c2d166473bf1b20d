"""mgpt export of what was trained from nothing: its own vocabulary, its own VQGAN."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ChameleonForConditionalGeneration

from mgpt.cli import command
from mgpt.models.folder import load_model
from mgpt.models.tensor_files import lazy
from mgpt.models.transformer import Transformer, TransformerConfig
from mgpt.stages.build import write_model_folder
from mgpt.tokenizers.folder import load_tokenizer, save_tokenizer
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig
from mgpt.tokens.text import SentencePieceText, train_sentencepiece
from mgpt.tokens.vocab import Vocabulary, scratch_vocabulary

CODES = 64
VQ = VqganConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, embed_dim=4, n_embed=CODES)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder as a training stage leaves it, and vq/ and narrow_vq/ beside it."""
    text = SentencePieceText(train_sentencepiece(["a red cube"], tmp_path / "text.model", 300))
    vocabulary = scratch_vocabulary(text, num_codes=CODES, max_grids=4)
    sizes = {"hidden": 32, "ffn": 48, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
    made = Transformer(TransformerConfig(**sizes, vocab_size=vocabulary.size))
    made.init_weights(0)
    tensors = [lazy(name, tensor) for name, tensor in made.state_dict().items()]
    write_model_folder(tmp_path / "model", made.cfg, tensors, vocabulary)
    torch.manual_seed(0)
    save_tokenizer(Vqgan(VQ), tmp_path / "vq")
    narrow = {**vars(VQ), "ch": 8, "num_groups": 4}
    save_tokenizer(Vqgan(VqganConfig(**narrow)), tmp_path / "narrow_vq")
    return tmp_path / "model"


def mgpt(*words: str) -> None:
    assert command.main(words) == 0


def assert_back_again(model: Path, exported: Path, tmp_path: Path) -> None:
    """An import of the export is the model folder, file by file."""
    mgpt("import", f"input={exported}", f"output={tmp_path / 'again'}")
    for name in ("config.json", "model.safetensors", "SHA256SUMS", "vocabulary/text.model"):
        assert (tmp_path / "again" / name).read_bytes() == (model / name).read_bytes(), name
    assert Vocabulary.load(tmp_path / "again" / "vocabulary").layout == "scratch"


def test_a_vocabulary_of_its_own_goes_along(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mgpt("export", f"ckpt={model}", f"vq={tmp_path / 'vq'}", f"output={tmp_path / 'out'}")
    assert "the scratch vocabulary goes along as vocabulary/" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    names = {"<s>": 0, "<pad>": 1, "</s>": 2, "<image>": 3, "IMGIMGAZ": 4, "IMGIMGGDZ": 4 + 63}
    assert names.items() <= config["vocabulary_map"].items()
    assert len(config["vocabulary_map"]) == 4 + CODES
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs, report = ChameleonForConditionalGeneration.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
    assert not any(report.values()), report
    ids_BT = torch.arange(20)[None]
    with torch.no_grad():
        want = theirs.lm_head(theirs.model(ids_BT).last_hidden_state)
        ours = load_model(model)
        got = ours.head.logits(ours(ids_BT, ids_BT))
    # The same sums in fp32, in another order: 1.3e-6 at most, measured.
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert_back_again(model, tmp_path / "out", tmp_path)


def test_an_encoder_that_transformers_cannot_build_is_left_out_on_request(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "export",
        f"ckpt={model}",
        f"vq={tmp_path / 'narrow_vq'}",
        f"output={tmp_path / 'out'}",
    ]
    assert command.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("mgpt: ") and said.count("\n") == 1
    assert "norms have 4 groups, and transformers' have 32: set with_vq=false" in said
    assert not (tmp_path / "out").exists()
    mgpt(*words, "with_vq=false")
    assert "note: no VQ encoder: transformers will make up a fresh one" in capsys.readouterr().out
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in stored if "vqmodel" in name]
    want = load_tokenizer(tmp_path / "narrow_vq").fingerprint()
    assert load_tokenizer(tmp_path / "out" / "vq").fingerprint() == want
    assert_back_again(model, tmp_path / "out", tmp_path)
    assert load_tokenizer(tmp_path / "again" / "vq").fingerprint() == want


def test_a_vqgan_of_other_codes_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tokenizer(Vqgan(VqganConfig(**{**vars(VQ), "n_embed": 32})), tmp_path / "other")
    words = ["export", f"ckpt={model}", f"vq={tmp_path / 'other'}", f"output={tmp_path / 'out'}"]
    assert command.main(words) == 2
    assert "has 64 image codes, the VQGAN 32; give the VQGAN that" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["export", "import", "generate"])
def test_a_flipped_bit_is_named_by_every_command(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    folder = model
    if stage == "import":
        folder = tmp_path / "out"
        mgpt("export", f"ckpt={model}", f"vq={tmp_path / 'vq'}", f"output={folder}")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little") + 1000] ^= 1  # behind the header
    path.write_bytes(content)
    words = {
        "export": [f"ckpt={folder}", f"vq={tmp_path / 'vq'}"],
        "import": [f"input={folder}"],
        "generate": [f"ckpt={folder}", f"vq={tmp_path / 'vq'}", "prompt=a red cube"],
    }
    capsys.readouterr()
    assert command.main([stage, *words[stage], f"output={tmp_path / 'made'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mgpt: ") and said.count("\n") == 1
    assert f"{folder}: not as SHA256SUMS has it: model.safetensors;" in said
    left = {file.name for file in (tmp_path / "made").glob("*")}
    assert not left & {"config.json", "DONE", "model.safetensors", "vocabulary", "vq"}


def test_an_export_says_which_vqgan_its_weights_know(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = load_tokenizer(tmp_path / "vq").fingerprint()
    other = load_tokenizer(tmp_path / "narrow_vq").fingerprint()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vq_fingerprint": own}))
    (model / "SHA256SUMS").unlink()
    words = ("export", f"ckpt={model}", "with_vq=false", f"output={tmp_path / 'out'}")
    assert command.main([*words, f"vq={tmp_path / 'narrow_vq'}"]) == 2
    said = capsys.readouterr().err
    assert "vq_mismatch" in said and own in said and other in said
    mgpt(*words)  # without a VQGAN its fingerprint still goes along
    mgpt("import", f"input={tmp_path / 'out'}", f"output={tmp_path / 'again'}")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["vq_fingerprint"] == own
    shutil.rmtree(tmp_path / "again")
    words = ("import", f"input={tmp_path / 'out'}", f"output={tmp_path / 'again'}")
    assert command.main([*words, f"vq={tmp_path / 'narrow_vq'}"]) == 2
    assert "vq_mismatch" in capsys.readouterr().err
