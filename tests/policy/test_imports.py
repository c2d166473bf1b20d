"""Who may import whom: the table of rooms, held against the code's own imports.

A module may import its own room and what stands in its row. Imports under `if TYPE_CHECKING` do
not count: they are not run.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = {"torch", "numpy", "safetensors", "PIL"}
OPEN_TO_ALL = {
    "mgpt.allocator",
    "mgpt.errors",
    "mgpt.stop_signals",
    "mgpt.dtypes",
    "mgpt.files",
    "mgpt.nested",
    "mgpt.tracking",
}
EVERYTHING = {"mgpt", "data_pipeline"}

# room: (rooms of ours, third party at import, third party inside functions)
ROOMS: dict[str, tuple[set[str], set[str], set[str]]] = {
    "mgpt.errors": (set(), set(), set()),
    "mgpt.allocator": (set(), set(), set()),
    "mgpt.stop_signals": (set(), set(), set()),
    "mgpt.dtypes": (set(), set(), set()),
    "mgpt.nested": (set(), set(), set()),
    "mgpt.files": (set(), set(), {"fsspec", "aiohttp", "braceexpand"}),
    "mgpt.tracking": (set(), set(), {"wandb", "rich"}),
    "mgpt.tokens": (set(), set(), {"sentencepiece", "tokenizers"}),
    "mgpt.images": (set(), set(), set()),
    "mgpt.models": (set(), set(), set()),
    "mgpt.tokenizers": ({"mgpt.images"}, set(), {"yaml"}),
    "mgpt.weights": ({"mgpt.tokenizers", "mgpt.models"}, set(), set()),
    "mgpt.optim": (set(), set(), set()),
    "mgpt.parallel": ({"mgpt.optim"}, set(), {"deepspeed"}),
    "mgpt.tasks": ({"mgpt.tokens"}, set(), set()),
    "mgpt.data": ({"mgpt.tokens", "mgpt.tasks"}, set(), {"fsspec"}),
    "mgpt.train": (
        {
            "mgpt.images",
            "mgpt.tokenizers",
            "mgpt.models",
            "mgpt.data",
            "mgpt.optim",
            "mgpt.parallel",
        },
        set(),
        set(),
    ),
    "mgpt.infer": (
        {"mgpt.tokens", "mgpt.images", "mgpt.tokenizers", "mgpt.models"},
        set(),
        set(),
    ),
    "mgpt.evals": (
        {
            "mgpt.tokens",
            "mgpt.images",
            "mgpt.models",
            "mgpt.tasks",
            "mgpt.infer",
            "mgpt.data",
            "mgpt.parallel.dist",
        },
        set(),
        {"torchmetrics"},
    ),
    "mgpt.plan": ({"mgpt.models", "mgpt.data", "mgpt.optim", "mgpt.parallel"}, set(), set()),
    "mgpt.launching": (
        {"mgpt.cli.config", "mgpt.plan", "mgpt.data.shards", "mgpt.train.step_layout"},
        set(),
        set(),
    ),
    "mgpt.cli": (
        {"mgpt.launching"},
        {"hydra", "omegaconf", "pydantic", "pydantic_core", "yaml"},
        set(),
    ),
    "mgpt.__main__": ({"mgpt.cli"}, set(), set()),
    "mgpt.lifecycle": (
        {
            "mgpt.cli.settings",
            "mgpt.launching",
            "mgpt.data",
            "mgpt.models",
            "mgpt.tokenizers",
            "mgpt.parallel.dist",
            "mgpt.tasks",
            "mgpt.tokens",
            "mgpt.train.step_folder",
            "mgpt.train.step_layout",
        },
        {"yaml"},
        set(),
    ),
    "mgpt.stages": (EVERYTHING, {"hydra", "omegaconf", "yaml"}, {"rich"}),
}
# A data job is a stage itself: all of mgpt but the other stages.
ROOMS["data_pipeline"] = (
    ROOMS.keys() - {"mgpt.stages"},
    {"webdataset", "fsspec"},
    {"skimage", "pyarrow", "rich"},
)

FILES = sorted([*(ROOT / "mgpt").rglob("*.py"), *(ROOT / "data_pipeline").rglob("*.py")])


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The longest row that the module stands in."""
    rows = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    return max(rows, key=len, default=None)


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(module imported, whether inside a function) of every import that can run."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}: relative import"
                yield from ((f"{child.module}.{alias.name}", lazy) for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from (found for part in child.orelse for found in walk(part, lazy))
            else:
                is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
                yield from walk(child, lazy or is_function)

    yield from walk(ast.parse(file.read_text()), False)


def is_in(module: str, rooms: set[str]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_follow_the_table(file: Path) -> None:
    module = module_name(file)
    if module == "mgpt":
        return
    room = room_of(module)
    assert room is not None, f"{module} stands in no row of the table"
    ours, at_import, lazily = ROOMS[room]
    for imported, lazy in imports(file):
        top = imported.split(".")[0]
        if top in ("mgpt", "data_pipeline"):
            allowed = ours | OPEN_TO_ALL | {room}
            assert is_in(imported, allowed), f"{module} imports {imported}, which its row has not"
        elif top not in sys.stdlib_module_names:
            allowed = BASE | at_import | (lazily if lazy else set())
            assert top in allowed, f"{module} imports {top}{' lazily' if lazy else ''}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {module_name(file): file for file in FILES}
    graph: dict[str, set[str]] = {}
    for name, file in modules.items():
        found = {imported for imported, _ in imports(file)}
        known = {path for each in found for path in (each, each.rpartition(".")[0])}
        graph[name] = known & modules.keys() - {"mgpt", name}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_models_are_single_device_code() -> None:
    rooms = ("models", "tokenizers")
    for file in [file for room in rooms for file in (ROOT / "mgpt" / room).glob("*.py")]:
        assert all(not name.startswith("torch.distributed") for name, _ in imports(file)), file


def test_training_and_inference_do_not_know_each_other() -> None:
    for room, other in (("train", "mgpt.infer"), ("infer", "mgpt.train")):
        for file in (ROOT / "mgpt" / room).glob("*.py"):
            assert all(not is_in(name, {other}) for name, _ in imports(file)), file


def test_only_known_rooms_need_more_than_the_base() -> None:
    """Importing every module outside stages, data_pipeline and config pulls in no optional package
    and starts nothing: no thread, no environment write, no logging handler."""
    names = [module_name(file) for file in FILES]
    names = [
        name
        for name in names
        if not is_in(name, {"mgpt.stages", "mgpt.cli", "data_pipeline"}) and name != "mgpt.__main__"
    ]
    names += ["mgpt.cli.command", "mgpt.cli.settings", "mgpt.cli.stage_table"]
    code = f"""
import importlib, logging, os, sys, threading
import torch, numpy, safetensors, PIL
before = dict(os.environ), list(logging.getLogger().handlers), threading.active_count()
for name in {names!r}:
    importlib.import_module(name)
assert (dict(os.environ), list(logging.getLogger().handlers), threading.active_count()) == before
optional = ("hydra", "omegaconf", "pydantic", "wandb", "rich", "deepspeed", "sentencepiece",
            "tokenizers", "skimage", "torchmetrics", "webdataset")
loaded = [name for name in optional if name in sys.modules]
assert not loaded, loaded
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def _loaded_by(stage: str, watched: str) -> str:
    """Those of the watched packages that asking a stage for its fields imports."""
    code = f"""
import sys
from mgpt.cli.stage_table import load_stage
load_stage({stage!r})
print(*[name for name in {watched!r}.split() if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.strip()


@pytest.mark.parametrize("stage", ["pack", "train_text", "report"])
def test_a_stage_without_tensors_starts_without_torch(stage: str) -> None:
    assert _loaded_by(stage, "torch") == ""


@pytest.mark.parametrize("stage", ["pretrain", "evaluate", "tokenize"])
def test_a_resolved_stage_starts_without_hydra(stage: str) -> None:
    """Ranks and a pipeline's stages are given a file in which nothing is left to compose."""
    assert _loaded_by(stage, "hydra omegaconf mgpt.cli.compose") == ""


@pytest.mark.parametrize("stage", ["tokenize", "roundtrip", "generate", "evaluate"])
def test_only_training_imports_distributed_checkpoints(stage: str) -> None:
    slow = "torch.distributed.checkpoint torch._dynamo deepspeed wandb skimage transformers"
    assert _loaded_by(stage, f"torch {slow}") == "torch"
