"""Who is to blame: majority, median, and the best pair of each node."""

from itertools import combinations
from typing import Any

import pytest

from mgpt.launching.doctor.findings import Examined, Limits, Problem, blamed, judge

FILES = {"write_mb_s": 1000.0, "read_mb_s": 2000.0, "small_ms": 1.0, "free_gb": 100.0}


def facts(node: str, **changed: Any) -> dict[str, Any]:
    well = {
        "node": node,
        "versions": {"torch": "2.13.0", "python": "3.11.2"},
        "gpus": [],
        "links": {},
        "files": FILES,
    }
    return {**well, **changed}


def with_gpus(node: str, tflops: list[float], copy_gb_s: float = 300.0, **changed: Any) -> Any:
    gpus = [{"index": str(n), "uncorrected_errors": "0"} for n in range(2)]
    speeds = {"gpus": [{"tflops": t} for t in tflops], "copies": {"GPU0-GPU1": copy_gb_s}}
    return facts(node, gpus=gpus, links={"GPU0-GPU1": "NV18"}, speeds=speeds) | changed


def found(reports: list[dict[str, Any]], **examined: Any) -> list[Problem]:
    return judge(Examined({one["node"]: one for one in reports}, **examined), Limits())


def pairs(nodes: str, slow: dict[str, float | str] | None = None) -> list[dict[str, Any]]:
    """All pairs of one-letter nodes at 10 GB/s but those given: a speed, or words of an error."""
    made = []
    for first, second in combinations(nodes, 2):
        value = (slow or {}).get(first + second, 10.0)
        result = {"error": value} if isinstance(value, str) else {"gb_s": value}
        made.append({"nodes": [first, second], **result})
    return made


def test_healthy_nodes_have_no_problem() -> None:
    reports = [with_gpus(node, [700.0, 690.0]) for node in "abc"]
    offsets_s = {"a": 0.0, "b": 0.4, "c": -0.3}
    assert found(reports, offsets_s=offsets_s, pairs=pairs("abc")) == []


def test_silent_and_unseen_nodes_are_blamed() -> None:
    problems = found([facts("a"), facts("b")], missing=["c"], unseen=["b"])
    assert [problem.node for problem in problems] == ["c", "b"]
    assert blamed(problems) == ["b", "c"]


def test_where_the_first_node_alone_is_heard_nobody_is_blamed() -> None:
    problems = found([facts("a")], missing=["b", "c"])
    assert len(problems) == 2 and blamed(problems) == []


def test_versions_differ_from_the_majority() -> None:
    other = facts("b", versions={"torch": "2.12.0", "python": "3.11.2", "extra": "1"})
    (problem,) = found([facts("a"), other, facts("c")])
    assert (problem.node, problem.check, problem.is_blamed) == ("b", "versions", True)
    assert problem.what == "extra 1, the others none; torch 2.12.0, the others 2.13.0"


def test_of_two_that_differ_neither_is_blamed() -> None:
    other = facts("b", versions={"torch": "2.12.0", "python": "3.11.2"})
    (problem,) = found([facts("a"), other])
    assert (problem.node, problem.what) == ("a and b", "torch 2.12.0, 2.13.0")
    assert blamed([problem]) == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (with_gpus("b", [700.0, 400.0]), "GPU 1: 400 TFLOP/s, usual 700"),
        (with_gpus("b", [700.0, 700.0], copy_gb_s=20.0), "GPU0-GPU1: copies of 20 GB/s, usual 300"),
        (with_gpus("b", [700.0, 700.0], links={"GPU0-GPU1": "SYS"}), "joined otherwise"),
        (with_gpus("b", [700.0]), "nvidia-smi lists 2 GPUs, torch sees 1"),
        (with_gpus("b", [700.0, 700.0], speeds={"error": "no answer"}), "no answer"),
        (facts("b", links={"GPU0-GPU1": "NV18"}), "0 GPUs, the others 2"),
        (
            with_gpus("b", [700.0, 700.0])
            | {
                "gpus": [
                    {"index": "0", "uncorrected_errors": "3"},
                    {"index": "1", "uncorrected_errors": "[N/A]"},
                ]
            },
            "GPU 0 has 3 uncorrected memory errors",
        ),
    ],
)
def test_a_bad_gpu_is_named(bad: dict[str, Any], words: str) -> None:
    (problem,) = found([with_gpus("a", [700.0, 700.0]), bad, with_gpus("c", [700.0, 700.0])])
    assert (problem.node, problem.check) == ("b", "gpus") and words in problem.what


def test_a_slow_or_unwritable_folder_is_named_and_a_full_one_is_nobodys_fault() -> None:
    slow, broken = {**FILES, "write_mb_s": 100.0}, {"error": "/out: Read-only file system"}
    reports = [facts("a"), facts("b", files=slow), facts("c", files=broken), facts("d")]
    problems = found(reports)
    assert [problem.line() for problem in problems] == [
        "b (files): writes 100 MB/s, usual 1000",
        "c (files): /out: Read-only file system",
    ]
    (full,) = found([facts("a", files={**FILES, "free_gb": 0.5})])
    assert full.what == "0.50 GB free, less than 1" and not full.is_blamed


def test_the_clock_that_is_off_is_found_even_where_it_is_the_first_nodes() -> None:
    reports = [facts(node) for node in "abc"]
    (problem,) = found(reports, offsets_s={"a": 0.0, "b": -7.5, "c": -7.4})
    assert problem.line() == "a (clock): 7.4 s ahead of others"
    (undecided,) = found(reports[:2], offsets_s={"a": 0.0, "b": -7.5})
    assert undecided.line() == "a and b (clock): clocks 7.5 s apart" and not undecided.is_blamed


def test_a_node_that_is_slow_with_all_others_is_blamed_and_named_once() -> None:
    reports = [facts(node) for node in "abc"]
    (problem,) = found(reports, pairs=pairs("abc", {"ac": 2.0, "bc": 2.1}))
    assert (problem.node, problem.is_blamed) == ("c", True)
    assert problem.what == "with every other node: 2.1 GB/s at best; usual 10 GB/s"


def test_a_node_that_reaches_no_other_is_blamed() -> None:
    reports = [facts(node) for node in "abcd"]
    dead = {"bd": "timed out", "ab": "timed out", "bc": "timed out"}
    (problem,) = found(reports, pairs=pairs("abcd", dead))
    assert problem.node == "b" and "timed out" in problem.what


def test_one_bad_way_between_good_nodes_is_named_without_blame() -> None:
    reports = [facts(node) for node in "abcd"]
    problems = found(reports, pairs=pairs("abcd", {"ab": "timed out", "cd": 1.0}))
    assert [(p.node, p.is_blamed) for p in problems] == [("a and b", False), ("c and d", False)]


def test_where_nothing_works_nobody_is_blamed() -> None:
    reports = [facts(node) for node in "abc"]
    dead = {"ab": "no", "ac": "no", "bc": "no"}
    problems = found(reports, pairs=pairs("abc", dead))
    assert len(problems) == 3 and blamed(problems) == []


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match=r"link_share=1\.5 is a share"):
        Limits(link_share=1.5)
