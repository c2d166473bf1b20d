"""Scorers against answers of known worth, and the constant answer against its alternatives."""

import numpy as np
import pytest

from data_pipeline.scenes.scorers import FIGURES, SCORERS, box_iou, score
from mgpt.evals.cases import Case, Reply
from mgpt.evals.constants import (
    _candidates,
    _means_of_others,
    _medians_of_others,
    best_constant_replies,
)
from mgpt.tasks.registry import TASKS
from mgpt.tokens.chat import Conversation


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


def test_every_task_has_scorer_and_figures() -> None:
    assert set(SCORERS) == set(FIGURES) == set(TASKS)


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("a large red matte sphere left of a small blue shiny cone", 1.0),
        ("a large red matte sphere left of a small blue matte cone", 0.0),
        ("a small blue shiny cone left of a large red matte sphere", 0.0),
        ("a large red matte sphere", 0.0),
    ],
)
def test_caption_needs_every_attribute_in_order(given: str, right: float) -> None:
    truth = Reply("a large red matte sphere left of a small blue shiny cone")
    assert score(case("caption", truth), Reply(given)) == {"attributes_right": right}


def test_text_answers_ignore_case_and_full_stop_only() -> None:
    asked = case("vqa", Reply("red"))
    assert score(asked, Reply("Red."))["answer_right"] == 1.0
    assert score(asked, Reply("dark red"))["answer_right"] == 0.0


def test_depth_error_is_a_share_of_the_range() -> None:
    asked = case("depth", Reply("", (grey(100),)))
    assert score(asked, Reply("", (grey(151),)))["depth_error"] == pytest.approx(0.2)
    assert score(asked, Reply(""))["depth_error"] == pytest.approx(100 / 255), "missing is black"
    wrong_size = Reply("", (grey(100)[:4],))
    assert score(asked, wrong_size)["depth_error"] == pytest.approx(100 / 255)


def test_normals_error_is_the_angle() -> None:
    towards_x, towards_y = grey(128).copy(), grey(128).copy()
    towards_x[..., 0], towards_y[..., 1] = 255, 255
    asked = case("normals", Reply("", (towards_x,)))
    assert score(asked, Reply("", (towards_x,)))["angle_error"] == pytest.approx(0, abs=1e-3)
    assert score(asked, Reply("", (towards_y,)))["angle_error"] == pytest.approx(90, abs=1)


def test_box_iou_of_known_boxes() -> None:
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0


def test_constant_text_is_the_commonest_of_its_question() -> None:
    seen = (grey(0),)
    answers = [("colour?", "red")] * 5 + [("colour?", "blue")] * 4
    answers += [("shape?", "cone"), ("size?", "large"), ("count?", "large")]
    cases = [case("vqa", Reply(truth), question, seen) for question, truth in answers]
    # A question asked once must not be answered with its own truth.
    wanted = ["red"] * 9 + ["large"] * 3
    assert [reply.text for reply in best_constant_replies(cases)] == wanted


def test_constant_of_text_dialog_does_not_read_the_question() -> None:
    answers = [("one?", "yes"), ("two?", "yes"), ("three?", "yes"), ("four?", "no")] * 3
    cases = [case("text_dialog", Reply(truth), question) for question, truth in answers]
    assert [reply.text for reply in best_constant_replies(cases)] == ["yes"] * 12


def test_constant_picture_is_the_best_average_one_without_the_case_itself() -> None:
    cases = [case("depth", Reply("", (grey(level),))) for level in (0, 100, 110, 120)]
    errors = [
        score(each, reply)["depth_error"]
        for each, reply in zip(cases, best_constant_replies(cases), strict=True)
    ]
    # Medians of the others: 110, 110, 100, 100.
    assert np.mean(errors) == pytest.approx((110 + 10 + 10 + 20) / 4 / 255)


def test_copying_counts_as_a_constant_answer_to_edits() -> None:
    before, after = grey(0), grey(50)
    asked = case("edit", Reply("", (after,)), question_images=(before,))
    ways = list(_candidates([asked, asked]))
    assert any(all(reply.images[0] is before for reply in replies) for replies in ways)
    asked = case("depth", Reply("", (after,)), question_images=(before,))
    ways = list(_candidates([asked, asked]))
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


def test_a_picture_is_read_once_by_each_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []

    def reader(picture: np.ndarray) -> list[object]:
        read.append(picture.shape)
        return []

    monkeypatch.setattr("data_pipeline.scenes.scorers.read_scene", reader)
    truth, other = Reply("", (grey(100),)), Reply("", (grey(101),))
    asked = case("edit", truth)
    for _ in range(3):
        score(asked, Reply("", (grey(100).copy(),)))
        score(asked, other)
    assert len(read) == 2
    score(case("edit", Reply("", (grey(100)[:4],))), Reply("", (grey(100)[:4],)))
    assert len(read) == 3  # of the same bytes in part, but another size
