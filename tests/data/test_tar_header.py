"""A header has the bytes that the standard library gives it."""

import tarfile

import pytest

from mgpt.data.tar_header import tar_header


@pytest.mark.parametrize(
    "name",
    ["a.json", "train-00000012.edit_1.npy", "x" * 100, "köln/größe.txt", "猫.png", "a b/", "/abs"],
)
@pytest.mark.parametrize("num_bytes", [0, 1, 511, 8**11 - 1])
def test_headers_are_those_of_tarfile(name, num_bytes):
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    assert tar_header(name, num_bytes) == info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


def test_a_long_path_is_split_as_tarfile_does_and_a_longer_one_refused():
    name = "f" * 90 + "/" + "n" * 60
    assert tar_header(name, 5) == _by_tarfile(name, 5)
    with pytest.raises(ValueError):
        tar_header("n" * 101, 5)
    with pytest.raises(ValueError):
        tar_header("big", 1 << 40)


def _by_tarfile(name, num_bytes):
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
