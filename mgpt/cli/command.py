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
from typing import TYPE_CHECKING, Any

from mgpt.cli.stage_table import STAGES, compose_stage, configure, load_stage
from mgpt.errors import ConfigError, MgptError, is_told
from mgpt.files.child_processes import die_with_parent
from mgpt.launching.processes import RESUME, is_worker, report_failure
from mgpt.stop_signals import INTERRUPTED_STATUS, SAVED_STATUS, Interrupted, interrupt_once

if TYPE_CHECKING:
    from mgpt.cli.config import Composed

USAGE = """\
usage: mgpt <stage> [field=value | group=choice …]
       mgpt <stage> --help           its fields, groups and an example
       mgpt <stage> --cfg job        the resolved configuration, without running
       mgpt <stage> --config FILE [field=value …]   run again from an output folder's config.yaml
       mgpt --version
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
    if arguments[0] == "--version":
        print(version_line())
        return
    name, *rest = arguments
    if name not in STAGES:
        from mgpt.cli.config import nearest

        hint = nearest(name, STAGES) or f"; there are {', '.join(STAGES)}"
        raise ConfigError(f"no stage {name!r}{hint} (mgpt --help lists them)")
    module = load_stage(name)
    if "-h" in rest or "--help" in rest:
        from mgpt.cli.help import stage_help

        print(stage_help(name, STAGES[name], module))
        return
    show = _take_option(rest, "--cfg")
    file = _take_option(rest, "--config")
    if show is not None and show != "job":
        raise ConfigError(f"--cfg {show}: only `--cfg job` is known")
    if file is None:
        composed = compose_stage(name, module, rest)
    else:
        composed = _compose_again(name, module, Path(file), rest)
    if show is not None:
        from mgpt.cli.config import config_text

        print(config_text(composed.tree), end="")
        return
    module.main(configure(module, composed))


def _compose_again(name: str, module: Any, file: Path, rest: list[str]) -> Composed:
    """A stage's resolved configuration from a file, with the overrides in it.

    Without overrides, as ranks and a pipeline's stages are started, nothing is left to compose.
    """
    from mgpt.cli.config import Composed, read_config

    if name in ("plan", "submit"):
        raise ConfigError(f"mgpt {name} takes no --config")
    if not rest:
        return Composed(read_config(file))
    if name == "pipeline":
        raise ConfigError(
            "mgpt pipeline takes no fields beside --config, the file of mgpt submit; a pipeline of "
            "your own is recipe=FILE"
        )
    from mgpt.cli.compose import compose_over, schema_of

    return compose_over(name, schema_of(module.Config), file, rest)


def version_line() -> str:
    """`mgpt 0.1.0, commit 0123456789ab, edited; torch 2.13.0; python 3.11.9`."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from mgpt.launching.code_version import code_version, in_words

    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "not installed"
    return f"{in_words(code_version())}; torch {torch}; python {platform.python_version()}"


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
        lines.append(f"  {'':<{width}}    {stage.reads} → {stage.writes}")
    lines += ["", "start here:  mgpt pipeline recipe=quickstart", "", STATUSES]
    return "\n".join(lines)
