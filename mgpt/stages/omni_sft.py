r"""mgpt omni_sft: fine-tuning on all sixteen tasks at once.

    mgpt omni_sft init_from=fp_sft_64 output=omni_sft steps=200 resolution_px=64 \
        data.sources.a.path=tokens data.sources.a.tasks.caption=1 data.sources.a.tasks.depth=1
"""

from mgpt.lifecycle.rehearsal import Estimate, Scale
from mgpt.stages.step_times import is_long, rehearse_training
from mgpt.stages.training import TrainingConfig as Config
from mgpt.stages.training import inputs, train


def main(cfg: Config) -> None:
    train("omni_sft", cfg)


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    return rehearse_training("omni_sft", cfg, real)


__all__ = ["Config", "inputs", "is_long", "main", "rehearse"]
