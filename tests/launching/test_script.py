"""The text of the scripts: options, quoting, containers, reasons; what the page shows of it."""

import re
import subprocess
from pathlib import Path

import pytest

from mgpt.errors import ConfigError
from mgpt.launching.launcher import Launcher, Resources
from mgpt.launching.script import Origin, Task, local_script, sbatch_script

PAGE = (Path(__file__).parents[2] / "launch" / "README.md").read_text()


def script(folder: str = "/data/out", **launcher: object) -> str:
    settings = Launcher(name="slurm", **{"python": "python", **launcher})
    task = Task(
        name="pretrain",
        stage="pretrain",
        run=folder,
        launch=Path(folder) / "launch",
        kind="training",
        arguments=("pretrain", "--config", f"{folder}/launch/config.yaml"),
        ranks=8,
        threads=2,
    )
    origin = Origin(Path("/home/me"), folder, "today", "mgpt 0.1.0")
    return sbatch_script(task, settings, settings.resources("pretrain"), origin)


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]


def shell_value(text: str, name: str) -> str:
    """What bash makes of the line that sets a variable."""
    line = next(line for line in text.splitlines() if line.startswith(f"{name}="))
    command = f"{line}\nprintf '%s\\n' \"${{{name}[@]}}\""
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True).stdout[:-1]


def test_everything_that_a_cluster_wants_said_is_an_option() -> None:
    text = script(
        nodes=4,
        elastic=2,
        gpus_per_node=8,
        gpu_type="a100",
        cpus_per_proc=12,
        memory_gb=0,
        time="1-12:00:00",
        partition="gpu",
        account="lab",
        qos="high",
        constraint="a100&ib",
        exclude="node[3,7-9]",
        extra=["--mail-type=FAIL"],
        srun=["--cpu-bind=cores"],
    )
    assert options(text) == [
        "--job-name=pretrain",
        "--chdir=/home/me",
        "--output=/data/out/launch/logs/%j.log",
        "--open-mode=append",
        "--nodes=2-4",
        "--mincpus=96",
        "--gpus-per-node=a100:8",
        "--mem=0M",
        "--time=1-12:00:00",
        "--partition=gpu",
        "--account=lab",
        "--qos=high",
        "--constraint=a100&ib",
        "--exclude=node[3,7-9]",
        "--signal=B:USR1@180",
        "--requeue",
        "--mail-type=FAIL",
    ]
    assert "--cpus-per-task=12 --cpu-bind=cores" in text, "srun does not take it from the job"


@pytest.mark.parametrize(
    "folder", ["/a b/out", "/it's/out", '/a "b"/out', "/$HOME/`id`/out", "/100%j/out", "/ä;#/out"]
)
def test_paths_mean_themselves(folder: str, tmp_path: Path) -> None:
    text = script(folder)
    file = tmp_path / "job"
    file.write_text(text)
    subprocess.run(["bash", "-n", str(file)], check=True)
    assert shell_value(text, "run") == folder
    command = shell_value(text, "command").split("\n")
    assert command[-1] == f"{folder}/launch/config.yaml"
    (log,) = [option for option in options(text) if option.startswith("--output=")]
    quoted = folder.replace("%", "%%").replace('"', '\\"')
    assert f"{quoted}/launch/logs/%j.log" in log
    is_plain = re.fullmatch(r"[A-Za-z0-9/%]+", folder) is not None
    assert log.endswith('"') != is_plain


def test_without_elasticity_ranks_are_tasks() -> None:
    found = options(script(nodes=4, cpus_per_proc=12))
    assert {"--nodes=4", "--ntasks-per-node=8", "--cpus-per-task=12"} <= set(found)


def test_a_line_break_cannot_stand_in_a_script() -> None:
    with pytest.raises(ConfigError, match="cannot hold this character"):
        script(partition="gpu\n#SBATCH --uid=0")


def test_names_of_variables_are_names() -> None:
    assert "export NCCL_IB_HCA='mlx5 0'" in script(env={"NCCL_IB_HCA": "mlx5 0"})
    with pytest.raises(ConfigError, match="is no name of a variable"):
        script(env={"A=1; rm": "x"})


def test_every_setting_of_the_libraries_has_its_reason() -> None:
    text = script(gpus_per_node=8, interface="ib0")
    assert "export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0" in text
    lines = text.splitlines()
    setting = re.compile(r"  export (NCCL|TORCH|OMP|GLOO)")
    exports = [index for index, line in enumerate(lines) if setting.match(line)]
    assert len(exports) >= 5
    for index in exports:
        above = [line for line in lines[index - 2 : index] if line.strip().startswith("#")]
        assert above, lines[index]
    assert "NCCL" not in script(gpus_per_node=0), "no GPU, no NCCL"


def test_containers() -> None:
    pyxis = script(container="/images/a b.sqsh", mounts=["/data:/data"])
    assert "'--container-image=/images/a b.sqsh'" in pyxis
    assert "--container-mounts=/home/me:/home/me,/data/out:/data/out,/data:/data" in pyxis
    apptainer = script(container="mgpt.sif", container_by="apptainer")
    assert shell_value(apptainer, "container").split("\n")[:4] == [
        "apptainer", "exec", "--nv", "--pwd",
    ]  # fmt: skip
    assert "--container-image" not in apptainer


def test_an_array_is_asked_for_where_elements_can_share() -> None:
    settings = Launcher(name="slurm", stages={"tokenize": Resources(array=4)})
    task = Task("tokens", "tokenize", "/out", Path("/out/launch"), "shared", ("tokenize",))
    origin = Origin(Path("/"), "/out", "today", "mgpt 0")
    own = settings.resources("tokenize")
    found = options(sbatch_script(task, settings, own, origin))
    assert "--array=0-3" in found and "--output=/out/launch/logs/%A_%a.log" in found


def test_the_local_script_is_shell(tmp_path: Path) -> None:
    settings = Launcher(name="local", setup=["module load cuda"], env={"A": "1"})
    task = Task("a", "pretrain", "/o u", Path("/o u/launch"), "training", ("pretrain", "x y"))
    text = local_script(task, settings, Origin(tmp_path, "/o u", "today", "mgpt 0"))
    file = tmp_path / "local.sh"
    file.write_text(text)
    subprocess.run(["bash", "-n", str(file)], check=True)
    assert "module load cuda\n" in text and "export A=1\n" in text
    assert text.rstrip().endswith("-m mgpt pretrain 'x y'")


def test_the_page_shows_lines_of_the_script() -> None:
    shown = PAGE.split("```\n#!")[1].split("```")[0].splitlines()
    text = script(nodes=2, gpus_per_node=8, time="24:00:00", partition="gpu")
    there = {re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines()}
    there |= set(text.splitlines())
    for line in shown[1:]:
        bare = line if line.startswith("#SBATCH") else re.sub(r"\s+#.*", "", line).strip()
        assert bare in there or bare == "…", line
