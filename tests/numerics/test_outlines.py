"""Documents made from kept outlines are those made from the text: every id and every label."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt.data.dataset import open_dataset
from mgpt.data.documents import IGNORED, Drawn, write_document
from mgpt.data.lengths import load_lengths
from mgpt.data.outlines import OutlineBuilder, Outlines
from mgpt.data.shards import ShardWriter, TokenisedSample
from mgpt.data.source import Component
from mgpt.tasks.registry import READINGS, SampleView, task
from mgpt.tokens.chat import Conversation, Document, ImageSlot, Part, Turn, outline, tokenise
from mgpt.tokens.vocab import Vocabulary

sys.path.append(str(Path(__file__).parent))

from drawn_corpus import LATENT_PX, MANIFEST, NUM_CODES, make_vocabulary

SIDES = st.sampled_from([2, 4, 6])
FIELDS = ["depth", "edit_1", "edit_2", "image", "other", "segmentation", "view_00", "view_01"]
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
PAIRS = st.lists(st.tuples(TEXT, TEXT).map(list), min_size=1, max_size=3)
META = st.fixed_dictionaries(
    {"caption": TEXT},
    optional={
        "text": TEXT,
        "object": TEXT,
        "dialog": PAIRS,
        "qa": PAIRS,
        "other_qa": PAIRS,
        "edits": st.lists(TEXT, min_size=1, max_size=2),
        "interleaved": st.lists(
            st.one_of(TEXT, st.sampled_from([{"image": "image"}, {"image": "other"}])), min_size=1
        ),
    },
)


@st.composite
def samples(draw: st.DrawFn) -> list[tuple[dict, dict[str, tuple[int, int]]]]:
    """(JSON, shapes of pictures) of a few samples that serve various tasks."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        side = draw(SIDES)
        shapes = {field: (side, draw(SIDES)) for field in draw(st.sets(st.sampled_from(FIELDS)))}
        found.append((draw(META), shapes))
    return found


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return make_vocabulary(tmp_path_factory.mktemp("text"))


@settings(max_examples=60, deadline=None)
@given(drawn=samples(), seed=st.integers(0, 2**16))
def test_documents_of_every_task_are_those_of_their_text(
    vocab: Vocabulary, tmp_path_factory: pytest.TempPathFactory, drawn: list, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    write(folder, drawn, np.random.default_rng(seed))
    dataset = open_dataset(folder)
    for name, lengths in load_lengths(dataset, vocab, READINGS).items():
        part = Component("s", name, dataset, lengths, 1.0, None)
        for entry, index in enumerate(lengths.samples_N.tolist()):
            sample = dataset.sample(index)
            shapes = {field: codes_HW.shape for field, codes_HW in sample.codes.items()}
            for variant in range(task(name).variants):
                item = task(name).build(SampleView(sample.meta, shapes, LATENT_PX), variant)
                whole = tokenise(item, sample.codes, vocab)
                for dropped in (False, True) if whole.guidance_cut else (False,):
                    tokens = whole.drop_context() if dropped else whole
                    ids = np.empty(len(tokens.ids), np.int64)
                    labels = np.full(len(ids), IGNORED)
                    at = Drawn(entry, variant, dropped)
                    assert write_document(part, vocab, at, ids, labels) == tokens.trained.sum()
                    assert np.array_equal(ids, tokens.ids)
                    wanted = np.where(tokens.trained[1:], tokens.ids[1:], IGNORED)
                    assert np.array_equal(labels, [*wanted, IGNORED])


def write(folder: Path, drawn: list, rng: np.random.Generator) -> None:
    with ShardWriter(folder, "0") as writer:
        for number, (meta, shapes) in enumerate(drawn):
            codes = {
                field: rng.integers(0, NUM_CODES, shape, dtype=np.uint16)
                for field, shape in shapes.items()
            }
            writer.add(TokenisedSample(str(number), meta, codes))
        writer.close(MANIFEST)


PARTS = st.lists(
    st.one_of(st.sampled_from(["a red", "☂"]), st.sampled_from(["image", "other"]).map(ImageSlot)),
    max_size=4,
).map(tuple)
ITEMS = st.one_of(
    st.lists(st.builds(Turn, PARTS, PARTS), min_size=1, max_size=3).map(
        lambda turns: Conversation(tuple(turns))
    ),
    st.builds(Document, PARTS),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ITEMS, ITEMS), min_size=1, max_size=4))
def test_outlines_come_back_as_they_were(vocab: Vocabulary, items: list[tuple[Part, Part]]) -> None:
    fields = ["image", "other"]
    made = [[outline(item, vocab) for item in pair] for pair in items]
    builder = OutlineBuilder(fields)
    for pair in made:
        for one in pair:
            builder.add(one)
    kept = Outlines(*builder.arrays(num_variants=2), fields, guided=True)
    for entry, pair in enumerate(made):
        for variant, one in enumerate(pair):
            again = kept.read(entry, variant)
            assert again.text_ids.tolist() == one.text_ids.tolist()
            assert again.segments == one.segments
