"""What is submitted: one stage, or the entries of a recipe with what each of them waits for.

An entry waits for those whose output it names in its configuration, so stages that have nothing to
do with one another run side by side. Behind each tokenize entry of a recipe stands a `verify` that
runs however tokenising ended (`afterany`): it decides whether the shards may be trained on.

    output, works = read_work("pipeline", config)
    [(work.name, work.needs) for work in works]     # [('tokens', ()), ('tokens.verify', …), …]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mgpt.cli.settings import to_plain
from mgpt.cli.stage_table import STAGES, TRAINING, load_stage
from mgpt.errors import ConfigError
from mgpt.files.local_copies import record_folder
from mgpt.files.storage import locate
from mgpt.launching.launch_folder import NAME, LaunchFolder
from mgpt.lifecycle.folder import is_complete
from mgpt.nested import leaves
from mgpt.stages.recipe import Entry

SHARED = ("pack", "tokenize")  # stages whose processes share claims
UNSUBMITTED = ("submit", "status", "cancel", "plan", "doctor")
VERIFY_NOT_PROVEN = 1  # its exit status where the shards are not what they should be


@dataclass(frozen=True)
class Need:
    """Another work that must be over, with success (`afterok`) or in any way (`afterany`)."""

    name: str
    how: str = "afterok"


@dataclass(frozen=True)
class Work:
    """One stage to be run, with its resolved configuration."""

    name: str
    stage: str
    config: Any
    output: str
    needs: tuple[Need, ...] = ()

    @property
    def kind(self) -> str:
        """How its processes belong together; see `mgpt.launching.script.Task`."""
        is_alone = self.stage not in (*TRAINING, *SHARED)
        return "alone" if is_alone else "shared" if self.stage in SHARED else "training"

    @property
    def launch(self) -> LaunchFolder:
        """Where its script and books are; for a remote output, in the cache."""
        return LaunchFolder(record_folder(locate(self.output)).absolute() / NAME)

    def inputs(self) -> dict[str, str]:
        """What the stage is made from; empty for one that keeps no record."""
        module = load_stage(self.stage)
        return module.inputs(self.config) if hasattr(module, "inputs") else {}

    def is_complete(self) -> bool:
        """Whether nothing is left to do. Its inputs must be there."""
        if self.stage == "verify":
            return [state.word for state in self.launch.states] == ["complete"]
        module = load_stage(self.stage)
        return hasattr(module, "inputs") and is_complete(self.stage, self.config, self.inputs())


def read_work(stage: str, config: Any) -> tuple[str, list[Work]]:
    """The output folder that names the submission, and its works in order."""
    if stage == "pipeline":
        return config.output, chain(config.output, config.entries)
    output = getattr(config, "output", None)
    if output is None and stage == "verify":
        output = f"{config.input}/verify"
    if output is None:
        raise ConfigError(f"mgpt submit {stage} needs output=, where its script and logs go")
    return str(output), [Work(stage, stage, config, str(output))]


def chain(output: str, entries: Sequence[Entry]) -> list[Work]:
    """The entries as works, each with its needs, and a verify behind each tokenize."""
    works: dict[str, Work] = {}
    implied: dict[str, set[str]] = {}  # work → all that its success implies
    stands_for: dict[str, str] = {}  # output folder → the work that says it is good
    for entry in entries:
        own = str(entry.config.output)
        named = dict.fromkeys(
            name
            for text in _texts(entry.config)
            for folder, name in stands_for.items()
            if is_below(text, [folder])
        )
        needs = [name for name in named if not any(name in implied[other] for other in named)]
        work = Work(entry.name, entry.stage, entry.config, own, tuple(map(Need, needs)))
        added = [work, _verify(output, work)] if entry.stage == "tokenize" else [work]
        for one in added:
            before = {need.name for need in one.needs}
            implied[one.name] = before.union(*(implied[name] for name in before))
            works[one.name] = one
            stands_for[own] = one.name
    return list(works.values())


def _texts(config: Any) -> list[str]:
    """Every text of a configuration but its own output."""
    tree = {name: value for name, value in to_plain(config).items() if name != "output"}
    return [leaf for _, leaf in leaves(tree, into_lists=True) if isinstance(leaf, str)]


def _verify(output: str, tokenize: Work) -> Work:
    """Runs however tokenising ended, but not on older shards where its inputs failed."""
    config = load_stage("verify").Config(input=tokenize.output, raw=tokenize.config.input)
    name = f"{tokenize.name}.verify"
    needs = (Need(tokenize.name, "afterany"), *tokenize.needs)
    return Work(name, "verify", config, f"{output}/{name}", needs)


def unfinished(works: Sequence[Work]) -> list[Work]:
    """The works that are left to do, with needs among themselves alone."""
    left: dict[str, Work] = {}
    for work in works:
        needs = tuple(need for need in work.needs if need.name in left)
        if needs or not work.is_complete():
            left[work.name] = replace(work, needs=needs)
    return list(left.values())


def check_submittable(stage: str) -> None:
    """Raises ConfigError for what is no stage, or runs by itself in a moment."""
    if stage not in STAGES or stage in UNSUBMITTED:
        known = [name for name in STAGES if name not in UNSUBMITTED]
        raise ConfigError(f"mgpt submit {stage}: give one of {', '.join(known)}")


def is_below(path: str, folders: Sequence[str]) -> bool:
    """Whether a path is one of some folders, or lies in one."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)
