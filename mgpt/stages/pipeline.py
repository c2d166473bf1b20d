"""mgpt pipeline: every stage of a recipe in order, skipping what is complete.

Each stage runs as a process of its own whose command is printed, so that it can be run again
alone; its resolved configuration is in launch/ of the output. Weights are handed on from stage to
stage. Kill it at any time: the same command resumes.
A stage's fields stand under its name in the recipe, one rung's under the rung's. `recipe=` takes a
name or a yaml file of your own; `until=` ends the pipeline after one of its entries.

Reads: a recipe
Writes: a folder for each stage, pipeline.json, report.html

    mgpt pipeline recipe=quickstart fp_sft.steps=20 fp_sft.64.optim.lr=1e-4 parallel=fsdp2
    mgpt pipeline recipe=quickstart until=fp_sft
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mgpt.cli.config import Composed, config_text, nearest, validate
from mgpt.cli.settings import DERIVED
from mgpt.cli.stage_table import configure as configure_stage
from mgpt.errors import ConfigError, MachineError, MgptError
from mgpt.files.atomic import atomic_write, check_output
from mgpt.files.child_processes import own_children
from mgpt.files.storage import locate
from mgpt.launching.code_version import code_version
from mgpt.launching.launch_folder import NAME
from mgpt.launching.processes import RESUME, run_child
from mgpt.launching.srun import refuse_step
from mgpt.lifecycle.folder import DONE, check_machine, is_complete
from mgpt.stages.estimate import PipelineEstimate, estimate_pipeline, is_long
from mgpt.stages.recipe import Entry, compose_recipe, read_recipe

RECORD = "pipeline.json"
_RECORD_EVERY_S = 10.0
_VERSIONS = (
    "mgpt",
    "torch",
    "numpy",
    "deepspeed",
    "hydra-core",
    "wandb",
    "sentencepiece",
    "Pillow",
)


@dataclass(frozen=True)
class Config:
    """What `mgpt pipeline` can be given, beside the fields of the recipe's stages."""

    output: str
    """Folder of the whole pipeline; a folder a stage, and report.html."""
    seed: int = 0
    """Seed of every stage that has one."""
    redo: bool = False
    """Make stages anew whose output holds another configuration."""
    until: str = ""
    """Entry after which the pipeline ends: fp_sft/32, or fp_sft for its last rung; empty: none."""
    recipe: str = field(default="", metadata={DERIVED: True})
    """The yaml of conf/recipe that was chosen, or the name of a file of the user's own."""
    group: str = field(default="", metadata={DERIVED: True})
    """Name of the tracker's group; made at the first start."""
    entries: list[Entry] = field(default_factory=list, metadata={DERIVED: True})
    """The recipe's stages, read; those after `until` are left out."""
    later: list[str] = field(default_factory=list, metadata={DERIVED: True})
    """Names of the stages after `until`."""


def compose(overrides: Sequence[str]) -> Composed:
    """The recipe with the overrides in it."""
    return compose_recipe(overrides)


def help_lines() -> list[str]:
    """What `mgpt pipeline --help` says about the stages of the default recipe."""
    composed = compose_recipe([])
    lines = [
        f"entries of recipe={composed.choices['recipe']} (their fields: <entry>.<field>=value)"
    ]
    for name in composed.tree["order"]:
        entry = composed.tree[name]
        rungs = f", rungs {', '.join(entry['rungs'])}" if "rungs" in entry else ""
        lines.append(f"  {name:<18} mgpt {entry['stage']}{rungs}")
    return lines


def configure(composed: Composed) -> Config:
    """The pipeline, every entry checked against its stage before anything starts."""
    if not composed.choices:
        return _resolved(composed)
    own = {one.name for one in fields(Config) if DERIVED not in one.metadata}
    cfg = validate(Config, {name: composed.tree[name] for name in own})
    check_output(cfg.output)
    recipe = composed.choices["recipe"]
    group = _group(Path(cfg.output), recipe)
    entries = read_recipe(composed, group)
    count = _num_through(cfg.until, [entry.name for entry in entries])
    later = [entry.name for entry in entries[count:]]
    return replace(cfg, recipe=recipe, group=group, entries=entries[:count], later=later)


def _resolved(composed: Composed) -> Config:
    """A pipeline that was written to a file with its entries, each of them resolved."""
    cfg = validate(Config, composed.tree)
    if not cfg.entries:
        raise ConfigError(
            "--config holds no pipeline of mgpt submit; a pipeline of your own is recipe=FILE"
        )
    entries = [
        replace(entry, config=configure_stage(entry.module, Composed(entry.config)))
        for entry in cfg.entries
    ]
    return replace(cfg, entries=entries)


def _num_through(until: str, names: Sequence[str]) -> int:
    """How many entries a pipeline has through `until`; the last rung of an entry with rungs."""
    if not until:
        return len(names)
    meant = [number for number, name in enumerate(names) if until in (name, name.split("/")[0])]
    if not meant:
        hint = nearest(until, names) or ""
        raise ConfigError(f"until={until}: no such entry{hint}; there are {', '.join(names)}")
    return meant[-1] + 1


def main(cfg: Config) -> None:
    refuse_step("a pipeline")
    output = Path(cfg.output)
    check_machine(output, min_free_mb=500)
    record = Record(output / RECORD, cfg)
    own_children()
    is_estimated = False
    for number, entry in enumerate(cfg.entries, start=1):
        title = f"[{number}/{len(cfg.entries)}] {entry.name}"
        if is_complete(entry.stage, entry.config, entry.module.inputs(entry.config)):
            print(f"{title}: complete", flush=True)
            continue
        if not is_estimated:
            is_estimated = True
            _estimate(cfg.entries[number - 1 :], record)
        words = [entry.stage, "--config", str(write_config(output, entry))]
        print(f"\n{title}\n$ {shlex.join(['mgpt', *words])}", flush=True)
        run_entry(entry.name, words, record)
    record.print_summary()
    if cfg.later:
        print(
            f"until={cfg.until}: not run are {', '.join(cfg.later)}; leave until= out to run them"
        )
        return
    page = output / "report.html"
    if page.exists():
        print(f"report: {page}")


def _estimate(entries: Sequence[Entry], record: Record) -> None:
    """Says what the stages from the first incomplete one on will take, if they are long."""
    entries = [entry for entry in entries if not (locate(entry.config.output) / DONE).exists()]
    if not is_long(entries):
        return
    print(f"\nestimating the time of {len(entries)} stages …", flush=True)
    estimate = estimate_pipeline(entries)
    if estimate is not None:
        estimate.print()
        record.expect(estimate)


def write_config(output: Path, entry: Entry) -> Path:
    """The file of a stage's resolved configuration, which its process is given."""
    file = output / NAME / "stages" / f"{entry.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, config_text(entry.config).encode())
    return file


def run_entry(name: str, words: Sequence[str], record: Record) -> None:
    """`mgpt <words>` as a process of its own; its time goes to the record while it runs.

    Raises MgptError where it fails; what failed has been printed by the stage itself.
    """
    record.begin(name)
    command = [sys.executable, "-m", "mgpt", *words]
    try:
        status = run_child(command, record.tick, _RECORD_EVERY_S, _environment(name))
    finally:
        record.tick()
    if status < 0:
        raise MachineError(
            f"{name} was ended by {signal.Signals(-status).name}"
            f"{' (out of memory?)' if status == -signal.SIGKILL else ''}; {RESUME}"
        )
    if status:
        raise MgptError(f"{name} failed, as reported above; fix the cause and {RESUME}")


def _environment(entry: str) -> dict[str, str]:
    """A stage's environment: a name or an id of one Weights & Biases run cannot be that of all."""
    own = {name: value for name, value in os.environ.items() if name != "WANDB_RUN_ID"}
    if own.get("WANDB_NAME"):
        own["WANDB_NAME"] += f"/{entry}"
    return own


class Record:
    """pipeline.json: what ran, how long over all starts, on which machine and versions."""

    def __init__(self, path: Path, cfg: Config) -> None:
        self._path = path
        kept = {one["name"]: one for one in _read(path).get("stages", [])}
        fresh = {"seconds": 0.0, "starts": 0}
        self._content: dict[str, Any] = {
            "recipe": cfg.recipe,
            "group": cfg.group,
            "stages": [
                {"name": entry.name, "stage": entry.stage, **fresh, **kept.get(entry.name, {})}
                for entry in cfg.entries
            ]
            + [kept[name] for name in cfg.later if name in kept],
            **conditions(),
        }
        self._current: dict[str, Any] | None = None
        self._ticked_s = time.monotonic()
        self._write()

    def expect(self, estimate: PipelineEstimate) -> None:
        """Notes what this start is expected to take, in all and by stage."""
        self._content["estimate"] = estimate.record()
        for one in self._content["stages"]:
            if one["name"] in estimate.stages:
                one["expected_s"] = estimate.stages[one["name"]]
                one["before_s"] = one["seconds"]
        self._write()

    def begin(self, name: str) -> None:
        """The stage `name` starts."""
        self._current = next(one for one in self._content["stages"] if one["name"] == name)
        self._current["starts"] += 1
        self._ticked_s = time.monotonic()
        self._write()

    def tick(self) -> None:
        """Adds the time since the last call to the current stage."""
        assert self._current is not None
        now = time.monotonic()
        self._current["seconds"] = round(self._current["seconds"] + now - self._ticked_s, 1)
        self._ticked_s = now
        self._write()

    def _write(self) -> None:
        atomic_write(self._path, json.dumps(self._content, indent=1).encode())

    def print_summary(self) -> None:
        """A table of the stages with their times."""
        from rich.console import Console
        from rich.table import Table

        stages = self._content["stages"]
        table = Table("stage", "seconds", "starts", "expected, s")
        for one in stages:
            expected = one.get("expected_s")
            words = "" if expected is None else f"{expected:,.0f}"
            table.add_row(one["name"], f"{one['seconds']:,.0f}", str(one["starts"]), words)
        table.add_row("all", f"{sum(one['seconds'] for one in stages):,.0f}", "", "")
        Console().print(table)
        estimated = [one for one in stages if one.get("expected_s") is not None]
        if "estimate" in self._content and estimated:
            # Only what the estimate was of: the time since it, of the stages that it knew.
            actual_s = sum(one["seconds"] - one["before_s"] for one in estimated)
            expected_s = sum(one["expected_s"] for one in estimated)
            self._content["estimate"]["actual_s"] = round(actual_s, 1)
            self._write()
            print(f"expected {expected_s:,.0f} s, took {actual_s:,.0f} s", end=" ")
            print(f"({actual_s / max(expected_s, 0.1) - 1:+.0%})")


def conditions() -> dict[str, Any]:
    """The machine and the versions that figures were made with."""
    import torch

    has_gpu = torch.cuda.is_available()
    code = code_version()
    commit = code["commit"]
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "gpu": torch.cuda.get_device_name(0) if has_gpu else "none",
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {_version(name)}" for name in _VERSIONS),
        "commit": f"{commit[:12]}{'-dirty' * code['dirty']}" if commit else "not from a checkout",
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _group(output: Path, recipe: str) -> str:
    """The tracker's group: the same for every start in one output folder."""
    kept = _read(output / RECORD).get("group") or os.environ.get("WANDB_RUN_GROUP")
    return str(kept or f"{recipe}-{uuid.uuid4().hex[:6]}")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
