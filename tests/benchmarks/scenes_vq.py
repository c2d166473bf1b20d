"""What a VQGAN keeps of held-out scenes: PSNR by field, and what the scene reader reads back.

    python tests/benchmarks/scenes_vq.py scenes_f8 --scenes 300

The figures of `mgpt/tokenizers/pretrained/README.md`. Scenes are square, of combinations of shape,
colour, size and material that no training scene has; smaller ones are the same pictures resized, as
the rungs of FP-SFT have them. Read back are the decoded pictures of 64 px, beside the same pictures
before coding.
"""

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

import numpy as np
import torch
from corpora import conditions, show
from PIL import Image

from data_pipeline.scenes.corpus import CorpusConfig, Sample, iter_samples
from data_pipeline.scenes.reader import (
    read_box,
    read_depth,
    read_normals,
    read_pose,
    read_scene,
    read_segmentation,
)
from data_pipeline.scenes.vocabulary import SEGMENTATION_COLOURS
from mgpt.evals.pictures import box_iou
from mgpt.images.pixels import fit, normalise, to_uint8
from mgpt.images.psnr import psnr_db
from mgpt.tokenizers.folder import load_tokenizer

SIDES_PX = (64, 48, 32)
NAMES = ("shape", "colour", "size", "material")
JOINT_PX = 3

Code = Callable[[np.ndarray], np.ndarray]


def kind_of(field: str, sample: Sample) -> str:
    """What the table calls a field; edits and views have one column each."""
    if field == "image" and sample.json["kind"] == "mannequin":
        return "mannequin"
    return {"edit": "edits", "view": "views", "other": "image"}.get(field.split("_")[0], field)


def measure_psnr(samples: Iterable[Sample], code: Code) -> list[dict]:
    """Mean PSNR in dB of each field, a row for each side."""
    found: dict[int, dict[str, list[float]]] = {px: defaultdict(list) for px in SIDES_PX}
    for sample in samples:
        for field, picture in sample.images.items():
            for px in SIDES_PX:
                small, _ = fit(Image.fromarray(picture), (px, px), sample.key, seed=0)
                levels = np.asarray(small)
                found[px][kind_of(field, sample)].append(psnr_db(levels, code(levels)))
    return [
        {"px": px} | {kind: round(float(np.mean(db)), 1) for kind, db in found[px].items()}
        for px in SIDES_PX
    ]


def read_objects(sample: Sample, code: Code, shares: dict[str, list[float]]) -> None:
    """What is read of one sample's objects, segmentation, box, depth and normals."""
    true_objects = sample.json["truth"]["objects"]
    seen = read_scene(code(sample.images["image"]))
    for what, names in (("shape and colour", NAMES[:2]), ("all four", NAMES)):
        given = Counter(tuple(getattr(one, name) for name in names) for one in seen)
        true = Counter(tuple(one[name] for name in names) for one in true_objects)
        shares[f"{what}, of {len(true_objects)}"].append(given == true)
    if len(seen) == len(true_objects):
        for one, true_one in zip(seen, true_objects, strict=True):
            for name in NAMES:
                shares[name].append(getattr(one, name) == true_one[name])
    true_labels = read_segmentation(sample.images["segmentation"])
    right = read_segmentation(code(sample.images["segmentation"])) == true_labels
    on_object = true_labels > list(SEGMENTATION_COLOURS).index("ground")
    shares["segmentation, all pixels"].append(right.mean())
    shares["segmentation, objects' pixels"].append(right[on_object].mean())
    box = read_box(code(sample.images["detection"]))
    shares["box found"].append(box is not None)
    if box is not None:
        true_box = tuple(SIDES_PX[0] * side for side in sample.json["box"])
        shares["overlap with the true box"].append(box_iou(true_box, box))
    true_depth, depth = (read_depth(p) for p in paired(sample.images["depth"], code))
    shares["depth, relative error"].append(float(np.mean(abs(depth / true_depth - 1))))
    true_normals, normals = (read_normals(p) for p in paired(sample.images["normals"], code))
    cosine = (true_normals * normals).sum(-1) / np.maximum(
        np.linalg.norm(true_normals, axis=-1) * np.linalg.norm(normals, axis=-1), 1e-9
    )
    surface = np.linalg.norm(true_normals, axis=-1) > 0.7
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    shares["normals, degrees"].append(float(angles[surface].mean()))


def paired(picture: np.ndarray, code: Code) -> tuple[np.ndarray, np.ndarray]:
    """A picture, and the same after coding."""
    return picture, code(picture)


def read_joints(sample: Sample, code: Code, shares: dict[str, list[float]]) -> None:
    """How far the joints that are read lie from the true ones."""
    found = read_pose(code(sample.images["pose"]))
    for joint, place in sample.json["truth"]["mannequin"]["joints"].items():
        true_place = [SIDES_PX[0] * side for side in place]
        away_px = math.dist(found[joint], true_place) if joint in found else math.inf
        shares[f"joints within {JOINT_PX} px"].append(away_px <= JOINT_PX)
        if joint in found:
            shares["joints, px away"].append(away_px)


def measure_reading(samples: Iterable[Sample], code: Code) -> dict[str, list[float]]:
    """Each figure's values over the samples."""
    shares: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        if sample.json["kind"] == "objects":
            read_objects(sample, code, shares)
        elif sample.json["kind"] == "mannequin":
            read_joints(sample, code, shares)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vq", help="a VQGAN folder, or the name of a shipped one")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    vqgan = load_tokenizer(arguments.vq)
    used = np.zeros(vqgan.cfg.n_embed)

    @torch.inference_mode()
    def code(levels_HW3: np.ndarray) -> np.ndarray:
        codes_1hw = vqgan.encode(torch.from_numpy(normalise(levels_HW3))[None])
        np.add.at(used, codes_1hw.numpy().ravel(), 1)
        return to_uint8(vqgan.decode(codes_1hw)[0].numpy())

    config = CorpusConfig(
        num_scenes=arguments.scenes,
        split="heldout",
        seed=arguments.seed,
        aspect_weights={"1:1": 1.0},
    )
    samples = list(iter_samples(config))
    asked = conditions(scenes=arguments.scenes, seed=arguments.seed, vq=arguments.vq)
    show(measure_psnr(samples, code), asked)
    share = used[used > 0] / used.sum()
    asked["codes used"] = round(float((used > 0).mean()), 3)
    asked["perplexity"] = round(float(np.exp(-(share * np.log(share)).sum())))
    decoded, plain = (measure_reading(samples, way) for way in (code, lambda picture: picture))
    rows = [
        {
            "figure": name,
            "decoded": round(float(np.mean(decoded[name])), 4),
            "before coding": round(float(np.mean(values)), 4),
            "cases": len(values),
        }
        for name, values in sorted(plain.items())
    ]
    show(rows, asked)


if __name__ == "__main__":
    main()
