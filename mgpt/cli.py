"""The command: `mgpt <stage> [overrides]`, the same as `python -m mgpt <stage>`.

Finds the stage in a literal table, composes its configuration, and calls its `main`. Torch is
imported only once a stage is named. A user's mistake ends as one line on stderr and status 2
(`MGPT_TRACEBACK=1` shows where it was raised); an orderly stop by a signal has status 75.

    $ mgpt tokenize input=raw output=tokens vq=scenes_f8 'resolution=[32,64]'
    $ mgpt tokenize --cfg job output=tokens input=raw
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mgpt.errors import ConfigError, MachineError, MgptError
from mgpt.launching.processes import (
    INTERRUPTED_STATUS,
    Interrupted,
    die_with_parent,
    is_worker,
    report_failure,
)

if TYPE_CHECKING:
    from mgpt.config import Composed


@dataclass(frozen=True)
class Stage:
    """A line of `mgpt --help`, and where the stage's script is."""

    module: str
    what: str
    input: str
    output: str
    example: str


STAGES: dict[str, Stage] = {
    "pipeline": Stage(
        "mgpt.stages.pipeline",
        "every stage of a recipe in order, skipping what is complete",
        "a recipe",
        "one folder a stage, report.html",
        "recipe=quickstart output=outputs/quickstart fp_sft.steps=20",
    ),
    "pack": Stage(
        "mgpt.stages.pack",
        "pictures and captions into raw shards",
        "a folder, tars, or a built-in corpus",
        "webdataset tars",
        "source=folder input=my_pictures output=raw",
    ),
    "tokenize": Stage(
        "mgpt.stages.tokenize",
        "raw shards into picture codes",
        "webdataset tars, a VQGAN",
        "tokenised shards, a folder a resolution",
        "input=raw output=tokens vq=scenes_f8 'resolution=[32,48,64]'",
    ),
    "roundtrip": Stage(
        "mgpt.stages.roundtrip",
        "tokenised pictures decoded again, with their PSNR",
        "raw and tokenised shards, a VQGAN",
        "PNGs in pairs, roundtrip.json",
        "input=tokens raw=raw vq=photos_f16 output=roundtrip",
    ),
    "train_vq": Stage(
        "mgpt.stages.train_vq",
        "a VQGAN on raw shards",
        "webdataset tars",
        "a VQGAN folder",
        "input=raw output=vq train.steps=2000",
    ),
    "train_text": Stage(
        "mgpt.stages.train_text",
        "a SentencePiece model on the text of raw shards",
        "webdataset tars",
        "a vocabulary folder",
        "input=raw output=text num_pieces=512",
    ),
    "pretrain": Stage(
        "mgpt.stages.pretrain",
        "a transformer from nothing on documents of text and pictures",
        "tokenised shards, a vocabulary",
        "checkpoints, a model folder",
        "data.sources.a.path=tokens/32 vocabulary=text output=pretrain model=quickstart",
    ),
    "fp_sft": Stage(
        "mgpt.stages.fp_sft",
        "text-to-picture fine-tuning at one rung of resolution",
        "tokenised shards, weights",
        "checkpoints, a model folder",
        "data.sources.a.path=tokens/64 init_from=pretrain output=fp_sft_64 resolution=64",
    ),
    "omni_sft": Stage(
        "mgpt.stages.omni_sft",
        "fine-tuning on all sixteen tasks",
        "tokenised shards, weights",
        "checkpoints, a model folder",
        "data.sources.a.path=tokens/64 init_from=fp_sft_64 output=omni_sft",
    ),
    "generate": Stage(
        "mgpt.stages.generate",
        "pictures or answers from a prompt",
        "weights, a VQGAN, a prompt",
        "PNGs, answers.json",
        "ckpt=omni_sft vq=scenes_f8 prompt='a large red matte sphere' output=pictures",
    ),
    "evaluate": Stage(
        "mgpt.stages.evaluate",
        "measures of every task on held-out samples",
        "weights, a VQGAN, held-out shards",
        "measures.json and galleries",
        "ckpt=omni_sft vq=scenes_f8 input=held_out/64 output=evaluate",
    ),
    "report": Stage(
        "mgpt.stages.report",
        "a page of what a pipeline made",
        "a pipeline's folder",
        "report.html, report.json",
        "input=outputs/quickstart output=outputs/quickstart",
    ),
}

USAGE = """\
usage: mgpt <stage> [field=value | group=choice …]
       mgpt <stage> --help           its fields, groups and an example
       mgpt <stage> --cfg job        the resolved configuration, without running
       mgpt <stage> --config FILE    run again from an output folder's config.yaml
"""


def console() -> None:
    """The `mgpt` command."""
    status = main(sys.argv[1:])
    if is_worker():
        # A finished rank has nothing left to do, and taking torch's process groups down with the
        # interpreter aborts now and then ("terminate called without an active exception").
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
        print(f"mgpt: {error}", file=sys.stderr)
        return INTERRUPTED_STATUS
    except MgptError as error:
        if os.environ.get("MGPT_TRACEBACK"):
            raise
        if not report_failure(error):
            print(f"mgpt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mgpt: stopped; the same command goes on where it was", file=sys.stderr)
        return 130


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
        _run_again(module, Path(file), rest)
        return
    composed = compose_stage(name, module, rest)
    if show is not None:
        print(composed.yaml(), end="")
        return
    module.main(configure(module, composed))


def compose_stage(name: str, module: ModuleType, overrides: Sequence[str]) -> Composed:
    """The stage's composed configuration; a pipeline composes its own from its recipe."""
    from mgpt.config import compose, schema_of

    if hasattr(module, "compose"):
        return module.compose(overrides)
    return compose(name, schema_of(module.Config), overrides)


def configure(module: ModuleType, composed: Composed) -> Any:
    """The stage's dataclass from its composed configuration."""
    from mgpt.config import from_hydra

    if hasattr(module, "configure"):
        return module.configure(composed)
    return from_hydra(module.Config, composed.node)


def _run_again(module: ModuleType, file: Path, rest: list[str]) -> None:
    import yaml

    from mgpt.config import from_hydra

    if rest:
        raise ConfigError(f"--config {file} takes no overrides beside it: {' '.join(rest)}")
    if not file.exists():
        raise ConfigError(f"--config {file}: there is no such file")
    module.main(from_hydra(module.Config, yaml.safe_load(file.read_text())))


def load_stage(name: str) -> ModuleType:
    """The stage's module; a dependency that is not installed is named with its pip command."""
    try:
        return importlib.import_module(STAGES[name].module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("mgpt", "data_pipeline"):
            raise
        raise MachineError(
            f"mgpt {name} needs the package {error.name!r}, which is not installed in "
            f"{sys.prefix}: pip install {PIP_NAMES.get(str(error.name), error.name)}"
        ) from error


PIP_NAMES = {"PIL": "Pillow", "yaml": "PyYAML", "skimage": "scikit-image", "hydra": "hydra-core"}


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
    lines += ["", "start here:  mgpt pipeline recipe=quickstart"]
    return "\n".join(lines)
