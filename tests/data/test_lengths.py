"""Counts of tokens without reading a code, kept beside the shards."""

import numpy as np
import pytest

from mgpt.data.dataset import open_dataset
from mgpt.data.lengths import CUT, TOKENS, TRAINED, TRAINED_AFTER_CUT, load_lengths
from mgpt.data.shards import Shard, TokenisedSample
from mgpt.errors import ConfigError, DataError
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
    monkeypatch.setattr("mgpt.data.lengths.tasks_fingerprint", lambda: "changed")
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


def test_an_unknown_task_is_a_config_error(corpus, vocab):
    with pytest.raises(ConfigError, match="no task 'captions'"):
        load_lengths(open_dataset(corpus), vocab, ["captions"])


def test_a_damaged_file_says_to_delete_it(corpus, vocab):
    load_lengths(open_dataset(corpus), vocab, NAMES)
    path = next((corpus / "lengths").iterdir())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="delete it"):
        load_lengths(open_dataset(corpus), vocab, NAMES)
