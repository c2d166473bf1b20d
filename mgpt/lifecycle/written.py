"""Which files of an output folder a stage wrote, so that nothing else is ever removed.

`redo=true` removes what the record in the folder (`stage.json`) says was made there: the files of
that stage, by name, and of a data job the shards that have a manifest. Whatever else lies in the
folder stays. Adding a stage that keeps a record takes a row here.

    remove_written(Path("out"), "pretrain", first=("DONE",), last=("stage.json",))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from mgpt.errors import ConfigError
from mgpt.files.atomic import TEMPORARY
from mgpt.files.storage import Location, relative
from mgpt.train.step_layout import COMPLETE, STEP_FILES

_RECORDS = ("DONE", "stage.json", "config.yaml", "metrics.jsonl", "wandb/**")
_VOCABULARY = ("vocabulary.json", "text.model", "tokenizer.json")
_MODEL = ("config.json", "SHA256SUMS", "model*.safetensors", "model.safetensors.index.json")
_PX = "[0-9]*"


def _in(folder: str, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


_MODEL_FOLDER = (
    *_MODEL,
    *_in("vocabulary", _VOCABULARY),
    *_in("vq", _MODEL),
    *_in("vq_encoder", _MODEL),
)
# attempts/ stays: a start that still runs must find that a later one began.
_TRAINING = (
    *_in("step_[0-9]*", STEP_FILES),
    *_in(".step_[0-9]*", ("." + COMPLETE, *STEP_FILES)),
    *_in("model", _MODEL_FOLDER),
    *_in("init_from", _MODEL_FOLDER),
    "rollbacks.json",
    "changes.json",
)
# Names of files relative to the output: a pattern a part, `**` for all below a folder.
_WRITTEN: dict[str, tuple[str, ...]] = {
    "pack": ("settings.json", "inputs/**", ".work/**"),
    "tokenize": (
        *("settings.json", "shards.json", "units.json", "details/**", ".work/**"),
        *(f"{_PX}/lengths/**", f"verify/{_PX}.png"),
    ),
    "train_vq": ("checkpoint.safetensors", "figures.json", *_in("model", _MODEL)),
    "train_text": _VOCABULARY,
    "pretrain": _TRAINING,
    "fp_sft": _TRAINING,
    "omni_sft": _TRAINING,
    "import": _MODEL_FOLDER,
    "export": (*_MODEL_FOLDER, "tokenizer.json", "tokenizer_config.json"),
    "generate": ("answers.json", "[0-9][0-9][0-9]_[0-9]*.png"),
    "evaluate": (  # a folder a task, of the user's own too
        *("*/measures.json", "*/gallery.json", "*/[0-9][0-9]*_question_[0-9]*.png"),
        *("*/[0-9][0-9]*_model_[0-9]*.png", "*/[0-9][0-9]*_truth_[0-9]*.png"),
    ),
    "roundtrip": ("roundtrip.json", f"{_PX}/*.original.png", f"{_PX}/*.decoded.png"),
    "report": ("report.html", "report.json"),
}
# Shards stand in the output, or in a folder a resolution; each has a manifest that names it.
_SHARDS = {"pack": ("*.tar",), "tokenize": (f"{_PX}/*.tar", f"{_PX}/*.index.npy")}
_NAMED_IN_SHARDS = 3  # files of the user that a message names


def remove_written(
    output: Location, stage: str, first: Sequence[str], last: Sequence[str]
) -> str | None:
    """Removes what `stage` wrote in its output; what else is there, in words, stays.

    Args:
        first, last: files that go before and after all others, so that a removal that is cut short
            leaves no folder that looks complete, or like nobody's.

    Raises:
        ConfigError: a file that would be taken for one of the stage's, and has no manifest.
    """
    files = {str(relative(path, output)): path for path in _files(output)}
    own = [name for name, path in files.items() if _is_own(name, stage, output, files)]
    others = sorted(name for name in files if name not in own and _is_of_user(name))
    doubtful = [name for name in others if _is_like(name, _SHARDS.get(stage, ()))]
    if stage == "pack" and doubtful:
        raise ConfigError(
            f"{output}: {', '.join(doubtful[:_NAMED_IN_SHARDS])} would be read as raw shards and "
            "have no counts beside them, so mgpt pack did not finish them here; move or delete "
            "them, or give another output="
        )
    order = {name: place for place, name in enumerate([*first, "", *last])}
    for name in sorted(own, key=lambda name: (order.get(name, order[""]), name)):
        files[name].unlink(missing_ok=True)
    if isinstance(output, Path):
        _prune(output, own)
    if not others:
        return None
    named = ", ".join(others[:_NAMED_IN_SHARDS]) + (", …" if len(others) > _NAMED_IN_SHARDS else "")
    return f"{len(others)} files that mgpt {stage} did not write stay: {named}"


def _files(output: Location) -> Iterator[Location]:
    return (path for path in output.rglob("*") if path.is_file())


def _is_own(name: str, stage: str, output: Location, files: dict[str, Location]) -> bool:
    if _is_like(name, (*_RECORDS, *_WRITTEN[stage])):
        return True
    place = PurePosixPath(name)
    leftover = TEMPORARY.fullmatch(place.name)
    if leftover is not None:
        inner = str(place.with_name(leftover["name"]))
        return _is_like(inner, (*_RECORDS, *_WRITTEN[stage], *_SHARDS.get(stage, ())))
    if stage not in _SHARDS:
        return False
    for ending in (".tar", ".index.npy", ".json"):
        if name.endswith(ending):
            manifest = f"{name.removesuffix(ending)}.json"
            is_in_place = _is_like(f"{name.removesuffix(ending)}.tar", _SHARDS[stage])
            return is_in_place and manifest in files and _is_manifest(files[manifest])
    return False


def _is_manifest(path: Location) -> bool:
    """Whether a file describes the shard beside it."""
    try:
        return bool(json.loads(path.read_bytes())["shard"] == path.stem)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _is_like(name: str, patterns: Sequence[str]) -> bool:
    parts = name.split("/")
    for pattern in patterns:
        wanted = pattern.split("/")
        is_below = wanted[-1] == "**"
        fits_depth = len(parts) >= len(wanted) if is_below else len(parts) == len(wanted)
        pairs = zip(parts, wanted[:-1] if is_below else wanted)
        if fits_depth and all(fnmatchcase(part, one) for part, one in pairs):
            return True
    return False


def _is_of_user(name: str) -> bool:
    """Whether a file is worth naming: neither a job's books nor a run's attempts."""
    return name.split("/")[0] not in ("launch", "attempts")


def _prune(output: Path, names: Sequence[str]) -> None:
    """Removes the folders that held these files and are empty now."""
    folders = {parent for name in names for parent in (output / name).parents}
    below = [folder for folder in folders if output in folder.parents]
    for folder in sorted(below, key=lambda folder: len(folder.parts), reverse=True):
        with suppress(OSError):  # not empty
            folder.rmdir()
