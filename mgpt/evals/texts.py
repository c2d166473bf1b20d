"""How near one text is to another.

edit_distance("kitten", "sitting")          # 3
"""

from __future__ import annotations


def plain(text: str) -> str:
    """The text in lower case, without a last full stop, with one space between words."""
    return " ".join(text.lower().split()).rstrip(".")


def edit_distance(first: str, second: str) -> int:
    """Fewest insertions, deletions and substitutions of characters that turn one into the other.

    Bit-parallel over the characters of `first` (Myers 1999, as simplified by Hyyrö 2003): one pass
    over `second`, so that captions of hundreds of characters take well below a millisecond.
    """
    if not first:
        return len(second)
    places: dict[str, int] = {}
    for place, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << place
    full, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = full, 0, len(first)
    for character in second:
        same = places.get(character, 0)
        vertical = same | falls
        horizontal = (((same & rises) + rises) ^ rises) | same
        up = falls | ~(horizontal | rises) & full
        down = rises & horizontal
        distance += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & full, (down << 1) & full
        rises = down | ~(vertical | up) & full
        falls = up & vertical
    return distance
