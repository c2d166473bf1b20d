"""The stages of the command line: a literal table, and from a name to a module and its settings.

A new stage is a module with a dataclass `Config`, `inputs(cfg)` and `main(cfg)`, a yaml in `conf/`
and a line here; one without `inputs` is a command that no pipeline runs. With `rehearse` a pipeline
can estimate its time (`mgpt.stages.rehearsal`), and `is_long(cfg)` says that this is worth it. Its
module is imported once the stage is asked for, so that `mgpt --help` waits for nothing. The
pipeline, whose configuration joins those of a recipe, brings a `compose` and a `configure` of its
own.

    >>> module = load_stage("pack")
    >>> configure(module, compose_stage("pack", module, ["source=photos", "output=raw"])).output
    'raw'
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mgpt.errors import MachineError
from mgpt.files.atomic import check_output

if TYPE_CHECKING:
    from mgpt.cli.config import Composed


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
        "data_pipeline.pack",
        "pictures and captions into raw shards",
        "a folder, tars, or a built-in corpus",
        "webdataset tars",
        "source=folder input=my_pictures output=raw",
    ),
    "tokenize": Stage(
        "data_pipeline.tokenize",
        "raw shards into picture codes",
        "webdataset tars, a VQGAN",
        "tokenised shards, a folder a resolution",
        "input=raw output=tokens vq=scenes_f8 'resolution=[32,48,64]'",
    ),
    "verify": Stage(
        "data_pipeline.verify",
        "proof that tokenised shards hold every raw sample once",
        "tokenised shards; raw shards, a VQGAN",
        "one JSON line, contact sheets",
        "input=tokens raw=raw vq=scenes_f8",
    ),
    "inspect": Stage(
        "data_pipeline.inspect",
        "one tokenised sample: pictures, text, ids trained or not",
        "tokenised shards; a VQGAN, a vocabulary",
        "<key>.html",
        "input=tokens key=000000012 vq=scenes_f8 output=inspected",
    ),
    "summarize": Stage(
        "data_pipeline.summarize",
        "histograms of sizes, lengths and tasks",
        "tokenised shards; a vocabulary",
        "summary.html, PNGs, summary.json",
        "input=tokens output=summary",
    ),
    "reindex": Stage(
        "data_pipeline.reindex",
        "indexes and lengths of tokenised shards, made anew",
        "tokenised shards; a vocabulary",
        "the same folders",
        "input=tokens vocabulary=text",
    ),
    "roundtrip": Stage(
        "data_pipeline.roundtrip",
        "tokenised pictures decoded again, with their PSNR",
        "raw and tokenised shards, a VQGAN",
        "PNGs in pairs, roundtrip.json",
        "input=tokens raw=raw vq=photos_f16 output=roundtrip",
    ),
    "encode": Stage(
        "mgpt.stages.encode",
        "pictures into VQGAN codes",
        "pictures, a VQGAN",
        "a JSON file of codes",
        "vq=photos_f16 input=[a.png,b.png] output=codes.json",
    ),
    "decode": Stage(
        "mgpt.stages.decode",
        "VQGAN codes back into pictures",
        "a JSON file of codes, a VQGAN",
        "PNGs",
        "vq=photos_f16 input=codes.json output=decoded",
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
    "import": Stage(
        "mgpt.stages.import_weights",
        "released weights (transformers', Lumina's, Meta's) into a model folder",
        "a released folder",
        "a model folder with vocabulary/ and vq/",
        "input=chameleon-7b output=models/chameleon-7b",
    ),
    "plan": Stage(
        "mgpt.stages.plan",
        "memory, time and size of a run before it is queued",
        "the command of a training stage or a pipeline",
        "tables; a refusal where it cannot fit",
        "pipeline recipe=fp_sft_7b_512_32gpu device=H100-80 nodes=2",
    ),
    "doctor": Stage(
        "mgpt.stages.doctor",
        "health of this machine, or of all nodes of a job, before it starts",
        "the nodes, one process each",
        "doctor.json; bad_nodes where some are to blame",
        "output=outputs/doctor",
    ),
    "submit": Stage(
        "mgpt.stages.submit",
        "a stage or a pipeline into Slurm's queue, or through torchrun on this machine",
        "the command of a stage or a pipeline",
        "launch/ in its output: the script, logs",
        "pipeline recipe=quickstart launcher=slurm launcher.partition=gpu",
    ),
    "status": Stage(
        "mgpt.stages.status",
        "what was submitted: state, step, rate, loss, last checkpoint, time left",
        "the output of mgpt submit",
        "a table",
        "output=outputs/quickstart",
    ),
    "cancel": Stage(
        "mgpt.stages.cancel",
        "ends the jobs of a submission; what they saved stays",
        "the output of mgpt submit",
        "no files",
        "output=outputs/quickstart",
    ),
    "pretrain": Stage(
        "mgpt.stages.pretrain",
        "a transformer from nothing on documents of text and pictures",
        "tokenised shards, a vocabulary",
        "checkpoints, a model folder",
        "vocabulary=text model=quickstart output=pretrain steps=200 "
        "schedule.warmup_steps=10 data.sources.a.path=tokens/32 data.sources.a.tasks.image_text=1",
    ),
    "fp_sft": Stage(
        "mgpt.stages.fp_sft",
        "text-to-picture fine-tuning at one rung of resolution",
        "tokenised shards, weights",
        "checkpoints, a model folder",
        "init_from=pretrain resolution=64 output=fp_sft_64 steps=200 "
        "data.sources.a.path=tokens data.sources.a.tasks.text_to_image=1",
    ),
    "omni_sft": Stage(
        "mgpt.stages.omni_sft",
        "fine-tuning on all sixteen tasks",
        "tokenised shards, weights",
        "checkpoints, a model folder",
        "init_from=fp_sft_64 output=omni_sft steps=200 "
        "data.sources.a.path=tokens/64 data.sources.a.tasks.caption=1",
    ),
    "export": Stage(
        "mgpt.stages.export_weights",
        "weights into a folder that transformers loads",
        "weights, a VQGAN",
        "a transformers folder",
        "ckpt=omni_sft vq=models/chameleon-7b/vq output=mine dtype=bfloat16",
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
        "ckpt=omni_sft vq=scenes_f8 input=held_out/tokens raw=held_out/raw resolution_px=64 "
        "output=evaluate",
    ),
    "report": Stage(
        "mgpt.stages.report",
        "a page of what a pipeline made",
        "evaluation, training stages",
        "report.html, report.json",
        "evaluation=evaluate training.omni_sft=omni_sft output=report",
    ),
}

PIP_NAMES = {"PIL": "Pillow", "yaml": "PyYAML", "skimage": "scikit-image", "hydra": "hydra-core"}


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


def compose_stage(name: str, module: ModuleType, overrides: Sequence[str]) -> Composed:
    """The stage's composed configuration; a pipeline composes its own from its recipe."""
    from mgpt.cli.config import compose, schema_of

    if hasattr(module, "compose"):
        return module.compose(overrides)
    return compose(name, schema_of(module.Config), overrides)


def configure(module: ModuleType, composed: Composed) -> Any:
    """The stage's dataclass from its composed configuration.

    Raises ConfigError with every mistake in it, or for an output that cannot be meant.
    """
    from mgpt.cli.config import from_hydra

    if hasattr(module, "configure"):
        return module.configure(composed)
    cfg = from_hydra(module.Config, composed.node)
    output = getattr(cfg, "output", None)
    if output is not None:
        check_output(output)
    return cfg
