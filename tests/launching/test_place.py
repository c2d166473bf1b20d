"""What torchrun, srun and a Slurm array say of a process's place, and where each one starts."""

import os

import pytest

from mgpt.launching.place import Place

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_")


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place(0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Place(5, 8, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}, Place(3, 4, 1)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "5",
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": "1",
            },
            Place(5, 10, 0),
        ),
        ({"RANK": "", "SLURM_ARRAY_TASK_ID": "x"}, Place(0, 1, 0)),
    ],
)
def test_the_place_among_others_is_what_the_launcher_says(monkeypatch, environment, place):
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Place.of_environment() == place


def test_starts_begin_apart_and_reach_every_unit():
    units = [f"{n:05d}" for n in range(10)]
    orders = [Place(number, 3).first(units, slot, 2) for number in range(3) for slot in range(2)]
    assert [order[0] for order in orders] == ["00000", "00001", "00003", "00005", "00006", "00008"]
    assert all(sorted(order) == units for order in orders)
    assert Place(7, 100).first(["only"], 0, 1) == ["only"]
