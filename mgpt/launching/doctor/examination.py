"""The health of the nodes of a job, before it starts: one process of each speaks, one verdict.

Every node gathers its facts; all meet at a store on the first node, which compares clocks, lets
each two nodes all-reduce, and judges. A node that says nothing, hangs or dies costs a bounded wait
and is named. Knows nothing of Slurm but the names of its variables.

    >>> examine(DoctorConfig(output="outputs/doctor"), Tracker(...))   # alone: this machine
    []
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mgpt.errors import MachineError
from mgpt.files.atomic import atomic_write, disk_errors
from mgpt.launching.doctor.findings import Examined, Limits, Problem, blamed, judge
from mgpt.launching.doctor.node_facts import node_facts, node_name
from mgpt.launching.doctor.speeds import Bench, gpu_speeds, pair_speed
from mgpt.tracking.tracker import Tracker

REPORT, BAD_NODES = "doctor.json", "bad_nodes"
PORT = 29400  # where nobody says another
_CLOCK_ROUNDS = 5
_MARKS_PATIENCE_S = 10.0  # network file systems show a new file seconds later
_SLOWEST_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What is examined, and how far a node may be from the others."""

    output: str
    """Folder for doctor.json and bad_nodes, on the file system that is measured."""
    patience_s: float = 120.0
    """Longest wait for the nodes to meet, in seconds."""
    pair_patience_s: float = 30.0
    """Longest all-reduce between two nodes, with its start; nodes - 1 rounds of pairs are run."""
    payload_mb: int = 64
    """Size of what two nodes all-reduce, in 1e6 bytes."""
    file_mb: int = 256
    """Size of the file that each node writes and reads, in MiB."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("patience_s", "pair_patience_s", "payload_mb", "file_mb"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")


@dataclass(frozen=True)
class NodePlace:
    """This node among those of the examination."""

    rank: int
    size: int
    local_rank: int
    """Of this process on its node; the first one speaks for it."""
    address: str
    port: int
    has_store: bool
    """Whether the launcher holds the store already, as torchrun does."""

    @classmethod
    def of_environment(cls) -> NodePlace:
        """As srun or torchrun says; alone where nothing does, as in a batch script's own line."""
        env = os.environ
        rank, size, local_rank = "0", "1", "0"
        if "SLURM_STEP_ID" in env and "TORCHELASTIC_RUN_ID" not in env:
            rank, local_rank = env["SLURM_NODEID"], env["SLURM_LOCALID"]
            size = env.get("SLURM_STEP_NUM_NODES") or env["SLURM_NNODES"]
        elif "RANK" in env:
            rank, size = env.get("GROUP_RANK", env["RANK"]), env["WORLD_SIZE"]
            local_rank = env.get("LOCAL_RANK", "0")
            if "GROUP_RANK" in env:
                size = env.get("GROUP_WORLD_SIZE", size)
        address = env.get("MASTER_ADDR") or (_first_node() if int(size) > 1 else "localhost")
        port = int(env.get("MASTER_PORT", PORT))
        has_store = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(int(rank), int(size), int(local_rank), address, port, has_store)


def _first_node() -> str:
    names = _job_nodes()
    if not names:
        raise MachineError(
            "doctor: several processes and no MASTER_ADDR; set it, and MASTER_PORT, to the first "
            "node's name and a free port there"
        )
    return names[0]


def examine(cfg: DoctorConfig, tracker: Tracker) -> list[Problem]:
    """The verdict over all nodes; an empty list from processes other than the first node's first.

    Writes doctor.json, and bad_nodes where a node is to blame. Raises MachineError where the
    nodes' store cannot be reached.
    """
    place = NodePlace.of_environment()
    if place.local_rank > 0:
        return []
    folder = Path(cfg.output)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if place.rank == 0:
        for name in (REPORT, BAD_NODES):
            (folder / name).unlink(missing_ok=True)
    with Bench() as bench:
        facts = node_facts(folder, cfg.file_mb)
        if facts["gpus"]:
            facts["speeds"] = bench.measure(gpu_speeds, (), cfg.patience_s)
        if place.size == 1:
            examined = Examined({facts["node"]: facts})
        else:
            with _trouble(place):
                table = Table(_meet(place, cfg.patience_s), place, cfg, bench)
                if place.rank > 0:
                    table.attend(facts)
                    return []
                examined = table.preside(facts)
    problems = judge(examined, cfg.limits)
    _write(folder, examined, problems)
    _show(tracker, examined, problems)
    return problems


@contextmanager
def _trouble(place: NodePlace) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:  # torch's own kinds of a store that is not there
        raise MachineError(
            f"doctor: {node_name()} (rank {place.rank} of {place.size}) lost the first node's "
            f"store at {place.address}:{place.port}: {str(error).splitlines()[0]}"
        ) from error


def _meet(place: NodePlace, patience_s: float) -> dist.Store:
    return dist.TCPStore(
        place.address,
        place.port,
        is_master=place.rank == 0 and not place.has_store,
        timeout=timedelta(seconds=patience_s),
        wait_for_workers=False,
    )


class Table:
    """Where the nodes meet: the first presides, the others do as it says.

    Every word is a key of the store, and every wait for one is bounded.
    """

    def __init__(
        self, store: dist.Store, place: NodePlace, cfg: DoctorConfig, bench: Bench
    ) -> None:
        self._store = dist.PrefixStore("doctor", store)
        self._place, self._cfg, self._bench = place, cfg, bench
        # Rank → why nobody waits for it any more.
        self._given_up: dict[int, str] = {}

    # --- the first node ---------------------------------------------------------------------

    def preside(self, facts: dict[str, Any]) -> Examined:
        """Gathers the reports, then measures clocks and pairs among the nodes that reported."""
        self._say(f"report/{self._place.rank}", facts)
        reports, missing = self._gather()
        names = {rank: report["node"] for rank, report in reports.items()}
        unseen = self._unseen(names)
        on_gpu = all(report["gpus"] for report in reports.values())
        rounds = pairings(sorted(reports))
        self._say("plan", {"rounds": rounds, "on_gpu": on_gpu})
        offsets_s = {names[rank]: self._offset_s(rank, names[rank]) for rank in sorted(reports)}
        pairs = []
        for number, pairing in enumerate(rounds):
            self._say(f"round/{number}", sorted(self._given_up))
            self._meet_partner(pairing, on_gpu)
            pairs += [self._pair_result(pair, names) for pair in pairing]
            self._given_up |= {
                rank: f"{names[rank]} failed with {' and '.join(others)}"
                for rank in reports.keys() - self._given_up.keys()
                if (others := failed_with(names[rank], pairs))
            }
        self._say("end", True)
        time.sleep(0.5)  # the others hear it before the store goes with this process
        return Examined(
            reports={report["node"]: report for report in reports.values()},
            offsets_s={node: off_s for node, off_s in offsets_s.items() if off_s is not None},
            pairs=pairs,
            missing=missing,
            unseen=unseen,
        )

    def _gather(self) -> tuple[dict[int, dict[str, Any]], list[str]]:
        deadline = time.monotonic() + self._cfg.patience_s
        reports: dict[int, dict[str, Any]] = {}
        waiting = set(range(self._place.size))
        while waiting and time.monotonic() < deadline:
            for rank in sorted(waiting):
                if self._store.check([f"report/{rank}"]):
                    reports[rank] = self._hear(f"report/{rank}")
                    waiting.discard(rank)
            time.sleep(0.05)
        known = _job_nodes()
        if len(known) == self._place.size:  # Slurm numbers the tasks in the order of its nodes
            return reports, [known[rank] for rank in sorted(waiting)]
        return reports, [f"rank {rank}" for rank in sorted(waiting)]

    def _unseen(self, names: dict[int, str]) -> list[str]:
        """Nodes whose marks in the output folder do not show here in time."""
        folder = Path(self._cfg.output)
        self._leave_mark()
        self._say("marks", True)
        deadline = time.monotonic() + _MARKS_PATIENCE_S
        waiting = set(names.values())
        while waiting and time.monotonic() < deadline:
            with suppress(OSError):
                os.listdir(folder)  # has a network file system look again
            waiting -= {node for node in waiting if (folder / _mark(node)).exists()}
            time.sleep(0.05)
        for node in names.values():
            (folder / _mark(node)).unlink(missing_ok=True)
        return sorted(waiting)

    def _offset_s(self, rank: int, node: str) -> float | None:
        """The node's clock minus this one's: half-way through the quickest exchange."""
        if rank == self._place.rank:
            return 0.0
        best = (float("inf"), 0.0)
        for number in range(_CLOCK_ROUNDS):
            began_s = time.time()
            self._say(f"ping/{rank}/{number}", True)
            try:
                theirs_s = self._hear(f"pong/{rank}/{number}", self._cfg.pair_patience_s)
            except RuntimeError:
                self._given_up[rank] = _no_result(node)
                return None
            ended_s = time.time()
            best = min(best, (ended_s - began_s, theirs_s - (began_s + ended_s) / 2))
        return best[1]

    def _pair_result(self, pair: list[int], names: dict[int, str]) -> dict[str, Any]:
        found: dict[str, Any] = {"nodes": [names[rank] for rank in pair]}
        if not self._given_up.keys() & pair:
            for rank in pair:
                try:
                    found |= self._hear(self._pair_key(pair, rank), self._cfg.pair_patience_s + 10)
                except RuntimeError:
                    self._given_up[rank] = _no_result(names[rank])
        for rank in sorted(self._given_up.keys() & pair):
            found["error"] = self._given_up[rank]
        if "error" in found:
            found.pop("gb_s", None)
        return found

    # --- the others -------------------------------------------------------------------------

    def attend(self, facts: dict[str, Any]) -> None:
        """Reports, then does what the first node asks for, until its end."""
        rank, patience_s = self._place.rank, 2 * self._cfg.patience_s + 60
        self._say(f"report/{rank}", facts)
        self._hear_or_end("marks", patience_s)
        self._leave_mark()
        plan = self._hear_or_end("plan", patience_s)
        if plan is None:
            return
        if not any(rank in pair for pairing in plan["rounds"] for pair in pairing):
            return  # the report came too late
        for number in range(_CLOCK_ROUNDS):
            self._hear(f"ping/{rank}/{number}", patience_s + self._place.size)
            self._say(f"pong/{rank}/{number}", time.time())
        for number, pairing in enumerate(plan["rounds"]):
            self._given_up = dict.fromkeys(self._hear(f"round/{number}", patience_s), "")
            self._meet_partner(pairing, plan["on_gpu"])
        self._hear("end", patience_s)

    # --- both -------------------------------------------------------------------------------

    def _meet_partner(self, pairing: list[list[int]], on_gpu: bool) -> None:
        """This node's all-reduce of a round, and its result."""
        rank, cfg = self._place.rank, self._cfg
        pair = next((pair for pair in pairing if rank in pair), None)
        if pair is None or self._given_up.keys() & pair:
            return
        name = f"{pair[0]}-{pair[1]}"
        place = (self._place.address, self._place.port, f"doctor/{name}", pair.index(rank))
        arguments = (*place, on_gpu, cfg.payload_mb, cfg.pair_patience_s)
        result = self._bench.measure(pair_speed, arguments, cfg.pair_patience_s)
        self._say(self._pair_key(pair, rank), result)

    def _pair_key(self, pair: Sequence[int], rank: int) -> str:
        return f"pair/{pair[0]}-{pair[1]}/{rank}"

    def _leave_mark(self) -> None:
        with suppress(OSError):  # that it cannot be written is among the facts
            (Path(self._cfg.output) / _mark(node_name())).touch()

    def _say(self, key: str, words: Any) -> None:
        self._store.set(key, json.dumps(words))

    def _hear(self, key: str, patience_s: float | None = None) -> Any:
        """RuntimeError where nobody says it in time."""
        self._store.wait([key], timedelta(seconds=patience_s or self._cfg.patience_s))
        return json.loads(self._store.get(key))

    def _hear_or_end(self, key: str, patience_s: float) -> Any:
        """None where the first node ends the examination instead."""
        deadline = time.monotonic() + patience_s
        while not self._store.check([key]):
            if self._store.check(["end"]):
                return None
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {key} within {patience_s:g} s")
            time.sleep(0.02)
        return self._hear(key)


def pairings(ranks: Sequence[int]) -> list[list[list[int]]]:
    """Rounds of disjoint pairs in which each two meet once: the circle method of tournaments.

    >>> pairings([0, 1, 2, 3])
    [[[0, 3], [1, 2]], [[0, 2], [1, 3]], [[0, 1], [2, 3]]]
    """
    seats: list[int | None] = [*ranks, *([None] if len(ranks) % 2 else [])]
    rounds = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        facing = zip(seats[:half], reversed(seats[half:]), strict=True)
        rounds.append(sorted(sorted([a, b]) for a, b in facing if a is not None and b is not None))
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


def failed_with(node: str, pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Two nodes in order that this one failed with and that are well with another, where it has
    met none without an error; else nothing. A node that is cut off would cost a wait in each round.

    >>> failed_with("c", [{"nodes": ["a", "b"], "gb_s": 9.0}, {"nodes": ["a", "c"], "error": "no"},
    ...                   {"nodes": ["b", "c"], "error": "no"}])
    ['a', 'b']
    """
    well = {name for pair in pairs if "error" not in pair for name in pair["nodes"]}
    met = {name for pair in pairs if node in pair["nodes"] for name in pair["nodes"]}
    others = sorted((met & well) - {node})
    return others[:2] if node not in well and len(others) > 1 else []


def _no_result(node: str) -> str:
    return f"{node} gave no result"


def _mark(node: str) -> str:
    return f".{node}.here"


def _job_nodes() -> list[str]:
    """Slurm's names of the job's nodes, in its order; none outside a job."""
    if "SLURM_JOB_NODELIST" not in os.environ:
        return []
    words = ["scontrol", "show", "hostnames"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=30).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []


def _write(folder: Path, examined: Examined, problems: Sequence[Problem]) -> None:
    nodes = {
        node: {**facts, "clock_offset_s": examined.offsets_s.get(node)}
        for node, facts in examined.reports.items()
    }
    bad = blamed(problems)
    report = {
        "ok": not problems,
        "bad_nodes": bad,
        "problems": [asdict(problem) for problem in problems],
        "pairs": list(examined.pairs),
        "nodes": nodes,
    }
    if bad:
        atomic_write(folder / BAD_NODES, "".join(f"{node}\n" for node in bad).encode())
    atomic_write(folder / REPORT, (json.dumps(report, indent=1) + "\n").encode())


def _show(tracker: Tracker, examined: Examined, problems: Sequence[Problem]) -> None:
    rows = []
    for node, facts in examined.reports.items():
        found = [problem.check for problem in problems if node in problem.node.split(" and ")]
        files = facts["files"]
        offset_s = examined.offsets_s.get(node)
        products = [gpu["tflops"] for gpu in facts.get("speeds", {}).get("gpus", [])]
        best = max((p.get("gb_s", 0.0) for p in examined.pairs if node in p["nodes"]), default=None)
        rows.append(
            [
                node,
                len(facts["gpus"]),
                min(products) if products else "–",
                "–" if offset_s is None else f"{1e3 * offset_s:+.1f}",
                files.get("write_mb_s", "–"),
                files.get("read_mb_s", "–"),
                "–" if best is None else best,
                ", ".join(found) or "well",
            ]
        )
    columns = ["node", "GPUs", "slowest, TFLOP/s", "clock, ms", "writes, MB/s", "reads, MB/s"]
    tracker.table("nodes", [*columns, "best pair, GB/s", "verdict"], rows)
    slowest = sorted(examined.pairs, key=lambda pair: pair.get("gb_s", 0.0))[:_SLOWEST_SHOWN]
    if slowest:
        shown = [["–".join(p["nodes"]), p.get("gb_s", p.get("error"))] for p in slowest]
        title = f"the slowest of {len(examined.pairs)} pairs"
        tracker.table(title, ["nodes", "all-reduce, GB/s"], shown)
