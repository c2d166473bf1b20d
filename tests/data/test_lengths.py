"""Counts of tokens without reading a code, kept beside the shards."""

import numpy as np
import pytest

from mgpt.data import lengths as lengths_module
from mgpt.data.dataset import open_dataset
from mgpt.data.lengths import CUT, TOKENS, TRAINED, TRAINED_AFTER_CUT, load_lengths
from mgpt.data.shards import Shard, TokenisedSample
from mgpt.errors import ConfigError, DataError, MachineError
from mgpt.files.storage import remove_tree
from mgpt.tasks.registry import SampleView, task
from mgpt.tokens.chat import tokenise

NAMES = ["text_to_image", "caption", "image_text"]


def test_counts_are_those_of_the_tokens(corpus, vocab):
    dataset = open_dataset(corpus)
    lengths = load_lengths(dataset, vocab, NAMES)
    for name in NAMES:
        entries = lengths[name]
        assert len(entries) == 50
        for entry in (0, 33, 49):
            sample = dataset.sample(int(entries.samples_N[entry]))
            shapes = {field: codes_HW.shape for field, codes_HW in sample.codes.items()}
            for variant in range(task(name).variants):
                item = task(name).build(SampleView(sample.meta, shapes, 8), variant)
                tokens = tokenise(item, sample.codes, vocab)
                after = tokens.drop_context()
                row = entries.counts_NVC[entry, variant]
                assert row[TOKENS] == len(tokens.ids) and row[TRAINED] == tokens.trained.sum()
                assert row[CUT] == tokens.guidance_cut
                assert row[TRAINED_AFTER_CUT] == after.trained.sum()


def test_the_second_start_reads_the_file_and_no_sample(corpus, vocab, monkeypatch):
    first = load_lengths(open_dataset(corpus), vocab, NAMES)
    monkeypatch.setattr(Shard, "meta", lambda *_: pytest.fail("a sample was counted again"))
    again = load_lengths(open_dataset(corpus), vocab, reversed(NAMES))
    for name in NAMES:
        for column in ("samples_N", "identities_N", "counts_NVC"):
            assert np.array_equal(getattr(first[name], column), getattr(again[name], column))


def test_another_corpus_or_template_is_counted_anew(corpus, vocab, write, sample, monkeypatch):
    load_lengths(open_dataset(corpus), vocab, NAMES)
    write(corpus, "00002", [sample("2", 0)])
    assert len(load_lengths(open_dataset(corpus), vocab, NAMES)["caption"]) == 51
    monkeypatch.setattr("mgpt.data.lengths.task_fingerprint", lambda name: "changed")
    counted = []
    load_lengths(open_dataset(corpus), vocab, NAMES, lambda done, total: counted.append(total))
    assert counted == [51]


def test_codes_are_not_read(corpus, vocab, monkeypatch):
    monkeypatch.setattr(Shard, "sample", lambda *_: pytest.fail("codes were read"))
    assert load_lengths(open_dataset(corpus), vocab, ["caption"])


def test_samples_that_cannot_serve_are_left_out(tmp_path, write, vocab):
    codes_HW = np.zeros((2, 2), np.uint16)
    samples = [
        TokenisedSample("a", {"caption": "a red cube"}, {"image": codes_HW}),
        TokenisedSample("b", {"caption": "a red cube", "tasks": ["depth"]}, {"image": codes_HW}),
        TokenisedSample("c", {"caption": "a red cube"}, {}),
    ]
    write(tmp_path, "0", samples)
    assert load_lengths(open_dataset(tmp_path), vocab, ["caption"])["caption"].samples_N == [0]


def test_a_picture_beyond_the_size_tokens_is_named(tmp_path, write, vocab):
    codes = {"image": np.zeros((18, 2), np.uint16)}  # 9 grids, the vocabulary has 8
    write(tmp_path, "0", [TokenisedSample("tall", {"caption": "a"}, codes)])
    with pytest.raises(DataError, match=r"0\.tar: sample 'tall' .*9 grids"):
        load_lengths(open_dataset(tmp_path), vocab, ["caption"])


def test_shards_without_a_sample_have_no_lengths(tmp_path, write, vocab):
    write(tmp_path, "0", [])
    lengths = load_lengths(open_dataset(tmp_path), vocab, ["caption"])["caption"]
    assert len(lengths) == 0 and lengths.counts_NVC.shape == (0, 2, 4)


def test_an_unknown_task_is_a_config_error(corpus, vocab):
    with pytest.raises(ConfigError, match="no task 'captions'"):
        load_lengths(open_dataset(corpus), vocab, ["captions"])


@pytest.mark.parametrize("kind", [".npy", ".text.npy"])
def test_a_damaged_file_says_to_delete_it(corpus, vocab, kind):
    load_lengths(open_dataset(corpus), vocab, ["caption"])
    path = next(p for p in (corpus / "lengths").iterdir() if (".text" in p.name) == (".t" in kind))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="delete it"):
        load_lengths(open_dataset(corpus), vocab, ["caption"])


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_count_in_parts_gives_the_same_files(corpus, vocab, monkeypatch):
    load_lengths(open_dataset(corpus), vocab, NAMES)
    whole = files_of(corpus / "lengths")
    assert len(whole) == 2 * len(NAMES)
    remove_tree(corpus / "lengths")
    monkeypatch.setattr("mgpt.data.lengths.PART_SAMPLES", 7)
    load_lengths(open_dataset(corpus), vocab, NAMES)
    assert files_of(corpus / "lengths") == whole
    assert not [*(corpus / "lengths" / "parts").iterdir()]


def test_a_count_that_was_stopped_goes_on(corpus, vocab, monkeypatch):
    load_lengths(open_dataset(corpus), vocab, NAMES)
    whole = files_of(corpus / "lengths")
    remove_tree(corpus / "lengths")
    monkeypatch.setattr("mgpt.data.lengths.PART_SAMPLES", 7)
    seen, real = [], Shard.meta

    def meta(shard, number):
        seen.append((shard.name, number))
        if len(seen) == 30:
            raise KeyboardInterrupt
        return real(shard, number)

    monkeypatch.setattr(Shard, "meta", meta)
    with pytest.raises(KeyboardInterrupt):
        load_lengths(open_dataset(corpus), vocab, NAMES)
    assert files_of(corpus / "lengths") == {}
    load_lengths(open_dataset(corpus), vocab, NAMES)
    assert files_of(corpus / "lengths") == whole
    assert len(seen) == 30 + 50 - 28, "four parts of 7 samples were there"


def test_a_count_that_another_ended_first(corpus, vocab, monkeypatch):
    """Two count the same; the first takes its parts away, which are the second's too."""
    monkeypatch.setattr("mgpt.data.lengths.PART_SAMPLES", 7)
    real, calls = lengths_module._keep, []

    def keep(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            load_lengths(open_dataset(corpus), vocab, NAMES)
        real(*arguments)

    monkeypatch.setattr(lengths_module, "_keep", keep)
    assert len(load_lengths(open_dataset(corpus), vocab, NAMES)["caption"]) == 50
    assert not [*(corpus / "lengths" / "parts").iterdir()]


def test_shards_that_cannot_be_written_beside_have_their_lengths_in_the_cache(
    corpus, vocab, monkeypatch, tmp_path, caplog
):
    real = lengths_module.write_whole

    def write_whole(path, data):
        if path.is_relative_to(corpus):
            raise MachineError(f"{path}: cannot be written (Read-only file system)")
        real(path, data)

    monkeypatch.setattr(lengths_module, "write_whole", write_whole)
    monkeypatch.setenv("MGPT_CACHE", str(tmp_path / "cache"))
    first = load_lengths(open_dataset(corpus), vocab, NAMES)
    assert "cache folder" in caplog.text and len(files_of(tmp_path / "cache" / "lengths")) == 6
    monkeypatch.setattr(Shard, "meta", lambda *_: pytest.fail("a sample was counted again"))
    again = load_lengths(open_dataset(corpus), vocab, NAMES)
    assert np.array_equal(first["caption"].counts_NVC, again["caption"].counts_NVC)


def test_lengths_of_an_earlier_version_get_their_text(corpus, vocab):
    load_lengths(open_dataset(corpus), vocab, ["caption"])
    (text,) = (corpus / "lengths").glob("*.text.npy")
    kept = text.read_bytes()
    text.unlink()
    load_lengths(open_dataset(corpus), vocab, ["caption"])
    assert text.read_bytes() == kept
