"""A PNG holds exactly the pixels it was given, and Pillow reads it."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipeline.scenes.figure import scene_parts
from data_pipeline.scenes.render import render
from data_pipeline.scenes.scene import sample_scene
from mgpt.images.pixels import open_image
from mgpt.images.png import png_bytes


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (64, 64), (48, 80), (333, 257)])
def test_every_pixel_comes_back(size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    image = Image.open(io.BytesIO(png_bytes(picture)))
    image.verify()
    decoded = open_image(png_bytes(picture))
    assert image.format == "PNG" and decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), picture)


def test_a_view_of_an_array_is_written_as_it_looks():
    picture = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    view = picture[::-2, 3:21:3]
    np.testing.assert_array_equal(np.asarray(open_image(png_bytes(view))), view)


def test_a_rendered_scene_is_about_as_small_as_pillows():
    scene = sample_scene(3, "train", "objects", 0)
    picture = render(scene_parts(scene), scene.camera, scene.light, 64, 64).colour_HW3
    by_pillow = io.BytesIO()
    Image.fromarray(picture).save(by_pillow, "PNG", compress_level=1)
    assert len(png_bytes(picture)) < 1.25 * len(by_pillow.getvalue())
