"""What is refused before a run starts, and with which numbers."""

import pytest

from mgpt.data.source import (
    DataConfig,
    SourceConfig,
    max_documents_tokens,
    open_components,
)
from mgpt.errors import DataError, VocabularyError


def config_of(path, tasks, row_tokens=512, **changes) -> DataConfig:
    return DataConfig({"mine": SourceConfig(str(path), tasks, **changes)}, row_tokens)


def test_components_are_ordered_and_weighted(corpus, vocab):
    tasks = {"text_to_image": 2.0, "caption": 1.0, "depth": 0.0}
    parts = open_components(config_of(corpus, tasks, max_epochs=1.5), vocab)
    assert [(p.name, p.weight, p.cap, len(p)) for p in parts] == [
        ("mine/caption", 1.0, 75, 50),
        ("mine/text_to_image", 2.0, 75, 50),
    ]


def test_a_component_without_samples_says_which_and_why(corpus, vocab):
    with pytest.raises(DataError) as caught:
        open_components(config_of(corpus, {"caption": 1.0, "pose": 1.0}), vocab)
    for words in ("source mine", "none of its 50 samples", "task pose", "depth, image"):
        assert words in str(caught.value)


def test_documents_longer_than_a_row_are_refused_with_numbers_per_task(corpus, vocab):
    parts = open_components(config_of(corpus, {"caption": 1.0, "text_to_image": 1.0}), vocab)
    longest = max_documents_tokens(parts)
    limit = min(longest.values()) - 1
    with pytest.raises(DataError) as caught:
        open_components(config_of(corpus, {"caption": 1.0, "text_to_image": 1.0}, limit), vocab)
    message = str(caught.value)
    for name, tokens in longest.items():
        assert f"{name}: " in message and f"the longest {tokens} tokens" in message
    assert f"Raise row_tokens to {max(longest.values())} or more" in message
    most = max(longest.values())
    assert open_components(config_of(corpus, {"caption": 1.0, "text_to_image": 1.0}, most), vocab)


def test_more_codes_than_the_vocabulary_has_is_a_vocabulary_error(tmp_path, vocab, write, sample):
    write(tmp_path, "0", [sample("0", 1)], num_codes=65)
    with pytest.raises(VocabularyError, match=r"has 65 codes, the vocabulary 64"):
        open_components(config_of(tmp_path, {"caption": 1.0}), vocab)


def test_an_empty_mix_is_refused(vocab):
    with pytest.raises(DataError, match="nothing to train on"):
        open_components(DataConfig({}), vocab)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SourceConfig("x", {}), "at least one task"),
        (lambda: SourceConfig("x", {"caption": -1.0}), "none below 0"),
        (lambda: SourceConfig("x", {"caption": 1.0}, 0), "max_epochs"),
        (lambda: DataConfig({}, row_tokens=0), "row_tokens is 0"),
        (lambda: DataConfig({}, guidance_drop=1.5), "guidance_drop is 1.5"),
    ],
)
def test_values_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
