"""A tokenizer.json in the released Chameleon layout, made on the fly: 65,536 entries.

Byte-level pairs without a prefix space, and the control names as added tokens at their own ids.

    vocab = chameleon_vocabulary(chameleon_json())
"""

import json
from collections.abc import Callable

from tokenizers.pre_tokenizers import ByteLevel


def code_name(code: int) -> str:
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def chameleon_names() -> list[str]:
    """Token names by id, up to the text pieces that begin at 16,384."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *map(code_name, range(8192)), "<eoss>"]
    names += ["<racm3:break>"]
    return names + [f"<reserved{token - 4:05d}>" for token in range(len(names), 16384)]


def chameleon_json(
    change: Callable[[list[str]], list[str]] = list, extra: dict[str, int] | None = None
) -> bytes:
    """The file's content.

    `change` makes another list of the control names by id; `extra` are further added tokens.
    """
    names = change(chameleon_names())
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
