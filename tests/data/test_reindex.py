"""An index that was lost or damaged comes back bit for bit, and nothing else is accepted."""

import numpy as np
import pytest

from data_pipeline import reindex
from mgpt.data.dataset import open_dataset
from mgpt.data.reindex import rebuild_index
from mgpt.data.shards import Shard, TokenisedSample
from mgpt.data.verify import verify_shard
from mgpt.errors import DataError
from mgpt.files.storage import locate, write_whole


def test_a_sound_index_is_left_alone(corpus):
    stamp = (corpus / "00000.index.npy").stat().st_mtime_ns
    assert not rebuild_index(corpus, "00000")
    assert (corpus / "00000.index.npy").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("how", ["lost", "cut", "changed"])
def test_the_index_comes_back_bit_for_bit(corpus, how):
    path = corpus / "00001.index.npy"
    data = path.read_bytes()
    if how == "lost":
        path.unlink()
    else:
        path.write_bytes(data[:-9] if how == "cut" else data[:-9] + b"x" * 9)
    assert verify_shard(corpus, "00001") != []
    if how != "changed":
        with pytest.raises(DataError, match="run mgpt reindex"):
            Shard(corpus, "00001")
    assert rebuild_index(corpus, "00001")
    assert path.read_bytes() == data and verify_shard(corpus, "00001") == []


def test_keys_with_dots_and_samples_without_pictures_keep_their_names(tmp_path, write):
    codes_HW = np.arange(4, dtype=np.uint16).reshape(2, 2)
    samples = [
        TokenisedSample("a.json", {"caption": "one"}, {"image": codes_HW}),
        TokenisedSample("a.json.b.npy", {"tasks": ["vqa"]}, {}),
        TokenisedSample("part/v1.2.depth", {}, {"depth": codes_HW, "image": codes_HW}),
    ]
    write(tmp_path, "0", samples)
    data = (tmp_path / "0.index.npy").read_bytes()
    (tmp_path / "0.index.npy").unlink()
    assert rebuild_index(tmp_path, "0")
    assert (tmp_path / "0.index.npy").read_bytes() == data
    assert [Shard(tmp_path, "0").key(n) for n in range(3)] == [sample.key for sample in samples]


def test_a_tar_that_is_not_the_manifests_is_refused(corpus):
    (corpus / "00000.index.npy").unlink()
    tar = bytearray((corpus / "00000.tar").read_bytes())
    tar[600] ^= 1
    (corpus / "00000.tar").write_bytes(tar)
    with pytest.raises(DataError, match=r"00000\.tar: missing, or not"):
        rebuild_index(corpus, "00000")


def test_the_command_makes_indexes_and_lengths_anew(corpus, vocab, tmp_path, capsys):
    vocab.save(tmp_path / "text")
    (corpus / "00000.index.npy").unlink()
    (corpus / "lengths").mkdir()
    (corpus / "lengths" / "wrong.npy").write_bytes(b"of another vocabulary")
    reindex.main(reindex.Config(input=str(corpus.parent), vocabulary=str(tmp_path / "text")))
    assert len(open_dataset(corpus).sample(0).codes) == 2
    names = [path.name for path in (corpus / "lengths").iterdir()]
    assert names and "wrong.npy" not in names
    assert "count" in capsys.readouterr().out
    reindex.main(reindex.Config(input=str(corpus.parent)))
    assert not (corpus / "lengths").exists()


def test_the_command_goes_on_with_a_count_that_was_stopped(corpus, vocab, tmp_path, monkeypatch):
    monkeypatch.setattr("mgpt.data.lengths.PART_SAMPLES", 20)
    vocab.save(tmp_path / "text")
    config = reindex.Config(input=str(corpus.parent), vocabulary=str(tmp_path / "text"))
    seen, real = [], Shard.meta

    def meta(shard, number):
        seen.append(number)
        if len(seen) == 45:
            raise KeyboardInterrupt
        return real(shard, number)

    monkeypatch.setattr(Shard, "meta", meta)
    with pytest.raises(KeyboardInterrupt):
        reindex.main(config)
    parts = corpus / "lengths" / "parts"
    (parts / "of_other_shards.0.npy").write_bytes(b"")
    reindex.main(config)
    assert len(seen) == 45 + 10 and not [*parts.iterdir()]


def test_on_an_object_store(corpus, s3):
    folder = locate("s3://corpus/tokens/64")
    for path in corpus.iterdir():
        if path.is_file() and path.name != "00001.index.npy":
            write_whole(folder / path.name, path.read_bytes())
    assert rebuild_index(folder, "00001")
    assert (folder / "00001.index.npy").read_bytes() == (corpus / "00001.index.npy").read_bytes()
