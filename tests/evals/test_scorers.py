"""Scorers for anyone's samples against answers of known worth, and how they are looked up."""

from pathlib import Path

import numpy as np
import pytest

from mgpt.errors import ConfigError, MachineError
from mgpt.evals import scorers
from mgpt.evals.cases import Case, Reply
from mgpt.evals.pictures import LPIPS_WEIGHTS, box_iou, class_colours, drawn_boxes, mean_iou
from mgpt.evals.scorers import SCORERS, find_scorer
from mgpt.evals.texts import edit_distance
from mgpt.tasks.registry import TASKS
from mgpt.tokens.chat import Conversation

CRIMSON, TEAL = (180, 20, 60), (0, 120, 130)  # colours that no data set of ours draws with


def case(truth: Reply, question_images: tuple = ()) -> Case:
    fields = tuple(f"field_{number}" for number in range(len(truth.images)))
    codes = {field: np.zeros((4, 4), np.uint16) for field in fields}
    return Case("key", "task", {}, Conversation(()), codes, "", fields, question_images, truth)


def plain(colour: tuple[int, int, int], side: int = 32) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


def noisy(picture: np.ndarray, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 6, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def test_every_task_names_a_scorer_of_the_table() -> None:
    assert {one.scorer for one in TASKS.values()} <= set(SCORERS)
    for name, scorer in SCORERS.items():
        assert scorer.metrics and not any(metric.goal for metric in scorer.metrics), name


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("a", "a", 0)],
)
def test_edit_distance_of_known_words(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == distance


def test_edit_distance_is_that_of_the_recurrence() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        first, second = ("".join(rng.choice(list("abc "), rng.integers(0, 90))) for _ in range(2))
        row = list(range(len(second) + 1))
        for number, character in enumerate(first, 1):
            diagonal, row[0] = row[0], number
            for place, other in enumerate(second, 1):
                best = min(row[place] + 1, row[place - 1] + 1, diagonal + (character != other))
                diagonal, row[place] = row[place], best
        assert edit_distance(first, second) == row[-1]


def test_text_answers_ignore_case_and_full_stop_only() -> None:
    found = SCORERS["edit_distance"].score(case(Reply("A grey cat.")), Reply("a  grey cat"))
    assert found == {"exact_match": 1.0, "edit_distance": 0.0}
    found = SCORERS["exact_match"].score(case(Reply("a grey cat")), Reply("a grey bat"))
    assert found == {"exact_match": 0.0, "edit_distance": pytest.approx(0.1)}
    assert SCORERS["exact_match"].score(case(Reply("red")), Reply(""))["edit_distance"] == 1.0


def test_pictures_are_compared_by_psnr_and_ssim() -> None:
    pytest.importorskip("torchmetrics", reason="pip install -e .[metrics]")
    truth = noisy(plain((120, 120, 120)), 1)
    for scorer in (SCORERS["picture"], SCORERS["free_picture"]):
        same = scorer.score(case(Reply("", (truth,))), Reply("", (truth,)))
        assert same == {"psnr_db": 100.0, "ssim": pytest.approx(1.0)}
        worse = scorer.score(case(Reply("", (truth,))), Reply("", (noisy(truth),)))
        assert 25 < worse["psnr_db"] < 40 and 0.1 < worse["ssim"] < 0.95
        missing = scorer.score(case(Reply("", (truth,))), Reply(""))
        assert missing["psnr_db"] < 8, "a missing picture counts as a black one"
    assert "no one right answer" in SCORERS["free_picture"].caveat
    assert not SCORERS["picture"].caveat


def test_ssim_is_that_of_scikit_image() -> None:
    pytest.importorskip("torchmetrics", reason="pip install -e .[metrics]")
    from skimage.metrics import structural_similarity

    first = noisy(plain((90, 130, 60), 64), 2)
    second = noisy(first, 3)
    expected = structural_similarity(
        first, second, channel_axis=2, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, data_range=255,
    )  # fmt: skip
    # They treat the rim of five pixels differently.
    assert scorers.ssim(first, second) == pytest.approx(expected, abs=0.02)


def test_mask_iou_finds_the_colours_of_the_truth() -> None:
    truth = plain(TEAL)
    truth[:, :16] = CRIMSON
    found = class_colours(noisy(truth))
    assert len(found) == 2
    for colour in (CRIMSON, TEAL):
        assert np.abs(found - colour).max(1).min() < 30
    assert mean_iou(truth, noisy(truth)) == 1.0
    moved = plain(TEAL)
    moved[:, :8] = CRIMSON
    assert mean_iou(truth, moved) == pytest.approx((8 / 16 + 16 / 24) / 2)


def test_a_box_of_any_colour_is_found_against_the_question() -> None:
    def framed(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        picture = plain((200, 200, 190))
        picture[y0:y1, x0:x1] = (250, 160, 0)
        picture[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] = (200, 200, 190)
        return picture

    question, truth = plain((200, 200, 190)), framed(4, 4, 20, 20)
    assert drawn_boxes(question, truth, noisy(truth)) == ((4, 4, 20, 20), (4, 4, 20, 20))
    asked, scorer = case(Reply("", (truth,)), (question,)), SCORERS["box_iou"]
    assert scorer.score(asked, Reply("", (noisy(framed(12, 4, 28, 20)),))) == {
        "box_iou": pytest.approx(1 / 3)
    }
    assert scorer.score(asked, Reply("", (noisy(question),))) == {"box_iou": 0.0}


def test_box_iou_of_known_boxes() -> None:
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0


def test_what_is_missing_is_named_before_anything_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorers, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"SSIM needs torchmetrics: pip install 'mgpt\[metrics"):
        SCORERS["picture"].check()
    monkeypatch.setattr(scorers, "find_spec", lambda name: object())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=f"LPIPS needs AlexNet's weights.*{LPIPS_WEIGHTS}.*never"):
        SCORERS["lpips"].check()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / LPIPS_WEIGHTS).write_bytes(b"")
    SCORERS["lpips"].check()


def test_a_scorer_of_ones_own_is_found_by_module_and_by_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from mgpt.evals.metrics import Metric, Scorer\n"
        "MINE = Scorer((Metric('length', 'characters', False),),\n"
        "              lambda case, reply: {'length': float(len(reply.text))})\n"
    )
    found = find_scorer(f"{file}:MINE", "scorers.caption")
    assert found.score(case(Reply("a")), Reply("four")) == {"length": 4.0}
    for name, message in {
        "psnrr": "scorers.caption: no scorer 'psnrr'; there are exact_match",
        f"{file}:OTHER": r"is no mgpt.evals.metrics.Scorer; write OTHER = Scorer",
        f"{tmp_path}/none.py:MINE": "there is no file",
        "mgpt.evals.nowhere:MINE": "cannot be imported",
        "mgpt.evals.texts:plain": "is no mgpt.evals.metrics.Scorer",
    }.items():
        with pytest.raises(ConfigError, match=message):
            find_scorer(name, "scorers.caption")
