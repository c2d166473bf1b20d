r"""mgpt pretrain: a transformer from nothing, on documents of text and pictures.

Documents are plain text, image-caption pairs in either order, and interleaved text and pictures.
Every token after the first is trained; there are no questions and no guidance drop.

    mgpt pretrain vocabulary=text model=quickstart output=pretrain steps=200 \
        schedule.warmup_steps=10 data.sources.a.path=tokens/32 data.sources.a.tasks.image_text=1
"""

from mgpt.lifecycle.rehearsal import Estimate, Scale
from mgpt.stages.step_times import is_long, rehearse_training
from mgpt.stages.training import TrainingConfig as Config
from mgpt.stages.training import inputs, train


def main(cfg: Config) -> None:
    train("pretrain", cfg)


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    return rehearse_training("pretrain", cfg, real)


__all__ = ["Config", "inputs", "is_long", "main", "rehearse"]
