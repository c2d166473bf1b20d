"""The wheel: what it holds, and that it works away from the checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAST = [
    "pictures_raw.scenes.num_scenes=120",
    "scenes_raw.scenes.num_scenes=120",
    "held_out_raw.scenes.num_scenes=100",
    "photos_tokens.resolution=[512]",
    "photos_roundtrip.samples_per_resolution=1",
    "text.num_pieces=400",
    "pretrain.steps=2",
    "fp_sft.32.steps=2",
    "fp_sft.48.steps=2",
    "fp_sft.64.steps=2",
    "omni_sft.steps=2",
    "omni_sft.pictures_every=2",
    "generate.n=1",
    "evaluate.samples=1",
    "evaluate.samples_of.text_to_image=1",
    "evaluate.samples_of.caption=1",
    "evaluate.samples_of.vqa=1",
    "evaluate.gallery=1",
    "evaluate.max_new_tokens=100",
]
"""What is left of the quickstart with every stage, task and kind of input still in it."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays clean."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("mgpt", "data_pipeline", "conf", "launch"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(target), str(source)]
    subprocess.run(command, check=True, timeout=240)
    return next(target.glob("*.whl"))


def test_its_names_and_its_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"mgpt", "data_pipeline"}
    shipped = {
        f"mgpt/{file.relative_to(ROOT)}"
        for pattern in ("conf/**/*.yaml", "launch/*.sh", "launch/constraints.txt")
        for file in ROOT.glob(pattern)
    }
    data = [*ROOT.glob("mgpt/evals/*.json"), *ROOT.glob("mgpt/tokenizers/pretrained/**/*.*")]
    shipped |= {str(file.relative_to(ROOT)) for file in data}
    shipped |= {str(file.relative_to(ROOT)) for file in ROOT.glob("mgpt/**/*.py")}
    assert shipped <= set(names), sorted(shipped - set(names))
    assert not [name for name in names if name.startswith("tests")]


def test_it_runs_a_pipeline_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    where = "import mgpt, mgpt.conf; print(mgpt.__file__, mgpt.conf.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert found.stdout.count(str(site)) == 2, found.stdout + found.stderr
    command = [sys.executable, "-m", "mgpt", "pipeline", "recipe=quickstart", "--cfg", "job"]
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "order:" in run.stdout
    command = [sys.executable, "-m", "mgpt", "pack", "source=scenes", "output=raw"]
    command += ["scenes.num_scenes=3", "tracking=disabled"]
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "raw" / "00000.tar").exists()


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_an_empty_environment_runs_the_quickstart(wheel: Path, tmp_path: Path) -> None:
    """About four minutes where torch's CPU build comes from near by."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"OMP_NUM_THREADS": "1", "PIP_CONSTRAINT": str(ROOT / "launch" / "constraints.txt")}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True, timeout=300)
    programs = tmp_path / "env" / "bin"
    install = [programs / "pip", "install", "--quiet", wheel]
    subprocess.run(install, check=True, cwd=tmp_path, env=env, timeout=1200)
    command = [programs / "mgpt", "pipeline", "recipe=quickstart", "output=out", "tracking=offline"]
    run = subprocess.run(
        [*command, *LEAST], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1100
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    record = json.loads((tmp_path / "out" / "pipeline.json").read_text())
    assert record["commit"] == "not from a checkout"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["measures"]["tasks"]) == 16 and report["measures"]["photographs"]
    assert (tmp_path / "out" / "report.html").exists()
