"""A mix that changes, evens out by size or goes on over changed shards: what holds of its rows."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mgpt.data.documents import IGNORED
from mgpt.data.forecast import foretell, steps_of_data
from mgpt.data.loader import EndOfData, RowLoader, held_out_rows
from mgpt.data.source import DataConfig, SourceConfig, capped, open_components
from mgpt.errors import DataError
from mgpt.tokens.vocab import Vocabulary

sys.path.append(str(Path(__file__).parent))

from drawn_corpus import four_tasks, make_vocabulary, write_corpus

CHANGES = {
    7: {"first": {"text_to_image": 0.0, "depth": 2.0}},
    20: {"second": {"image_text": 8.0}, "first": {"caption": 0.0}},
}
STEPS = 30


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return make_vocabulary(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return four_tasks(tmp_path_factory.mktemp("shards"), step_rows=5)


def rows_of(loader: RowLoader, steps: range) -> list[bytes]:
    """Ids and labels of each step."""
    found = []
    for step in steps:
        (rows,) = loader.read_step(step, 0, 1, loader.step_rows).micro
        found.append(rows.ids.tobytes() + rows.labels.tobytes())
    return found


def test_a_change_takes_effect_at_the_first_window_from_its_step_on(config, vocab):
    plain = RowLoader(config, vocab, seed=1)
    changed = RowLoader(replace(config, changes=CHANGES), vocab, seed=1)
    before, after = rows_of(plain, range(STEPS)), rows_of(changed, range(STEPS))
    assert before[:7] == after[:7] and before[12:] != after[12:]
    start = plain.position(7)
    first = start.window + (start.row > 0)
    for number in range(first + 2):
        columns = [plain.mixer.window(number), changed.mixer.window(number)]
        same = np.array_equal(*(window.entry_N for window in columns))
        assert same == (number < first)
    names = [part.name for part in changed.mixer.components]
    drawn = {names[place] for place in changed.mixer.window(first).component_N.tolist()}
    assert drawn == {"first/caption", "first/depth", "second/image_text", "second/depth"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_resumed_anywhere_has_the_rows_of_one_that_never_stopped(config, vocab, workers):
    config = replace(config, changes=CHANGES)
    straight = RowLoader(config, vocab, seed=1)
    want = rows_of(straight, range(STEPS))
    resumed = RowLoader(replace(config, workers=workers), vocab, seed=1)
    for stop in (3, 7, 8, 19, 20, 21, 27):
        state = json.loads(json.dumps(straight.state(stop)))
        resumed.load_state(state)
        assert rows_of(resumed, range(stop, min(stop + 3, STEPS))) == want[stop : stop + 3]
        assert resumed.drawn(stop) == straight.drawn(stop)
    resumed.close()


def test_a_change_can_be_given_to_a_run_under_way_but_not_to_its_past(config, vocab):
    state = RowLoader(config, vocab, seed=1).state(7)
    resumed = RowLoader(replace(config, changes=CHANGES), vocab, seed=1)
    resumed.load_state(state)
    planned = RowLoader(replace(config, changes=CHANGES), vocab, seed=1)
    assert rows_of(resumed, range(7, 25)) == rows_of(planned, range(7, 25))
    late = RowLoader(config, vocab, seed=1).state(8)
    with pytest.raises(DataError, match=r"changes\.7\.first\.depth was absent, is 2\.0"):
        RowLoader(replace(config, changes=CHANGES), vocab, seed=1).load_state(late)


def test_documents_drawn_are_exact_at_every_step(config, vocab):
    loader = RowLoader(replace(config, changes=CHANGES), vocab, seed=1)
    drawn = dict.fromkeys([part.name for part in loader.mixer.components], 0)
    for step in range(STEPS):
        assert loader.drawn(step) == drawn
        for window, row in loader._rows_from(loader.position(step)):
            for place in window.component_N[row].tolist():
                drawn[loader.mixer.components[place].name] += 1


@pytest.mark.parametrize("step", [0, 1, 7, 8, 23, 400])
def test_what_is_foretold_is_what_comes(config, vocab, step):
    loader = RowLoader(replace(config, changes=CHANGES), vocab, seed=1)
    foretold, is_exact = foretell(loader, step)
    assert is_exact and loader._changed == loader._windows == {}, "a look ahead changes nothing"
    assert foretold == loader.drawn(step)
    assert foretell(loader, step) == (foretold, True), "nor does where the run is"


def test_the_end_of_capped_data_is_foretold(config, vocab):
    sources = {name: replace(one, max_epochs=1.5) for name, one in config.sources.items()}
    loader = RowLoader(replace(config, sources=sources), vocab, seed=1)
    foretold, _ = foretell(loader, 1000)
    assert foretold == {part.name: part.cap for part in loader.mixer.components}


def test_beyond_a_million_documents_about_what_comes_is_foretold(config, vocab, monkeypatch):
    monkeypatch.setattr("mgpt.data.forecast.FORETOLD_DOCUMENTS", 100)
    loader = RowLoader(replace(config, changes=CHANGES), vocab, seed=1)
    foretold, is_exact = foretell(loader, 400)
    assert not is_exact and loader._changed == {}
    for part in loader.mixer.components:
        passes = loader.drawn(400)[part.name] / len(part)
        assert foretold[part.name] / len(part) == pytest.approx(passes, rel=0.05, abs=0.4)


def test_temperature_mixes_by_size(config, vocab):
    def weights(temperature: float | None) -> dict[str, float]:
        parts = open_components(replace(config, temperature=temperature), vocab)
        return {part.name: part.weight for part in parts}

    plain, sized, evened = weights(None), weights(1.0), weights(5.0)
    for name, weight in plain.items():
        size = 60 if name.startswith("first") else 24
        assert sized[name] == weight * size
        assert evened[name] == pytest.approx(weight * size**0.2, rel=1e-5)


def test_epochs_are_capped_by_task(vocab, tmp_path):
    write_corpus(tmp_path, 12, seed=0)
    source = SourceConfig(
        str(tmp_path), {"caption": 1.0, "depth": 1.0}, 3, max_task_epochs={"depth": 1.5}
    )
    loader = RowLoader(DataConfig({"mine": source}, 192, 2, window_documents=8), vocab, seed=0)
    assert loader.drawn(500) == {"mine/caption": 36, "mine/depth": 18}


def test_changed_shards_are_refused_unless_they_are_allowed_by_name(vocab, tmp_path):
    write_corpus(tmp_path, 12, seed=0)
    config = DataConfig(
        {"mine": SourceConfig(str(tmp_path), {"caption": 1.0})}, 192, 2, window_documents=8
    )
    state = RowLoader(config, vocab, seed=1).state(4)
    write_corpus(tmp_path, 20, seed=5)
    for allowed in ([], ["other"]):
        with pytest.raises(DataError, match=r"sources\.mine\.shards was .*allow_changed"):
            RowLoader(replace(config, allow_changed=allowed), vocab, seed=1).load_state(state)
    loader = RowLoader(replace(config, allow_changed=["mine"]), vocab, seed=1)
    loader.load_state(state)
    assert loader.read_step(4, 0, 1, 2).documents > 0
    with pytest.raises(DataError, match="seed was 1, is 2"):
        RowLoader(replace(config, allow_changed=["mine"]), vocab, seed=2).load_state(state)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"changes": {0: {}}}, "changes at step 0"),
        ({"changes": {5: {"none": {"caption": 1.0}}}}, "no source none"),
        ({"changes": {5: {"first": {"caption": -1.0}}}}, "below 0"),
        ({"temperature": 0.0}, "temperature is 0"),
    ],
)
def test_mixes_that_mean_nothing_are_refused(config, fields, words):
    with pytest.raises(ValueError, match=words):
        replace(config, **fields)


def test_more_epochs_continue_where_the_fewer_ended(config, vocab):
    two, three = (RowLoader(capped(config, n), vocab, seed=1) for n in (2.0, 3.0))
    end, is_exact = steps_of_data(two)
    assert is_exact and end is not None
    want = rows_of(two, range(end))
    with pytest.raises(EndOfData, match=f"after step {end}"):
        rows_of(two, range(end, end + 1))
    three.load_state(json.loads(json.dumps(two.state(end))))
    last, _ = steps_of_data(three)
    assert last is not None and last > end
    assert foretell(three, last)[0] == three.drawn(last)
    assert three.drawn(last) == {part.name: 3 * len(part) for part in three.mixer.components}
    more = rows_of(three, range(end, last))
    with pytest.raises(EndOfData):
        rows_of(three, range(last, last + 1))
    assert three.drawn(end) == two.drawn(end) == {p.name: 2 * len(p) for p in two.mixer.components}
    # Again from its own states, and with processes: what was raised when is part of them.
    middle = (end + last) // 2
    again = RowLoader(replace(capped(config, 3.0), workers=1), vocab, seed=1)
    again.load_state(json.loads(json.dumps(three.state(middle))))
    assert again.state(last) == three.state(last)
    assert rows_of(again, range(middle, last)) == more[middle - end :]
    again.close()
    assert rows_of(two, range(end)) == want
    with pytest.raises(DataError, match=r"max_epochs was 3\.0, is 2\.0"):
        two.load_state(three.state(middle))


def test_a_cap_is_raised_before_it_is_reached(config, vocab):
    """Then the rows are those of a run that had the higher cap from the start."""
    config = replace(config, window_documents=32)
    few, more = (RowLoader(capped(config, n), vocab, seed=1) for n in (20.0, 30.0))
    want = rows_of(more, range(6))
    assert rows_of(few, range(3)) == want[:3]
    continued = RowLoader(capped(config, 30.0), vocab, seed=1)
    continued.load_state(few.state(3))
    assert rows_of(continued, range(3, 6)) == want[3:]


def test_training_on_inputs_trains_all_but_the_first_token_of_the_same_rows(config, vocab):
    config = replace(config, guidance_drop=0.3)
    answers = RowLoader(config, vocab, seed=1)
    inputs = RowLoader(replace(config, train_on_inputs=True), vocab, seed=1)
    for step in range(5):
        plain, full = (one.read_step(step, 0, 1, one.step_rows) for one in (answers, inputs))
        (few,), (every,) = plain.micro, full.micro
        assert np.array_equal(few.ids, every.ids)
        assert np.array_equal(few.positions, every.positions)
        is_document = every.groups >= 0
        ends = np.roll(every.positions, -1, axis=1) == 0
        ends[:, -1] = True
        ends[:, :-1] |= is_document[:, :-1] & ~is_document[:, 1:]
        following = np.roll(every.ids, -1, axis=1)
        want = np.where(is_document & ~ends, following, IGNORED)
        assert np.array_equal(every.labels, want)
        assert full.trained_tokens == (want != IGNORED).sum() > plain.trained_tokens
        trained = few.labels != IGNORED
        assert np.array_equal(few.labels[trained], every.labels[trained])


def test_held_out_rows_train_answers_alone(config, vocab):
    rows = held_out_rows(config, vocab, 1, 4)
    others = held_out_rows(replace(config, train_on_inputs=True), vocab, 1, 4)
    assert np.array_equal(rows.labels, others.labels)
