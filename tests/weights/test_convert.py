"""Released layouts, read strictly: every tensor as it was, every mistake in one message."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.append(str(Path(__file__).parent))
from released_layouts import random_state, small, transformers_json, write_meta, write_transformers

from mgpt.errors import CheckpointError, ConfigError
from mgpt.models.sizes import SIZES
from mgpt.models.tensor_files import lazy, read_headers, write_tensors
from mgpt.models.transformer_config import TransformerConfig
from mgpt.weights import meta
from mgpt.weights.meta import plan_meta
from mgpt.weights.plan import ModelPlan
from mgpt.weights.transformers_config import transformers_config
from mgpt.weights.transformers_folder import plan_transformers, transformers_tensors

State = dict[str, Tensor]


def tensors_of(plan: ModelPlan) -> State:
    return {tensor.name: tensor.read() for tensor in plan.tensors}


def assert_same(plan: ModelPlan, cfg: TransformerConfig, state: State) -> None:
    assert plan.cfg == cfg
    read = tensors_of(plan)
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


@pytest.mark.parametrize("by", ["head", "group"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_chameleon_and_lumina(tmp_path: Path, by: str, groups: int) -> None:
    cfg, state = small(qk_norm_groups=groups)
    plan = plan_transformers(write_transformers(tmp_path / "m", cfg, state, by))
    assert_same(plan, cfg, state)
    assert by in plan.layout and plan.dtypes == {"bfloat16": len(state)}
    assert plan.num_parameters == sum(t.numel() for t in state.values())


def test_heads_that_differ_stay_by_head(tmp_path: Path) -> None:
    cfg, state = small(qk_norm="head", qk_norm_groups=1)
    assert_same(plan_transformers(write_transformers(tmp_path / "m", cfg, state)), cfg, state)


def test_groups_are_read_from_the_tensors(tmp_path: Path) -> None:
    """A configuration that names another number of groups gives way to the rows."""
    cfg, state = small(qk_norm_groups=4)
    folder = write_transformers(tmp_path / "m", cfg, state, model_parallel_size=1)
    assert_same(plan_transformers(folder), cfg, state)


def test_one_head_that_differs_keeps_all_by_head(tmp_path: Path) -> None:
    cfg, state = small(qk_norm_groups=2)
    for name in list(state):
        if "_norm.weight" in name or "_norm.bias" in name:
            heads = {"q": cfg.heads, "k": cfg.kv_heads}[name.split(".")[-2][0]]
            state[name] = state[name].repeat_interleave(heads // 2, 0)
    state["model.layers.1.self_attn.q_norm.bias"][-1, 0] += 1
    plan = plan_transformers(write_transformers(tmp_path / "m", cfg, state, by="as is"))
    assert plan.cfg.qk_norm == "head"
    assert torch.equal(
        tensors_of(plan)["model.layers.1.self_attn.q_norm.bias"],
        state["model.layers.1.self_attn.q_norm.bias"],
    )


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shards", [1, 4])
def test_meta(tmp_path: Path, shards: int, fused: bool) -> None:
    cfg, state = small(qk_norm_groups=shards, max_positions=4096)
    plan = plan_meta(write_meta(tmp_path / "m", cfg, state, shards, fused))
    assert_same(plan, cfg, state)
    assert plan.layout == f"Meta checkpoint, {shards} shard{'s' * (shards > 1)}, " + (
        "fused" if fused else "unfused"
    )
    assert any("weights_only" in note for note in plan.notes)
    assert any("rope.freqs" in note for note in plan.notes)


def test_meta_without_qk_norm_and_with_equal_heads(tmp_path: Path) -> None:
    cfg, state = small(
        qk_norm="none", qk_norm_groups=1, kv_heads=8, norm_placement="pre", max_positions=4096
    )
    assert_same(plan_meta(write_meta(tmp_path / "m", cfg, state, 2)), cfg, state)


def test_tied_embeddings_become_two(tmp_path: Path) -> None:
    cfg, state = small()
    head = state.pop("lm_head.weight")
    folder = write_transformers(tmp_path / "m", cfg, state, tie_word_embeddings=True)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    assert_same(plan_transformers(folder), cfg, state)
    other = {**state, "lm_head.weight": head}
    folder = write_transformers(tmp_path / "n", cfg, other, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings=true, but lm_head\.weight"):
        plan_transformers(folder)


def test_computed_buffers_are_left_out_aloud(tmp_path: Path) -> None:
    cfg, state = small()
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    plan = plan_transformers(write_transformers(tmp_path / "m", cfg, state, more=more))
    assert_same(plan, cfg, state)
    assert any("inv_freq" in note for note in plan.notes)


def test_names_are_matched_strictly(tmp_path: Path) -> None:
    cfg, state = small()
    del state["model.norm.weight"]
    state["model.layers.0.mlp.gate_proj.weight"] = torch.zeros(3, 4)
    more = {"model.adapter.weight": torch.zeros(1)}
    folder = write_transformers(tmp_path / "m", cfg, state, more=more)
    with pytest.raises(CheckpointError) as error:
        plan_transformers(folder)
    message = str(error.value)
    assert "missing model.norm.weight" in message
    assert "left over model.adapter.weight" in message
    assert "gate_proj.weight is [3, 4] instead of [96, 64]" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 3}, r"missing model\.layers\.2"),
        ({"vocab_size": 95}, r"instead of \[95, 64\]"),
        ({"num_attention_heads": 7}, "qk-norm has"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', must be 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hidden_size": 0}, "hidden=0"),
    ],
)
def test_a_configuration_that_disagrees(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    cfg, state = small()
    folder = write_transformers(tmp_path / "m", cfg, state, **change)
    with pytest.raises(CheckpointError, match=words):
        plan_transformers(folder)


def test_files_that_are_damaged_or_missing(tmp_path: Path) -> None:
    cfg, state = small()
    folder = write_transformers(tmp_path / "m", cfg, state)
    path = folder / "model-00002-of-00003.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:20] + b"#" + whole[21:], whole + b"more"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"00002-of-00003.*\({len(damaged)} bytes\)"):
            plan_transformers(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.safetensors, which are not in"):
        plan_transformers(folder)
    path.write_bytes(whole)
    tensors = load_file(path)
    moved = tensors.pop(sorted(tensors)[0])
    save_file({**tensors, "another": moved}, path)
    with pytest.raises(CheckpointError, match=r"lacks .*; .*adds another"):
        plan_transformers(folder)


def test_values_that_are_not_finite_are_named_when_read(tmp_path: Path) -> None:
    cfg, state = small()
    state["lm_head.weight"][3, 4] = torch.nan
    plan = plan_transformers(write_transformers(tmp_path / "m", cfg, state))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight holds 1 of 6144 values"):
        tensors_of(plan)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(transformers_json(small()[0])))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle, which is not read"):
        plan_transformers(tmp_path)


class _RunsACommand:
    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


def test_meta_files_that_are_not_what_they_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, state = small(max_positions=4096)
    folder = write_meta(tmp_path / "m", cfg, state)
    monkeypatch.chdir(tmp_path)
    last = folder / "consolidated.03.pth"
    whole = last.read_bytes()
    stored = torch.load(last, weights_only=True)
    cases: list[tuple[Any, str]] = [
        (whole[: len(whole) // 2], "cannot be read"),
        ({**stored, "norm.weight": _RunsACommand()}, "cannot be read"),
        ([1], "no plain dictionary"),
        ({**stored, "layers.0.adapter": torch.zeros(1)}, "different names: layers.0.adapter"),
        ({**stored, "output.weight": torch.zeros(5, 64)}, "different shapes or types"),
    ]
    for content, words in cases:
        if isinstance(content, bytes):
            last.write_bytes(content)
        else:
            torch.save(content, last)
        with pytest.raises(CheckpointError, match=words):
            plan_meta(folder)
    assert not (tmp_path / "pwned").exists()
    last.unlink()
    with pytest.raises(CheckpointError, match=r"holds 3 .* model_parallel_size=4"):
        plan_meta(folder)
    last.write_bytes(whole)
    monkeypatch.setattr(meta, "_MAX_FILE_BYTES", 1000)
    with pytest.raises(CheckpointError, match="more than the 1000 a shard may have"):
        plan_meta(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_layers": 3}, r"missing model\.layers\.2"),
        ({"dim": 32}, "instead of"),
        ({"dim": None}, "is not Meta's"),
        ({"n_heads": 3}, "fetch all shards|heads"),
    ],
)
def test_params_that_disagree(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    cfg, state = small(max_positions=4096)
    folder = write_meta(tmp_path / "m", cfg, state)
    params = json.loads((folder / "params.json").read_text())
    params["model"] |= change
    (folder / "params.json").write_text(json.dumps(params))
    with pytest.raises(CheckpointError, match=words):
        plan_meta(folder)


def test_unknown_names_of_meta_are_listed(tmp_path: Path) -> None:
    cfg, state = small(qk_norm_groups=1, max_positions=4096)
    folder = write_meta(tmp_path / "m", cfg, state, shards=1)
    stored = torch.load(folder / "consolidated.pth", weights_only=True)
    torch.save({**stored, "layers.1.gate": torch.zeros(1)}, folder / "consolidated.pth")
    with pytest.raises(CheckpointError, match=r"has not: layers\.1\.gate"):
        plan_meta(folder)


def test_what_transformers_cannot_be_is_refused() -> None:
    for cfg, words in ((small(qk_norm="none")[0], "qk_norm=none"), (SIZES["debug"], "")):
        if words:
            with pytest.raises(ConfigError, match=words):
                transformers_config(cfg, None, torch.float32, {}, {})
        else:
            config = transformers_config(cfg, None, torch.float32, {}, {})
            assert config["hidden_size"] == 64 and config["dtype"] == "float32"


def test_expanded_norms_repeat_each_group() -> None:
    cfg, state = small(qk_norm_groups=2)
    made = transformers_tensors(cfg, [lazy(n, t) for n, t in state.items()], None)
    by_name = {tensor.name: tensor for tensor in made}
    name = "model.layers.0.self_attn.q_norm.weight"
    expanded = by_name[name].read()
    assert by_name[name].shape == expanded.shape == (8, 8)
    assert torch.equal(expanded[:4], state[name][:1].expand(4, 8))
    assert torch.equal(expanded[4:], state[name][1:].expand(4, 8))


def test_written_files_are_the_librarys_byte_for_byte(tmp_path: Path) -> None:
    kinds = (torch.bfloat16, torch.float32, torch.float16, torch.int64, torch.uint8)
    tensors = {f"{n}": torch.arange(n + 1).to(kind) for n, kind in enumerate(kinds)}
    tensors |= {"matrix": torch.randn(3, 5).T, "scalar": torch.tensor(2.0)}
    write_tensors(tmp_path / "ours", [lazy(n, t) for n, t in tensors.items()])
    save_file(
        {n: t.contiguous() for n, t in tensors.items()}, tmp_path / "theirs", {"format": "pt"}
    )
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    again = read_headers([tmp_path / "ours"])
    assert all(torch.equal(again[name].read(), tensor) for name, tensor in tensors.items())


def test_random_states_differ_everywhere() -> None:
    """The layouts above are told apart only if no two rows are alike."""
    state = random_state(small()[0])
    rows = state["model.layers.0.self_attn.q_norm.weight"]
    assert len(torch.unique(rows, dim=0)) == len(rows) == 4
