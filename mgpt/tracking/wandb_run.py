"""One Weights & Biases run, through its real client: online with a key, offline without one.

The client is imported when a run is opened. It never asks for a key and never stops a stage: a
server that cannot be reached makes the run an offline one, kept below `<stage folder>/wandb` for
`wandb sync`, and one that goes away later costs a bounded wait at the end. The run's id stands in
`<stage folder>/wandb/run_id`, so that a stage taken up again goes on with the same run. Up to which
step the run is known to hold everything is what the server says of it, and, where none is asked,
`<stage folder>/wandb/shown`, written when a start has ended in order.

The configuration wins, then the client's own environment variables (`RunNames`; WANDB_DIR,
WANDB_RUN_ID, WANDB_JOB_TYPE and those of its settings too; WANDB_TAGS, WANDB_NOTES and
WANDB_BASE_URL it reads by itself), then a default.

    >>> run = open_run(RunNames(), Path("outputs/a"), "pretrain", "a", config={})
    >>> run.log({"step": 1, "loss": 2.3})
    >>> run.finish()
"""

from __future__ import annotations

import json
import logging
import os
import socket
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from mgpt.errors import MachineError
from mgpt.files.atomic import atomic_write

INIT_TIMEOUT_S = 20
FINISH_TIMEOUT_S = 30
_RUN_ID, _SHOWN, _STARTS = "run_id", "shown", "starts.jsonl"
_JOB = {
    "job": "SLURM_JOB_ID",
    "restart": "SLURM_RESTART_COUNT",
    "array": "SLURM_ARRAY_JOB_ID",
    "element": "SLURM_ARRAY_TASK_ID",
    "nodes": "SLURM_JOB_NODELIST",
    "partition": "SLURM_JOB_PARTITION",
}
Mode = Literal["auto", "online", "offline", "disabled"]
_OLD_MODES = {"dryrun": "offline", "run": "online"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunNames:
    """Where a run is shown, and as what."""

    mode: Mode = "auto"
    """Weights & Biases: online, offline, disabled; auto: WANDB_MODE, else disabled with
    WANDB_DISABLED=true, else online with a key (WANDB_API_KEY or ~/.netrc), else offline."""
    project: str | None = None
    """Its project; null: WANDB_PROJECT, else mgpt."""
    entity: str | None = None
    """Its team or user; null: WANDB_ENTITY, else the key's own."""
    group: str = ""
    """Name that groups the runs of one pipeline; empty: WANDB_RUN_GROUP, else the pipeline's."""
    name: str | None = None
    """Name of the run; null: WANDB_NAME, else <group>/<stage>. In a pipeline WANDB_NAME is followed
    by the stage's name."""


def open_run(
    names: RunNames, folder: Path, stage: str, group: str, config: Mapping[str, Any]
) -> Any:
    """The wandb run of a stage folder; `step` is the axis of everything it logs. None where the
    client fails; the next start shows what this one could not.

    Raises MachineError where the client is not installed; `tracking.mode=disabled` does without.
    """
    try:
        import wandb
    except ImportError as error:
        raise MachineError(
            f"wandb cannot be imported ({error}): pip install wandb, or set tracking.mode=disabled"
        ) from error
    where = folder / "wandb"
    where.mkdir(parents=True, exist_ok=True)
    environment = os.environ
    group = names.group or environment.get("WANDB_RUN_GROUP") or group
    default_name = f"{group}/{stage}" if group else stage
    options: dict[str, Any] = {
        "project": names.project or environment.get("WANDB_PROJECT") or "mgpt",
        "entity": names.entity or environment.get("WANDB_ENTITY") or None,
        "group": group,
        "job_type": environment.get("WANDB_JOB_TYPE") or stage,
        "name": names.name or environment.get("WANDB_NAME") or default_name,
        "id": _run_id(where),
        "dir": _files_folder(folder),
        "config": {**config, "starts": _note_start(where)},
        "resume": "allow",
        "settings": wandb.Settings(**_settings(wandb.Settings.model_fields)),
    }
    chosen = choose_mode(names.mode)
    if chosen == "online":
        try:
            run = wandb.init(mode="online", **options)
        except Exception as error:  # the client has more kinds than it names
            _log.warning("Weights & Biases: %s; this run is kept offline in %s", error, where)
            wandb.teardown()  # its process still holds the run's id
            chosen = "offline"
    if chosen != "online":
        quiet: Literal["offline", "disabled"] = "disabled" if chosen == "disabled" else "offline"
        try:
            run = wandb.init(mode=quiet, **options)
        except Exception as error:
            _log.warning("Weights & Biases: %s; this start is not shown", error)
            return None
    if run.id != options["id"] and chosen != "disabled":  # a sweep chooses its runs' ids itself
        atomic_write(where / _RUN_ID, run.id.encode())
    run.define_metric("*", step_metric="step")
    return run


def shown_through(run: Any, folder: Path) -> int:
    """The last step that the run is known to hold, with all before it; 0 where nothing is known.

    Of an online run it is what the server has, whatever an earlier start believed.
    """
    if not run.offline:
        return int(run.summary.get("step") or 0) if run.resumed else 0
    try:
        return int(json.loads((folder / "wandb" / _SHOWN).read_text())["step"])
    except (OSError, ValueError, KeyError):
        return 0


def note_shown(folder: Path, step: int) -> None:
    """The run of a start that has ended in order holds everything up to `step`."""
    atomic_write(folder / "wandb" / _SHOWN, (json.dumps({"step": step}) + "\n").encode())


def choose_mode(mode: Mode) -> Mode:
    """`RunNames.mode`, where auto is what the environment says."""
    asked = os.environ.get("WANDB_MODE", "").lower()
    asked = _OLD_MODES.get(asked, asked)
    if mode != "auto":
        return mode
    if asked in ("online", "offline", "disabled"):
        return asked  # type: ignore[return-value]
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    netrc_file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "online" if "wandb" in netrc_file.read_text() else "offline"
    except OSError:
        return "offline"


def hold_run(folder: Path) -> IO[str] | None:
    """The run of a folder for as long as the file that is returned is open; None where another
    living process has it."""
    import fcntl

    where = folder / "wandb"
    where.mkdir(parents=True, exist_ok=True)
    file = (where / "holder").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        _log.warning("Weights & Biases: another process shows the run of %s", folder)
        return None
    return file


def _settings(known: Mapping[str, Any]) -> dict[str, Any]:
    """Of the client, without what its version does not know."""
    wanted = {
        "init_timeout": INIT_TIMEOUT_S,
        "finish_timeout": FINISH_TIMEOUT_S,
        "console": "off",
        "silent": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
        "disable_git": True,
        "save_code": False,
    }
    return {
        name: value
        for name, value in wanted.items()
        if name in known and f"WANDB_{name.upper()}" not in os.environ
    }


def _files_folder(folder: Path) -> str:
    """Where the client keeps its files, below `wandb/`: WANDB_DIR, else the stage's folder."""
    chosen = os.environ.get("WANDB_DIR") or str(folder)
    with suppress(OSError):  # the client then says what is wrong with it
        Path(chosen).mkdir(parents=True, exist_ok=True)
    return chosen


def _note_start(where: Path) -> list[dict[str, str]]:
    """Host and Slurm's names of every start of this folder, this one last."""
    start = {name: os.environ[key] for name, key in _JOB.items() if os.environ.get(key)}
    start = {"host": socket.gethostname(), **start}
    file = where / _STARTS
    with file.open("a") as stream:
        stream.write(json.dumps(start) + "\n")
    starts = []
    for line in file.read_text().splitlines():
        try:
            starts.append(json.loads(line))
        except ValueError:  # cut short by a power loss
            continue
    return starts


def _run_id(where: Path) -> str:
    """The id kept in the folder; the first time WANDB_RUN_ID or else a new one."""
    file = where / _RUN_ID
    if not file.exists():
        run_id = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12]
        atomic_write(file, run_id.encode())
    return file.read_text().strip()
