"""The k-th row of training is a pure function of (shards, vocabulary, config, seed, k)."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mgpt.data.documents import IGNORED
from mgpt.data.loader import RowLoader, Rows, held_out_rows
from mgpt.data.mixer import Window
from mgpt.data.rows import NO_GROUP
from mgpt.data.source import DataConfig, SourceConfig
from mgpt.errors import DataError
from mgpt.tokens.unirep import find_images
from mgpt.tokens.vocab import Vocabulary

sys.path.append(str(Path(__file__).parent))

from drawn_corpus import NUM_CODES, four_tasks, make_vocabulary, write_corpus


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return make_vocabulary(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return four_tasks(tmp_path_factory.mktemp("shards"), step_rows=5)


def global_rows(loader: RowLoader, step: int, world: int, micro_rows: int) -> list[np.ndarray]:
    """The step's rows in order, put together from what all ranks get."""
    ranks = [loader.read_step(step, rank, world, micro_rows) for rank in range(world)]
    stacked = [
        [np.concatenate([getattr(m, name) for m in rank.micro]) for rank in ranks]
        for name in ("ids", "labels", "positions", "groups")
    ]
    rows = []
    for k in range(loader.step_rows):
        rows.append(np.stack([column[k % world][k // world] for column in stacked]))
    for rank in range(world):
        for place in range((loader.step_rows - rank + world - 1) // world, len(stacked[0][rank])):
            assert (stacked[1][rank][place] == IGNORED).all(), "a missing row trains something"
    return rows


def test_rows_do_not_depend_on_ranks_or_micro_batches(config, vocab):
    alone = RowLoader(config, vocab, seed=1)
    for world, micro_rows in ((2, 2), (3, 1), (4, 3), (8, 1)):
        many = RowLoader(config, vocab, seed=1)
        for step in (0, 1, 7):
            want = global_rows(alone, step, 1, 5)
            got = global_rows(many, step, world, micro_rows)
            assert all(np.array_equal(a, b) for a, b in zip(want, got, strict=True))


def test_every_rank_runs_the_same_number_of_micro_batches(config, vocab):
    loader = RowLoader(config, vocab, seed=1)
    for world, micro_rows, num_micro in ((1, 2, 3), (2, 1, 3), (4, 1, 2), (8, 2, 1)):
        for rank in range(world):
            step = loader.read_step(3, rank, world, micro_rows)
            assert [m.ids.shape for m in step.micro] == [(micro_rows, 192)] * num_micro


def test_a_step_read_out_of_order_or_resumed_is_the_step_read_in_order(config, vocab):
    rng = np.random.default_rng(0)
    straight = RowLoader(config, vocab, seed=2)
    want = [global_rows(straight, step, 1, 5) for step in range(30)]
    states = [json.dumps(straight.state(step)) for step in range(30)]
    for _ in range(25):
        stop, before, after = int(rng.integers(30)), *rng.integers(1, 5, 2).tolist()
        resumed = RowLoader(config, vocab, seed=2)
        resumed.load_state(json.loads(states[stop]))
        assert resumed.position(stop) == RowLoader(config, vocab, seed=2).position(stop)
        for step in range(stop, min(stop + 2, 30)):
            got = global_rows(resumed, step, after, before)
            assert all(np.array_equal(a, b) for a, b in zip(want[step], got, strict=True))


def test_resume_plans_only_the_windows_it_reads(config, vocab, monkeypatch):
    loader = RowLoader(config, vocab, seed=2)
    state = loader.state(200)
    resumed = RowLoader(config, vocab, seed=2)
    planned: list[int] = []
    make = resumed.mixer.window
    monkeypatch.setattr(resumed.mixer, "window", lambda n: planned.append(n) or make(n))
    resumed.load_state(state)
    resumed.read_step(200, 0, 1, 5)
    resumed.close()
    assert state["window"] > 10 and min(planned) == state["window"] and len(planned) <= 5


def test_trained_tokens_of_a_step_are_its_labels(config, vocab):
    loader = RowLoader(config, vocab, seed=3)
    dropped = 0
    for step in range(12):
        counted = loader.read_step(step, 0, 1, 5)
        labels = sum(int((m.labels != IGNORED).sum()) for m in counted.micro)
        real = sum(int((m.groups != NO_GROUP).sum()) for m in counted.micro)
        starts = sum(
            int(((m.positions == 0) & (m.groups != NO_GROUP)).sum()) for m in counted.micro
        )
        assert (labels, real, starts) == (
            counted.trained_tokens,
            counted.tokens,
            counted.documents,
        )
        for m in counted.micro:
            first = m.ids[(m.positions == 0) & (m.groups != NO_GROUP)]
            dropped += int((first == vocab.begin_image).sum())
            assert set(first.tolist()) <= {vocab.bos, vocab.begin_image}
    assert dropped > 5


def test_labels_are_the_next_ids_and_never_cross_documents(config, vocab):
    loader = RowLoader(config, vocab, seed=3)
    (rows,) = loader.read_step(0, 0, 1, 5).micro
    trained = rows.labels[:, :-1] != IGNORED
    assert np.array_equal(rows.labels[:, :-1][trained], rows.ids[:, 1:][trained])
    assert (rows.labels[:, -1] == IGNORED).all()
    assert (rows.positions[:, 1:][trained] > 0).all(), "a label reaches into the next document"


def test_padding_is_one_last_document_that_trains_nothing(config, vocab):
    loader = RowLoader(config, vocab, seed=3)
    (rows,) = loader.read_step(0, 0, 1, 5).micro
    for ids, labels, positions, groups in zip(
        rows.ids, rows.labels, rows.positions, rows.groups, strict=True
    ):
        start = int((groups != NO_GROUP).sum())
        assert (groups[:start] != NO_GROUP).all() and (labels[start:] == IGNORED).all()
        assert (ids[start:] == vocab.pad).all()
        assert np.array_equal(positions[start:], np.arange(len(ids) - start))
    empty = Rows.empty(1, 8, vocab.pad)
    assert empty.positions.tolist() == [list(range(8))] and (empty.labels == IGNORED).all()


def test_groups_are_tasks_and_pictures_stay_whole(config, vocab):
    loader = RowLoader(config, vocab, seed=3)
    pictures = {"caption": 1, "depth": 2, "image_text": 1, "text_to_image": 1}
    seen = set()
    for step in range(4):
        for m in loader.read_step(step, 0, 1, 5).micro:
            for ids, positions, groups in zip(m.ids, m.positions, m.groups, strict=True):
                starts = [*np.flatnonzero((positions == 0) & (groups != NO_GROUP)).tolist()]
                ends = [*starts[1:], int((groups != NO_GROUP).sum())]
                for start, end in zip(starts, ends, strict=True):
                    (group,) = set(groups[start:end].tolist())
                    name = loader.task_names[group]
                    found = len(find_images(ids[start:end], vocab))
                    context = ids[start] == vocab.bos
                    assert found == (pictures[name] if context else 1)
                    seen.add((name, bool(context)))
    assert {name for name, _ in seen} == set(pictures) < set(loader.task_names)
    assert ("text_to_image", False) in seen and ("image_text", False) not in seen


def test_another_seed_gives_another_order(config, vocab):
    first = global_rows(RowLoader(config, vocab, seed=1), 0, 1, 5)
    other = global_rows(RowLoader(config, vocab, seed=2), 0, 1, 5)
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_held_out_groups_mean_the_same_tasks_in_another_mix(config, vocab):
    loader = RowLoader(config, vocab, seed=1)
    sources = {"first": replace(config.sources["first"], tasks={"text_to_image": 1.0})}
    groups = held_out_rows(replace(config, sources=sources), vocab, seed=0, num_rows=2).groups
    found = {loader.task_names[group] for group in set(groups.flatten().tolist()) - {NO_GROUP}}
    assert found == {"text_to_image"}


def test_held_out_rows_are_fixed_and_see_each_sample_once(config, vocab):
    few = held_out_rows(config, vocab, seed=0, num_rows=3)
    many = held_out_rows(config, vocab, seed=0, num_rows=200)
    assert few.ids.shape == (3, 192) and many.ids.shape == (200, 192)
    assert np.array_equal(few.ids, many.ids[:3])
    documents = int(((many.positions == 0) & (many.groups != NO_GROUP)).sum())
    assert documents == 2 * 60 + 2 * 24
    starts = many.ids[(many.positions == 0) & (many.groups != NO_GROUP)]
    assert (starts == vocab.bos).all(), "a held-out document lost its context"


@pytest.mark.parametrize("step_rows", [1, 3])
def test_capped_data_ends_with_an_error_after_every_sample(vocab, tmp_path, step_rows):
    write_corpus(tmp_path, 12, seed=0)
    source = {"mine": SourceConfig(str(tmp_path), {"caption": 1.0}, max_epochs=2)}
    config = DataConfig(source, row_tokens=192, step_rows=step_rows, window_documents=5)
    loader = RowLoader(config, vocab, seed=1)
    documents = step = 0
    with pytest.raises(DataError, match="max_epochs"):
        while True:
            documents += loader.read_step(step, 0, 1, 1).documents
            step += 1
    assert documents == 24
    assert loader.epochs(step) == {"mine/caption": 2.0}
    assert loader.state(step)["window"] == loader.mixer.num_windows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"row_tokens": 256}, "row_tokens was 192, is 256"),
        ({"step_rows": 6}, "step_rows was 5, is 6"),
        ({"guidance_drop": 0.1}, "guidance_drop was 0.3, is 0.1"),
    ],
)
def test_a_resumed_run_with_another_order_is_refused_by_name(config, vocab, change, words):
    state = RowLoader(config, vocab, seed=1).state(4)
    with pytest.raises(DataError, match=words):
        RowLoader(replace(config, **change), vocab, seed=1).load_state(state)


def test_a_resumed_run_with_another_vocabulary_is_refused_by_name(config, vocab, tmp_path):
    state = RowLoader(config, vocab, seed=1).state(4)
    other = make_vocabulary(tmp_path, num_codes=NUM_CODES + 1)
    with pytest.raises(DataError, match=f"vocabulary was {vocab.fingerprint}"):
        RowLoader(config, other, seed=1).load_state(state)


def test_a_resumed_run_with_changed_shards_is_refused_by_name(vocab, tmp_path):
    write_corpus(tmp_path, 12, seed=0)
    source = {"mine": SourceConfig(str(tmp_path), {"caption": 1.0})}
    config = DataConfig(source, row_tokens=192, step_rows=2, window_documents=8)
    state = RowLoader(config, vocab, seed=1).state(4)
    RowLoader(config, vocab, seed=1).load_state(state)
    write_corpus(tmp_path, 12, seed=5)
    with pytest.raises(DataError, match=r"sources\.mine\.shards was"):
        RowLoader(config, vocab, seed=1).load_state(state)


@pytest.mark.parametrize("column", ["tokens_N", "trained_N"])
def test_stale_lengths_are_named(config, vocab, monkeypatch, column):
    loader = RowLoader(config, vocab, seed=1)
    make = loader.mixer.window

    def wrong(number: int) -> Window:
        window = make(number)
        return replace(window, **{column: getattr(window, column) - 1})

    monkeypatch.setattr(loader.mixer, "window", wrong)
    with pytest.raises(
        DataError, match=r"0000\d\.tar: sample .* Delete|delete .*lengths and start"
    ):
        loader.read_step(0, 0, 1, 5)
