"""mgpt export: trained weights become a folder that transformers loads.

`ChameleonForConditionalGeneration.from_pretrained` takes the output: qk-norm by head, the VQ
encoder and the tokenizer where they are at hand. transformers has no VQ decoder, so the whole VQGAN
stands beside it as vq/; `mgpt import` of the output gives the same model folder back, bit for bit.

    mgpt export ckpt=omni_sft vq=models/chameleon-7b/vq output=lumina-mine dtype=bfloat16
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from mgpt.lifecycle.folder import check_machine, is_complete
from mgpt.lifecycle.identity import input_identities, weights_identity
from mgpt.lifecycle.run import run_stage
from mgpt.stages.released import check_output
from mgpt.stages.transformers_export import Export, plan_export
from mgpt.tracking.tracker import Tracker, TrackingConfig

DTYPES: dict[str, torch.dtype | None] = {
    "keep": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `mgpt export` can be given."""

    ckpt: str
    """Weights: a model folder, a step folder, or the output of a training stage."""
    averaged: bool = True
    """Take a checkpoint's averaged weights (optim.ema_decay) if it has any; false: the raw ones."""
    output: str
    """Folder for transformers' files."""
    vq: str | None = None
    """VQGAN that tokenised the pictures; null: the model folder's own, where it has one."""
    with_vq: bool = True
    """Whether its encoder goes into the transformers weights (its norms must have 32 groups)."""
    dtype: Literal["keep", "bfloat16", "float16", "float32"] = "keep"
    """Type of the transformer's tensors; the VQGAN stays as it is."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""


def inputs(cfg: Config) -> dict[str, str]:
    return {**input_identities(cfg.vq), cfg.ckpt: weights_identity(cfg.ckpt, cfg.averaged)}


def main(cfg: Config) -> None:
    made_from, planned = inputs(cfg), None
    if not is_complete("export", cfg, made_from):
        check_output(cfg.output)
        # Before the output is touched: most of what can be wrong shows here.
        planned = plan_export(cfg.ckpt, cfg.vq, cfg.with_vq, DTYPES[cfg.dtype], cfg.averaged)
    run_stage("export", cfg, made_from, partial(_write, planned))


def _write(planned: Export | None, cfg: Config, tracker: Tracker) -> dict[str, Any]:
    assert planned is not None, "the stage is not complete"
    for note in planned.notes:
        tracker.print(f"note: {note}")
    figures, folder = planned.figures(), Path(cfg.output)
    check_machine(folder, figures["bytes"] / 1e6 + 200.0)
    with tracker.progress(figures["tensors"], "tensors", "export") as bar:
        planned.write(folder, bar.advance)
    tracker.finish(figures)
    return figures
