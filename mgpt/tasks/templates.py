"""The one table of prompts, verbatim from Lumina-mGPT: its paper (arXiv 2408.02657) and its code.

Width stands first in words, though height is first in tokens; `<|image|>` is an image, and a space
before it is part of the prompt. Each entry is a tuple of variants.

    TEMPLATES["caption"][1]         # 'Describe the image in detail. <|image|>'
"""

_TO_IMAGE = (
    "Generate an image according to the provided image, and according to the following caption:\n"
    "{caption} <|image|>"
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "text_to_image": (
        "Generate an image of {width}x{height} according to the following prompt:\n{caption}",
    ),
    "caption": (
        "Describe this image in detail.<|image|>",  # the paper
        "Describe the image in detail. <|image|>",  # the README
    ),
    "vqa": ("{question}<|image|>",),
    "multi_image_dialog": ("{question}<|image|>",),
    "edit": ("{instruction} <|image|>",),
    "segmentation": ("Semantic segmentation. <|image|>",),
    "depth": ("Depth estimation. <|image|>",),
    "normals": ("Surface normal estimation. <|image|>",),
    "pose": ("Human pose estimation. <|image|>",),
    "detection": ("Detect: {object} <|image|>",),
    "depth_to_image": (_TO_IMAGE,),
    "segmentation_to_image": (_TO_IMAGE,),
    "normals_to_image": (_TO_IMAGE,),
    "pose_to_image": (_TO_IMAGE,),
    "multi_view": (
        "Generate {views} object views of {width}x{height} according to the following prompt: "
        "{caption}, 3d asset",
    ),
}
