"""From a source to what a model would be trained on: pack, tokenize, one row of each document."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.pack import PackConfig, pack
from data_pipeline.tokenize import Config as TokenizeConfig
from data_pipeline.tokenize import tokenize
from mgpt.data.dataset import TokenisedDataset, open_dataset
from mgpt.data.documents import IGNORED
from mgpt.data.loader import held_out_rows
from mgpt.data.rows import NO_GROUP
from mgpt.data.source import DataConfig, SourceConfig
from mgpt.tokens.text import SentencePieceText, train_sentencepiece
from mgpt.tokens.unirep import decode_grid, find_images
from mgpt.tokens.vocab import Vocabulary, scratch_vocabulary
from mgpt.tracking.tracker import Tracker


@pytest.fixture(scope="session")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """Every letter the tests use, by bytes if need be, and the 64 codes of the tiny VQ model."""
    texts = ["the quick brown fox jumps over the lazy dog", "Wxyz, 0123456789. ?!"] * 10
    model = train_sentencepiece(texts, tmp_path_factory.mktemp("text") / "text.model", 320)
    return scratch_vocabulary(SentencePieceText(model), 64, max_grids=16)


@dataclass(frozen=True)
class Corpus:
    """What came out: `packed` is pack's summary, `dataset` the tokenised samples."""

    packed: dict[str, Any]
    dataset: TokenisedDataset
    vocab: Vocabulary

    def documents(self, task: str) -> list[tuple[str, str]]:
        """Each document of training as words, `[h x w]` for a picture; and what of it is trained.

        Sorted, because rows come in a drawn order.
        """
        source = {"mine": SourceConfig(str(self.dataset.folder), {task: 1.0})}
        rows = held_out_rows(DataConfig(source, row_tokens=1024), self.vocab, seed=0, num_rows=8)
        found = []
        for ids, labels, positions, groups in zip(
            rows.ids, rows.labels, rows.positions, rows.groups
        ):
            real = int((groups != NO_GROUP).sum())
            starts = [*np.flatnonzero(positions[:real] == 0).tolist(), real]
            for start, end in pairwise(starts):
                trained = ids[start + 1 : end][labels[start : end - 1] != IGNORED]
                found.append((self.words(ids[start:end]), self.words(trained)))
        return sorted(found)

    def words(self, ids: np.ndarray) -> str:
        """Ids as text: `<s>`, `</s>`, `|` between turns, `[h x w]` in latents for a picture."""
        vocab, pieces, at = self.vocab, [], 0
        names = {vocab.bos: "<s>", vocab.eos: "</s>", vocab.end_of_turn: "|"}
        images = dict(find_images(ids, vocab))
        text: list[int] = []
        while at <= len(ids):
            special = at == len(ids) or at in images or int(ids[at]) in names
            if special and text:
                pieces.append(vocab.decode_text(text))
                text = []
            if at == len(ids):
                break
            if at in images:
                height, width = decode_grid(ids[at : images[at]], vocab).shape
                pieces.append(f"[{height} x {width}]")
                at = images[at]
                continue
            if special:
                pieces.append(names[int(ids[at])])
            else:
                text.append(int(ids[at]))
            at += 1
        return "".join(pieces)


@pytest.fixture
def corpus(tmp_path: Path, tracker: Tracker, vq: str, vocab: Vocabulary) -> Callable[..., Corpus]:
    """`corpus(source, input, **fields of PackConfig)`: packed and tokenised at 32 px."""

    def make(source: str, given: Path, **fields: Any) -> Corpus:
        raw, tokens = str(tmp_path / "raw"), str(tmp_path / "tokens")
        packed = pack(PackConfig(source=source, input=str(given), output=raw, **fields), tracker)
        tokenize(TokenizeConfig(input=raw, output=tokens, vq=vq, resolution=[32]), tracker)
        return Corpus(packed, open_dataset(Path(tokens) / "32"), vocab)

    return make
