"""Text as pieces: SentencePiece and tokenizers-JSON behind one face.

A text tokenizer knows pieces, numbered from 0, and nothing of pictures, turns or control tokens;
`mgpt.tokens.vocab` gives the pieces their final ids. Both kinds keep every character: no dummy
prefix, no normalisation, bytes for what the pieces do not cover, so that decoding an encoding gives
the text back, whatever it holds.

    model = train_sentencepiece(["a red cube", "a blue cone"], Path("text.model"), num_pieces=512)
    text = SentencePieceText(model)
    text.decode(text.encode("a  blue\\ncube ☂"))        # 'a  blue\\ncube ☂'
"""

import hashlib
import importlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

from mgpt.errors import ConfigError, DataError, MachineError, VocabularyError
from mgpt.files.atomic import atomic_write

# A text that a tokenizer must give back unchanged before it is trusted with a corpus.
_PROBE = " a  red cube,\n\n two cones "
# SentencePiece writes a space as this character, and so would read it back as a space.
_SPACE_SYMBOL = "\u2581"
# Control characters and SentencePiece's own marks: it drops a training sentence that holds one.
_NO_SENTENCE = re.compile("[\x00-\x1f\u2581\u2585]+")
# 256 bytes, `<unk>` and the newline stand in every model that `train_sentencepiece` makes.
_FIXED_PIECES = 258
# Share of the corpus' characters that have pieces; the rarest are left to the bytes, so that a few
# emoji do not take the places of words.
_CHARACTER_COVERAGE = 0.9999


class TextTokenizer(Protocol):
    """What the vocabulary asks of a text tokenizer."""

    FILE: str
    """Name of the tokenizer's file in a folder."""

    @property
    def num_pieces(self) -> int:
        """Number of pieces; ids run from 0 to `num_pieces - 1`."""

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the sha256 of the tokenizer's file."""

    @property
    def controls(self) -> frozenset[int]:
        """Pieces that never stand for text, such as `<unk>`: `encode` does not return them."""

    def encode(self, text: str) -> list[int]:
        """Piece ids of `text`, with nothing put before or after."""

    def decode(self, pieces: Sequence[int]) -> str:
        """The text of `pieces`; the inverse of `encode`."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer's file into `folder`."""


class SentencePieceText:
    """A SentencePiece model with byte fallback, from a path or the bytes of its file.

    Raises `VocabularyError` where it is no SentencePiece model, or one that does not give text back
    unchanged: with a dummy prefix, a normalisation, or without bytes.
    """

    FILE = "text.model"

    def __init__(self, model: str | Path | bytes):
        sentencepiece = _import("sentencepiece")
        self._bytes, where = _read(model)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=self._bytes)
            self._space_symbol = [self._byte_piece(b) for b in _SPACE_SYMBOL.encode()]
        except RuntimeError as error:
            raise VocabularyError(f"{where}: not a SentencePiece model ({error})") from error
        self.num_pieces: int = self._model.get_piece_size()
        self.fingerprint = _fingerprint(self._bytes)
        self.controls = frozenset(
            i
            for i in range(self.num_pieces)
            if self._model.is_unknown(i) or self._model.is_control(i) or self._model.is_unused(i)
        )
        _check_probe(self, where, "train it with `mgpt train_text`, which adds no dummy prefix")

    def encode(self, text: str) -> list[int]:
        """Piece ids of `text`. Raises `DataError` on a lone surrogate: it is not Unicode."""
        _check_unicode(text)
        if _SPACE_SYMBOL not in text:
            return self._model.encode(text)
        pieces: list[int] = []
        for index, part in enumerate(text.split(_SPACE_SYMBOL)):
            pieces += self._space_symbol if index else []
            pieces += self._model.encode(part)
        return pieces

    def decode(self, pieces: Sequence[int]) -> str:
        """The text of `pieces`; bytes that are not UTF-8 become U+FFFD."""
        return self._model.decode([int(piece) for piece in pieces])

    def save(self, folder: Path) -> None:
        """Write `text.model`."""
        atomic_write(Path(folder) / self.FILE, self._bytes)

    def _byte_piece(self, byte: int) -> int:
        piece = self._model.piece_to_id(f"<0x{byte:02X}>")
        if not self._model.is_byte(piece):
            raise VocabularyError(
                f"the SentencePiece model has no piece for byte 0x{byte:02X}: text outside its "
                "alphabet would be lost; train it with byte fallback (`mgpt train_text` does)"
            )
        return piece


class JsonText:
    """A `tokenizer.json` of the `tokenizers` library, such as Chameleon's.

    Its control tokens are its added tokens and every token whose whole name matches
    `control_pattern`. Written literally in a text they are text: `encode` cuts such a name behind
    its first character, so that no tokenizer rule can see it, and refuses what still yields one.
    """

    FILE = "tokenizer.json"

    def __init__(self, tokenizer_json: str | Path | bytes, control_pattern: str = ""):
        tokenizers = _import("tokenizers")
        self._bytes, where = _read(tokenizer_json)
        try:
            self._model = tokenizers.Tokenizer.from_buffer(self._bytes)
        except Exception as error:  # the library raises plain Exception for any malformed file
            raise VocabularyError(f"{where}: not a tokenizer.json ({error})") from error
        self._model.no_padding()
        self._model.no_truncation()
        self.ids: dict[str, int] = self._model.get_vocab(with_added_tokens=True)
        self.num_pieces: int = max(self.ids.values()) + 1
        self.fingerprint = _fingerprint(self._bytes)
        added = {token.content for token in self._model.get_added_tokens_decoder().values()}
        family = re.compile(control_pattern) if control_pattern else None
        in_family = {name for name in self.ids if family and family.fullmatch(name)}
        self.controls = frozenset(self.ids[name] for name in added | in_family)
        alternatives = [re.escape(name) for name in sorted(added - in_family)]
        alternatives += [control_pattern] if control_pattern else []
        # A look-ahead finds names that overlap each other too.
        self._literal = re.compile(f"(?=(?:{'|'.join(alternatives)}))") if alternatives else None
        _check_probe(self, where, "use a tokenizer without prefix space and normalisation")

    def encode(self, text: str) -> list[int]:
        """Piece ids of `text`.

        Raises `DataError` where the text is not Unicode, or a control token comes out all the same.
        """
        _check_unicode(text)
        starts = (
            [match.start() + 1 for match in self._literal.finditer(text)] if self._literal else []
        )
        pieces: list[int] = []
        for start, stop in zip([0, *starts], [*starts, len(text)], strict=True):
            pieces += self._model.encode(text[start:stop], add_special_tokens=False).ids
        if not self.controls.isdisjoint(pieces):
            piece = next(piece for piece in pieces if piece in self.controls)
            raise DataError(
                f"the text {text[:80]!r} gives the control token "
                f"{self._model.id_to_token(piece)!r}; take it out of the text"
            )
        return pieces

    def decode(self, pieces: Sequence[int]) -> str:
        """The text of `pieces`; bytes that are not UTF-8 become U+FFFD."""
        return self._model.decode([int(piece) for piece in pieces], skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, byte for byte the one that was read."""
        atomic_write(Path(folder) / self.FILE, self._bytes)


def train_sentencepiece(
    texts: Iterable[str], output: Path, num_pieces: int, num_threads: int = 1
) -> Path:
    """Train a byte-pair SentencePiece model on `texts` and write it to the file `output`.

    A text counts as often as it is given. The model has at most `num_pieces` pieces, fewer where
    the corpus holds fewer; 258 of them are the bytes, `<unk>` and the newline. The same texts,
    sizes and threads give the same bytes. Byte pairs and not a unigram model: on a small closed
    vocabulary they keep whole words (4.6 against 9.8 pieces a sentence on 24,000 scene captions,
    questions and answers, 512 pieces asked).
    Raises `DataError` where there is no text, `ConfigError` where `num_pieces` is too small for
    the corpus' alphabet.
    """
    if num_pieces <= _FIXED_PIECES:
        raise ConfigError(
            f"num_pieces={num_pieces}: {_FIXED_PIECES} pieces are taken by the bytes, `<unk>` and "
            "the newline; ask for more"
        )
    sentencepiece = _import("sentencepiece")
    sentences = _sentences(texts)
    first = next(sentences, None)
    if first is None:
        raise DataError("no text to train a tokenizer on: the corpus holds no caption or text")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=num_pieces,
            hard_vocab_limit=False,
            character_coverage=_CHARACTER_COVERAGE,
            # A corpus without a space would leave it to the bytes, which decode as U+2581.
            required_chars=_SPACE_SYMBOL,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            user_defined_symbols=["\n"],
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            shuffle_input_sentence=False,
            max_sentence_length=1 << 20,
            num_threads=num_threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"num_pieces={num_pieces} does not fit this corpus; raise it (SentencePiece says: "
            f"{error})"
        ) from error
    atomic_write(Path(output), model.getvalue())
    return Path(output)


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        _check_unicode(text)
        yield from (part for part in _NO_SENTENCE.split(text) if part.strip())


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text {text[:80]!r} is not Unicode: a lone surrogate at character {error.start}"
        ) from error


def _check_probe(text: TextTokenizer, where: str, advice: str) -> None:
    # Twice in a row: a dummy prefix shows only between two pieces of a conversation.
    pieces = text.encode(_PROBE)
    got = text.decode([*pieces, *pieces])
    if got != 2 * _PROBE:
        raise VocabularyError(f"{where}: the tokenizer turns {2 * _PROBE!r} into {got!r}; {advice}")


def _read(source: str | Path | bytes) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, "tokenizer"
    try:
        return Path(source).read_bytes(), str(source)
    except OSError as error:
        raise VocabularyError(
            f"{source}: the tokenizer cannot be read ({error.strerror})"
        ) from error


def _fingerprint(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MachineError(f"the package {name!r} is missing; `pip install {name}`") from error
