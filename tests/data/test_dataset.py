"""The shards of a folder as one list."""

import pytest

from mgpt.data import dataset as dataset_module
from mgpt.data.dataset import open_dataset
from mgpt.errors import DataError


def test_samples_are_numbered_over_all_shards(corpus, sample):
    dataset = open_dataset(corpus)
    assert len(dataset) == 50
    assert (dataset.latent_px, dataset.num_codes, dataset.resolution_px) == (8, 64, 64)
    assert dataset.identity(29) == ("00000", "00029.v1")
    assert dataset.identity(30) == ("00001", "00000.v1")
    assert dataset.sample(49).meta == sample("00001", 19).meta


def test_only_finished_shards_are_seen(corpus):
    (corpus / "00002.tar").write_bytes(b"still being written")
    (corpus / "settings.json").write_text("{}")
    assert len(open_dataset(corpus)) == 50


def test_the_fingerprint_covers_every_shard(corpus, write, sample):
    before = open_dataset(corpus).fingerprint
    assert open_dataset(corpus).fingerprint == before
    write(corpus, "00001", [sample("00001", n) for n in range(19)])
    assert open_dataset(corpus).fingerprint != before


def test_shards_of_two_models_in_a_folder_are_refused(corpus, write, sample):
    write(corpus, "00002", [sample("2", 0)], vq_fingerprint="another")
    with pytest.raises(DataError, match=r"shard 00000 has vq_fingerprint .* 00002 has another"):
        open_dataset(corpus)


def test_a_folder_without_shards_says_what_to_give(tmp_path):
    with pytest.raises(DataError, match="no finished shard"):
        open_dataset(tmp_path)


def test_shards_are_closed_beyond_a_limit(corpus, monkeypatch):
    monkeypatch.setattr(dataset_module, "OPEN_SHARDS", 1)
    dataset = open_dataset(corpus)
    first = dataset.shard(0)
    assert dataset.shard(0) is first
    dataset.sample(40)
    assert dataset.shard(0) is not first
    assert first.sample(3).key == "00003.v1"
