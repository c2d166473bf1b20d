r"""mgpt generate: pictures or answers from a prompt.

The prompt is put into the form of a task: a caption for text_to_image, a question for vqa, an
instruction for edit. `task=free` takes it word for word, with `<|image|>` where a picture stands.

Reads: weights, a VQGAN, a prompt
Writes: PNGs, answers.json

    mgpt generate ckpt=omni_sft vq=scenes_f8 prompt="a large red matte sphere" output=pictures
    mgpt generate ckpt=omni_sft vq=scenes_f8 task=depth image=cube.png output=depth
    mgpt generate ckpt=omni_sft vq=scenes_f8 prompt="a blue cone" size=80x56 n=4 output=four
    mgpt generate ckpt=omni_sft vq=scenes_f8 prompt="a red cone" candidates=8 output=best
    mgpt generate ckpt=omni_sft vq=scenes_f8 prompt="a red cube" output=cube seed=7 \
        image_top_k=4000 guidance.scale=2 guidance.form=paper
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mgpt.dtypes import Dtype, choose_dtype
from mgpt.errors import ConfigError
from mgpt.files.atomic import atomic_write
from mgpt.images.pixels import open_image
from mgpt.infer.pipeline import Answer, Pipeline
from mgpt.infer.rerank import best_answers
from mgpt.infer.sampling import Modality, SamplingConfig
from mgpt.lifecycle.identity import input_identities, vq_input, weights_identity
from mgpt.lifecycle.rehearsal import Estimate, Scale, timed
from mgpt.lifecycle.run import run_stage
from mgpt.stages.build import build_pipeline, pick_device
from mgpt.tasks.registry import TASKS, caption_reading, is_own, task
from mgpt.tokens.chat import Conversation, ImageSlot, Turn, split_parts
from mgpt.tokens.unirep import LATENTS_PER_GRID
from mgpt.tracking.tracker import Tracker, TrackingConfig

FREE = "free"
_LARGEST_DEFAULT_GRIDS = 16  # 512 px with a 16x VQGAN: the first rung of the published model
_MARK = "<prompt>"
_REHEARSED_TOKENS = 256  # a model that has learned nothing never ends a text


@dataclass(frozen=True, kw_only=True)
class Config(SamplingConfig):
    """What `mgpt generate` can be given.

    modality: free, text or image with task=free; another task's answer decides it.
    num_images: images of an answer with task=free and modality=image; else the task decides it.
    """

    ckpt: str
    """Weights: a model folder, a step folder, or the output of a training stage."""
    averaged: bool = True
    """Take a checkpoint's averaged weights (optim.ema_decay) if it has any; false: the raw ones."""
    vq: str
    """The VQGAN that tokenised their training pictures: a folder, or a shipped name."""
    output: str
    """Folder for the PNGs and answers.json."""
    prompt: str | list[str] = ""
    """What to draw, ask or do; a list for several."""
    task: str = "text_to_image"
    """A task's name, the file of a task of your own, or free for the prompt word for word."""
    image: str | list[str] = field(default_factory=list)
    """Pictures that the question shows, in order."""
    size: str | None = None
    """WIDTHxHEIGHT of the drawn picture in pixels; null: the square of the trained resolution."""
    views: int = 4
    """Pictures of a multi_view answer."""
    n: int = 1
    """Answers to each prompt. They depend on the prompt, its pictures, the seed and their number
    alone, not on what else is asked."""
    candidates: int = 1
    """Pictures drawn for each answer to text_to_image; kept is the one from which the model itself
    most likely reads the prompt."""
    device: str = "auto"
    """auto, cpu, cuda."""
    dtype: Dtype = "auto"
    """Of the transformer. auto: bfloat16 where the device multiplies it natively, else float32. The
    VQGAN computes in float32 always."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    redo: bool = False
    """Make the output anew where it holds another configuration."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in (*TASKS, FREE) and not is_own(self.task):
            raise ValueError(
                f"task={self.task!r} is none of {', '.join(TASKS)}, {FREE}, or a .py file"
            )
        if min(self.n, self.views, self.candidates) < 1:
            raise ValueError(
                f"n={self.n}, views={self.views}, candidates={self.candidates}: at least 1 each"
            )
        if not self.prompts:
            raise ValueError("prompt=[] asks nothing; give at least one")
        if self.candidates > 1 and self.task != "text_to_image":
            raise ValueError(
                f"candidates={self.candidates} with task={self.task}: only pictures drawn from a "
                "caption (text_to_image) are chosen by it"
            )

    @property
    def sampling(self) -> SamplingConfig:
        """How answers are drawn, without what is asked."""
        return SamplingConfig(**{f.name: getattr(self, f.name) for f in fields(SamplingConfig)})

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def images(self) -> list[str]:
        return [self.image] if isinstance(self.image, str) else self.image


def inputs(cfg: Config) -> dict[str, str]:
    weights = {cfg.ckpt: weights_identity(cfg.ckpt, cfg.averaged)}
    files = [*cfg.images, *filter(is_own, [cfg.task])]
    return {**input_identities(*files), **weights, **vq_input(cfg.vq)}


def main(cfg: Config) -> None:
    if not all(prompt.strip() for prompt in cfg.prompts) and reads_prompt(cfg.task):
        raise ConfigError(
            f"task={cfg.task} asks with a prompt and there is none; give prompt='what to draw, ask "
            "or do'"
        )
    run_stage("generate", cfg, inputs(cfg), _generate, min_free_mb=20)


def _generate(cfg: Config, tracker: Tracker) -> dict[str, Any]:
    folder, device = Path(cfg.output), pick_device(cfg.device)
    dtype = choose_dtype(cfg.dtype, device)
    dtype.announce(tracker.print)
    pipeline = build_pipeline(cfg.ckpt, cfg.vq, device, dtype.torch, cfg.averaged, tracker.print)
    width_px, height_px = picture_size(cfg.size, pipeline)
    grids = pipeline.grids(width_px, height_px)
    target_px = round((width_px * height_px) ** 0.5)
    encoded = [pipeline.encode_image(open_image(path), target_px) for path in cfg.images]
    asked = [question(cfg, prompt, encoded, grids, pipeline) for prompt in cfg.prompts]
    jobs = [(number, sample) for number in range(len(asked)) for sample in range(cfg.n)]
    answers = _answers(cfg, pipeline, asked, jobs, grids)
    records = []
    for (number, sample), answer in zip(jobs, answers):
        record = {
            "prompt": cfg.prompts[number],
            "sample": sample,
            **_saved(answer, folder, f"{number:03d}_{sample}"),
        }
        records.append(record)
        words = [answer.text.strip(), *(str(folder / name) for name in record["images"])]
        tracker.print("  ".join(word for word in words if word))
    atomic_write(folder / "answers.json", json.dumps(records, indent=1).encode())
    shown = [(r["prompt"], a.images[0]) for r, a in zip(records, answers) if a.images]
    tracker.images(0, "answers", shown)
    tracker.finish({"answers": len(records), "dtype": dtype.name})
    print(f"answers in {folder / 'answers.json'}")
    return {"answers": len(records), "dtype": str(dtype)}


@dataclass(frozen=True)
class Question:
    """A prompt as the model sees it; `draws`: the answer is pictures of the size asked for."""

    conversation: Conversation
    codes: dict[str, np.ndarray]
    sampling: SamplingConfig
    draws: bool


def question(
    cfg: Config,
    prompt: str,
    encoded: list[np.ndarray],
    grids: tuple[int, int],
    pipeline: Pipeline,
) -> Question:
    """A prompt in the form of its task, with its pictures' codes.

    Args:
        encoded: codes [h, w] of the pictures given, in order.
        grids: (height, width) of a drawn picture in grids.

    Raises ConfigError where the task shows another number of pictures than were given.
    """
    if cfg.task == FREE:
        fields = [f"image_{number}" for number in range(len(encoded))]
        turn = Turn(split_parts(prompt, tuple(fields)), ())
        conversation, sampling, draws = Conversation((turn,)), cfg.sampling, False
    else:
        drawn = (grids[0] * LATENTS_PER_GRID, grids[1] * LATENTS_PER_GRID)
        latent_px = pipeline.tokenizer.downsample
        whole = task(cfg.task).example(prompt, drawn, latent_px, cfg.views)
        slots = [part for part in whole.turns[0].answer if isinstance(part, ImageSlot)]
        modality: Modality = "image" if slots else "text"
        conversation, draws = whole.ask(0), bool(slots)
        sampling = replace(cfg.sampling, modality=modality, num_images=max(1, len(slots)))
    shown = [
        p.field for turn in conversation.turns for p in turn.question if not isinstance(p, str)
    ]
    if len(shown) != len(encoded):
        raise ConfigError(
            f"task={cfg.task} with prompt={prompt!r} shows {len(shown)} pictures and image= names "
            f"{len(encoded)}; give image=FILE, or image=[A,B] for two"
        )
    return Question(conversation, dict(zip(shown, encoded)), sampling, draws)


def _answers(
    cfg: Config,
    pipeline: Pipeline,
    asked: list[Question],
    jobs: list[tuple[int, int]],
    grids: tuple[int, int],
) -> list[Answer]:
    """The answer to each job, a question's number and which of its answers."""
    given = (
        [asked[number].conversation for number, _ in jobs],
        [asked[number].codes for number, _ in jobs],
        # The same for all: the task decides it.
        asked[0].sampling,
        # By what is asked, not by its place in the list, so that a prompt's pictures are its own.
        [f"{cfg.prompts[number]}/{sample}" for number, sample in jobs],
    )
    sizes = [grids if asked[number].draws else None for number, _ in jobs]
    if cfg.candidates == 1:
        return pipeline.answer(*given, sizes)
    readings = [caption_reading(cfg.prompts[number]) for number, _ in jobs]
    return best_answers(pipeline, cfg.candidates, *given, readings, sizes)


def reads_prompt(name: str) -> bool:
    """Whether the question of a task holds the prompt; free does, depth and caption do not."""
    if name == FREE:
        return True
    turn = task(name).example(_MARK, (2, 2), latent_px=8).turns[0]
    return any(isinstance(part, str) and _MARK in part for part in turn.question)


def picture_size(size: str | None, pipeline: Pipeline) -> tuple[int, int]:
    """(width, height) in pixels of `WIDTHxHEIGHT`, or the square that the model was trained at."""
    if size is None:
        side = min(pipeline.vocab.max_grids // 2, _LARGEST_DEFAULT_GRIDS) * pipeline.grid_px
        return side, side
    width, x, height = size.lower().partition("x")
    if not (x and width.isdigit() and height.isdigit()):
        raise ConfigError(f"size={size!r}: write WIDTHxHEIGHT in pixels, such as 64x48")
    return int(width), int(height)


def _saved(answer: Answer, folder: Any, stem: str) -> dict[str, Any]:
    """Writes an answer's pictures; its record for answers.json."""
    names = []
    for number, picture_HW3 in enumerate(answer.images):
        several = f"_{number:02d}" if len(answer.images) > 1 else ""
        names.append(f"{stem}{several}.png")
        Image.fromarray(picture_HW3).save(folder / names[-1])
    return {
        "text": answer.text,
        "images": names,
        "tokens": len(answer.ids),
        "finished": answer.finished,
    }


def rehearse(cfg: Config, real: Config, scale: Scale) -> Estimate:
    """The first prompts themselves, as answers of the stand-in's model."""
    few = replace(cfg, prompt=cfg.prompts[:2], n=min(cfg.n, 2))
    few = replace(few, max_new_tokens=min(cfg.max_new_tokens, _REHEARSED_TOKENS))
    seconds = timed(lambda: main(few))
    return Estimate(seconds * len(cfg.prompts) * cfg.n / (len(few.prompts) * few.n))
