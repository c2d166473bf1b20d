"""One Weights & Biases run, through its real client: online with a key, offline without one.

The client is imported when a run is opened. It never asks for a key and never stops a stage: a
server that cannot be reached makes the run an offline one, kept below `<stage folder>/wandb` for
`wandb sync`. The run's id stands in `<stage folder>/wandb/run_id`, so that a stage taken up again
goes on with the same run.

    >>> run = open_run("auto", Path("outputs/a"), "mgpt", None, "pretrain", "a", config={})
    >>> run.log({"step": 1, "loss": 2.3})
    >>> run.finish()
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

from mgpt.errors import MachineError

INIT_TIMEOUT_S = 20
Mode = Literal["auto", "online", "offline", "disabled"]
_log = logging.getLogger(__name__)


def open_run(
    mode: Mode,
    folder: Path,
    project: str,
    entity: str | None,
    stage: str,
    group: str,
    config: Mapping[str, Any],
) -> Any:
    """The wandb run of a stage folder; `step` is the axis of everything it logs.

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
    options: dict[str, Any] = {
        "project": project,
        "entity": entity,
        "group": group,
        "job_type": stage,
        "name": f"{group}/{stage}" if group else stage,
        "id": _run_id(where),
        "dir": str(folder),
        "config": dict(config),
        "resume": "allow",
    }
    settings = wandb.Settings(
        init_timeout=INIT_TIMEOUT_S,
        console="off",
        silent=True,
        x_disable_stats=True,
        x_save_requirements=False,
        disable_git=True,
        save_code=False,
    )
    chosen = choose_mode(mode)
    if chosen == "online":
        try:
            run = wandb.init(mode="online", settings=settings, **options)
        except (wandb.errors.Error, TimeoutError, OSError) as error:
            _log.warning("Weights & Biases: %s; this run is kept offline in %s", error, where)
            chosen = "offline"
    if chosen != "online":
        options["resume"] = None  # offline there is no server's run to resume; the id does it
        quiet: Literal["offline", "disabled"] = "disabled" if chosen == "disabled" else "offline"
        run = wandb.init(mode=quiet, settings=settings, **options)
    run.define_metric("*", step_metric="step")
    return run


def choose_mode(mode: Mode) -> Mode:
    """auto as WANDB_MODE says, else online where WANDB_API_KEY or ~/.netrc has a key."""
    asked = os.environ.get("WANDB_MODE")
    if mode != "auto":
        return mode
    if asked in ("online", "offline", "disabled"):
        return asked  # type: ignore[return-value]
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


def _run_id(where: Path) -> str:
    """The id kept in the folder; a new one the first time."""
    file = where / "run_id"
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:12])
    return file.read_text().strip()
