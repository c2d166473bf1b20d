"""The shards of a folder as one list."""

import numpy as np
import pytest

from mgpt.data import dataset as dataset_module
from mgpt.data.dataset import open_dataset
from mgpt.data.loader import RowLoader
from mgpt.data.source import DataConfig, SourceConfig
from mgpt.errors import DataError
from mgpt.files.storage import locate, write_whole


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


def test_rows_from_an_object_store_are_those_from_the_disk(corpus, vocab, s3):
    for path in corpus.iterdir():
        write_whole(locate("s3://corpus/tokens/64") / path.name, path.read_bytes())

    def rows(place: str) -> RowLoader:
        tasks = {"caption": 1.0, "text_to_image": 2.0}
        config = DataConfig({"a": SourceConfig(place, tasks)}, row_tokens=1024, step_rows=3)
        return RowLoader(config, vocab, seed=5)

    near, far = rows(str(corpus)), rows("s3://corpus/tokens/64")
    for step in range(2):
        ours, theirs = (one.read_step(step, 0, 1, 3) for one in (near, far))
        assert ours.trained_tokens == theirs.trained_tokens > 0
        for a, b in zip(ours.micro, theirs.micro, strict=True):
            assert np.array_equal(a.ids, b.ids) and np.array_equal(a.labels, b.labels)
    near.close()
    far.close()
    puts = [path for method, path in s3.seen if method == "PUT" and "/lengths/" in path]
    assert len(puts) == 4, "counted once and kept, two files a task"
    s3.seen.clear()
    rows("s3://corpus/tokens/64").close()
    assert not [path for method, path in s3.seen if method == "PUT"]
