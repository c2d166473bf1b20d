"""A stage's output folder: may it start, is it complete, what was it made from.

    <output>/stage.json    stage, fingerprint, configuration, inputs; written at the start
    <output>/config.yaml   the configuration, for `mgpt <stage> --config`
    <output>/DONE          the same fingerprint and the stage's figures; written last

The fingerprint covers the resolved configuration and the inputs, each input by its own
fingerprint, so a pipeline moved to another folder is still complete. Knows no stage.

    folder = StageFolder.open("tokenize", cfg, input_fingerprints(cfg.input, cfg.vq))
    if folder.is_complete:
        return
    folder.finish(tokenize(cfg, tracker))
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mgpt.errors import ConfigError, MachineError
from mgpt.launching.launch_folder import NAME as LAUNCH
from mgpt.launching.processes import is_worker
from mgpt.settings import to_plain
from mgpt.storage import (
    Location,
    content_stamp,
    free_bytes,
    locate,
    relative,
    remove_tree,
    touch,
    write_whole,
)

DONE, RECORD, CONFIG = "DONE", "stage.json", "config.yaml"
# What stands in the folder of a stage that ended before its work.
_RECORDS = frozenset({RECORD, CONFIG, "metrics.jsonl", "wandb"})

# Fields that say where and how fast, not what: another value is the same stage.
FREE_FIELDS = frozenset({"output", "redo", "tracking", "workers", "decoders"})
# Fields that may change while a stage is unfinished: it goes on from its newest checkpoint.
RESUMABLE_FIELDS = frozenset(
    {
        *("parallel", "steps", "guard", "log_every", "validate_every", "pictures_every"),
        *("save_every", "keep", "keep_every", "async_save"),
    }
)
_BEGIN_S = 120.0
_HASHED_BYTES = 1 << 22  # larger input files are told apart by name and size


@dataclass(frozen=True)
class StageFolder:
    """One stage's output folder, opened. `is_complete`: nothing is left to do."""

    output: Location
    stage: str
    fingerprint: str
    is_complete: bool
    started_s: float

    @classmethod
    def open(
        cls,
        stage: str,
        cfg: Any,
        inputs: Mapping[str, str],
        min_free_mb: float = 200.0,
        may_be_remote: bool = False,
    ) -> StageFolder:
        """Checks the machine and what is there; prints when the stage is complete.

        Args:
            cfg: the stage's dataclass, with `output: str` and `redo: bool`.
            inputs: values in `cfg` that name inputs (paths, mostly) → what they hold
                (`input_fingerprints`).
            min_free_mb: free disk space without which the stage does not start.
            may_be_remote: whether the stage can write to an object store.

        Raises:
            ConfigError: the folder holds this stage with another configuration or other inputs.
            MachineError: it cannot be written, or the disk is nearly full.
        """
        path = locate(cfg.output)
        if not (may_be_remote or isinstance(path, Path)):
            raise ConfigError(
                f"output={path}: mgpt {stage} writes to local folders; give one, and copy it there"
            )
        config = to_plain(cfg)
        fingerprint = fingerprint_of(stage, config, inputs)
        is_complete = _done_fingerprint(path) == fingerprint
        here = cls(path, stage, fingerprint, is_complete, time.monotonic())
        if is_worker() and os.environ.get("RANK") != "0":
            if may_be_remote and not is_complete:
                here._wait_until_begun()
            return here
        if here.is_complete:
            print(f"{stage}: {path} is complete", flush=True)
            return here
        check_machine(path, min_free_mb)
        problem = _conflict(path, stage, config, inputs, fingerprint)
        if problem and not cfg.redo and not _ended_before_its_work(path):
            raise ConfigError(
                f"{path} holds {problem}; set redo=true to make it anew, or give another output="
            )
        if problem:
            _check_spares(path, inputs)
            _clear(path)
        here._begin(config, inputs)
        return here

    @property
    def path(self) -> Path:
        """The folder of a stage that writes to local ones."""
        assert isinstance(self.output, Path), "opened with may_be_remote"
        return self.output

    def _wait_until_begun(self) -> None:
        """Until rank 0 has written what this folder is; ranks of a shared job have no barrier."""
        deadline = time.monotonic() + _BEGIN_S
        while True:
            try:
                if json.loads((self.output / RECORD).read_bytes())["fingerprint"] == (
                    self.fingerprint
                ):
                    return
            except (OSError, ValueError, KeyError):
                pass
            if time.monotonic() > deadline:
                raise MachineError(
                    f"{self.output}: rank 0 has not begun this {self.stage} within {_BEGIN_S:.0f} "
                    "s; do all ranks see the same folder?"
                )
            time.sleep(0.2)

    def _begin(self, config: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        record = {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "config": config,
            "inputs": inputs,
        }
        write_whole(self.output / RECORD, json.dumps(record, indent=1).encode())
        text = f"# mgpt {self.stage} --config {self.output / CONFIG}\n"
        text += yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_whole(self.output / CONFIG, text.encode())

    def finish(self, figures: Mapping[str, Any] | None = None) -> None:
        """Marks the stage complete. Called by the launcher, or by rank 0 where there is none."""
        done = {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "figures": dict(figures or {}),
            "seconds_of_last_start": round(time.monotonic() - self.started_s, 1),
        }
        write_whole(self.output / DONE, json.dumps(done, indent=1).encode())


def fingerprint_of(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """16 hex digits over a stage's configuration, each input path replaced by what it holds."""
    record = {"stage": stage, "config": _comparable(config, inputs)}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def is_complete(stage: str, cfg: Any, inputs: Mapping[str, str]) -> bool:
    """Whether this stage has nothing left to do; looks only."""
    fingerprint = fingerprint_of(stage, to_plain(cfg), inputs)
    return _done_fingerprint(locate(cfg.output)) == fingerprint


def input_fingerprints(*paths: str | Location | None) -> dict[str, str]:
    """Each path that is given → what it holds."""
    return {str(path): input_fingerprint(path) for path in paths if path is not None}


def input_fingerprint(path: str | Location) -> str:
    """What an input holds: the fingerprint of the stage that made it, or of its files.

    A folder inside a stage's output (`tokens/64`) is that stage's fingerprint with the place in it.
    A name that is no path (a VQGAN shipped with the package) stands for itself.
    """
    path = locate(path)
    for folder in [path, *path.absolute().parents][:4]:
        done = _done_fingerprint(folder)
        if done:
            inside = relative(path.absolute(), folder.absolute()) if folder != path else ""
            return f"stage:{done}:{inside}"
    if path.is_file():
        return f"file:{content_stamp(path, _HASHED_BYTES)}"
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(item for item in path.rglob("*") if item.is_file()):
            stamp = content_stamp(file, _HASHED_BYTES)
            digest.update(f"{relative(file, path)}\0{stamp}\n".encode())
        return f"folder:{digest.hexdigest()[:16]}"
    return f"name:{path}"


def check_machine(path: Location, min_free_mb: float) -> None:
    """Raises MachineError when `path` cannot be made and written, or its disk is nearly full."""
    probe = path / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        touch(probe)
        probe.unlink()
    except OSError as error:
        raise MachineError(
            f"output={path} cannot be written ({error.strerror or error}); give another output= "
            "or its permission"
        ) from error
    free_mb = free_bytes(path) / 1e6
    if free_mb < min_free_mb:
        raise MachineError(
            f"output={path}: {free_mb:,.0f} MB are free where this stage needs about "
            f"{min_free_mb:,.0f} MB; make room or give another output="
        )


def _comparable(config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """Dotted path → value, without the free fields and with inputs by content."""
    flat = {path: value for path, value in flatten(config) if path.split(".")[0] not in FREE_FIELDS}
    return {
        path: inputs.get(value, value) if isinstance(value, str) else value
        for path, value in flat.items()
    }


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested dicts and lists with its dotted path."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from flatten(value, f"{prefix}{key}.")
    elif isinstance(tree, list) and tree:
        for index, value in enumerate(tree):
            yield from flatten(value, f"{prefix}{index}.")
    else:
        yield prefix.rstrip("."), tree


def _conflict(
    path: Location,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    fingerprint: str,
) -> str | None:
    """What is in the folder that this configuration did not make, in words; None if nothing."""
    if not (path / RECORD).exists():
        return None
    record = json.loads((path / RECORD).read_text())
    is_done = (path / DONE).exists()
    if record["stage"] != stage:
        return f"the output of mgpt {record['stage']}"
    if record["fingerprint"] == fingerprint and not is_done:
        return None
    then = _comparable(record["config"], record["inputs"])
    now = _comparable(config, inputs)
    changed = [key for key in {**then, **now} if then.get(key, "–") != now.get(key, "–")]
    if not is_done:
        changed = [
            key
            for key in changed
            if key not in RESUMABLE_FIELDS and key.split(".")[0] not in RESUMABLE_FIELDS
        ]
    if not changed:
        return None
    words = [f"{key} {then.get(key, '–')} → {now.get(key, '–')}" for key in changed[:6]]
    more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
    kind = "a finished" if is_done else "an unfinished"
    return f"{kind} {stage} of another configuration ({', '.join(words)}{more})"


def _ended_before_its_work(path: Location) -> bool:
    """Whether the stage that this folder is of made nothing: an input was not there, say."""
    return all(item.name in _RECORDS for item in path.iterdir())


def _check_spares(output: Location, inputs: Mapping[str, str]) -> None:
    """Raises ConfigError where clearing `output` would take an input away."""
    for name in inputs:
        given = locate(name)
        if isinstance(given, Path) and isinstance(output, Path):
            inside = output.resolve() in (given.resolve(), *given.resolve().parents)
            if inside and given.exists():
                raise ConfigError(
                    f"redo=true would remove {output}, where the input {name} lies; give another "
                    "output="
                )


def _clear(path: Location) -> None:
    """Takes a stage's folder away; a kill leaves the old one, known as such, or none.

    Not so the books of the job that runs this, where it was submitted.
    """
    if isinstance(path, Path) and (path / LAUNCH).is_dir():
        for item in sorted(path.iterdir(), key=lambda item: item.name == RECORD):
            if item.is_dir() and item.name != LAUNCH:
                remove_tree(item)
            elif item.name != LAUNCH:
                item.unlink()
        return
    if isinstance(path, Path):
        old = path.with_name(f".{path.name}.old-{uuid.uuid4().hex[:8]}")
        path.rename(old)
        path = old
    remove_tree(path, last=RECORD)


def _done_fingerprint(path: Location) -> str | None:
    try:
        return str(json.loads((path / DONE).read_text())["fingerprint"])
    except (OSError, ValueError, KeyError):
        return None
