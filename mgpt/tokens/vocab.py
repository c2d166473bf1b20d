"""The vocabulary: the one object that owns every id range.

Two layouts. `chameleon` is the released vocabulary of 65,536, read by token name from its
`tokenizer.json`; there a text piece is its own id. `scratch` is ours for training from nothing:

    0 `<s>`  1 `<pad>`  2 `</s>`  3 reserved | 4.. image codes
    | end of image, begin of image, end of line, end of turn
    | size tokens for 1, 2, .. max_grids grids | text pieces

    vocab = scratch_vocabulary(SentencePieceText("text.model"), num_codes=512, max_grids=16)
    vocab.decode_text(vocab.encode_text("a red cube"))     # 'a red cube'
    vocab.grids(vocab.size_token(4))                       # 4
    vocab.save(folder); Vocabulary.load(folder).fingerprint == vocab.fingerprint
"""

import hashlib
import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from mgpt.errors import DataError, VocabularyError
from mgpt.files.atomic import atomic_write
from mgpt.tokens.text import JsonText, SentencePieceText, TextTokenizer

BOS, PAD, EOS = 0, 1, 2
IMAGE_START = 4
MAX_VOCABULARY = 1 << 16  # an id fits into 16 bits
FILE = "vocabulary.json"
_FORMAT = 1

# Chameleon's names and the ids they must have (arXiv 2405.09818; Lumina-mGPT, arXiv 2408.02657).
_CHAMELEON_CODES = 8192
_CHAMELEON_MAX_GRIDS = 128  # 4,096 px a side: twice what the widest bucket of 1024² needs
_CHAMELEON_NAMES = {
    "<s>": 0,
    "<pad>": 1,
    "</s>": 2,
    "<eoss>": 8196,
    "<racm3:break>": 8197,
    "<reserved08706>": 8710,
    "<reserved08799>": 8803,
}
_CHAMELEON_CONTROLS = (
    r"IMGIMG[A-J]+Z|<reserved[0-9]{5}>|<s>|<pad>|</s>|<unk>|<eoss>|<racm3:break>|<\|image\|>"
)
_DIGIT_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Every id range, and the text tokenizer whose pieces fill the last of them."""

    layout: Literal["scratch", "chameleon"]
    size: int
    bos: int
    pad: int
    eos: int
    end_of_turn: int
    begin_image: int
    end_image: int
    end_line: int
    image_start: int
    """Id of code 0; code k is `image_start + k`."""
    num_codes: int
    size_start: int
    """Id of the size token for one grid; n grids are `size_start + n - 1`."""
    max_grids: int
    """The largest number of grids a size token stands for; a grid is two latents wide."""
    text_start: int
    """Id of text piece 0."""
    text: TextTokenizer = field(repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over every range and the tokenizer's file."""
        return hashlib.sha256(json.dumps(self._record(), sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def text_mask(self) -> npt.NDArray[np.bool_]:
        """[size]: which ids are pieces of text."""
        mask = np.zeros(self.size, dtype=bool)
        mask[self.text_start :] = True
        controls = np.array(sorted(self.text.controls), dtype=np.int64) + self.text_start
        mask[controls[controls < self.size]] = False
        mask.setflags(write=False)
        return mask

    def encode_text(self, text: str) -> list[int]:
        """Final ids of a text. A control token's name in it stays text; see `JsonText`."""
        return [self.text_start + piece for piece in self.text.encode(text)]

    def decode_text(self, ids: npt.ArrayLike) -> str:
        """The text of `ids`. Raises `DataError` naming the first id that is no piece of text."""
        ids = np.asarray(ids, dtype=np.int64)
        wrong = np.flatnonzero(~self.is_text(ids))
        if wrong.size:
            position = int(wrong[0])
            raise DataError(
                f"position {position}: id {ids[position]} is not a piece of text in the "
                f"{self.layout} vocabulary of {self.size}"
            )
        return self.text.decode((ids - self.text_start).tolist())

    def size_token(self, num_grids: int) -> int:
        """Id of the size token for `num_grids` grids. Raises `DataError` outside 1..max_grids."""
        if not 1 <= num_grids <= self.max_grids:
            raise DataError(
                f"a picture side of {num_grids} grids: the vocabulary has size tokens for 1 to "
                f"{self.max_grids}; choose a smaller size or a vocabulary with more"
            )
        return self.size_start + num_grids - 1

    def is_size(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which of `ids` are size tokens."""
        return _between(ids, self.size_start, self.size_start + self.max_grids)

    def grids(self, token: int) -> int:
        """Number of grids a size token stands for. Raises `DataError` on another token."""
        if not self.is_size(token):
            raise DataError(
                f"id {token} is not a size token ({self.size_start} to "
                f"{self.size_start + self.max_grids - 1})"
            )
        return int(token) - self.size_start + 1

    def is_code(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which of `ids` are image codes."""
        return _between(ids, self.image_start, self.image_start + self.num_codes)

    def is_text(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which of `ids` are pieces of text; an id outside the vocabulary is not."""
        ids = np.asarray(ids, dtype=np.int64)
        inside = (ids >= 0) & (ids < self.size)
        return inside & self.text_mask[np.where(inside, ids, 0)]

    @property
    def names(self) -> dict[str, int]:
        """Every token that has a name, in order of the ids: all of Chameleon's, or, from scratch,
        what Chameleon names alike (`<s>`, `<pad>`, `</s>` and the image codes)."""
        if isinstance(self.text, JsonText) and self.layout == "chameleon":
            ids = ((token, name) for name, token in self.text.ids.items() if token < self.size)
            return {name: token for token, name in sorted(ids)}
        codes = {code_name(k): self.image_start + k for k in range(self.num_codes)}
        return {"<s>": self.bos, "<pad>": self.pad, "</s>": self.eos} | codes

    def save(self, folder: Path) -> None:
        """Write `vocabulary.json` (last) and the tokenizer's file."""
        self.text.save(Path(folder))
        record = {"format": _FORMAT, "fingerprint": self.fingerprint, **self._record()}
        atomic_write(Path(folder) / FILE, (json.dumps(record, indent=1) + "\n").encode())

    @staticmethod
    def load(folder: Path) -> "Vocabulary":
        """Read what `save` wrote.

        Raises `VocabularyError` where a file is missing or is not the one that was saved.
        """
        path = Path(folder) / FILE
        try:
            record = json.loads(path.read_bytes())
            stored, layout = record["fingerprint"], record["layout"]
            if record["format"] != _FORMAT or layout not in ("scratch", "chameleon"):
                raise ValueError(f"format {record['format']}, layout {layout!r}")
            if layout == "chameleon":
                vocab = chameleon_vocabulary(path.parent / JsonText.FILE)
            else:
                kind = {t.FILE: t for t in (SentencePieceText, JsonText)}[record["text_file"]]
                text = kind(path.parent / record["text_file"])
                vocab = scratch_vocabulary(text, record["num_codes"], record["max_grids"])
        except OSError as error:
            raise VocabularyError(
                f"{path}: no vocabulary there ({error.strerror}); give a model folder or the "
                "output of `mgpt train_text`"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise VocabularyError(
                f"{path}: not a vocabulary of this version ({error!r})"
            ) from error
        if vocab.fingerprint != stored:
            raise VocabularyError(
                f"{path}: says fingerprint {stored}, but its files give {vocab.fingerprint}; a "
                "file was changed or belongs to another vocabulary: copy the whole folder again"
            )
        return vocab

    def _record(self) -> dict[str, int | str]:
        ranges = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "text"}
        return {**ranges, "text_file": self.text.FILE, "text_fingerprint": self.text.fingerprint}


def scratch_vocabulary(text: TextTokenizer, num_codes: int, max_grids: int) -> Vocabulary:
    """The layout for training from nothing: only what is used has an id.

    Raises `VocabularyError` where it would not fit into 65,536 ids.
    """
    assert num_codes > 0 and max_grids > 0
    special = IMAGE_START + num_codes
    size_start = special + 4
    text_start = size_start + max_grids
    size = text_start + text.num_pieces
    if size > MAX_VOCABULARY:
        raise VocabularyError(
            f"{num_codes} codes, {max_grids} sizes and {text.num_pieces} text pieces make {size} "
            f"ids; at most {MAX_VOCABULARY} fit: train a smaller text tokenizer"
        )
    return Vocabulary(
        layout="scratch",
        size=size,
        bos=BOS,
        pad=PAD,
        eos=EOS,
        end_image=special,
        begin_image=special + 1,
        end_line=special + 2,
        end_of_turn=special + 3,
        image_start=IMAGE_START,
        num_codes=num_codes,
        size_start=size_start,
        max_grids=max_grids,
        text_start=text_start,
        text=text,
    )


def chameleon_vocabulary(tokenizer_json: str | Path | bytes) -> Vocabulary:
    """The released vocabulary from `tokenizer.json` (Meta calls it `text_tokenizer.json`).

    Ids are looked up by name and held against the published ones; code k must have id k + 4.
    Raises `VocabularyError` naming the first token that is missing or elsewhere.
    """
    text = JsonText(tokenizer_json, control_pattern=_CHAMELEON_CONTROLS)
    expected = dict(_CHAMELEON_NAMES)
    for num_grids in range(1, _CHAMELEON_MAX_GRIDS + 1):
        expected[f"<reserved{8800 + num_grids:05d}>"] = 8804 + num_grids
    for name, want in expected.items():
        _check_token(name, text.ids.get(name), want)
    for code in range(_CHAMELEON_CODES):
        name = code_name(code)
        _check_token(name, text.ids.get(name), IMAGE_START + code)
    # A loader of the released model appends `<|image|>` as 65,536: such ids are left out.
    highest = max(i for i in text.ids.values() if i < MAX_VOCABULARY)
    _check_token("the last token", highest, MAX_VOCABULARY - 1)
    return Vocabulary(
        layout="chameleon",
        size=MAX_VOCABULARY,
        bos=BOS,
        pad=PAD,
        eos=EOS,
        end_image=expected["<eoss>"],
        begin_image=expected["<racm3:break>"],
        end_line=expected["<reserved08799>"],
        end_of_turn=expected["<reserved08706>"],
        image_start=IMAGE_START,
        num_codes=_CHAMELEON_CODES,
        size_start=expected["<reserved08801>"],
        max_grids=_CHAMELEON_MAX_GRIDS,
        text_start=0,
        text=text,
    )


def code_name(code: int) -> str:
    """Chameleon's name of an image code: its digits as letters, `IMGIMGBDZ` for 13."""
    return f"IMGIMG{str(code).translate(_DIGIT_LETTERS)}Z"


def check_same(a: Vocabulary, b: Vocabulary, where_a: str, where_b: str) -> None:
    """Raise `VocabularyError` naming both sides where two vocabularies differ."""
    if a.fingerprint == b.fingerprint:
        return
    ours, theirs = a._record(), b._record()
    differ = ", ".join(
        f"{key} {ours[key]} against {theirs[key]}" for key in ours if ours[key] != theirs[key]
    )
    raise VocabularyError(
        f"two vocabularies that do not go together: {where_a} has {a.fingerprint}, {where_b} has "
        f"{b.fingerprint} ({differ}); use the vocabulary that the weights were trained with"
    )


def _check_token(name: str, got: int | None, want: int) -> None:
    if got != want:
        found = "is missing" if got is None else f"has id {got}"
        raise VocabularyError(
            f"not Chameleon's tokenizer: {name} {found}, and must have id {want}; give the "
            "tokenizer.json that came with the released weights"
        )


def _between(ids: npt.ArrayLike, start: int, stop: int) -> npt.NDArray[np.bool_]:
    ids = np.asarray(ids, dtype=np.int64)
    return (ids >= start) & (ids < stop)
