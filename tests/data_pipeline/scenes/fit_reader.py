"""Measures the references of the scene reader on renders and writes them beside it.

    python tests/data_pipeline/scenes/fit_reader.py

Training scenes are rendered at several sizes, plain and spoilt by blur, noise and JPEG, and
measured with the reader's own features; linear discriminants of the named objects make
`data_pipeline/scenes/references.json`. Held-out scenes are never used.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from data_pipeline.scenes import reader
from data_pipeline.scenes.figure import scene_parts
from data_pipeline.scenes.render import render
from data_pipeline.scenes.scene import SceneObject, sample_scene

NUM_SCENES = 2500
SIZES_PX = (64, 64, 64, 48, 80, 96, 40)


def spoil(picture_HW3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture after a blur of 1 px, noise of 8 levels and JPEG at quality 40."""
    blurred = Image.fromarray(picture_HW3).filter(ImageFilter.GaussianBlur(1))
    noisy = np.asarray(blurred, np.float32) + rng.normal(0, 8, picture_HW3.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file).convert("RGB"))


def measured_objects() -> Iterator[tuple[SceneObject, np.ndarray, np.ndarray]]:
    """One object with its colour features and its figure features, plain and spoilt."""
    rng = np.random.default_rng(0)
    for index in range(NUM_SCENES):
        scene = sample_scene(seed=1, split="train", kind="objects", index=index)
        side_px = SIZES_PX[index % len(SIZES_PX)]
        plain = render(scene_parts(scene), scene.camera, scene.light, side_px, side_px).colour_HW3
        for picture in (plain, spoil(plain, rng)):
            masks = reader.object_masks(picture)
            if len(masks) != len(scene.objects):
                continue
            masks.sort(key=lambda mask_HW: np.flatnonzero(mask_HW.any(0)).mean())
            for one, mask_HW in zip(scene.objects, masks, strict=True):
                colour = reader.colour_features(picture, mask_HW)
                yield one, colour, reader.figure_features(picture, mask_HW)


def fit(names: list[str], features: np.ndarray) -> dict[str, list]:
    """Linear discriminants: the whitened subspace that the named means span, rounded."""
    kinds = sorted(set(names))
    labels = np.array([kinds.index(name) for name in names])
    means = np.array([features[labels == kind].mean(0) for kind in range(len(kinds))])
    within = features - means[labels]
    covariance = within.T @ within / len(within)
    covariance += 0.02 * np.diag(np.diag(covariance)) + 1e-6 * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    whitening = vectors / np.sqrt(values)
    spread = (means - means.mean(0)) @ whitening
    num_axes = min(len(kinds) - 1, features.shape[1])
    projection = whitening @ np.linalg.svd(spread, full_matrices=False)[2][:num_axes].T
    return {
        "names": kinds,
        "means": np.round(means @ projection, 3).tolist(),
        "projection": np.round(projection, 4).tolist(),
    }


def main() -> None:
    """Write the references and say from how many objects."""
    objects, colours, figures = zip(*measured_objects(), strict=True)
    figure_names = [f"{one.shape} {one.size} {one.material}" for one in objects]
    references = {
        "colour": fit([one.colour for one in objects], np.array(colours)),
        "figure": fit(figure_names, np.array(figures)),
    }
    file = Path(reader.__file__).with_name("references.json")
    file.write_text(json.dumps(references, separators=(",", ":")) + "\n")
    print(f"{len(objects)} objects measured; wrote {file.name}")


if __name__ == "__main__":
    main()
