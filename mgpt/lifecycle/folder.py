"""A stage's output folder: may it start, is it complete, what was it made from.

    <output>/stage.json    stage, fingerprint, configuration, inputs; written at each start
    <output>/config.yaml   the configuration, for `mgpt <stage> --config`
    <output>/DONE          the same fingerprint and the stage's figures; written last

A stage is complete when what it was made from is what it is given now, setting by setting
(`mgpt.lifecycle.comparison`). What may be given differently at another start stands with the
stage's Config, as `CHANGEABLE`. Knows no stage.

    folder = StageFolder.open("tokenize", cfg, inputs(cfg))
    if folder.is_complete:
        return
    folder.finish(tokenize(cfg, tracker))
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mgpt.cli.settings import to_plain
from mgpt.errors import ConfigError, MachineError
from mgpt.files.atomic import check_output
from mgpt.files.storage import Location, free_bytes, locate, touch, write_whole
from mgpt.launching.processes import is_worker
from mgpt.lifecycle.comparison import (
    Changeable,
    Difference,
    Made,
    differences,
    fingerprint_of,
    is_one_of,
    listed,
)
from mgpt.lifecycle.identity import DONE, done_fingerprint, told_by_files
from mgpt.lifecycle.written import remove_written

RECORD, CONFIG = "stage.json", "config.yaml"
# What stands in the folder of a stage that ended before its work.
_RECORDS = frozenset({RECORD, CONFIG, "metrics.jsonl", "wandb", "settings.json"})
_BEGIN_S = 120.0


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
        more: str = "",
    ) -> StageFolder:
        """Checks the machine and what is there; prints when the stage is complete.

        Args:
            cfg: the stage's dataclass, with `output: str` and `redo: bool`.
            inputs: values in `cfg` that name inputs (paths, mostly) → their identities
                (`mgpt.lifecycle.identity`).
            min_free_mb: free disk space without which the stage does not start.
            may_be_remote: whether the stage can write to an object store.
            more: what a finished stage has left to do, in words; empty for nothing.

        Raises:
            ConfigError: the folder holds this stage with another configuration or other inputs, or
                is one that no stage may have.
            MachineError: it cannot be written, or the disk is nearly full.
        """
        check_output(cfg.output, inputs)
        path = locate(cfg.output)
        if not (may_be_remote or isinstance(path, Path)):
            raise ConfigError(
                f"output={path}: mgpt {stage} writes to local folders; give one, and copy it there"
            )
        made = Made(to_plain(cfg), inputs)
        found = replace(_Found.look(path, stage, type(cfg), made), more=more)
        fingerprint = fingerprint_of(stage, made, type(cfg), _changeable(type(cfg)).free)
        here = cls(path, stage, fingerprint, found.is_complete, time.monotonic())
        if is_worker() and os.environ.get("RANK") != "0":
            if may_be_remote and not found.is_complete:
                here._wait_until_begun()
            return here
        if here.is_complete:
            print(f"{stage}: {path} is complete", flush=True)
            return here
        check_machine(path, min_free_mb)
        found.make_way(cfg.redo)
        here._begin(made.config, {**inputs, **found.kept_inputs()})
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


@dataclass(frozen=True)
class _Found:
    """What an output folder holds when a stage is started in it."""

    path: Location
    stage: str
    """The one that is started."""
    changeable: Changeable
    record: Mapping[str, Any] | None
    """stage.json; None where there is none."""
    is_done: bool
    has_checkpoint: bool
    differences: list[Difference]
    started_from: dict[str, str]
    """Path → identity of inputs that only the first start read, as it found them."""
    more: str = ""
    """What is left to do although nothing differs."""

    @classmethod
    def look(cls, path: Location, stage: str, config_class: type, made: Made) -> _Found:
        changeable = _changeable(config_class)
        record, done = _read_json(path / RECORD), done_fingerprint(path)
        if record is None or record.get("stage") != stage:
            return cls(path, stage, changeable, record, done is not None, False, [], {})
        # A record that was rewritten for more work makes an older DONE void.
        is_done = done is not None and done == record["fingerprint"]
        is_local = isinstance(path, Path) and changeable.checkpoint is not None
        saved = changeable.checkpoint(path) if is_local else None  # type: ignore[misc, arg-type]
        then = Made(record["config"], record["inputs"])
        found = differences(then, made, config_class, changeable.free)
        found = [one for one in found if not _is_known(one, saved or {})]
        from_start = [one for one in found if is_one_of(one.path, changeable.starts)]
        if not is_done and saved is not None:
            found = [one for one in found if one not in from_start or one.is_another_path]
        kept = {str(one.now): one.then_input for one in from_start if one.then_input is not None}
        return cls(path, stage, changeable, record, is_done, saved is not None, found, kept)

    @property
    def is_complete(self) -> bool:
        return self.is_done and self._is_ours and not self.differences and not self.more

    @property
    def _is_ours(self) -> bool:
        return self.record is not None and self.record["stage"] == self.stage

    def make_way(self, redo: bool) -> None:
        """Leaves the folder as the stage may start in it.

        Raises ConfigError where it holds something else, and `redo` does not say to remove that.
        """
        if self.record is None:
            if self.is_done:
                raise ConfigError(
                    f"{self.path} holds a finished stage ({DONE}) without its {RECORD}; give "
                    "another output="
                )
            return
        if not self._is_ours:
            self._remove(redo, f"the output of mgpt {self.record['stage']}")
        elif self.differences and (redo or not self._may_continue):
            kind = "a finished" if self.is_done else "an unfinished"
            self._remove(
                redo or self._made_nothing,
                f"{kind} {self.stage} of another configuration ({listed(self.differences)})",
            )
        elif self.is_done:
            reasons = [*map(str, self.differences), self.more]
            print(f"{self.stage}: continuing in {self.path}: {listed([*filter(None, reasons)])}")
            (self.path / DONE).unlink(missing_ok=True)

    @property
    def _may_continue(self) -> bool:
        allowed = all(is_one_of(one.path, self.changeable.resumed) for one in self.differences)
        if not allowed or not self.is_done:
            return allowed
        more = [one for one in self.differences if is_one_of(one.path, self.changeable.extends)]
        return bool(more) and not any(one.is_lowered for one in more)

    @property
    def _made_nothing(self) -> bool:
        """Whether nothing is lost with what the stage has made: it ended before its work, or before
        its first checkpoint."""
        if self.is_done:
            return False
        if self.changeable.checkpoint is not None:
            return not self.has_checkpoint
        return all(
            item.name in _RECORDS or item.name.startswith(".") for item in self.path.iterdir()
        )

    def _remove(self, may_remove: bool, words: str) -> None:
        if not may_remove:
            raise ConfigError(f"{self.path} holds {words}; {self._remedy}")
        assert self.record is not None
        stays = remove_written(self.path, str(self.record["stage"]), (DONE,), (CONFIG, RECORD))
        if stays:
            print(f"{self.stage}: {self.path}: {stays}", flush=True)

    @property
    def _remedy(self) -> str:
        redo = "set redo=true to remove what it made and start again, or give another output="
        if not self._is_ours:
            return redo
        if self.is_done and self.changeable.extends:
            names = ", ".join(f"{name}=" for name in self.changeable.extends)
            return f"raise {names} to continue it, {redo}"
        if self.has_checkpoint:
            return f"restore these settings to resume it, {redo}"
        return redo

    def kept_inputs(self) -> dict[str, str]:
        """Identities to be recorded in the place of those of now: of what the first start read."""
        return self.started_from if self.has_checkpoint and not self.is_done else {}


def _is_known(one: Difference, saved: Mapping[str, str]) -> bool:
    """Whether a checkpoint says that an input is the same, which an older record cannot say."""
    is_older = one.then_input is not None and told_by_files(one.then_input)
    return is_older and one.now_input is not None and saved.get(one.path) == one.now_input


def is_complete(stage: str, cfg: Any, inputs: Mapping[str, str]) -> bool:
    """Whether this stage has nothing left to do; looks only."""
    made = Made(to_plain(cfg), inputs)
    return _Found.look(locate(cfg.output), stage, type(cfg), made).is_complete


def _changeable(config_class: type) -> Changeable:
    return getattr(config_class, "CHANGEABLE", Changeable())


def _read_json(path: Location) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


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
