"""The scenes' scorers against answers of known worth."""

import numpy as np
import pytest

from data_pipeline.scenes.scorers import SCENE_SCORERS
from mgpt.evals.cases import Case, Reply
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


def score(asked: Case, reply: Reply) -> dict[str, float]:
    return SCENE_SCORERS[asked.task].score(asked, reply)


def test_every_task_has_a_scorer() -> None:
    assert set(SCENE_SCORERS) == set(TASKS)
    truth = {"truth": {"objects": [{"shape": "cube", "colour": "red"}]}}
    assert all(one.can_read({**truth, "kind": "objects"}) for one in SCENE_SCORERS.values())
    assert not any(one.can_read({"caption": "a cat"}) for one in SCENE_SCORERS.values())
    assert not SCENE_SCORERS["text_to_image"].can_read({**truth, "kind": "mannequin"})


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
