"""The type a stage computes in: by the device, by the environment, over ranks."""

import os
import subprocess
import sys

import pytest
import torch

from mgpt import dtypes
from mgpt.dtypes import CODES, choose_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def a_cpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A CPU with AVX512_BF16 and without AMX, whatever the machine's own is."""
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_cpu_with_bfloat16_instructions_uses_them(a_cpu: pytest.MonkeyPatch) -> None:
    choice = choose_dtype("auto", CPU)
    assert choice.torch is torch.bfloat16 and "AVX512_BF16" in choice.reason
    a_cpu.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
    assert "AMX" in choose_dtype("auto", CPU).reason


def test_an_older_cpu_computes_in_float32(a_cpu: pytest.MonkeyPatch) -> None:
    a_cpu.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    choice = choose_dtype("auto", CPU)
    assert choice.name == "float32" and "no bfloat16 instructions" in choice.reason
    assert choice.warning == ""


@pytest.mark.parametrize(
    ("limit", "name"),
    [("AVX2", "float32"), ("avx512_core", "float32"), ("AVX512_CORE_BF16", "bfloat16")],
)
def test_a_limit_of_onednn_is_respected(limit: str, name: str, a_cpu: pytest.MonkeyPatch) -> None:
    a_cpu.setenv("ONEDNN_MAX_CPU_ISA", limit)
    choice = choose_dtype("auto", CPU)
    assert choice.name == name
    assert ("ONEDNN_MAX_CPU_ISA" in choice.reason) == (name == "float32")


def test_a_process_told_to_imitate_an_older_cpu_computes_in_float32() -> None:
    code = "import torch; from mgpt.dtypes import choose_dtype as c; "
    code += "print(c('auto', torch.device('cpu')).name)"
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **limits}, capture_output=True, text=True
    )
    assert run.stdout.strip() == "float32", run.stderr


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "float32"), ((8, 0), "bfloat16")])
def test_a_gpu_by_its_compute_capability(
    capability: tuple[int, int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    choice = choose_dtype("auto", GPU)
    assert choice.name == name and f"{capability[0]}.{capability[1]}" in choice.reason


def test_codes_stay_in_float32_unless_asked(a_cpu: pytest.MonkeyPatch) -> None:
    choice = choose_dtype("auto", CPU, keep_float32=CODES)
    assert choice.name == "float32" and "codes" in choice.reason
    assert choose_dtype("bfloat16", CPU, keep_float32=CODES).name == "bfloat16"


def test_one_rank_without_bfloat16_decides_for_all(a_cpu: pytest.MonkeyPatch) -> None:
    def gather(own: list[object]) -> list[object]:
        return [own, [False, "the CPU has no bfloat16 instructions"]]

    choice = choose_dtype("auto", CPU, gather=gather)
    assert choice.name == "float32" and choice.reason.endswith("on rank 1")


def test_an_emulated_bfloat16_is_measured_and_warned_of_once(a_cpu: pytest.MonkeyPatch) -> None:
    a_cpu.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    seconds = {torch.float32: 0.001, torch.bfloat16: 0.0375}
    a_cpu.setattr(dtypes, "_product_s", lambda dtype, device: seconds[dtype])
    shown: list[str] = []
    choose_dtype("bfloat16", CPU).announce(shown.append)
    assert shown[0] == "dtype: bfloat16 (as configured)"
    assert len(shown) == 2 and "37.5 times as long as in float32" in shown[1]
    assert choose_dtype("float32", CPU).warning == ""


def test_the_cost_of_a_product_is_a_time() -> None:
    assert 0 < dtypes._product_s(torch.float32, CPU) < 5
