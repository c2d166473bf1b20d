"""Text comes back unchanged, whatever it holds, and control tokens cannot be written in it."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from chameleon_layout import chameleon_json
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mgpt.errors import ConfigError, DataError, MachineError, VocabularyError
from mgpt.tokens.text import JsonText, SentencePieceText, train_sentencepiece
from mgpt.tokens.vocab import Vocabulary

from .conftest import CORPUS

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=150, deadline=None)
@given(TEXTS)
@example("")
@example("  a  red\n\n cube \t\r\n ")
@example("a\u2581red\u2581\u2581cube ▅ ☂ \x00 é e\u0301 \ufeff")
@example("<s><unk><pad></s><0x0A>")
def test_decode_undoes_encode(vocab: Vocabulary, text: str) -> None:
    ids = vocab.encode_text(text)
    assert vocab.decode_text(ids) == text
    assert vocab.is_text(ids).all()


def test_pieces_are_whole_words_and_newline(scratch: Vocabulary) -> None:
    assert len(scratch.text.encode(" large red cone")) == 3
    assert len(scratch.text.encode("\n\n")) == 2


def test_training_is_deterministic(sentencepiece_file: Path, tmp_path: Path) -> None:
    again = train_sentencepiece(iter(CORPUS), tmp_path / "again.model", 400)
    assert again.read_bytes() == sentencepiece_file.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["again.model"]


def test_a_tiny_corpus_gives_fewer_pieces(tmp_path: Path) -> None:
    text = SentencePieceText(train_sentencepiece(["one"], tmp_path / "m", 8000))
    assert 258 < text.num_pieces < 300
    assert text.decode(text.encode("two\tthree")) == "two\tthree"


def test_rare_characters_are_left_to_the_bytes(tmp_path: Path) -> None:
    corpus = ["a red cube"] * 3000 + ["a red ☂"]
    text = SentencePieceText(train_sentencepiece(corpus, tmp_path / "m", 300))
    assert len(text.encode("☂")) == 3
    assert text.decode(text.encode("a ☂ é")) == "a ☂ é"


def test_training_refuses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text"):
        train_sentencepiece(["", " \n"], tmp_path / "m", 400)
    with pytest.raises(ConfigError, match="258 pieces are taken"):
        train_sentencepiece(["a"], tmp_path / "m", 258)
    with pytest.raises(ConfigError, match="num_pieces=260 does not fit"):
        train_sentencepiece(["abcdefgh"], tmp_path / "m", 260)
    with pytest.raises(DataError, match="surrogate at character 1"):
        train_sentencepiece(["a\ud800"], tmp_path / "m", 400)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lossy", [{"add_dummy_prefix": True}, {"byte_fallback": False}])
def test_a_lossy_sentencepiece_model_is_refused(lossy: dict[str, bool]) -> None:
    model = io.BytesIO()
    options = {"add_dummy_prefix": False, "byte_fallback": True, **lossy}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red cube, two cones"]),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )
    with pytest.raises(VocabularyError, match=r"train it with|turns"):
        SentencePieceText(model.getvalue())


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"nothing of the kind")
    with pytest.raises(VocabularyError, match="wrong: not a SentencePiece model"):
        SentencePieceText(wrong)
    with pytest.raises(VocabularyError, match=r"wrong: not a tokenizer\.json"):
        JsonText(wrong)
    with pytest.raises(VocabularyError, match="absent: the tokenizer cannot be read"):
        JsonText(tmp_path / "absent")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MachineError, match="pip install sentencepiece"):
        SentencePieceText(b"")


def test_a_lone_surrogate_is_refused(vocab: Vocabulary) -> None:
    with pytest.raises(DataError, match="surrogate at character 4"):
        vocab.encode_text("red \udc80")


@pytest.mark.parametrize(
    "text",
    [
        "<s>",
        "a </s><pad><unk>",
        "IMGIMGBCZ",
        "IMGIMGIMGIMGAZ",
        "<reserved08706>",
        "<reserved<reserved08799>08706>",
        "see <|image|> here<racm3:break><eoss>",
    ],
)
def test_a_control_token_in_a_text_stays_text(vocab: Vocabulary, text: str) -> None:
    ids = vocab.encode_text(text)
    assert vocab.is_text(ids).all()
    assert vocab.decode_text(ids) == text


def test_a_control_token_that_cannot_be_cut_is_refused() -> None:
    text = JsonText(chameleon_json(lambda names: [*names, "@"]))
    assert text.encode("a at b")
    with pytest.raises(DataError, match="control token '@'"):
        text.encode("a@b")


@pytest.fixture(scope="module")
def encode_whole() -> Callable[[str], list[int]]:
    """The tokenizer by itself, to which the published code gives a whole conversation."""
    model = Tokenizer.from_buffer(chameleon_json(extra={"<|image|>": 65536}))
    return lambda text: model.encode(text, add_special_tokens=False).ids


# Without what a control token's name is made of: such a name is text to us alone.
_NO_NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<I"), max_size=30)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(_NO_NAMES, min_size=1, max_size=3), min_size=1, max_size=4))
@example([[" a", "red ", "\n"], ["", "  the  red\n", " "]])
def test_pieces_of_a_conversation_encode_as_the_whole(
    chameleon: Vocabulary, encode_whole: Callable[[str], list[int]], messages: list[list[str]]
) -> None:
    ids = []
    for pieces in messages:
        for number, piece in enumerate(pieces):
            ids += [65536] * bool(number) + chameleon.encode_text(piece)
        ids.append(chameleon.end_of_turn)
    written = "".join("<|image|>".join(pieces) + "<reserved08706>" for pieces in messages)
    assert encode_whole(written) == ids
