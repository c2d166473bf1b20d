"""A vocabulary of letters and a transformer with lively logits, for decoding."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer
from mgpt.tokens.vocab import Vocabulary, scratch_vocabulary


class Letters:
    """Each printable ASCII character is a piece."""

    FILE = "letters.txt"
    num_pieces = 95
    fingerprint = "letters"
    controls: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 32 for letter in text]

    def decode(self, pieces: list[int]) -> str:
        return "".join(chr(piece + 32) for piece in pieces)

    def save(self, folder: Path) -> None:
        (Path(folder) / self.FILE).write_text("")


@pytest.fixture(scope="session")
def vocab() -> Vocabulary:
    return scratch_vocabulary(Letters(), num_codes=64, max_grids=4)


@pytest.fixture(scope="session")
def model(vocab: Vocabulary) -> Transformer:
    """In fp64, so that no draw falls on the other side of a boundary by rounding."""
    model = Transformer(replace(SIZES["debug"], vocab_size=vocab.size, max_positions=256))
    model.init_weights(0)
    with torch.no_grad():
        model.head.weight.mul_(3.0)  # logits of deviation about 3, so that contexts matter
        model.head.weight[vocab.begin_image].mul_(2.0)  # and that images are begun unasked
        for block in model.blocks:
            block.self_attn.o_proj.weight.mul_(3.0)
            block.mlp.down_proj.weight.mul_(3.0)
    return model.double().eval()
