"""The command: `mgpt <stage> [overrides]`, the same as `python -m mgpt <stage>`.

Finds the stage in the table, composes its configuration, and calls its `main`. Torch is imported
only once a stage is named. A user's mistake ends as one line on stderr and status 2
(`MGPT_TRACEBACK=1` shows where it was raised); a stop by a signal with the work saved has status
75, an interruption by Ctrl-C that saves nothing further 130.

    $ mgpt tokenize input=raw output=tokens vq=scenes_f8 'resolution=[32,64]'
    $ mgpt tokenize --cfg job output=tokens input=raw
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from mgpt.errors import ConfigError, MgptError, is_told
from mgpt.launching.processes import RESUME, die_with_parent, is_worker, report_failure
from mgpt.stage_table import STAGES, compose_stage, configure, load_stage
from mgpt.stop_signals import INTERRUPTED_STATUS, SAVED_STATUS, Interrupted, interrupt_once

USAGE = """\
usage: mgpt <stage> [field=value | group=choice …]
       mgpt <stage> --help           its fields, groups and an example
       mgpt <stage> --cfg job        the resolved configuration, without running
       mgpt <stage> --config FILE    run again from an output folder's config.yaml
"""
STATUSES = """\
exit status: 0 done, 2 a mistake or a failure, named in one line, 75 stopped by a signal with the
work saved, 130 interrupted by Ctrl-C; after 75 and 130 the same command resumes"""


def console() -> None:
    """The `mgpt` command."""
    interrupt_once()
    status = main(sys.argv[1:])
    if is_worker() or status == INTERRUPTED_STATUS:
        # A finished rank has nothing left to do, and taking torch's process groups down with the
        # interpreter aborts now and then ("terminate called without an active exception"). An
        # interrupted process would finish what its executors' threads have queued.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(arguments: Sequence[str]) -> int:
    """Runs one command line; returns its exit status."""
    try:
        die_with_parent()
        _run(list(arguments))
        return 0
    except Interrupted as error:
        _tell(error, str(error))
        return SAVED_STATUS
    except MgptError as error:
        if os.environ.get("MGPT_TRACEBACK"):
            raise
        if not report_failure(error) and not is_told(error):
            print(f"mgpt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        _tell(error, f"stopped; {RESUME}")
        return INTERRUPTED_STATUS


def _tell(stop: BaseException, words: str) -> None:
    """Tells the user of a stop, once for all processes of the command."""
    if os.environ.get("RANK", "0") == "0" and not is_told(stop):
        print(f"mgpt: {words}", file=sys.stderr)


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return
    name, *rest = arguments
    if name not in STAGES:
        from mgpt.config import nearest

        hint = nearest(name, STAGES) or f"; there are {', '.join(STAGES)}"
        raise ConfigError(f"no stage {name!r}{hint} (mgpt --help lists them)")
    module = load_stage(name)
    if "-h" in rest or "--help" in rest:
        from mgpt.cli_help import stage_help

        print(stage_help(name, STAGES[name], module))
        return
    show = _take_option(rest, "--cfg")
    file = _take_option(rest, "--config")
    if show is not None and show != "job":
        raise ConfigError(f"--cfg {show}: only `--cfg job` is known")
    if file is not None:
        _run_again(module, Path(file).expanduser(), rest)
        return
    composed = compose_stage(name, module, rest)
    if show is not None:
        print(composed.yaml(), end="")
        return
    module.main(configure(module, composed))


def _run_again(module: ModuleType, file: Path, rest: list[str]) -> None:
    import yaml

    from mgpt.config import from_hydra

    if rest:
        raise ConfigError(f"--config {file} takes no overrides beside it: {' '.join(rest)}")
    if not file.exists():
        raise ConfigError(f"--config {file}: there is no such file")
    module.main(from_hydra(module.Config, yaml.safe_load(file.read_text())))


def _take_option(rest: list[str], option: str) -> str | None:
    """Removes `option value` from the arguments; returns the value."""
    for index, word in enumerate(rest):
        if word == option:
            if index + 1 == len(rest):
                raise ConfigError(f"{option} needs a value")
            value = rest[index + 1]
            del rest[index : index + 2]
            return value
        if word.startswith(f"{option}="):
            del rest[index]
            return word.partition("=")[2]
    unknown = [word for word in rest if word.startswith("--") and not word.startswith("--cfg")]
    if unknown and option == "--config":
        raise ConfigError(f"unknown option {unknown[0]}\n{USAGE.rstrip()}")
    return None


def overview() -> str:
    """The text of `mgpt --help`: the stages with input and output."""
    lines = ["mgpt: transformers that read and write text and pictures as one sequence", "", USAGE]
    width = max(map(len, STAGES))
    for name, stage in STAGES.items():
        lines.append(f"  {name:<{width}}  {stage.what}")
        lines.append(f"  {'':<{width}}    {stage.input} → {stage.output}")
    lines += ["", "start here:  mgpt pipeline recipe=quickstart", "", STATUSES]
    return "\n".join(lines)
