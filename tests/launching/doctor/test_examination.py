"""The examination: facts of this machine, and several nodes of which one is at fault."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from mgpt.launching.doctor import examination, node_facts
from mgpt.launching.doctor.examination import (
    DoctorConfig,
    NodePlace,
    examine,
    failed_with,
    pairings,
)
from mgpt.launching.doctor.speeds import Bench, pair_speed
from mgpt.tracking.tracker import Tracker, TrackingConfig

LAUNCHERS = ("SLURM", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "MASTER_", "TORCHELASTIC")
SMI = """#!/bin/sh
case "$1" in
topo) printf '\\tGPU0\\tGPU1\\tNIC0\\tCPU Affinity\\n'
      printf 'GPU0\\t X \\t\\033[4mNV18\\033[0m\\tPIX\\t0-55\\nGPU1\\tNV18\\t X \\tSYS\\t0-55\\n'
      printf 'NIC0\\tPIX\\tSYS\\t X \\t\\n\\nLegend:\\n\\n  X    = Self\\n' ;;
*) echo '0, NVIDIA H100 80GB HBM3, 570.86, 81559, 0, 31, 16, 16'
   echo '1, NVIDIA H100 80GB HBM3, 570.86, 81559, 2, [N/A], 8, 16' ;;
esac
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(TrackingConfig(mode="disabled"), tmp_path, "doctor", record=False)


def test_gpus_and_their_links_are_read_from_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first, second = node_facts.gpus()
    assert first["name"] == "NVIDIA H100 80GB HBM3" and first["driver"] == "570.86"
    assert (second["uncorrected_errors"], second["temperature_c"]) == ("2", "[N/A]")
    assert node_facts.gpu_links() == {"GPU0-GPU1": "NV18"}


def test_without_nvidia_smi_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert node_facts.gpus() == [] and node_facts.gpu_links() == {}


def test_files_are_measured_and_leave_nothing(tmp_path: Path) -> None:
    speeds = node_facts.measure_files(tmp_path, file_mb=1)
    assert min(speeds.values()) > 0 and list(tmp_path.iterdir()) == []
    missing = node_facts.measure_files(tmp_path / "none", file_mb=1)
    assert missing == {"error": f"{tmp_path / 'none'}: No such file or directory"}


def test_versions_name_packages_and_the_code() -> None:
    found = node_facts.versions()
    assert found["python"].startswith("3.") and "numpy" in found and len(found["mgpt code"]) == 12


@pytest.mark.parametrize("size", [2, 3, 4, 7, 8])
def test_each_two_meet_once_and_nobody_twice_in_a_round(size: int) -> None:
    rounds = pairings(range(size))
    met = [tuple(pair) for pairing in rounds for pair in pairing]
    assert sorted(met) == list(combinations(range(size), 2))
    for pairing in rounds:
        ranks = [rank for pair in pairing for rank in pair]
        assert len(set(ranks)) == len(ranks)


def test_one_machine_is_examined_alone(tmp_path: Path, tracker: Tracker) -> None:
    (tmp_path / "bad_nodes").write_text("from another day")
    cfg = DoctorConfig(output=str(tmp_path), file_mb=1)
    problems = examine(cfg, tracker)
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert report["bad_nodes"] == [] and report["ok"] == (not problems)
    assert list(report["nodes"]) == [node_facts.node_name()]
    assert not (tmp_path / "bad_nodes").exists()


def test_the_place_is_a_steps_or_torchruns_and_a_batch_script_is_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def given(**environment: object) -> NodePlace:
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        return NodePlace.of_environment()

    assert given(SLURM_NODEID=0, SLURM_LOCALID=0, SLURM_NNODES=2).size == 1
    step = given(SLURM_STEP_ID=0, SLURM_NODEID=1, SLURM_LOCALID=3, MASTER_ADDR="vn1", RANK=7)
    assert step == NodePlace(1, 2, 3, "vn1", examination.PORT, has_store=False)
    torchrun = {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    place = given(**torchrun, WORLD_SIZE=8, LOCAL_RANK=1, GROUP_RANK=2, GROUP_WORLD_SIZE=4)
    assert place == NodePlace(2, 4, 1, "vn1", examination.PORT, has_store=True)
    assert given(MASTER_PORT=77).port == 77


def test_what_hangs_or_dies_is_a_finding() -> None:
    with Bench() as bench:
        assert bench.measure(time.sleep, (60,), 0.1) == {"error": "no answer in 0.1 s"}
        assert bench.measure(os._exit, (7,), 60) == {"error": "ended with status 7"}
        nobody = ("localhost", 9, "a", 1, False, 1, 1.0)
        assert "error" in bench.measure(pair_speed, nobody, 60)


class StillBench:
    """Measures nothing; remembers the names of the pairs it was asked for."""

    def __init__(self) -> None:
        self.pairs: list[str] = []

    def measure(self, measure: object, arguments: tuple, patience_s: float) -> dict[str, float]:
        self.pairs.append(arguments[2])
        return {"gb_s": 1.0}


def test_a_node_that_falls_silent_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "_MARKS_PATIENCE_S", 0.2)
    store, cfg = dist.HashStore(), DoctorConfig(output=str(tmp_path), pair_patience_s=0.5)
    benches = [StillBench(), StillBench()]
    first, second = (
        examination.Table(store, NodePlace(rank, 3, 0, "", 0, False), cfg, bench)  # type: ignore[arg-type]
        for rank, bench in enumerate(benches)
    )
    dist.PrefixStore("doctor", store).set("report/2", json.dumps({"node": "c", "gpus": []}))
    monkeypatch.setenv("SLURMD_NODENAME", "a")
    attending = threading.Thread(target=second.attend, args=({"node": "b", "gpus": []},))
    attending.start()
    examined = first.preside({"node": "a", "gpus": []})
    attending.join(timeout=20)
    assert not attending.is_alive()
    assert set(examined.offsets_s) == {"a", "b"} and "c" in examined.unseen
    results = {"-".join(pair["nodes"]): pair for pair in examined.pairs}
    assert results["a-b"]["gb_s"] == 1.0
    assert results["a-c"]["error"] == results["b-c"]["error"] == "c gave no result"
    assert [bench.pairs for bench in benches] == [["doctor/0-1"], ["doctor/0-1"]]


class CutOffBench(StillBench):
    """The same, but the node of rank 2 reaches no other."""

    def measure(self, measure: object, arguments: tuple, patience_s: float) -> dict[str, Any]:
        result = super().measure(measure, arguments, patience_s)
        return {"error": "no route"} if "2" in arguments[2] else result


def test_a_node_that_is_cut_off_costs_a_wait_or_two_and_not_one_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "_MARKS_PATIENCE_S", 0.0)
    store, cfg, size = dist.HashStore(), DoctorConfig(output=str(tmp_path)), 8
    benches = [CutOffBench() for _ in range(size)]
    tables = [
        examination.Table(store, NodePlace(rank, size, 0, "", 0, False), cfg, bench)  # type: ignore[arg-type]
        for rank, bench in enumerate(benches)
    ]
    reports = [{"node": name, "gpus": []} for name in "abcdefgh"]
    others = [
        threading.Thread(target=table.attend, args=(report,))
        for table, report in zip(tables[1:], reports[1:], strict=True)
    ]
    for other in others:
        other.start()
    examined = tables[0].preside(reports[0])
    for other in others:
        other.join(timeout=20)
    assert not any(other.is_alive() for other in others)
    assert len(benches[2].pairs) == 2 and len(benches[3].pairs) >= 6
    tried = [pair for pair in examined.pairs if pair.get("error") == "no route"]
    left_out = [pair for pair in examined.pairs if "c failed with" in pair.get("error", "")]
    assert (len(tried), len(left_out)) == (2, 5)
    assert all("c" in pair["nodes"] for pair in (*tried, *left_out))
    assert sum(pair.get("gb_s", 0.0) for pair in examined.pairs) == 21


def test_a_good_node_that_met_bad_ones_alone_is_not_given_up() -> None:
    pairs: list[dict[str, Any]] = [
        {"nodes": ["a", "x"], "error": "no"},
        {"nodes": ["a", "y"], "error": "no"},
        {"nodes": ["b", "c"], "gb_s": 1.0},
    ]
    assert failed_with("a", pairs) == []
    pairs += [{"nodes": ["b", "x"], "error": "no"}, {"nodes": ["c", "x"], "error": "no"}]
    assert failed_with("x", pairs) == ["b", "c"]
    assert failed_with("x", [*pairs, {"nodes": ["x", "d"], "gb_s": 1.0}]) == []


NODES = {
    "well": {},
    "odd": {"PYTHONPATH": "{folder}/packages"},
    "cut-off": {"GLOO_SOCKET_IFNAME": "none0"},
}


@pytest.mark.timeout(600)
def test_a_node_with_other_packages_and_one_without_a_network_are_named(tmp_path: Path) -> None:
    metadata = tmp_path / "packages" / "stray-1.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: stray\nVersion: 1.0\n")
    output = tmp_path / "doctor"
    words = [f"output={output}", "file_mb=1", "payload_mb=1", "limits.file_share=0"]
    words.append("pair_patience_s=8")  # which both of the others wait for the one that is cut off
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = []
    for rank, (name, own) in enumerate(NODES.items()):
        place = {"RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        more = {key: value.format(folder=tmp_path) for key, value in own.items()}
        environment = {key: str(value) for key, value in place.items()} | more
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "mgpt", "doctor", *words],
                env={**os.environ, **environment, "SLURMD_NODENAME": name},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        ends = [process.communicate(timeout=500)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [3, 0, 0], ends
    assert "odd (versions): stray 1.0, the others none" in ends[0]
    assert "cut-off (network): with every other node:" in ends[0]
    assert (output / "bad_nodes").read_text() == "cut-off\nodd\n"
    report = json.loads((output / "doctor.json").read_text())
    assert report["bad_nodes"] == ["cut-off", "odd"] and not report["ok"]
    speeds = [pair["gb_s"] for pair in report["pairs"] if "gb_s" in pair]
    assert len(report["pairs"]) == 3 and len(speeds) == 1 and speeds[0] > 0
    assert abs(report["nodes"]["odd"]["clock_offset_s"]) < 5
