"""Aspect-ratio buckets: the picture sizes of one area, and the one that a picture takes.

    bucket_sizes(512)[:2]              # [(1024, 256), (992, 256)]
    choose_bucket(1920, 1080, 512)     # (672, 384)

A size is (width, height) in pixels, both multiples of the grid, which is two latents wide: 32 px
for the released VQ model of 16x. Source: Lumina-mGPT, arXiv 2408.02657, and its published code.
"""

from functools import cache

from mgpt.errors import ConfigError

MAX_ASPECT = 4


@cache
def _bucket_sizes(target_px: int, grid_px: int) -> tuple[tuple[int, int], ...]:
    if grid_px <= 0 or target_px < grid_px:
        raise ConfigError(
            f"resolution {target_px} px with a grid of {grid_px} px: at least one grid must fit"
        )
    num_grids = (target_px // grid_px) ** 2
    return tuple(
        (width * grid_px, height * grid_px)
        for width in range(num_grids, 0, -1)
        for height in range(max(1, num_grids // (width + 1)), num_grids // width + 1)
        if max(width, height) <= MAX_ASPECT * min(width, height)
    )


def bucket_sizes(target_px: int, grid_px: int = 32) -> list[tuple[int, int]]:
    """Every (width, height) in pixels of about `target_px`² pixels, widest first.

    With N = (target_px // grid_px)² grids: widths from N down, heights from
    max(1, N // (width + 1)) up to N // width, sides at most 4:1.
    Raises `ConfigError` where the target is smaller than one grid.
    """
    return list(_bucket_sizes(target_px, grid_px))


def choose_bucket(
    width_px: int, height_px: int, target_px: int, grid_px: int = 32
) -> tuple[int, int]:
    """The (width, height) of which a picture loses least when it is scaled to cover and cropped.

    That is the largest min(cw/w, ch/h) / max(cw/w, ch/h); on a tie the larger (width, height).
    """
    assert width_px > 0 and height_px > 0

    def kept(size: tuple[int, int]) -> float:
        across, down = size[0] / width_px, size[1] / height_px
        return min(across, down) / max(across, down)

    return max(_bucket_sizes(target_px, grid_px), key=lambda size: (kept(size), size))
