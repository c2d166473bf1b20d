"""The photographs that scikit-image ships inside its package, with captions written by hand.

Nothing is downloaded. Drawings, logos and synthetic pictures of the package are left out. Most are
smaller than 512 x 512; `retina` alone reaches 1024 x 1024.

    mgpt pack source=photos output=raw/photos
"""

import functools
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.raw.shards import Picture, RawSample
from data_pipeline.sources.pack_config import PackConfig
from data_pipeline.sources.part import Part, shard_name
from mgpt.errors import MachineError

CAPTIONS = {
    "astronaut.png": "a smiling astronaut in an orange space suit, her helmet beside her, in front "
    "of a flag and a model of a space shuttle",
    "brick.png": "a black and white photograph of a pavement of narrow bricks",
    "camera.png": "a black and white photograph of a man in a dark coat looking through a camera "
    "on a tripod in a field",
    "cell.png": "a grey microscope picture of one bright round cell",
    "chelsea.png": "the face of a tabby cat, close up",
    "clock_motion.png": "a grey photograph of a clock face blurred by motion",
    "coffee.png": "a cup of coffee on a red saucer with a spoon, on a wooden table",
    "coins.png": "a black and white photograph of four rows of old coins on a dark ground",
    "grass.png": "a black and white photograph of grass from above",
    "gravel.png": "a black and white photograph of gravel from above",
    "hubble_deep_field.jpg": "a telescope picture of a black sky with many small distant galaxies",
    "ihc.png": "a microscope picture of stained tissue, brown glands between blue nuclei",
    "microaneurysms.png": "a small grey picture of blood vessels in the back of an eye",
    "moon.png": "a grey photograph of craters on the surface of the moon",
    "motorcycle_left.png": "a red motorcycle in a garage in front of shelves",
    "motorcycle_right.png": "a red motorcycle in a garage in front of shelves, seen slightly "
    "further from the right",
    "page.png": "a grey photograph of a printed page about image segmentation",
    "retina.jpg": "a photograph of the back of an eye: an orange disc with branching blood vessels",
    "rocket.jpg": "a white rocket on its launch pad at dusk, between four lattice towers",
    "text.png": "a grey photograph of a table of handwritten letters on paper",
}


def parts(cfg: PackConfig) -> list[Part]:
    """All photographs, in the order of their names.

    Raises:
        MachineError: scikit-image is missing, or no longer ships one of them.
    """
    folder = _folder()
    names = sorted(CAPTIONS)
    step = cfg.samples_per_shard
    return [
        Part(
            shard_name(start // step),
            len(names[start : start + step]),
            functools.partial(_read, folder, names[start : start + step]),
        )
        for start in range(0, len(names), step)
    ]


def _folder() -> Path:
    try:
        import skimage
    except ImportError as error:
        raise MachineError("source=photos needs scikit-image: pip install scikit-image") from error
    folder = Path(skimage.__file__).parent / "data"
    missing = [name for name in CAPTIONS if not (folder / name).is_file()]
    if missing:
        raise MachineError(
            f"{folder}: this scikit-image does not ship {', '.join(missing)}; "
            "install the version in launch/constraints.txt"
        )
    return folder


def _read(folder: Path, names: list[str]) -> Iterator[RawSample]:
    for name in names:
        path = folder / name
        picture = Picture(path.read_bytes(), path.suffix[1:])
        meta = {"caption": CAPTIONS[name], "tasks": ["text_to_image", "caption"], "file": name}
        yield RawSample(path.stem, {"image": picture}, meta)
