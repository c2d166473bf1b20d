"""The examination of four nodes of a Slurm job, one of which reaches no other."""

import json
import sys
from pathlib import Path

import pytest
from cluster import Cluster

pytestmark = pytest.mark.timeout(600)


@pytest.mark.long
def test_a_node_that_reaches_no_other_is_named_as_slurm_excludes_it(
    own_nodes: Cluster, tmp_path: Path
) -> None:
    # It still reaches the first node's store, not the others; nor the first by gloo.
    own = "[ $SLURMD_NODENAME != vn3 ] || export GLOO_SOCKET_IFNAME=none0"
    # On a machine that does other work speeds say nothing: only a node without any is at fault.
    limits = ["limits.file_share=0", "limits.link_share=0", "file_mb=1", "payload_mb=4"]
    words = [sys.executable, "-m", "mgpt", "doctor", f"output={tmp_path}", *limits]
    line = f"{own}; exec {' '.join(words)}"
    run = own_nodes.run(
        *("srun", "--nodes=4", "--ntasks-per-node=2", "bash", "-c", line),
        check=False,
        timeout_s=500,
    )
    assert run.returncode == 3, run.stdout + run.stderr
    assert "vn3 (network): with every other node:" in run.stderr
    bad = (tmp_path / "bad_nodes").read_text()
    assert bad == "vn3\n"
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert sorted(report["nodes"]) == own_nodes.names
    assert {"vn1", "vn2", "vn4"} == {n for p in report["pairs"] if "gb_s" in p for n in p["nodes"]}
    options = ("--nodes=3", f"--exclude={bad.strip()}", "--output=/dev/null", "--wrap=true")
    away = own_nodes.submit(*options)
    own_nodes.wait(away, "COMPLETED")
    assert own_nodes.nodes_of(away) == ["vn1", "vn2", "vn4"]
