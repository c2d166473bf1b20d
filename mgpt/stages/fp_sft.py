r"""mgpt fp_sft: flexible progressive fine-tuning, one rung of resolution.

Text to picture at any aspect ratio of one area, with text and picture-to-text samples against
forgetting. Each rung starts from the one below: 512, 768, 1024 in full-size recipes.

    mgpt fp_sft init_from=pretrain resolution=64 output=fp_sft_64 steps=200 \
        data.sources.a.path=tokens data.sources.a.tasks.text_to_image=1
"""

from mgpt.lifecycle.rehearsal import Estimate, Scale
from mgpt.stages.step_times import is_long, rehearse_training
from mgpt.stages.training import TrainingConfig as Config
from mgpt.stages.training import inputs, train


def main(cfg: Config) -> None:
    train("fp_sft", cfg)


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    return rehearse_training("fp_sft", cfg, real)


__all__ = ["Config", "inputs", "is_long", "main", "rehearse"]
