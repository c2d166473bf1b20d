"""Small vocabularies of both layouts; Chameleon's is made on the fly in the released layout."""

import json
from pathlib import Path

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from mgpt.tokens.text import SentencePieceText, train_sentencepiece
from mgpt.tokens.vocab import Vocabulary, chameleon_vocabulary, scratch_vocabulary

CORPUS = [
    f"a {size} {colour} {shape}, left of\nthe other"
    for size in ("small", "large")
    for colour in ("red", "blue", "green")
    for shape in ("cube", "cone", "sphere")
]


def code_name(code: int) -> str:
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def chameleon_names() -> list[str]:
    """Token names by id, up to the text pieces that begin at 16,384."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *map(code_name, range(8192)), "<eoss>"]
    names += ["<racm3:break>"]
    return names + [f"<reserved{token - 4:05d}>" for token in range(len(names), 16384)]


def chameleon_json(names: list[str], extra: dict[str, int] | None = None) -> bytes:
    """A tokenizer.json: byte-level pairs without prefix space, control names as added tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = [("r", "e"), ("Ġ", "re"), ("Ġre", "d"), ("t", "h"), ("Ġ", "Ġ")]
    pieces = [*alphabet, *("".join(merge) for merge in merges)]
    pieces += [f"filler {n}" for n in range(65536 - len(names) - len(pieces))]
    vocab = {name: token for token, name in enumerate([*names, *pieces])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = {**{name: token for token, name in enumerate(names)}, **(extra or {})}
    model = {"type": "BPE", "vocab": vocab, "merges": [list(merge) for merge in merges]}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": token, "content": name, "special": True, **flags}
                for name, token in added.items()
            ],
            "normalizer": None,
            "pre_tokenizer": {**byte_level, "use_regex": True},
            "post_processor": None,
            "decoder": {**byte_level, "use_regex": True},
            "model": {**model, "dropout": None, "unk_token": None, "byte_fallback": False},
        }
    ).encode()


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(CORPUS, tmp_path_factory.mktemp("text") / "text.model", 400)


@pytest.fixture(scope="session")
def scratch(sentencepiece_file: Path) -> Vocabulary:
    return scratch_vocabulary(SentencePieceText(sentencepiece_file), num_codes=32, max_grids=4)


@pytest.fixture(scope="session")
def chameleon() -> Vocabulary:
    return chameleon_vocabulary(chameleon_json(chameleon_names(), {"<|image|>": 65536}))


@pytest.fixture(params=["scratch", "chameleon"], scope="session")
def vocab(request: pytest.FixtureRequest) -> Vocabulary:
    return request.getfixturevalue(request.param)
