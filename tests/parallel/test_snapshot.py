"""Snapshots: what training does next does not change them, and their files are DCP's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch.distributed.tensor import Replicate, Shard

from mgpt.errors import MachineError
from mgpt.files.atomic import file_sha256
from mgpt.parallel import snapshot
from mgpt.parallel.dist import World
from mgpt.parallel.snapshot import Snapshot

TENSORS = {
    "model.norm.weight": torch.arange(8.0),
    "model.embed.weight": torch.randn(7, 5),
    "exp_avg.norm.weight": torch.full((8,), 0.5),
    "exp_avg.scale": torch.tensor(3.0),
}
FILE = "shard-00001-model-00001-of-00001.safetensors"


def take(tensors: dict[str, torch.Tensor], copy: bool = False) -> Snapshot:
    return Snapshot.take(tensors.items(), 17, World(), copy)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_files_are_those_of_dcp(tmp_path: Path) -> None:
    writer = dcp.HuggingFaceStorageWriter(str(tmp_path / "dcp"), save_distributed=True)
    dcp.save(dict(TENSORS), storage_writer=writer, no_dist=True)
    take(TENSORS).write(tmp_path / "ours")
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {FILE, "updates.json"}
    assert [p.name for p in (tmp_path / "dcp").iterdir()] == [FILE]
    found = [
        dcp.HuggingFaceStorageReader(str(tmp_path / d)).read_metadata() for d in ("dcp", "ours")
    ]
    assert found[0].state_dict_metadata == found[1].state_dict_metadata
    assert found[0].storage_data.keys() == found[1].storage_data.keys()
    with (
        safe_open(tmp_path / "dcp" / FILE, "pt") as a,
        safe_open(tmp_path / "ours" / FILE, "pt") as b,
    ):
        assert a.metadata().keys() == b.metadata().keys()
        for name in ("DCP_VERSION", "format"):
            assert a.metadata()[name] == b.metadata()[name]
        infos = [json.loads(file.metadata()["DCP_SHARDING_INFO"]) for file in (a, b)]
        assert infos[0] == infos[1]
        for name in TENSORS:
            assert torch.equal(a.get_tensor(name), b.get_tensor(name)), name


def test_what_comes_later_does_not_change_a_copy(tmp_path: Path) -> None:
    live = {name: tensor.clone() for name, tensor in TENSORS.items()}
    expected = take(TENSORS).write(tmp_path / "before")
    copied, bare = take(live, copy=True), take(live, copy=False)
    for tensor in live.values():
        tensor.add_(1.0)
    assert copied.write(tmp_path / "copied") == expected
    assert bare.write(tmp_path / "bare")[FILE].sha256 != expected[FILE].sha256


def test_a_copy_of_a_view_holds_the_view_alone() -> None:
    whole = torch.randn(100, 4)
    piece = take({"model.a": whole[10:12]}, copy=True).pieces["model.a"].tensor
    assert piece.untyped_storage().nbytes() == 2 * 4 * 4


def test_sums_are_those_of_the_files(tmp_path: Path) -> None:
    for name, entry in take(TENSORS).write(tmp_path / "state").items():
        path = tmp_path / "state" / name
        assert entry == (file_sha256(path), path.stat().st_size)


def test_tensors_larger_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgpt.parallel.snapshot._CHUNK_BYTES", 24)
    take(TENSORS).write(tmp_path / "state")
    with safe_open(tmp_path / "state" / FILE, "pt") as file:
        for name, tensor in TENSORS.items():
            assert torch.equal(file.get_tensor(name), tensor), name


def test_a_file_in_the_way(tmp_path: Path) -> None:
    take(TENSORS).write(tmp_path)
    with pytest.raises(MachineError, match="cannot be written"):
        take(TENSORS).write(tmp_path)
    with pytest.raises(MachineError, match="cannot be written"):
        take(TENSORS).write(tmp_path / "not" / "there")


class Mesh:
    """Ranks in a grid, as one of them sees it."""

    def __init__(self, shape: tuple[int, ...], rank: int) -> None:
        self._shape, self._place = shape, np.unravel_index(rank, shape)

    def size(self, dim: int) -> int:
        return self._shape[dim]

    def get_local_rank(self, dim: int) -> int:
        return int(self._place[dim])


class Sharded:
    """What the snapshot asks of a DTensor, without the processes of one."""

    def __init__(self, whole: torch.Tensor, mesh: Mesh, placements: list[Any]) -> None:
        self.shape, self.device_mesh, self.placements = whole.shape, mesh, placements
        dim = len(placements) - 1
        parts, part = whole.chunk(mesh.size(dim)), mesh.get_local_rank(dim)
        self._local = parts[part] if part < len(parts) else whole[:0]

    def detach(self) -> "Sharded":
        return self

    def to_local(self) -> torch.Tensor:
        return self._local


@pytest.mark.parametrize(
    ("shape", "placements"), [((4,), [Shard(0)]), ((2, 2), [Replicate(), Shard(0)])]
)
def test_every_row_is_written_once(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], placements: list[Any]
) -> None:
    monkeypatch.setattr(snapshot, "DTensor", Sharded)
    rows = {"model.a": 7, "model.b": 3, "model.c": 1, "exp_avg.a": 8}
    written: dict[str, list[int]] = {name: [] for name in rows}
    of_rank = []
    for rank in range(4):
        mesh = Mesh(shape, rank)
        whole = {name: torch.arange(float(count)).view(-1, 1) for name, count in rows.items()}
        tensors = {name: Sharded(tensor, mesh, placements) for name, tensor in whole.items()}
        taken = Snapshot.take(tensors.items(), 0, World(rank, 4), copy=True)  # type: ignore[arg-type]
        for name, (offset, tensor) in taken.pieces.items():
            assert tensor.flatten().tolist() == list(range(offset, offset + len(tensor)))
            written[name] += range(offset, offset + len(tensor))
        of_rank.append(len(taken.pieces))
    assert {name: sorted(found) for name, found in written.items()} == {
        name: list(range(count)) for name, count in rows.items()
    }
    assert min(of_rank) > 0, "copies share the work"
