"""Scorers by name that work on anyone's held-out samples, and how a name is looked up.

A task names its scorer (`mgpt.tasks.registry.Task.scorer`); `mgpt evaluate scorers.<task>=` names
another. A name is one of `SCORERS`, `module:attribute`, or `my_scorer.py:attribute`.

    find_scorer("edit_distance").metrics[0].name          # 'edit_distance'
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mgpt.errors import ConfigError, MachineError
from mgpt.evals.cases import Case, Reply
from mgpt.evals.metrics import RIGHT, Metric, Scorer
from mgpt.evals.pictures import (
    box_iou,
    drawn_boxes,
    lpips,
    lpips_weights,
    mean_angle_deg,
    mean_difference,
    mean_iou,
    ssim,
)
from mgpt.evals.texts import edit_distance, plain
from mgpt.images.psnr import psnr_db

_NO_ONE_ANSWER = (
    "A picture that follows from text alone has no one right answer: PSNR, SSIM and LPIPS compare "
    "it with the sample's own picture and say little about its quality; look at the gallery."
)
_EXACT = Metric("exact_match", RIGHT, True)
_DISTANCE = Metric("edit_distance", "share of characters", False)
_PSNR = Metric("psnr_db", "dB", True)
_SSIM = Metric("ssim", "SSIM", True)
_LPIPS = Metric("lpips", "LPIPS", False)


def _texts(case: Case, reply: Reply) -> dict[str, float]:
    truth, given = plain(case.truth.text), plain(reply.text)
    return {
        "exact_match": float(truth == given),
        "edit_distance": edit_distance(truth, given) / max(len(truth), len(given), 1),
    }


def _mean_over_pictures(case: Case, reply: Reply, with_lpips: bool = False) -> dict[str, float]:
    pairs = list(zip(case.truth.images, reply.images, strict=True))
    means = {"psnr_db": float(np.mean([psnr_db(truth, given) for truth, given in pairs]))}
    means["ssim"] = float(np.mean([ssim(truth, given) for truth, given in pairs]))
    if with_lpips:
        means["lpips"] = float(np.mean([lpips(truth, given) for truth, given in pairs]))
    return means


def _psnr(case: Case, reply: Reply) -> dict[str, float]:
    pairs = zip(case.truth.images, reply.images, strict=True)
    return {"psnr_db": float(np.mean([psnr_db(truth, given) for truth, given in pairs]))}


def _mask(case: Case, reply: Reply) -> dict[str, float]:
    return {"mean_iou": mean_iou(case.truth.images[0], reply.images[0])}


def _box(case: Case, reply: Reply) -> dict[str, float]:
    if not case.question_images or case.question_images[0].shape != case.truth.images[0].shape:
        return {}
    truth, given = drawn_boxes(case.question_images[0], case.truth.images[0], reply.images[0])
    if truth is None:
        return {}
    return {"box_iou": box_iou(truth, given) if given is not None else 0.0}


def _depth(case: Case, reply: Reply) -> dict[str, float]:
    return {"depth_error": mean_difference(case.truth.images[0], reply.images[0])}


def _angle(case: Case, reply: Reply) -> dict[str, float]:
    angle = mean_angle_deg(case.truth.images[0], reply.images[0])
    return {} if angle is None else {"angle_error": angle}


def _needs_torchmetrics() -> None:
    if find_spec("torchmetrics") is None:
        raise MachineError(
            "SSIM needs torchmetrics: pip install 'mgpt[metrics]', or set "
            "scorers.<task>=psnr, which needs nothing"
        )


def _needs_lpips() -> None:
    for package in ("torchmetrics", "torchvision"):
        if find_spec(package) is None:
            raise MachineError(f"LPIPS needs {package}: pip install 'mgpt[metrics]'")
    lpips_weights()


SCORERS: dict[str, Scorer] = {
    "exact_match": Scorer((_EXACT, _DISTANCE), _texts),
    "edit_distance": Scorer((_DISTANCE, _EXACT), _texts),
    "mask_iou": Scorer((Metric("mean_iou", "IoU", True),), _mask),
    "box_iou": Scorer((Metric("box_iou", "IoU", True),), _box),
    "depth_error": Scorer((Metric("depth_error", "share of the depth range", False),), _depth),
    "angle_error": Scorer((Metric("angle_error", "degrees", False),), _angle),
    "picture": Scorer((_PSNR, _SSIM), _mean_over_pictures, check=_needs_torchmetrics),
    "free_picture": Scorer(
        (_PSNR, _SSIM), _mean_over_pictures, _NO_ONE_ANSWER, check=_needs_torchmetrics
    ),
    "psnr": Scorer((_PSNR,), _psnr),
    "lpips": Scorer(
        (_LPIPS, _PSNR, _SSIM),
        partial(_mean_over_pictures, with_lpips=True),
        _NO_ONE_ANSWER,
        check=_needs_lpips,
    ),
}


def find_scorer(name: str, named_by: str) -> Scorer:
    """The scorer of that name.

    Args:
        named_by: who names it, for a message: a task or a field.

    Raises ConfigError if there is none.
    """
    if name in SCORERS:
        return SCORERS[name]
    place, colon, attribute = name.rpartition(":")
    if not colon:
        raise ConfigError(
            f"{named_by}: no scorer {name!r}; there are {', '.join(SCORERS)}, or name your own as "
            "module:attribute or file.py:attribute"
        )
    found = getattr(_module(place, name, named_by), attribute, None)
    if not isinstance(found, Scorer):
        raise ConfigError(
            f"{named_by}: {name} is no mgpt.evals.metrics.Scorer; write {attribute} = Scorer(…)"
        )
    return found


def _module(place: str, name: str, named_by: str) -> object:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise ConfigError(f"{named_by}: scorer {name} cannot be imported: {error}") from error
    file = Path(place).expanduser()
    if not file.is_file():
        raise ConfigError(f"{named_by}: scorer {name}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"mgpt_scorer_{file.stem}", file)
    assert spec is not None and spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
