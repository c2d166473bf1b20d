"""What is wrong with which node, from the facts of all: majority, median, and the best of each.

A node is blamed only where the others say so: of two that differ, or do not reach one another, it
cannot be told which is at fault, and both are named without blame.

    >>> problems = judge(Examined(reports, offsets_s, pairs, missing=["vn4"]), Limits())
    >>> [(problem.node, problem.check) for problem in problems], blamed(problems)
    ([('vn4', 'reports'), ('vn2', 'clock')], ['vn2', 'vn4'])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

_SHOWN_VERSIONS = 5


@dataclass(frozen=True)
class Limits:
    """How far a node may be from the others."""

    clock_skew_s: float = 1.0
    """From the median of all clocks, in seconds."""
    link_share: float = 0.5
    """Of the bandwidth that is usual between nodes; a node is judged by its best pair."""
    gpu_share: float = 0.8
    """Of the median GPU's matrix product, and of the median copy between two of a node."""
    file_share: float = 0.2
    """Of the median node's writing."""
    free_gb: float = 1.0
    """Least room in the folder."""

    def __post_init__(self) -> None:
        for name in ("link_share", "gpu_share", "file_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is a share, from 0 to below 1")
        for name in ("clock_skew_s", "free_gb"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class Examined:
    """What was found out."""

    reports: Mapping[str, Mapping[str, Any]]
    """Node → its facts."""
    offsets_s: Mapping[str, float] = field(default_factory=dict)
    """Node → its clock minus the first node's."""
    pairs: Sequence[Mapping[str, Any]] = ()
    """{"nodes": [a, b], "gb_s": …} of each two nodes, or "error" in its place."""
    missing: Sequence[str] = ()
    """Nodes that never reported."""
    unseen: Sequence[str] = ()
    """Nodes whose files the first node does not see in the output folder."""


@dataclass(frozen=True)
class Problem:
    """One finding; `is_blamed` where it is this node's fault, beyond doubt."""

    node: str
    check: str
    what: str
    is_blamed: bool = True

    def line(self) -> str:
        """`vn2 (clock): 12.3 s ahead of the others`."""
        return f"{self.node} ({self.check}): {self.what}"


def blamed(problems: Sequence[Problem]) -> list[str]:
    """The nodes to do without, each once."""
    return sorted({problem.node for problem in problems if problem.is_blamed})


def judge(examined: Examined, limits: Limits) -> list[Problem]:
    """Everything that is wrong, node by node within each check."""
    # Where the first node alone is heard, it may be the one that cannot be reached.
    is_heard = len(examined.reports) > 1
    return [
        *[Problem(node, "reports", "said nothing", is_heard) for node in examined.missing],
        *[
            Problem(node, "files", "its files in the output folder are not seen by the first node")
            for node in examined.unseen
        ],
        *_versions(examined),
        *_gpus(examined, limits),
        *_files(examined, limits),
        *_clocks(examined, limits),
        *_pairs(examined, limits),
    ]


def _versions(examined: Examined) -> list[Problem]:
    reports = examined.reports
    names = sorted({name for facts in reports.values() for name in facts["versions"]})
    wrong: dict[str, list[str]] = {}
    undecided: list[str] = []
    for name in names:
        values = {node: facts["versions"].get(name, "none") for node, facts in reports.items()}
        usual, count = Counter(values.values()).most_common(1)[0]
        if count == len(values):
            continue
        if 2 * count <= len(values):
            undecided.append(f"{name} {', '.join(sorted(set(values.values())))}")
            continue
        for node, value in values.items():
            if value != usual:
                wrong.setdefault(node, []).append(f"{name} {value}, the others {usual}")
    problems = [Problem(node, "versions", _few(words)) for node, words in sorted(wrong.items())]
    if undecided:
        problems.append(Problem(_names(reports), "versions", _few(undecided), is_blamed=False))
    return problems


def _few(words: Sequence[str]) -> str:
    rest = len(words) - _SHOWN_VERSIONS
    return "; ".join(words[:_SHOWN_VERSIONS]) + (f"; and {rest} more" if rest > 0 else "")


def _names(nodes: Mapping[str, Any] | Sequence[str]) -> str:
    return " and ".join(sorted(nodes)) if len(nodes) == 2 else ", ".join(sorted(nodes))


def _gpus(examined: Examined, limits: Limits) -> list[Problem]:
    problems = []
    reports = examined.reports
    usual = _usual([len(facts["gpus"]) for facts in reports.values()])
    products = [gpu["tflops"] for facts in reports.values() for gpu in _speeds(facts, "gpus")]
    copies = [
        speed for facts in reports.values() for speed in dict(_speeds(facts, "copies")).values()
    ]
    usual_links = _usual([sorted(facts["links"].items()) for facts in reports.values()])
    for node, facts in sorted(reports.items()):

        def note(what: str, node: str = node) -> None:
            problems.append(Problem(node, "gpus", what))

        if usual is not None and len(facts["gpus"]) != usual:
            note(f"{len(facts['gpus'])} GPUs, the others {usual}")
        for gpu in facts["gpus"]:
            errors = gpu["uncorrected_errors"]
            if errors.isdigit() and int(errors) > 0:
                note(f"GPU {gpu['index']} has {errors} uncorrected memory errors")
        if "error" in facts.get("speeds", {}):
            note(f"a matrix product on each GPU: {facts['speeds']['error']}")
        elif len(_speeds(facts, "gpus")) != len(facts["gpus"]):
            seen = len(_speeds(facts, "gpus"))
            note(f"nvidia-smi lists {len(facts['gpus'])} GPUs, torch sees {seen}")
        for index, gpu in enumerate(_speeds(facts, "gpus")):
            if gpu["tflops"] < limits.gpu_share * median(products):
                note(f"GPU {index}: {gpu['tflops']:.0f} TFLOP/s, usual {median(products):.0f}")
        for pair, speed in dict(_speeds(facts, "copies")).items():
            if speed < limits.gpu_share * median(copies):
                note(f"{pair}: copies of {speed:.0f} GB/s, usual {median(copies):.0f}")
        if usual_links is not None and sorted(facts["links"].items()) != usual_links:
            note("its GPUs are joined otherwise than the others'")
    return problems


def _speeds(facts: Mapping[str, Any], what: str) -> Any:
    return facts.get("speeds", {}).get(what, [])


def _usual(values: Sequence[Any]) -> Any:
    """The value of more than half; None where there is none."""
    for value in values:
        if 2 * values.count(value) > len(values):
            return value
    return None


def _files(examined: Examined, limits: Limits) -> list[Problem]:
    problems = []
    measured = {node: facts["files"] for node, facts in sorted(examined.reports.items())}
    speeds = [files["write_mb_s"] for files in measured.values() if "error" not in files]
    for node, files in measured.items():
        if "error" in files:
            problems.append(Problem(node, "files", files["error"]))
            continue
        if files["write_mb_s"] < limits.file_share * median(speeds):
            what = f"writes {files['write_mb_s']:.0f} MB/s, usual {median(speeds):.0f}"
            problems.append(Problem(node, "files", what))
        if files["free_gb"] < limits.free_gb:
            what = f"{files['free_gb']:.2f} GB free, less than {limits.free_gb:g}"
            problems.append(Problem(node, "files", what, is_blamed=False))
    return problems


def _clocks(examined: Examined, limits: Limits) -> list[Problem]:
    offsets_s = examined.offsets_s
    if len(offsets_s) < 2:
        return []
    if len(offsets_s) == 2:
        apart_s = max(offsets_s.values()) - min(offsets_s.values())
        if apart_s <= limits.clock_skew_s:
            return []
        what = f"clocks {apart_s:.3g} s apart"
        return [Problem(_names(offsets_s), "clock", what, is_blamed=False)]
    middle_s = median(offsets_s.values())
    return [
        Problem(node, "clock", f"{abs(off_s):.3g} s {'ahead of' if off_s > 0 else 'behind'} others")
        for node, off_s in sorted((node, at_s - middle_s) for node, at_s in offsets_s.items())
        if abs(off_s) > limits.clock_skew_s
    ]


def _pairs(examined: Examined, limits: Limits) -> list[Problem]:
    """A node is at fault where its best pair is bad; else the two of a bad pair are named."""
    best: dict[str, float] = {}
    for pair in examined.pairs:
        for node in pair["nodes"]:
            best[node] = max(best.get(node, 0.0), pair.get("gb_s", 0.0))
    if not best:
        return []
    least = limits.link_share * median(best.values())
    bad = {node for node, speed in best.items() if speed <= least} if len(best) > 2 else set()
    if len(bad) == len(best):
        bad = set()
    problems = []
    for node in sorted(bad):
        errors = [p["error"] for p in examined.pairs if node in p["nodes"] and "error" in p]
        found = errors[0] if best[node] == 0.0 and errors else f"{best[node]:.3g} GB/s at best"
        what = f"with every other node: {found}; usual {median(best.values()):.3g} GB/s"
        problems.append(Problem(node, "network", what))
    for pair in examined.pairs:
        if bad & set(pair["nodes"]):
            continue
        name = _names(pair["nodes"])
        if "error" in pair:
            problems.append(Problem(name, "network", pair["error"], is_blamed=False))
        elif pair["gb_s"] < least:
            what = f"{pair['gb_s']:.3g} GB/s between them"
            problems.append(Problem(name, "network", what, is_blamed=False))
    return problems
