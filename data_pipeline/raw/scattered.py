"""Members of one sample that do not stand together in their tar.

`find | tar` and tars sorted by extension put all pictures before all texts. Read forward, such a
picture would be a sample without its caption. The headers are skimmed beforehand, so that the
reader knows of which keys more is to come:

    found = find_scattered(stream, split_name)
    found.keys["cat"]                             # Gathering(num_members=2, is_sample=True)

A key whose parts have no field twice is one sample; one that comes back whole is a duplicate, which
is not looked for here; everything else is rejected.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from data_pipeline.raw.tar_stream import skim
from mgpt.files.walk import is_hidden

MAX_HELD_BYTES = 256 << 20
HOW_TO_SORT = (
    "the members of a sample must stand together; sort the tar by name "
    "(tar --sort=name -cf sorted.tar folder)"
)
_MAX_MEMBERS = 1 << 21  # of one tar that is looked through


class Gathering(NamedTuple):
    """A key whose members are apart: how many they are, and whether they make one sample."""

    num_members: int
    is_sample: bool


@dataclass
class Scattered:
    """Keys whose members are apart. `fields`: those that a whole sample of them has, if the tar is
    cut, so that a sample that lacks some of them may not be whole."""

    keys: dict[str, Gathering] = field(default_factory=dict)
    fields: frozenset[str] = frozenset()


def is_system_member(name: str) -> bool:
    """Whether a member is what a desktop adds to tars: `._name` (macOS), `.DS_Store`, `@eaDir`."""
    *above, file = name.removeprefix("./").split("/")
    return (
        file.startswith("._")
        or file == ".DS_Store"
        or any(is_hidden(part) and not part.startswith(".") for part in [*above, file])
    )


def find_scattered(stream: BinaryIO, key_and_field: Callable[[str], tuple[str, str]]) -> Scattered:
    """Looks through a tar's headers; a stream that cannot seek has no scattered keys."""
    if not stream.seekable():
        return Scattered()
    first: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    later: dict[str, list[set[str]]] = {}
    last_key, is_cut = None, False
    for number, name in enumerate(skim(stream)):
        if name is None or number == _MAX_MEMBERS:
            is_cut = True
            break
        if is_system_member(name):
            continue
        key, field_name = key_and_field(name)
        counts[key] = counts.get(key, 0) + 1
        if key not in first:
            first[key] = set()
        elif key != last_key:
            later.setdefault(key, []).append(set())
        last_key = key
        if field_name:
            (later[key][-1] if key in later else first[key]).add(field_name)
    found = Scattered()
    for key, runs in later.items():
        sets = [first[key], *runs]
        union = set.union(*sets)
        is_sample = len(union) == sum(map(len, sets))
        if is_sample or not all(one <= first[key] for one in runs):
            found.keys[key] = Gathering(counts[key], is_sample)
            if is_cut and len(union) > len(found.fields):
                found.fields = frozenset(union)
    return found
