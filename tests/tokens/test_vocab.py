"""Every id has one owner, and a wrong vocabulary is named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chameleon_layout import chameleon_json

from mgpt.errors import DataError, VocabularyError
from mgpt.tokens.text import SentencePieceText, train_sentencepiece
from mgpt.tokens.vocab import (
    Vocabulary,
    chameleon_vocabulary,
    check_same,
    code_name,
    scratch_vocabulary,
)


def test_scratch_layout(scratch: Vocabulary) -> None:
    v = scratch
    assert (v.bos, v.pad, v.eos) == (0, 1, 2)
    assert v.image_start == 4
    special = [v.end_image, v.begin_image, v.end_line, v.end_of_turn]
    assert special == [36, 37, 38, 39]
    assert [v.size_token(n) for n in (1, 4)] == [40, 43]
    assert v.text_start == 44
    assert v.size == 44 + v.text.num_pieces


def test_each_id_has_one_owner(scratch: Vocabulary) -> None:
    ids = np.arange(-1, scratch.size + 1)
    kinds = (scratch.is_code, scratch.is_size, scratch.is_text)
    owners = sum(is_kind(ids).astype(int) for is_kind in kinds)
    special = [0, 1, 2, 3, scratch.end_image, scratch.begin_image, scratch.end_line]
    special += [scratch.end_of_turn, *(scratch.text_start + p for p in scratch.text.controls)]
    expected = np.ones(len(ids), dtype=int)
    expected[[0, -1, *(token + 1 for token in special)]] = 0
    np.testing.assert_array_equal(owners, expected)


def test_chameleon_ids(chameleon: Vocabulary) -> None:
    v = chameleon
    assert (v.size, v.bos, v.pad, v.eos, v.num_codes) == (65536, 0, 1, 2, 8192)
    assert (v.begin_image, v.end_image, v.end_line, v.end_of_turn) == (8197, 8196, 8803, 8710)
    assert v.image_start == 4
    assert [v.size_token(n) for n in (1, 24, 64)] == [8805, 8828, 8868]
    assert not v.is_text([3, 4, 8195, 16383, 65536]).any()
    assert v.is_text([16384, 65535]).all()


def test_tokens_by_name(scratch: Vocabulary, chameleon: Vocabulary) -> None:
    assert chameleon.names["IMGIMGIBJBZ"] == 4 + 8191 and chameleon.names["<eoss>"] == 8196
    assert list(chameleon.names.values()) == list(range(65536))
    assert scratch.names == {
        **{"<s>": 0, "<pad>": 1, "</s>": 2},
        **{code_name(code): 4 + code for code in range(scratch.num_codes)},
    }
    assert [code_name(code) for code in (0, 13, 8191)] == ["IMGIMGAZ", "IMGIMGBDZ", "IMGIMGIBJBZ"]


def _swapped(first: int, second: int) -> Callable[[list[str]], list[str]]:
    def change(names: list[str]) -> list[str]:
        names[first], names[second] = names[second], names[first]
        return names

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_swapped(104, 105), "IMGIMGBABZ has id 104, and must have id 105|IMGIMGBAAZ has id 105"),
        (_swapped(8196, 8197), "<eoss> has id 8197, and must have id 8196"),
        (_swapped(8805, 8806), "<reserved08801> has id 8806"),
        (_swapped(8710, 8711), "<reserved08706> has id 8711"),
        (lambda names: names[:8803], "<reserved08799> is missing"),
    ],
)
def test_another_tokenizer_is_named(change: Callable[[list[str]], list[str]], named: str) -> None:
    with pytest.raises(VocabularyError, match=f"not Chameleon's tokenizer: ({named})"):
        chameleon_vocabulary(chameleon_json(change))


def test_size_tokens(vocab: Vocabulary) -> None:
    sizes = range(1, vocab.max_grids + 1)
    assert [vocab.grids(vocab.size_token(n)) for n in sizes] == list(sizes)
    for n in (0, vocab.max_grids + 1):
        with pytest.raises(DataError, match=f"side of {n} grids"):
            vocab.size_token(n)
    for token in (vocab.size_start - 1, vocab.size_start + vocab.max_grids):
        with pytest.raises(DataError, match=f"id {token} is not a size token"):
            vocab.grids(token)


def test_decode_text_names_what_is_no_text(vocab: Vocabulary) -> None:
    ids = [*vocab.encode_text("red"), vocab.end_of_turn]
    with pytest.raises(DataError, match=rf"position {len(ids) - 1}: id {vocab.end_of_turn}"):
        vocab.decode_text(ids)
    with pytest.raises(DataError, match="position 0: id 65537"):
        vocab.decode_text([65537])


def test_save_and_load(vocab: Vocabulary, tmp_path: Path) -> None:
    vocab.save(tmp_path)
    loaded = Vocabulary.load(tmp_path)
    assert loaded.fingerprint == vocab.fingerprint
    assert loaded.encode_text("a red cube") == vocab.encode_text("a red cube")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["vocabulary.json", vocab.text.FILE]
    )
    check_same(vocab, loaded, "here", "there")


def test_a_scratch_vocabulary_fits_16_bits(chameleon: Vocabulary) -> None:
    with pytest.raises(VocabularyError, match="at most 65536 fit"):
        scratch_vocabulary(chameleon.text, num_codes=8, max_grids=2)


def test_a_changed_file_is_refused(scratch: Vocabulary, tmp_path: Path) -> None:
    scratch.save(tmp_path)
    train_sentencepiece(["other words"], tmp_path / "text.model", 300)
    with pytest.raises(VocabularyError, match=f"says fingerprint {scratch.fingerprint}, but"):
        Vocabulary.load(tmp_path)


def test_a_folder_without_vocabulary_is_refused(scratch: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="no vocabulary there"):
        Vocabulary.load(tmp_path)
    (tmp_path / "vocabulary.json").write_text(json.dumps({"layout": "scratch"}))
    with pytest.raises(VocabularyError, match="not a vocabulary of this version"):
        Vocabulary.load(tmp_path)


def test_check_same_names_both_sides(scratch: Vocabulary, sentencepiece_file: Path) -> None:
    text = SentencePieceText(sentencepiece_file)
    other = scratch_vocabulary(text, num_codes=64, max_grids=4)
    with pytest.raises(VocabularyError) as caught:
        check_same(scratch, other, "the checkpoint run/1", "the shards data/64")
    message = str(caught.value)
    assert f"the checkpoint run/1 has {scratch.fingerprint}" in message
    assert f"the shards data/64 has {other.fingerprint}" in message
    assert "num_codes 32 against 64" in message


def test_fingerprint_follows_every_range(scratch: Vocabulary, sentencepiece_file: Path) -> None:
    text = SentencePieceText(sentencepiece_file)
    same = scratch_vocabulary(text, num_codes=32, max_grids=4)
    others = [scratch_vocabulary(text, 33, 4), scratch_vocabulary(text, 32, 5)]
    assert same.fingerprint == scratch.fingerprint
    assert len({scratch.fingerprint, *(other.fingerprint for other in others)}) == 3
