"""How near one picture is to another: errors, overlaps of areas and boxes, SSIM and LPIPS.

Pictures are uint8 [H, W, 3] of one size, the truth first. Nothing here knows which colours a data
set draws with: classes and boxes are recognized by the colours of the true picture.

    mean_iou(truth_HW3, given_HW3)               # 0.87
    truth, given = drawn_boxes(question_HW3, truth_HW3, given_HW3)
    box_iou(truth, given)                        # 0.5
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgpt.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels, x1 and y1 just outside."""

LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"
"""torchvision's name of the AlexNet that LPIPS looks through."""
LPIPS_WEIGHTS_URL = f"https://download.pytorch.org/models/{LPIPS_WEIGHTS}"

_LEAST_CLASS_SHARE = 0.004  # of a picture's pixels; rarer colours are blends along an outline
_SAME_COLOUR = 48.0  # distance in RGB below which two colours are one class
_CHANGED = 24  # difference in some channel above which a pixel was drawn over
_LEAST_BOX_PX = 4  # pixels of a drawn box
_SSIM_WINDOW_PX = 11  # of the usual Gaussian window


def mean_difference(truth_HW3: np.ndarray, given_HW3: np.ndarray) -> float:
    """Mean absolute difference as a share of full scale."""
    difference = truth_HW3.astype(np.float64) - given_HW3.astype(np.float64)
    return float(np.abs(difference).mean() / 255)


def mean_angle_deg(truth_HW3: np.ndarray, given_HW3: np.ndarray) -> float | None:
    """Mean angle in degrees between normals drawn as colours, over the true surface.

    None if the truth draws no surface: no vector of a length near one.
    """
    truth, given = (image.astype(np.float64) / 255 * 2 - 1 for image in (truth_HW3, given_HW3))
    length = np.linalg.norm(truth, axis=-1)
    surface = (length > 0.7) & (length < 1.3)
    if not surface.any():
        return None
    cosine = (truth * given).sum(-1) / np.maximum(
        length * np.linalg.norm(given, axis=-1), np.finfo(np.float64).tiny
    )
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))[surface].mean())


def mean_iou(truth_HW3: np.ndarray, given_HW3: np.ndarray) -> float:
    """Mean over the classes of the truth of intersection over union.

    Classes are the colours that fill a share of the true picture; every pixel of both pictures
    belongs to the class of the nearest colour.
    """
    palette_C3 = class_colours(truth_HW3)
    truth_HW, given_HW = (_nearest(image, palette_C3) for image in (truth_HW3, given_HW3))
    return labels_iou(truth_HW, given_HW)


def labels_iou(truth_HW: np.ndarray, given_HW: np.ndarray) -> float:
    """Mean over the labels of the truth of intersection over union."""
    ious = [
        np.logical_and(truth_HW == label, given_HW == label).sum()
        / np.logical_or(truth_HW == label, given_HW == label).sum()
        for label in np.unique(truth_HW)
    ]
    return float(np.mean(ious))


def class_colours(truth_HW3: np.ndarray) -> np.ndarray:
    """[C, 3] float: the colours that the areas of a picture are drawn in, the commonest first."""
    pixels_N3 = truth_HW3.reshape(-1, 3)
    colours_K3, counts_K = np.unique(pixels_N3, axis=0, return_counts=True)
    left_K = np.ones(len(colours_K3), dtype=bool)
    found: list[np.ndarray] = []
    for index in np.argsort(-counts_K, kind="stable"):
        if not left_K[index]:
            continue
        colour = colours_K3[index].astype(np.float64)
        near_K = left_K & (((colours_K3 - colour) ** 2).sum(-1) <= _SAME_COLOUR**2)
        left_K &= ~near_K
        if not found or counts_K[near_K].sum() >= _LEAST_CLASS_SHARE * len(pixels_N3):
            found.append(colour)
    return np.stack(found)


def _nearest(picture_HW3: np.ndarray, palette_C3: np.ndarray) -> np.ndarray:
    away = np.stack([((picture_HW3 - colour) ** 2).sum(-1) for colour in palette_C3])
    return away.argmin(0)


def box_iou(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return float(shared / (sum(areas) - shared)) if shared > 0 else 0.0


def drawn_boxes(
    question_HW3: np.ndarray, truth_HW3: np.ndarray, given_HW3: np.ndarray
) -> tuple[Box | None, Box | None]:
    """What was drawn on the question's picture, in the truth and in the given answer, as boxes.

    The line's colour is that of the pixels that the truth changed. In the answer only pixels of
    this colour count, since a lossy picture code changes all of them a little. None if no line is
    found.
    """
    question = question_HW3.astype(np.int32)
    changed_HW = np.abs(truth_HW3 - question).max(-1) > _CHANGED
    if changed_HW.sum() < _LEAST_BOX_PX:
        return None, None
    colour = np.median(truth_HW3[changed_HW], axis=0)
    boxes: list[Box | None] = []
    for picture_HW3 in (truth_HW3, given_HW3):
        like_line_HW = ((picture_HW3 - colour) ** 2).sum(-1) < (2 * _SAME_COLOUR) ** 2
        was_there_HW = ((question - colour) ** 2).sum(-1) < (2 * _SAME_COLOUR) ** 2
        boxes.append(_enclosing(like_line_HW & ~was_there_HW))
    return boxes[0], boxes[1]


def _enclosing(mask_HW: np.ndarray) -> Box | None:
    if mask_HW.sum() < _LEAST_BOX_PX:
        return None
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def ssim(truth_HW3: np.ndarray, given_HW3: np.ndarray) -> float:
    """Structural similarity with the Gaussian window of 11 pixels (Wang et al. 2004)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    side = min(truth_HW3.shape[:2])
    window = min(_SSIM_WINDOW_PX, side - 1 + side % 2)
    value = structural_similarity_index_measure(
        _batch(given_HW3),
        _batch(truth_HW3),
        gaussian_kernel=window == _SSIM_WINDOW_PX,
        kernel_size=window,
        data_range=1.0,
    )
    assert not isinstance(value, tuple)
    return float(value)


def lpips(truth_HW3: np.ndarray, given_HW3: np.ndarray) -> float:
    """Learned perceptual distance through AlexNet (Zhang et al. 2018).

    Raises ConfigError if AlexNet's weights are not there; they are never downloaded.
    """
    import torch

    with torch.inference_mode():
        return float(_lpips_network()(_batch(given_HW3), _batch(truth_HW3)))


@cache
def _lpips_network() -> Module:
    lpips_weights()
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).eval()


def lpips_weights() -> Path:
    """Where AlexNet's weights lie. Raises ConfigError, saying how to get them, if they do not."""
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS
    if not file.is_file():
        raise ConfigError(
            f"LPIPS needs AlexNet's weights, and there is no {file}: download {LPIPS_WEIGHTS_URL} "
            "into that folder (mgpt never does), or name another scorer"
        )
    return file


def _batch(picture_HW3: np.ndarray) -> Tensor:
    """[1, 3, H, W] float in 0..1."""
    import torch

    return torch.from_numpy(picture_HW3.astype(np.float32) / 255).permute(2, 0, 1)[None]
