"""The constant answer against its alternatives."""

import numpy as np
import pytest

from mgpt.evals.cases import Case, Reply
from mgpt.evals.constants import (
    _candidates,
    _means_of_others,
    _medians_of_others,
    best_constant_replies,
)
from mgpt.evals.scorers import SCORERS
from mgpt.tokens.chat import Conversation

SCORER_OF = {
    "vqa": SCORERS["exact_match"],
    "text_dialog": SCORERS["exact_match"],
    "caption": SCORERS["edit_distance"],
    "depth": SCORERS["depth_error"],
    "edit": SCORERS["psnr"],
}


def constants_of(cases: list[Case]) -> list[Reply]:
    return best_constant_replies(cases, SCORER_OF[cases[0].task])


def case(task: str, truth: Reply, question: str = "", question_images: tuple = ()) -> Case:
    fields = tuple(f"field_{number}" for number in range(len(truth.images)))
    return Case(
        key=task,
        task=task,
        meta={},
        conversation=Conversation(()),
        codes={field: np.zeros((4, 4), np.uint16) for field in fields},
        question=question,
        answer_fields=fields,
        question_images=question_images,
        truth=truth,
    )


def grey(level: int) -> np.ndarray:
    return np.full((8, 8, 3), level, np.uint8)


def test_constant_text_is_the_commonest_of_its_question() -> None:
    seen = (grey(0),)
    answers = [("colour?", "red")] * 5 + [("colour?", "blue")] * 4
    answers += [("shape?", "cone"), ("size?", "large"), ("count?", "large")]
    cases = [case("vqa", Reply(truth), question, seen) for question, truth in answers]
    # A question asked once must not be answered with its own truth.
    wanted = ["red"] * 9 + ["large"] * 3
    assert [reply.text for reply in constants_of(cases)] == wanted


def test_constant_of_text_dialog_does_not_read_the_question() -> None:
    answers = [("one?", "yes"), ("two?", "yes"), ("three?", "yes"), ("four?", "no")] * 3
    cases = [case("text_dialog", Reply(truth), question) for question, truth in answers]
    assert [reply.text for reply in constants_of(cases)] == ["yes"] * 12


def test_constant_picture_is_the_best_average_one_without_the_case_itself() -> None:
    cases = [case("depth", Reply("", (grey(level),))) for level in (0, 100, 110, 120)]
    errors = [
        SCORERS["depth_error"].score(each, reply)["depth_error"]
        for each, reply in zip(cases, constants_of(cases), strict=True)
    ]
    # Medians of the others: 110, 110, 100, 100.
    assert np.mean(errors) == pytest.approx((110 + 10 + 10 + 20) / 4 / 255)


def test_copying_counts_as_a_constant_answer_to_edits() -> None:
    before, after = grey(0), grey(50)
    asked = case("edit", Reply("", (after,)), question_images=(before,))
    ways = list(_candidates([asked, asked], SCORER_OF[asked.task]))
    assert any(all(reply.images[0] is before for reply in replies) for replies in ways)
    asked = case("depth", Reply("", (after,)), question_images=(before,))
    ways = list(_candidates([asked, asked], SCORER_OF[asked.task]))
    assert not any(reply.images[0] is before for replies in ways for reply in replies)


@pytest.mark.parametrize("num", [2, 3, 4, 7, 8])
def test_averages_of_the_others_are_numpys(num: int) -> None:
    rng = np.random.default_rng(num)
    pictures = rng.integers(0, 256, (num, 5, 6, 3), np.uint8)
    pictures[1:3, :2] = pictures[0, :2]  # equal values, in some places of two only
    for index in range(num):
        others = np.delete(pictures, index, axis=0)
        mean, median = np.mean(others, axis=0), np.median(others, axis=0)
        np.testing.assert_array_equal(_means_of_others(pictures)[index], mean.astype(np.uint8))
        np.testing.assert_array_equal(_medians_of_others(pictures)[index], median.astype(np.uint8))


def test_constant_of_a_distance_is_the_text_nearest_to_all() -> None:
    truths = ["zzzz", "zzzz", "abcd", "abce", "abcf", "abcg"]
    cases = [case("caption", Reply(truth), "", (grey(0),)) for truth in truths]
    given = {reply.text for reply in best_constant_replies(cases, SCORERS["edit_distance"])}
    assert len(given) == 1 and given < {"abcd", "abce", "abcf", "abcg"}, "not the commonest"
    exact = {reply.text for reply in best_constant_replies(cases, SCORERS["exact_match"])}
    assert exact == {"zzzz"}
