"""The kinds of error a user can meet, each one message: what, where, the values, what to do.

Everything that a user's input, data, machine or configuration can cause is raised as a kind of
`MgptError`; the command line prints it as one line and exits with status 2. A programmer's mistake
is an `assert`, and keeps its traceback.

    raise DataError(f"{tar}: member {name!r} is cut short: {got} of {want} bytes; fetch it again")
"""

from typing import TypeVar

_Error = TypeVar("_Error", bound=BaseException)


class MgptError(Exception):
    """What a user can cause and can fix."""


class ConfigError(MgptError, ValueError):
    """A setting that is unknown, of the wrong type, out of range, or at odds with another.

    A ValueError too, so that validation collects those of several dataclasses in one message.
    """


class DataError(MgptError):
    """A sample, shard, manifest or token sequence that is not what its format says."""


class VocabularyError(MgptError):
    """A tokenizer or vocabulary that does not fit the weights or shards it is used with."""


class CheckpointError(MgptError):
    """Weights or a checkpoint that are incomplete, altered, or of another shape."""


class MachineError(MgptError):
    """The machine's part: disk space, permissions, a missing dependency, a port, a device."""


class TrainingError(MgptError):
    """A run that cannot go on: not finite for too long, fenced by a newer attempt, a lost rank."""


def told(error: _Error) -> _Error:
    """Marks an error that another process of the same command prints, so that this one does not."""
    error.is_told = True  # type: ignore[attr-defined]
    return error


def is_told(error: BaseException) -> bool:
    """Whether another process of the same command prints this error."""
    return getattr(error, "is_told", False)
