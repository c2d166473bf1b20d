r"""mgpt submit: a stage or a pipeline into the queue of Slurm, or through torchrun on this machine.

Takes the command of a stage as it is, with the launcher's fields beside it. The whole configuration
is resolved and checked, planned (mgpt plan) and looked at (disk, inputs, shards, versions) before
anything is queued; configuration and code version are kept in launch/ of the output folder, and so
is the script, which is worth reading: dry_run=true prints it and does nothing else. A pipeline
becomes a chain of jobs, one a stage, that hand their weights on. After a time limit, a preemption
or a lost node a job goes back into the queue and on from its last checkpoint.

Reads: the command of a stage or a pipeline
Writes: launch/ in its output: the script, logs

    mgpt submit pretrain launcher=slurm launcher.nodes=4 launcher.time=24:00:00 vocabulary=text \
        model=1b output=out steps=20000 data.sources.a.path=tokens/512 \
        data.sources.a.tasks.image_text=1
    mgpt submit pipeline recipe=quickstart launcher=slurm launcher.partition=gpu dry_run=true
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mgpt.cli.compose import compose as compose_fields
from mgpt.cli.compose import schema_of
from mgpt.cli.config import Composed, config_text, validate
from mgpt.cli.settings import DERIVED
from mgpt.cli.stage_table import STAGES, TRAINING, compose_stage, load_stage
from mgpt.cli.stage_table import configure as configure_stage
from mgpt.data.dataset import open_dataset
from mgpt.data.source import at_resolution
from mgpt.errors import ConfigError, MgptError
from mgpt.files.atomic import atomic_write
from mgpt.files.child_processes import own_children
from mgpt.files.storage import locate
from mgpt.launching import preflight, slurm
from mgpt.launching.code_version import code_version, edits, in_words
from mgpt.launching.launch_folder import CONFIG, LOCAL, NAME, SBATCH, LaunchFolder
from mgpt.launching.launcher import Launcher, Resources
from mgpt.launching.processes import RESUME, num_processes, run_child
from mgpt.launching.script import Origin, Task, local_script, sbatch_script
from mgpt.stages import plan
from mgpt.stages.pipeline import RECORD, conditions
from mgpt.stages.status import CHAIN
from mgpt.stages.work import (
    VERIFY_NOT_PROVEN,
    Work,
    check_submittable,
    is_below,
    read_work,
    unfinished,
)
from mgpt.tracking.tracker import console_tracker

_OWN = ("launcher", "dry_run")  # the fields that are not those of what is submitted


@dataclass(frozen=True)
class Config:
    """The launcher, beside the fields of what is submitted."""

    launcher: Launcher
    dry_run: bool = False
    """Print the scripts and do nothing."""
    stage: str = field(default="", metadata={DERIVED: True})
    """What is submitted."""
    config: Any = field(default=None, metadata={DERIVED: True})
    """Its configuration."""
    output: str = field(default="", metadata={DERIVED: True})
    """Its output folder."""
    device: str | None = field(default=None, metadata={DERIVED: True})
    """The GPU that its recipe names."""
    works: list[Work] = field(default_factory=list, metadata={DERIVED: True})
    """Its stages."""


def compose(overrides: Sequence[str]) -> Composed:
    """The launcher's own fields, and under `run` those of what is submitted."""
    stages = [word for word in overrides if "=" not in word and not word.startswith("~")]
    if len(stages) != 1:
        raise ConfigError(
            "mgpt submit takes one stage or pipeline, then its overrides; "
            f"given: {' '.join(stages) or 'none'}"
        )
    check_submittable(stages[0])
    own = [word for word in overrides if word.partition("=")[0].split(".")[0] in _OWN]
    rest = [word for word in overrides if word not in (stages[0], *own)]
    composed = compose_fields("submit", schema_of(Config), own)
    run = compose_stage(stages[0], load_stage(stages[0]), rest)
    return Composed({**composed.tree, "stage": stages[0], "run": run.tree}, run.choices)


def configure(composed: Composed) -> Config:
    """The launcher and the works, each checked as its own stage would."""
    tree, run = composed.tree, Composed(composed.tree["run"], composed.choices)
    cfg, stage = validate(Config, {name: tree[name] for name in _OWN}), tree["stage"]
    config = configure_stage(load_stage(stage), run)
    output, works = read_work(stage, config)
    launcher = cfg.launcher
    known = {*STAGES, *(work.name for work in works), *(_base(work) for work in works)}
    unknown = [name for name in launcher.stages if name not in known]
    if unknown:
        raise ConfigError(f"launcher.stages.{unknown[0]}: no stage and no entry of that name")
    if launcher.name == "slurm" and launcher.nodes is None and stage == "pipeline":
        launcher = replace(launcher, nodes=run.tree.get("nodes"))
    device = launcher.device or (run.tree.get("device") if stage == "pipeline" else None)
    return Config(launcher, cfg.dry_run, stage, config, output, device, works)


def main(cfg: Config) -> None:
    works = unfinished(cfg.works)
    if not works:
        print(f"{cfg.output}: complete, there is nothing to submit")
        return
    problems = [*_plan_all(cfg, works), *_preflight(cfg, works)]
    if cfg.dry_run:
        _print_all(cfg, works)
    if problems:
        raise ConfigError("\n  ".join(["this is not submitted as it is:", *problems]))
    if cfg.dry_run:
        return
    if cfg.launcher.name == "local":
        _run_here(cfg, works)
    else:
        _submit_all(cfg, works)


# ------------------------------------------------------------------ before


def _plan_all(cfg: Config, works: Sequence[Work]) -> list[str]:
    """The plan of each training stage, shown; what cannot fit, in words."""
    tracker = console_tracker("submit")
    problems = []
    for work in works:
        if work.stage not in TRAINING:
            continue
        own, ranks = _resources(cfg, work), _ranks(cfg, work)
        machine = plan.Config(device=cfg.device, nodes=own.elastic or own.nodes or 1, procs=ranks)
        try:
            planned, lengths = plan.plan_stage(machine, work.config)
        except MgptError as error:
            if work.needs and not isinstance(error, ConfigError):
                tracker.print(f"{work.name}: planned once its inputs are there")
            else:
                problems.append(f"{work.name}: {error}")
            continue
        if _has_gpus(cfg):
            plan.show(tracker, work.name, planned, lengths)
            problems += [f"{work.name}: {problem}" for problem in planned.problems]
        need = planned.checkpoint_bytes * (planned.run.keep + 1)
        output = locate(work.output)
        if isinstance(output, Path):
            problems += [f"{work.name}: {problem}" for problem in preflight.disk(output, need)]
    return problems


def _preflight(cfg: Config, works: Sequence[Work]) -> list[str]:
    """What will go wrong, as far as it can be seen from here."""
    problems = [] if cfg.launcher.container or cfg.launcher.python else preflight.versions()
    to_come = [work.output for work in works]
    for work in works:
        if work.stage in TRAINING:
            problems += [f"{work.name}: {problem}" for problem in _training_inputs(work, to_come)]
        elif not work.needs:
            try:
                found = preflight.inputs(work.inputs())
            except MgptError as error:
                found = [str(error)]
            problems += [f"{work.name}: {problem}" for problem in found]
    return problems


def _training_inputs(work: Work, to_come: Sequence[str]) -> list[str]:
    """Paths that are not there, shards that are not whole; what is still made is not looked at."""
    run, problems = work.config, []
    for path in (run.init_from, run.vocabulary):
        if path is not None and not is_below(path, to_come) and not locate(path).exists():
            problems.append(f"{path}: there is no such file or folder, seen from {Path.cwd()}")
    for sources in (run.data.sources, run.held_out.sources):
        for name, source in sources.items():
            if is_below(source.path, to_come):
                continue
            try:
                (at,) = at_resolution({name: source}, run.resolution_px).values()
                open_dataset(at.path)
            except MgptError as error:
                problems.append(str(error))
    return problems


# ------------------------------------------------------------------ jobs


def _print_all(cfg: Config, works: Sequence[Work]) -> None:
    """The scripts, and how each would be queued."""
    if cfg.launcher.name == "local":
        print(_local_script(cfg, works))
        return
    for work in works:
        needs = [f"{need.how}:<{need.name}>" for need in work.needs]
        words = slurm.sbatch_words(work.launch.path / SBATCH, ",".join(needs))
        print(f"# {'-' * 20} {work.name}\n# {shlex.join(words)}\n{_script(cfg, work)}")


def _script(cfg: Config, work: Work) -> str:
    return sbatch_script(_task(cfg, work), cfg.launcher, _resources(cfg, work), _origin(cfg))


def _submit_all(cfg: Config, works: Sequence[Work]) -> None:
    print(f"submitting with {slurm.version()}")
    for work in works:
        work.launch.refuse_if_live()
    scripts = {work.name: _script(cfg, work) for work in works}
    if cfg.stage == "pipeline":
        _write_chain(cfg)
    job_ids: dict[str, str] = {}
    for work in works:
        needs = [f"{need.how}:{job_ids[need.name]}" for need in work.needs]
        try:
            with work.launch.claim():
                work.launch.freeze(_frozen(cfg, work) | {SBATCH: scripts[work.name]})
                job_ids[work.name] = slurm.submit(work.launch.path / SBATCH, ",".join(needs))
                work.launch.set_job(job_ids[work.name])
        except MgptError:  # no half of a chain stays behind
            slurm.cancel(list(job_ids.values()))
            raise
        waits = f", after {', '.join(need.name for need in work.needs)}" if needs else ""
        print(f"{work.name}: job {job_ids[work.name]}{waits}; {work.launch.path / SBATCH}")
    print(f"mgpt status output={shlex.quote(cfg.output)}")


def _run_here(cfg: Config, works: Sequence[Work]) -> None:
    """The same through torchrun on this machine, in the foreground."""
    text, folder = _local_script(cfg, works), _local_folder(cfg, works)
    work = None if cfg.stage == "pipeline" else works[0]
    with folder.claim():
        folder.freeze(_frozen(cfg, work) | {LOCAL: text})
    own_children()
    if run_child([str(folder.path / LOCAL)]):
        raise MgptError(f"{cfg.stage} failed, as reported above; fix the cause and {RESUME}")


def _local_folder(cfg: Config, works: Sequence[Work]) -> LaunchFolder:
    return works[0].launch if cfg.stage != "pipeline" else _launch_folder(cfg)


def _local_script(cfg: Config, works: Sequence[Work]) -> str:
    """One stage, or a pipeline, by its frozen configuration."""
    if cfg.stage != "pipeline":
        return local_script(_task(cfg, works[0]), cfg.launcher, _origin(cfg))
    launch = _launch_folder(cfg).path
    arguments = _from_file(cfg.stage, launch)
    task = Task(cfg.stage, cfg.stage, cfg.output, launch, "alone", arguments)
    return local_script(task, cfg.launcher, _origin(cfg))


def _launch_folder(cfg: Config) -> LaunchFolder:
    """That of a pipeline's own output."""
    return LaunchFolder(Path(cfg.output).absolute() / NAME)


def _task(cfg: Config, work: Work) -> Task:
    launch = work.launch.path
    arguments = _from_file(work.stage, launch)
    is_training = work.kind == "training"
    output = locate(work.output)
    return Task(
        name=work.name,
        stage=work.stage,
        run=str(output.absolute() if isinstance(output, Path) else launch.parent),
        launch=launch,
        kind=work.kind,  # type: ignore[arg-type]
        arguments=arguments,
        ranks=_ranks(cfg, work),
        threads=work.config.parallel.threads if is_training else None,
        final=(VERIFY_NOT_PROVEN,) if work.stage == "verify" else (),
    )


def _from_file(stage: str, launch: Path) -> tuple[str, ...]:
    """The arguments of `mgpt` for a stage whose configuration is frozen in launch/."""
    return stage, "--config", str(launch / CONFIG)


def _resources(cfg: Config, work: Work) -> Resources:
    own = cfg.launcher.resources(work.stage, _base(work), work.name)
    if work.kind != "training" and not {work.stage, work.name} & cfg.launcher.stages.keys():
        return replace(own, nodes=1, elastic=None)
    if work.stage in TRAINING and not work.config.parallel.on_many:
        return replace(own, nodes=1, elastic=None)
    return own


def _ranks(cfg: Config, work: Work) -> int:
    """Processes of each machine."""
    own = cfg.launcher.resources(work.stage, _base(work), work.name)
    if work.kind != "training":
        return own.procs_per_node or 1
    parallel = work.config.parallel
    if cfg.launcher.name == "local" or not parallel.on_many:
        return num_processes("training", parallel.asked_procs, parallel.threads)
    given = parallel.procs if isinstance(parallel.procs, int) else None
    return own.procs_per_node or given or own.gpus_per_node or 2


def _base(work: Work) -> str:
    """`fp_sft` of the rung `fp_sft/512`."""
    return work.name.partition("/")[0]


def _has_gpus(cfg: Config) -> bool:
    if cfg.launcher.name == "slurm":
        return bool(cfg.launcher.gpus_per_node)
    import torch

    return torch.cuda.is_available()


# ------------------------------------------------------------------ what is kept


def _origin(cfg: Config) -> Origin:
    written = time.strftime("%Y-%m-%d %H:%M %Z")
    return Origin(Path.cwd(), cfg.output, written, in_words(code_version()))


def _frozen(cfg: Config, work: Work | None) -> dict[str, str]:
    """Texts for the launch folder: configuration, code version, and who submitted what."""
    code = {**code_version(), "python": platform.python_version(), "torch": version("torch")}
    by = {
        "stage": cfg.stage if work is None else work.name,
        "command": ["mgpt", *sys.argv[1:]],
        "folder": os.getcwd(),
        "host": platform.node(),
        "user": os.environ.get("USER", str(os.getuid())),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    texts = {"code.json": json.dumps(code, indent=1), "submission.json": json.dumps(by, indent=1)}
    if code["dirty"]:
        texts["code.diff"] = edits() + "\n"
    texts[CONFIG] = config_text(cfg.config if work is None else work.config)
    return texts


def _write_chain(cfg: Config) -> None:
    """The pipeline's record, without times that nobody takes, and its works for status."""
    record = Path(cfg.output) / RECORD
    kept = json.loads(record.read_text()) if record.exists() else {}
    known = {name: value for name, value in conditions().items() if name not in ("machine", "gpu")}
    content = {
        "recipe": cfg.config.recipe,
        "group": cfg.config.group,
        "stages": kept.get("stages", []),
        "machine": f"jobs of {slurm.version()}",
        **known,
    }
    atomic_write(record, json.dumps(content, indent=1).encode())
    works = [
        {
            "name": work.name,
            "stage": work.stage,
            "launch": str(work.launch.path),
            "needs": [need.name for need in work.needs],
        }
        for work in cfg.works
    ]
    _launch_folder(cfg).freeze({CHAIN: json.dumps(works, indent=1)})
