"""Evaluation of a trained model on held-out samples, task by task, beside chance and ceiling.

Three answerers are given the same cases and scored by the same scorer: the model; the best constant
answer, which never looks (`constants`); and the truth sent through the VQGAN, which is what a
perfect language model could reach (`ceiling`). A metric is called better than the constant if the
paired bootstrap's 95 % interval of the difference lies on the better side of zero.

A finished task is a folder with its `measures.json`; a second start takes it from there. Which
scorer measures which task is the caller's choice.

    scorers = {"caption": find_scorer("edit_distance", "caption")}
    measures = evaluate(cfg, scorers, dataset, pipeline, output, truth_picture, world, on_task)
    measures["caption"]["metrics"]["edit_distance"]["model"]      # 0.31
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mgpt.data.dataset import TokenisedDataset
from mgpt.errors import ConfigError
from mgpt.evals.cases import Case, Reply, TruthPicture, build_cases
from mgpt.evals.constants import best_constant_replies
from mgpt.evals.metrics import ALL_TASKS, MEASURES, Metric, Scorer, read_measures
from mgpt.files.atomic import atomic_write
from mgpt.images.png import png_bytes
from mgpt.infer.pipeline import Pipeline
from mgpt.infer.rerank import best_answers
from mgpt.infer.sampling import NO_GUIDANCE, Guidance, SamplingConfig
from mgpt.parallel.dist import World
from mgpt.tasks.registry import TASKS, caption_reading, is_own, task, task_name

NUM_RESAMPLES = 1000
GUIDANCE = Guidance(scale=3.0)  # of the official text-to-image demo
SCENE_TASKS = (
    "edit",
    "depth_to_image",
    "segmentation_to_image",
    "normals_to_image",
    "pose_to_image",
)
"""Tasks that answer a picture with a picture of a scene."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured and how answers are sampled.

    `tasks` are names, or files of own tasks; of all sixteen, those that no sample serves are left
    out. `samples` are held-out samples a task, at most all there are (one of several turns gives a
    case a turn), and `samples_of` those of single tasks; `gallery` the cases a task that the report
    shows. `scorers` names for a task another scorer than its own: one of `mgpt.evals.scorers`,
    module:attribute, or file.py:attribute. Text is decoded with `text_top_k`; pictures that follow
    from text alone with `image_top_k`, pictures that follow from a picture with
    `conditioned_top_k`. `guidance` applies to the former and to `guided_tasks`, those that answer
    with a scene: guidance makes a scene follow its question more closely, and a map of one (depth,
    segmentation) less. For a caption `image_candidates` pictures are drawn; its
    answer is the one from which the model reads the caption best (`mgpt.infer.rerank`).
    """

    tasks: tuple[str, ...] = ALL_TASKS
    samples: int = 48
    samples_of: dict[str, int] = field(default_factory=lambda: {"text_to_image": 160})
    scorers: dict[str, str] = field(default_factory=dict)
    gallery: int = 6
    batch_cases: int = 64
    text_top_k: int = 1
    image_top_k: int = 2000
    image_candidates: int = 1
    conditioned_top_k: int = 200
    guidance: Guidance = GUIDANCE
    guided_tasks: tuple[str, ...] = SCENE_TASKS
    max_new_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if self.image_candidates < 1:
            raise ConfigError(f"image_candidates={self.image_candidates} must be at least 1")
        own = {task_name(name) for name in self.tasks if is_own(name)}
        settings: dict[str, list[str]] = {
            "tasks": [name for name in self.tasks if not is_own(name)],
            "samples_of": list(self.samples_of),
            "scorers": list(self.scorers),
            "guided_tasks": list(self.guided_tasks),
        }
        for setting, names in settings.items():
            if unknown := [name for name in names if name not in TASKS.keys() | own]:
                raise ConfigError(
                    f"{setting}: {unknown} unknown; there are {sorted(TASKS.keys() | own)}, and "
                    "files of your own tasks"
                )


def evaluate(
    cfg: EvaluateConfig,
    scorers: Mapping[str, Scorer],
    dataset: TokenisedDataset,
    pipeline: Pipeline,
    output: Path,
    truth_picture: TruthPicture,
    world: World,
    on_task: Callable[[str, dict], None],
) -> dict[str, dict]:
    """Measures of every task, `{task: {"cases": n, "metrics": {...}}}`, the same on every rank.

    `scorers` has one for each of `cfg.tasks`, which may be fewer than the configuration named.
    Ranks share the answering of a task's cases; draws are keyed by case, so their number changes
    nothing. Rank 0 alone measures, while the others go on to the next task. It writes
    `<output>/<task>/` (pictures, gallery.json, and last measures.json) and calls
    `on_task(name, measures of the task)`.
    """
    names = [task_name(reference) for reference in cfg.tasks]
    measures: dict[str, dict] = world.broadcast_object(_finished(names, output))
    for reference, name in zip(cfg.tasks, names, strict=True):
        if name in measures:
            continue
        num_samples, scorer = cfg.samples_of.get(name, cfg.samples), scorers[reference]
        cases = build_cases(
            dataset, reference, num_samples, cfg.seed, truth_picture, scorer.can_read
        )
        replies = _answer(cfg, reference, cases, pipeline, world)
        if world.is_main:
            measures[name] = _measure(cfg, scorer, cases, replies, pipeline)
            shown = cases[: cfg.gallery], replies[: cfg.gallery]
            _write_gallery(output / name, scorer, *shown)
            atomic_write(output / name / MEASURES, json.dumps(measures[name], indent=1).encode())
            on_task(name, measures[name])
    measures = world.broadcast_object(measures)
    return {name: measures[name] for name in names}


def _finished(tasks: Sequence[str], output: Path) -> dict[str, dict]:
    """Measures of the tasks that an earlier start finished."""
    files = {name: output / name / MEASURES for name in tasks}
    return {name: read_measures(file) for name, file in files.items() if file.exists()}


def _answer(
    cfg: EvaluateConfig, name: str, cases: list[Case], pipeline: Pipeline, world: World
) -> list[Reply]:
    """The model's replies to all cases; each rank answers every size-th one."""
    mine = cases[world.rank :: world.size]
    # Pictures of one size go through the engine in step.
    order = sorted(range(len(mine)), key=lambda index: _answer_shapes(mine[index]))
    replies: dict[int, Reply] = {}
    for start in range(0, len(mine), cfg.batch_cases):
        numbers = order[start : start + cfg.batch_cases]
        batch = [mine[index] for index in numbers]
        asked = (
            [case.conversation for case in batch],
            [case.codes for case in batch],
            _sampling(cfg, name, batch),
            [case.key for case in batch],
        )
        if name == "text_to_image" and cfg.image_candidates > 1:
            readings = [
                caption_reading(str(case.meta.get("caption") or case.question)) for case in batch
            ]
            answers = best_answers(pipeline, cfg.image_candidates, *asked, readings)
        else:
            answers = pipeline.answer(*asked)
        given = [Reply(answer.text, tuple(answer.images)) for answer in answers]
        replies.update(zip(numbers, given, strict=True))
    in_order = [replies[index] for index in range(len(mine))]
    if world.size == 1:
        return in_order
    shares = world.gather_objects([_packed(reply) for reply in in_order])
    return [
        _unpacked(shares[index % world.size][index // world.size]) for index in range(len(cases))
    ]


def _answer_shapes(case: Case) -> list[tuple[int, ...]]:
    return [case.codes[name].shape for name in case.answer_fields]


def _packed(reply: Reply) -> list[str]:
    """A reply as JSON-able texts: what it says, then each picture as base64 of a PNG."""
    packed = [reply.text]
    for image in reply.images:
        packed.append(base64.b64encode(png_bytes(image)).decode())
    return packed


def _unpacked(packed: list[str]) -> Reply:
    images = (Image.open(io.BytesIO(base64.b64decode(each))) for each in packed[1:])
    return Reply(packed[0], tuple(np.asarray(image) for image in images))


def _sampling(cfg: EvaluateConfig, name: str, cases: list[Case]) -> SamplingConfig:
    is_free = not task(name).shows_pictures  # pictures that follow from text alone
    num_images = max(len(case.answer_fields) for case in cases)
    return SamplingConfig(
        text_top_k=cfg.text_top_k,
        image_top_k=cfg.image_top_k if is_free else cfg.conditioned_top_k,
        guidance=cfg.guidance if is_free or name in cfg.guided_tasks else NO_GUIDANCE,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed,
        modality="image" if num_images else "text",
        num_images=max(1, num_images),
    )


def _measure(
    cfg: EvaluateConfig,
    scorer: Scorer,
    cases: list[Case],
    replies: list[Reply],
    pipeline: Pipeline,
) -> dict[str, object]:
    by_answerer = {
        "model": replies,
        "constant": best_constant_replies(cases, scorer),
        "ceiling": _through_vqgan(cases, pipeline),
    }
    scores = {
        answerer: [scorer.score(case, reply) for case, reply in zip(cases, given, strict=True)]
        for answerer, given in by_answerer.items()
    }
    metrics = {}
    for metric in scorer.metrics:
        columns = {
            answerer: np.array([each[metric.name] for each in rows if metric.name in each])
            for answerer, rows in scores.items()
        }
        if len(columns["model"]):
            metrics[metric.name] = _compare(metric, columns, cfg.seed)
    measured: dict[str, object] = {"cases": len(cases), "metrics": metrics}
    if scorer.caveat:
        measured["caveat"] = scorer.caveat
    if cases[0].task == "text_to_image":
        measured["candidates"] = cfg.image_candidates
    return measured


def _compare(metric: Metric, columns: dict[str, np.ndarray], seed: int) -> dict[str, object]:
    """Means of the answerers and the bootstrap interval of model minus constant."""
    gain = columns["model"] - columns["constant"]
    draws = np.random.default_rng(seed).integers(len(gain), size=(NUM_RESAMPLES, len(gain)))
    low, high = np.quantile(gain[draws].mean(axis=1), (0.025, 0.975))
    model = float(columns["model"].mean())
    comparison: dict[str, object] = {
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "cases": len(gain),
        **{answerer: round(float(column.mean()), 6) for answerer, column in columns.items()},
        "gain_low": round(float(low), 6),
        "gain_high": round(float(high), 6),
        "better_than_constant": bool(low > 0 if metric.higher_is_better else high < 0),
    }
    if metric.goal is not None:
        reached = model >= metric.goal if metric.higher_is_better else model <= metric.goal
        comparison |= {"goal": metric.goal, "goal_reached": reached}
    return comparison


def _through_vqgan(cases: list[Case], pipeline: Pipeline) -> list[Reply]:
    """The true answers as a perfect language model would give them: their codes, decoded."""
    drawn = iter(pipeline.draw([case.codes[name] for case in cases for name in case.answer_fields]))
    return [
        Reply(case.truth.text, tuple(next(drawn) for _ in case.answer_fields)) for case in cases
    ]


def _write_gallery(
    folder: Path, scorer: Scorer, cases: Sequence[Case], replies: Sequence[Reply]
) -> None:
    """PNG files and gallery.json: question, model's answer and truth of each shown case."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (case, reply) in enumerate(zip(cases, replies, strict=True)):
        pictures = {
            "question": case.question_images,
            "model": reply.images,
            "truth": case.truth.images,
        }
        names: dict[str, list[str]] = {}
        for role, images in pictures.items():
            names[role] = [f"{number:02d}_{role}_{slot}.png" for slot in range(len(images))]
            for file_name, image in zip(names[role], images, strict=True):
                Image.fromarray(image).save(folder / file_name)
        entries.append(
            {
                "key": case.key,
                "question": case.question,
                "model": reply.text,
                "truth": case.truth.text,
                "images": names,
                "metrics": scorer.score(case, reply),
            }
        )
    atomic_write(folder / "gallery.json", json.dumps(entries, indent=1).encode())
