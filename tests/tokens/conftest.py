"""A small vocabulary of the from-scratch layout, and both layouts in turn."""

import sys
from pathlib import Path

import pytest

from mgpt.tokens.text import SentencePieceText, train_sentencepiece
from mgpt.tokens.vocab import Vocabulary, chameleon_vocabulary, scratch_vocabulary

sys.path.insert(0, str(Path(__file__).parent))
from chameleon_layout import chameleon_json

CORPUS = [
    f"a {size} {colour} {shape}, left of\nthe other"
    for size in ("small", "large")
    for colour in ("red", "blue", "green")
    for shape in ("cube", "cone", "sphere")
]


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(CORPUS, tmp_path_factory.mktemp("text") / "text.model", 400)


@pytest.fixture(scope="session")
def scratch(sentencepiece_file: Path) -> Vocabulary:
    return scratch_vocabulary(SentencePieceText(sentencepiece_file), num_codes=32, max_grids=4)


@pytest.fixture(scope="session")
def chameleon() -> Vocabulary:
    """As a loader of the released model leaves it: `<|image|>` appended as 65,536."""
    return chameleon_vocabulary(chameleon_json(extra={"<|image|>": 65536}))


@pytest.fixture(params=["scratch", "chameleon"], scope="session")
def vocab(request: pytest.FixtureRequest) -> Vocabulary:
    return request.getfixturevalue(request.param)
