"""The stages of the command line: a literal table, and from a name to a module and its settings.

A new stage is a module with a dataclass `Config`, `inputs(cfg)` and `main(cfg)`, a yaml in `conf/`
and a line here; one without `inputs` is a command that no pipeline runs. Its docstring is its help:
`mgpt <name>: ` and what it does, a line `Reads: …`, a line `Writes: …`, and examples, indented.
With `rehearse` a pipeline can estimate its time (`mgpt.stages.rehearsal`), and `is_long(cfg)` says
that this is worth it. The module is imported when the stage is asked for, so that `mgpt --help`
waits for nothing. The pipeline, whose configuration joins those of a recipe, brings a `compose` and
a `configure` of its own.

    >>> module = load_stage("pack")
    >>> configure(module, compose_stage("pack", module, ["source=photos", "output=raw"])).output
    'raw'
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgpt.errors import MachineError
from mgpt.files.atomic import check_output

if TYPE_CHECKING:
    from mgpt.cli.config import Composed

_QUOTES = '"""'


@dataclass(frozen=True)
class Stage:
    """Where the stage's script is. `mgpt --help` and `mgpt <stage> --help` quote its docstring."""

    name: str
    module: str

    @property
    def what(self) -> str:
        """What the stage does: the first line."""
        return self.doc[0].partition(": ")[2].rstrip(".")

    @property
    def reads(self) -> str:
        """What it takes: the line `Reads: …`."""
        return self._labelled("Reads: ")

    @property
    def writes(self) -> str:
        """What it makes: the line `Writes: …`."""
        return self._labelled("Writes: ")

    def _labelled(self, label: str) -> str:
        (line,) = [line for line in self.doc if line.startswith(label)]
        return line.removeprefix(label)

    @cached_property
    def doc(self) -> list[str]:
        """The stage's lines of the docstring, from `mgpt <name>: …` to where another stage's begin.

        Read from the source: importing the module can take seconds.
        """
        spec = importlib.util.find_spec(self.module)
        assert spec is not None and spec.origin is not None, self.module
        source = Path(spec.origin).read_text()
        end = source.index(_QUOTES, source.index(_QUOTES) + 1) + len(_QUOTES)
        lines = str(ast.literal_eval(source[:end])).splitlines()
        begins = [number for number, line in enumerate(lines) if re.match(r"mgpt \w+: ", line)]
        (begin,) = [n for n in begins if lines[n].startswith(f"mgpt {self.name}: ")]
        return lines[begin : min((n for n in begins if n > begin), default=len(lines))]


_TRAIN = "mgpt.stages.train"
_MODULES = {
    "pipeline": "mgpt.stages.pipeline",
    "pack": "data_pipeline.pack",
    "tokenize": "data_pipeline.tokenize",
    "verify": "data_pipeline.verify",
    "inspect": "data_pipeline.inspect",
    "summarize": "data_pipeline.summarize",
    "reindex": "data_pipeline.reindex",
    "roundtrip": "data_pipeline.roundtrip",
    "encode": "mgpt.stages.encode",
    "decode": "mgpt.stages.decode",
    "train_vq": "mgpt.stages.train_vq",
    "train_text": "mgpt.stages.train_text",
    "import": "mgpt.stages.import_weights",
    "plan": "mgpt.stages.plan",
    "doctor": "mgpt.stages.doctor",
    "submit": "mgpt.stages.submit",
    "status": "mgpt.stages.status",
    "cancel": "mgpt.stages.cancel",
    "pretrain": _TRAIN,
    "fp_sft": _TRAIN,
    "omni_sft": _TRAIN,
    "export": "mgpt.stages.export_weights",
    "generate": "mgpt.stages.generate",
    "evaluate": "mgpt.stages.evaluate",
    "report": "mgpt.stages.report",
}
STAGES = {name: Stage(name, module) for name, module in _MODULES.items()}

TRAINING = tuple(name for name, module in _MODULES.items() if module == _TRAIN)

PIP_NAMES = {"PIL": "Pillow", "yaml": "PyYAML", "skimage": "scikit-image", "hydra": "hydra-core"}


def load_stage(name: str) -> Any:
    """The stage's module, or what a module of several stages has for this one (`as_stage`).

    Raises MachineError naming the pip command of a dependency that is not installed.
    """
    try:
        module = importlib.import_module(STAGES[name].module)
        return module.as_stage(name) if hasattr(module, "as_stage") else module
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("mgpt", "data_pipeline"):
            raise
        raise MachineError(
            f"mgpt {name} needs the package {error.name!r}, which is not installed in "
            f"{sys.prefix}: pip install {PIP_NAMES.get(str(error.name), error.name)}"
        ) from error


def compose_stage(name: str, module: Any, overrides: Sequence[str]) -> Composed:
    """The stage's composed configuration; a pipeline composes its own from its recipe."""
    from mgpt.cli.compose import compose, schema_of

    if hasattr(module, "compose"):
        return module.compose(overrides)
    return compose(name, schema_of(module.Config), overrides)


def configure(module: Any, composed: Composed) -> Any:
    """The stage's dataclass from its composed configuration.

    Raises ConfigError with every mistake in it, or for an output that cannot be meant.
    """
    from mgpt.cli.config import validate

    if hasattr(module, "configure"):
        return module.configure(composed)
    cfg = validate(module.Config, composed.tree)
    output = getattr(cfg, "output", None)
    if output is not None:
        check_output(output)
    return cfg
