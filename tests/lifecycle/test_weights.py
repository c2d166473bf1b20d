"""Weights and the vocabulary that lies beside them go together, or both are named."""

from pathlib import Path

import pytest
import torch

from mgpt.errors import VocabularyError
from mgpt.infer.engine import Engine
from mgpt.lifecycle.weights import NO_PICTURES, VOCABULARY, Weights, load_vocabulary
from mgpt.models.tensor_files import lazy
from mgpt.models.transformer import Transformer, TransformerConfig
from mgpt.stages.build import build_pipeline, write_model_folder
from mgpt.tokenizers.folder import load_tokenizer, save_tokenizer
from mgpt.tokenizers.vqgan import Vqgan, VqganConfig
from mgpt.tokens.text import SentencePieceText, train_sentencepiece
from mgpt.tokens.vocab import Vocabulary, scratch_vocabulary


def vocabulary(folder: Path, num_codes: int, max_grids: int) -> Vocabulary:
    model = train_sentencepiece(["a red cube"] * 9, folder / "text.model", 300)
    return scratch_vocabulary(SentencePieceText(model), num_codes, max_grids)


@pytest.fixture
def model(tmp_path: Path) -> Transformer:
    """A transformer, saved in tmp_path/model with the vocabulary of 16 codes and 4 sizes."""
    own = vocabulary(tmp_path, 16, 4)
    sizes = {"hidden": 16, "ffn": 16, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 16}
    model = Transformer(TransformerConfig(**sizes, vocab_size=own.size))
    model.init_weights(0)
    tensors = [lazy(name, tensor) for name, tensor in model.state_dict().items()]
    write_model_folder(tmp_path / "model", model.cfg, tensors, own)
    return model


def test_weights_bring_their_vocabulary(tmp_path: Path, model: Transformer):
    weights = Weights.find(tmp_path)
    assert weights.vocabulary().num_codes == 16
    assert torch.equal(weights.load(torch.device("cpu")).embed.weight, model.embed.weight)


def test_another_vocabulary_of_the_same_size_is_named(tmp_path: Path, model: Transformer):
    own, other = vocabulary(tmp_path, 16, 4), vocabulary(tmp_path, 15, 5)
    assert own.size == other.size
    other.save(tmp_path / "model" / VOCABULARY)
    for read in (Weights.vocabulary, Weights.own_vocabulary):
        with pytest.raises(VocabularyError) as caught:
            read(Weights.find(tmp_path))
        assert f"trained with vocabulary {own.fingerprint}" in str(caught.value)
        assert f"stands there is {other.fingerprint}" in str(caught.value)


def test_a_vocabulary_of_another_size_is_named_before_an_id_is_looked_up(
    tmp_path: Path, model: Transformer
):
    larger = vocabulary(tmp_path, 17, 4)
    with pytest.raises(VocabularyError, match=f"{model.cfg.vocab_size} .* {larger.size};"):
        Engine(model, larger)


def test_a_missing_vocabulary_says_where_it_was_looked_for(tmp_path: Path):
    with pytest.raises(VocabularyError, match=r"no vocabulary\.json in any of"):
        load_vocabulary(tmp_path)


def vqgan(folder: Path, seed: int) -> str:
    """A VQGAN of 16 codes; its fingerprint."""
    torch.manual_seed(seed)
    widths = {"ch": 8, "ch_mult": (1, 1), "num_groups": 4, "z_channels": 4, "embed_dim": 4}
    save_tokenizer(Vqgan(VqganConfig(**widths, num_res_blocks=1, n_embed=16)), folder)
    return load_tokenizer(folder).fingerprint()


def test_a_model_draws_with_the_vqgan_of_its_codes_alone(tmp_path: Path, model: Transformer):
    own, other = vqgan(tmp_path / "vq", 0), vqgan(tmp_path / "other", 1)
    tensors = [lazy(name, tensor) for name, tensor in model.state_dict().items()]
    folder, notes = tmp_path / "model", []
    write_model_folder(folder, model.cfg, tensors, Weights.find(folder).vocabulary(), own)
    cpu = torch.device("cpu")
    build_pipeline(str(folder), str(tmp_path / "vq"), cpu, torch.float32, True, notes.append)
    with pytest.raises(VocabularyError, match=f"vq_mismatch.*{own}.*vq=.*{other}"):
        build_pipeline(str(folder), str(tmp_path / "other"), cpu, torch.float32, True, notes.append)
    assert notes == []


def test_weights_that_do_not_say_which_vqgan_are_noted_once(tmp_path: Path, model: Transformer):
    other, notes = vqgan(tmp_path / "other", 1), []
    build_pipeline(
        str(tmp_path / "model"),
        str(tmp_path / "other"),
        torch.device("cpu"),
        torch.float32,
        True,
        notes.append,
    )
    assert len(notes) == 1 and other in notes[0]


def test_weights_of_text_alone_learn_any_pictures(tmp_path: Path, model: Transformer):
    tensors = [lazy(name, tensor) for name, tensor in model.state_dict().items()]
    folder, notes = tmp_path / "model", []
    vocabulary = Weights.find(folder).vocabulary()
    write_model_folder(folder, model.cfg, tensors, vocabulary, NO_PICTURES)
    weights = Weights.find(folder)
    assert weights.check_vq("0123456789abcdef", "shards", notes.append) == "0123456789abcdef"
    assert weights.check_vq(None, "shards", notes.append) == NO_PICTURES
    assert notes == []
