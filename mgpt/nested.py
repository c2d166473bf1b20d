"""Nested mappings by dotted path: settings, figures, what decides an order.

>>> dict(leaves({"optim": {"lr": 0.1}, "seeds": [3, 5]}))
{'optim.lr': 0.1, 'seeds': [3, 5]}
"""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(tree: Any, prefix: str = "", into_lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings with its dotted path; empty mappings have none.

    Args:
        prefix: of the paths, with its dot.
        into_lists: gives the items of lists, by their index, instead of the lists.
    """
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    for name, value in items:
        if isinstance(value, Mapping) or (into_lists and isinstance(value, list)):
            yield from leaves(value, f"{prefix}{name}.", into_lists)
        else:
            yield f"{prefix}{name}", value
