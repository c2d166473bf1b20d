"""The examination of the nodes of a Slurm job, one of which reaches no other."""

import json
from pathlib import Path

import pytest
from cluster import Cluster
from training import MGPT, Inputs, Training

pytestmark = pytest.mark.timeout(600)


@pytest.mark.long
def test_a_node_that_reaches_no_other_is_named_as_slurm_excludes_it(
    own_nodes: Cluster, tmp_path: Path
) -> None:
    # It still reaches the first node's store, not the others; nor the first by gloo.
    own = "[ $SLURMD_NODENAME != vn3 ] || export GLOO_SOCKET_IFNAME=none0"
    # On a machine that does other work speeds say nothing: only a node without any is at fault.
    limits = ["limits.file_share=0", "limits.link_share=0", "file_mb=1", "payload_mb=4"]
    words = [*MGPT, "doctor", f"output={tmp_path}", *limits]
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


@pytest.mark.long
def test_a_training_leaves_the_node_out_that_the_doctor_names(
    own_nodes: Cluster, inputs: Inputs, tmp_path: Path
) -> None:
    prolog = tmp_path / "prolog"
    away = "[ $SLURMD_NODENAME != vn2 ] || echo export GLOO_SOCKET_IFNAME=none0"
    prolog.write_text(f"#!/bin/bash\n{away}\n")
    prolog.chmod(0o755)
    nodes = ("launcher.nodes=3", "launcher.procs_per_node=1", "launcher.doctor=true")
    words = (*nodes, f'launcher.srun=["--task-prolog={prolog}"]')
    run = Training(own_nodes, inputs, tmp_path / "run", *words)
    job = run.submit()
    run.finish()
    assert run.starts() == 2 and "mgpt doctor names vn2" in run.log()
    assert own_nodes.nodes_of(job) == ["vn1", "vn3", "vn4"]
    assert own_nodes.job(job)["ExcNodeList"] == "vn2"
