"""One Slurm cluster for the tests of this folder; where none can be started they are skipped."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from cluster import Cluster, lacks
from training import PATIENCE_S, Inputs, Run, Training

from mgpt.cli import command


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Cluster]:
    missing = lacks()
    if missing:
        pytest.skip(missing)
    with Cluster(num_nodes=4) as cluster:
        yield cluster


@pytest.fixture
def slurm(_cluster: Cluster) -> Iterator[Cluster]:
    """Four idle nodes vn1 to vn4 and an empty queue; what a test leaves is cleared away."""
    yield _cluster
    _cluster.restore()


@pytest.fixture
def own_nodes(slurm: Cluster) -> Cluster:
    """The same, for tests that need what only nodes with a network of their own have."""
    if slurm.mode != "net":
        pytest.skip("namespaces are forbidden here, so the nodes share one network and hostname")
    return slurm


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, vq: str) -> Inputs:
    """Tokenised scenes and a vocabulary, made in this process."""
    folder = tmp_path_factory.mktemp("inputs")
    raw, tokens, text = folder / "raw", folder / "tokens", folder / "text"
    scenes = ["source=scenes", "scenes.num_scenes=20", "scenes.area_px=40"]
    for words in (
        ["pack", *scenes, f"output={raw}"],
        ["tokenize", f"input={raw}", f"output={tokens}", f"vq={vq}", "resolution=[32]"],
        ["train_text", f"input={tokens}", f"output={text}", "num_pieces=400"],
    ):
        assert command.main([*words, "tracking=disabled"]) == 0
    return Inputs(tokens / "32", text)


@pytest.fixture(scope="session")
def begun(
    _cluster: Cluster, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Run, subprocess.Popen[bytes]]]:
    """The same training through torchrun, undisturbed; it uses the time in which Slurm waits."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Run(inputs, folder / "run", "launcher=local", "parallel.procs=4")
    with (folder / "log").open("w") as log:
        with subprocess.Popen(run.command, stdout=log, stderr=log) as process:
            yield run, process
            process.kill()


@pytest.fixture(scope="session")
def undisturbed(begun: tuple[Run, subprocess.Popen[bytes]]) -> Run:
    """What a training on Slurm is compared with: the same ranks, on this machine alone."""
    run, process = begun
    status = process.wait(timeout=PATIENCE_S)
    assert status == 0, run.output.with_name("log").read_text()
    return run


@pytest.fixture
def training(slurm: Cluster, inputs: Inputs, tmp_path: Path) -> Training:
    """A training of two ranks on each of two nodes, not submitted yet."""
    return Training(slurm, inputs, tmp_path / "run")
