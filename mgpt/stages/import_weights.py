"""mgpt import: released weights become a model folder.

Takes a folder of transformers (Chameleon or Lumina-mGPT, safetensors), Meta's checkpoint
(consolidated*.pth with params.json), or a picture tokenizer alone, of any family that
mgpt/tokenizers/README.md lists. VQGAN, tokenizer and licence files come along where they stand
beside the weights. dry_run=true says what would be written, and reads no weights but those of a
picture tokenizer.

Reads: a released folder
Writes: a model folder with vocabulary/ and vq/

    mgpt import input=chameleon-7b output=models/chameleon-7b
    mgpt import input=data/models/30b output=models/chameleon-34b dry_run=true
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mgpt.lifecycle.folder import check_machine, is_complete
from mgpt.lifecycle.identity import input_identities
from mgpt.lifecycle.run import run_stage
from mgpt.stages.released import Import, check_output, plan_import
from mgpt.tracking.tracker import Tracker, TrackingConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `mgpt import` can be given."""

    input: str
    """The released folder."""
    output: str
    """Model folder that is written: config.json, safetensors, vocabulary/ and vq/."""
    vq: str | None = None
    """VQGAN of the weights; null: what stands beside them."""
    tokenizer: str | None = None
    """Its tokenizer.json, or a folder with one; null: what stands beside the weights."""
    dry_run: bool = False
    """Print the plan, read no weights, write nothing."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""


def inputs(cfg: Config) -> dict[str, str]:
    return input_identities(cfg.input, cfg.vq, cfg.tokenizer)


def main(cfg: Config) -> None:
    if cfg.dry_run:
        print("\n".join(plan_import(Path(cfg.input), cfg.vq, cfg.tokenizer).lines()))
        return
    made_from, planned = inputs(cfg), None
    if not is_complete("import", cfg, made_from):
        check_output(cfg.output)
        # Before the output is touched: most of what can be wrong shows here.
        planned = plan_import(Path(cfg.input), cfg.vq, cfg.tokenizer)
    run_stage("import", cfg, made_from, partial(_write, planned))


def _write(planned: Import | None, cfg: Config, tracker: Tracker) -> dict[str, Any]:
    assert planned is not None, "the stage is not complete"
    for line in planned.lines():
        tracker.print(line)
    figures, folder = planned.figures(), Path(cfg.output)
    check_machine(folder, planned.num_bytes / 1e6 + 200.0)
    if planned.plan is None:
        planned.write(folder)
    else:
        with tracker.progress(figures["tensors"], "tensors", "import") as bar:
            planned.write(folder, bar.advance)
    tracker.finish(figures)
    return figures
