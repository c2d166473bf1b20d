"""What a launcher can be given: time limits, resources by stage, refusals."""

import pytest

from mgpt.launching.launcher import Launcher, Resources, time_limit_s


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("30", 1800),
        ("2:30", 150),
        ("24:00:00", 86_400),
        ("1-0", 86_400),
        ("1-12:30", 131_400),
        ("2-01:00:05", 176_405),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int) -> None:
    assert time_limit_s(text) == seconds


def test_a_stage_s_resources_lie_over_those_of_all_jobs() -> None:
    stages = {
        "tokenize": Resources(nodes=1, array=8, gpus_per_node=8),
        "photos": Resources(array=2, extra=["--nice=5"]),
    }
    launcher = Launcher(
        name="slurm", nodes=4, elastic=2, gpus_per_node=4, partition="gpu", stages=stages
    )
    assert launcher.resources("pretrain") == Resources(
        nodes=4, elastic=2, gpus_per_node=4, partition="gpu"
    )
    own = launcher.resources("tokenize", "photos")
    assert (own.nodes, own.elastic, own.array, own.extra) == (1, None, 2, ["--nice=5"])
    assert own.gpus_per_node == 4, "never more than the launcher's"


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"time": "a day"}, "is no time limit"),
        ({"time": "4"}, "leaves nothing before the signal"),
        ({"stages": {"pack": Resources(time="3:00")}}, "stages.pack.time=3:00 leaves nothing"),
        ({"nodes": 2, "elastic": 3}, "elastic=3 is above nodes=2"),
        ({"nodes": 0}, "nodes=0 must be at least 1"),
        ({"port": 60_000}, "port=60000 must lie in"),
        ({"restarts": -1}, "restarts=-1 must not be negative"),
        ({"extra": ["mail-type=FAIL"]}, "is no option of sbatch"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Launcher(name="slurm", **fields)


@pytest.mark.parametrize(
    "fields",
    [{"nodes": 2}, {"procs_per_node": 2}, {"array": 2}, {"container": "a.sif"}, {"doctor": True}],
)
def test_this_machine_has_no_nodes_and_no_containers(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"parallel.procs says; it has no {next(iter(fields))}"):
        Launcher(name="local", **fields)  # type: ignore[arg-type]
    assert Launcher(name="local", nodes=1, time="1:00:00", partition="gpu").nodes == 1
