"""What an output says of its job: the settings it was made with, and the shards it ended with.

`settings.json` stands in the output folder from the first moment on, so that two runs with other
settings cannot mix their shards there, whichever starts first. It holds what decides the bytes of
the output, and nothing else: no path, host, worker count or time.

    fingerprint = settle_settings(output, {"seed": 0, "resolution": [512]}, "mgpt tokenize")

`shards.json` names the finished shards and is written when a job ends. Without it a shard that was
lost as a whole would leave no trace, and a job that was stopped would look like a smaller one.

    list_finished(output, ["00000", "00001"])
    read_finished(output)                         # ["00000", "00001"]; None before the first end
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from mgpt.data.shards import canonical_json
from mgpt.errors import ConfigError, DataError
from mgpt.files.storage import Location, create, remove_leftovers, write_whole

SETTINGS_FILE = "settings.json"
FINISHED_FILE = "shards.json"


def settle_settings(output: Location, settings: dict[str, Any], command: str) -> str:
    """Write `settings` for a new output, or compare them with those it has; their fingerprint.

    Returns:
        sha256 of the canonical JSON, first 16 hex digits.

    Raises:
        ConfigError: the output was made with others; names each with both values.
    """
    path = output / SETTINGS_FILE
    data = canonical_json(settings)
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        create(path, data + b"\n")
    remove_leftovers(output)
    kept = read_settings(output)
    wanted = json.loads(data)
    differing = [
        f"{name}={kept.get(name)!r} there, {wanted.get(name)!r} here"
        for name in sorted(kept.keys() | wanted.keys())
        if kept.get(name) != wanted.get(name)
    ]
    if differing:
        raise ConfigError(
            f"{output}: {command} made this folder with other settings: {'; '.join(differing)}; "
            "give another output folder, or the same settings"
        )
    return settings_fingerprint(settings)


def settings_fingerprint(settings: dict[str, Any]) -> str:
    """sha256 of the canonical JSON, first 16 hex digits."""
    return hashlib.sha256(canonical_json(settings)).hexdigest()[:16]


def read_settings(output: Location) -> dict[str, Any]:
    """The settings of an existing output.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    path = output / SETTINGS_FILE
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise DataError(f"{output}: no {SETTINGS_FILE}; this is no output of a job") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); restore it") from error


def grid_px(settings: dict[str, Any]) -> int:
    """What sides of fitted pictures are multiples of: two codes, where the settings say no more."""
    return settings.get("grid_px", 2 * settings["latent_px"])


def list_finished(output: Location, shards: Iterable[str]) -> None:
    """Add these to the finished shards of the output; a list that holds them is left alone."""
    kept = read_finished(output)
    wanted = sorted({*shards, *(kept or ())})
    if kept != wanted:
        write_whole(output / FINISHED_FILE, canonical_json(wanted) + b"\n")


def read_finished(output: Location) -> list[str] | None:
    """The finished shards, sorted; None where no job has ended there.

    Raises:
        DataError: the list cannot be read.
    """
    path = output / FINISHED_FILE
    try:
        names = json.loads(path.read_bytes())
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("not a list of names")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); delete it and run mgpt tokenize again"
        ) from error
    return names
