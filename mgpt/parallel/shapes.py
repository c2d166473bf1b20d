"""What is wrong with tensors that do not fit a model: names missing or unknown, other shapes.

>>> check_shapes("the weights do not fit", {"a": torch.Size([3])}, {"a": torch.Size([4])})
CheckpointError: the weights do not fit this model: a is [3], the model has [4]
"""

from collections.abc import Mapping, Sequence

import torch

from mgpt.errors import CheckpointError

_SHOWN_PROBLEMS = 8


def check_shapes(
    what: str,
    found: Mapping[str, torch.Size],
    wanted: Mapping[str, torch.Size],
    others: Sequence[str] = (),
) -> None:
    """Raises CheckpointError that lists what differs, after `others`, problems already known.

    Args:
        what: subject and verb of the message, such as "the weights do not fit".
    """
    problems = [
        *others,
        *(f"{name} is missing" for name in wanted if name not in found),
        *(f"{name} is not in this model" for name in found if name not in wanted),
        *(
            f"{name} is {list(found[name])}, the model has {list(shape)}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ),
    ]
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        shown = "; ".join(problems[:_SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise CheckpointError(f"{what} this model: {shown}")
