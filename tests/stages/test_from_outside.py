"""A decoder variant and a backend that this file adds, a class and a row of a table each: they
train, save, resume, plan and load, and nothing in the package knows them."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("drills", "parallel")]
from engine_runs import Attempt, elsewhere
from rank_runs import Run, make_corpus, metrics_of

from mgpt.cli import command
from mgpt.errors import CheckpointError
from mgpt.lifecycle.weights import Weights
from mgpt.models import table
from mgpt.models.sizes import SIZES
from mgpt.models.table import MODELS, Decoder
from mgpt.models.transformer import Block, Transformer, TransformerConfig
from mgpt.parallel import backend
from mgpt.parallel.backend import ParallelConfig, TrainingModule
from mgpt.parallel.footprint import Part, RankShare
from mgpt.parallel.single import SingleBackend
from mgpt.parallel.snapshot import Snapshot
from mgpt.parallel.state import training_state
from mgpt.plan.memory import RankWork, parameter_groups, plan_memory
from mgpt.plan.run import Machine, RunSize, plan_run
from mgpt.train.trainer import Trainer

# ------------------------------------------------------------------ a decoder


@dataclass(frozen=True)
class ParallelBlocksConfig(TransformerConfig):
    """The transformer's sizes, and how much its MLPs add."""

    mlp_scale: float = 0.5


class ParallelBlock(Block):
    """Attention and MLP read the same input, as in GPT-J."""

    def __init__(self, cfg: ParallelBlocksConfig, layer: int) -> None:
        super().__init__(cfg, layer)
        self.mlp_scale = cfg.mlp_scale

    def forward(
        self, x_BTD: Tensor, rotary: Any, documents: Any = None, cache: Any = None
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x_BTD), rotary, documents, cache)
        return x_BTD + attended + self.mlp_scale * self.mlp(self.post_attention_layernorm(x_BTD))


class ParallelBlocks(Transformer):
    def __init__(self, cfg: ParallelBlocksConfig) -> None:
        super().__init__(cfg)
        self.model.layers = nn.ModuleList(ParallelBlock(cfg, n) for n in range(cfg.layers))


CHAMELEON = MODELS["chameleon"]
VARIANT = Decoder(
    config=ParallelBlocksConfig,
    model=ParallelBlocks,
    sharding_plan=CHAMELEON.sharding_plan,
    forward_flops=CHAMELEON.forward_flops,
    traced=CHAMELEON.traced,
    for_vocabulary=CHAMELEON.for_vocabulary,
    sizes={"parallel_debug": ParallelBlocksConfig(**table.to_record(SIZES["debug"]))},
)


@pytest.fixture
def variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "parallel_blocks", VARIANT)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_corpus(tmp_path_factory.mktemp("corpus")))


def pretrain(corpus: Path, output: Path, *words: str, status: int = 0) -> None:
    given = (
        *("tracking=disabled", "parallel=single", "save_every=1", "async_save=false", "steps=4"),
        *("schedule.warmup_steps=0", "schedule.kind=constant", "optim.lr=1e-3", "dropout=0.1"),
        *("data.row_tokens=128", "data.step_rows=2", "data.window_documents=16"),
        *(f"vocabulary={corpus}/vocab", f"data.sources.a.path={corpus}/32"),
        *("data.sources.a.tasks.caption=1", f"output={output}", *words),
    )
    assert command.main(["pretrain", *given]) == status


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in metrics_of(run)]


@pytest.mark.usefixtures("variant")
def test_a_decoder_trains_saves_and_resumes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pretrain(corpus, whole, "model.size=parallel_debug")
    pretrain(corpus, tmp_path / "chameleon", "model.size=debug")
    assert losses(whole) != losses(tmp_path / "chameleon")

    step = Trainer._train_step

    def until_2(self: Trainer, number: int, signals: Any) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return step(self, number, signals)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(Trainer, "_train_step", until_2)
        pretrain(corpus, killed, "model.size=parallel_debug", status=130)
    pretrain(corpus, killed, "model.size=parallel_debug")
    assert metrics_of(killed) == metrics_of(whole)
    # Weights carry their decoder's name: from a checkpoint and from the model folder.
    for place in (whole, whole / "step_00000004", whole / "model"):
        weights = Weights.find(place)
        assert weights.config().mlp_scale == 0.5
        assert type(weights.load(torch.device("cpu"))) is ParallelBlocks
    further = tmp_path / "further"
    pretrain(corpus, further, f"init_from={whole}", "steps=1")
    assert losses(further)[0] < losses(whole)[0]


def test_a_decoder_that_is_not_there_is_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(MODELS, "parallel_blocks", VARIANT)
        pretrain(corpus, tmp_path / "run", "model.size=parallel_debug", "steps=1")
    for place in (tmp_path / "run/step_00000001", tmp_path / "run/model"):
        with pytest.raises(CheckpointError, match="'parallel_blocks', which this installation"):
            Weights.find(place).config()


@pytest.mark.usefixtures("variant")
def test_a_decoder_is_planned() -> None:
    large = ParallelBlocksConfig(**table.to_record(SIZES["7b"]))
    run = RunSize(
        large,
        ParallelConfig("fsdp2", dtype="bfloat16"),
        steps=10,
        step_rows=64,
        row_tokens=4096,
        document_tokens=4096,
    )
    planned = plan_run(run, Machine(nodes=8))
    usual = plan_run(replace(run, transformer=SIZES["7b"]), Machine(nodes=8))
    assert planned.num_parameters == usual.num_parameters
    assert planned.flops_per_token == usual.flops_per_token
    # A block's MLP no longer reads what attention made: its sum with the input is not kept.
    assert planned.memory.peak_bytes != usual.memory.peak_bytes


# ------------------------------------------------------------------ a backend


class Replicated(SingleBackend):
    """Plain data parallelism: whole models, gradients summed over the ranks."""

    on_many: ClassVar[bool] = True

    @classmethod
    def problem(cls, cfg: ParallelConfig) -> str | None:
        return "compile=true: replicated does not compile" if cfg.compile else None

    @classmethod
    def held(cls, share: RankShare, left: int) -> list[Part]:
        return [*super().held(share, left), Part.always("messages", share.groups.block)]

    @classmethod
    def savings(cls, cfg: ParallelConfig, accumulates: bool) -> Iterator[dict[str, Any]]:
        yield {"name": "fsdp2"}

    def _place(
        self, cfg: ParallelConfig, module: TrainingModule, plan: Sequence[str]
    ) -> TrainingModule:
        return module.to_empty(device=self.device)

    def step(self, lr: float, max_norm: float, limit: float = float("inf")) -> tuple[float, bool]:
        for parameter in self._parameters:
            if parameter.grad is not None and self.dp_size > 1:
                dist.all_reduce(parameter.grad)
        return super().step(lr, max_norm, limit)

    def snapshot(self, copy: bool) -> Snapshot:
        tensors = training_state(self._named, self._optimizer) if self._world.is_main else {}
        return Snapshot.take(tensors.items(), self._optimizer.num_updates, self._world, copy)

    def weights_checksum(self) -> str:
        return "replicated"


def register() -> None:
    """On each rank, before it trains."""
    sys.modules.setdefault("replicated_of_a_test", sys.modules[__name__])
    backend.BACKENDS["replicated"] = "replicated_of_a_test:Replicated"


def finish(run: Run, size: int) -> Run:
    with Attempt(run, size, register) as attempt:
        assert attempt.wait() == [0] * size, attempt.logs()
    return run


def test_a_backend_trains_saves_and_resumes(corpus: Path, tmp_path: Path) -> None:
    single = Run(str(corpus), str(tmp_path / "single"))
    finish(single, 1)
    whole = finish(elsewhere(single, tmp_path / "whole", backend="replicated"), 2)
    step_3 = str(tmp_path / "whole" / "step_00000003")
    resumed = elsewhere(single, tmp_path / "resumed", backend="replicated", continue_from=step_3)
    finish(resumed, 2)
    sharded = finish(
        elsewhere(single, tmp_path / "sharded", backend="fsdp2", continue_from=step_3), 2
    )
    want = losses(Path(single.folder))
    assert losses(Path(whole.folder)) == pytest.approx(want, abs=1e-6)
    assert metrics_of(resumed.folder) == metrics_of(whole.folder)[3:]
    assert losses(Path(sharded.folder)) == pytest.approx(want[3:], abs=1e-6)


def test_a_backend_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "replicated_of_a_test", sys.modules[__name__])
    monkeypatch.setitem(backend.BACKENDS, "replicated", "replicated_of_a_test:Replicated")
    cfg = ParallelConfig("replicated", dtype="bfloat16")
    assert cfg.asked_procs == "auto" and "replicated" in backend.backends_on_many()
    with pytest.raises(ValueError, match="replicated does not compile"):
        ParallelConfig("replicated", compile=True)
    memory = plan_memory(RankWork(SIZES["7b"], cfg, ranks=8, row_tokens=1024))
    assert memory.part("messages").update_bytes > 0
    whole = parameter_groups(SIZES["7b"], 1).whole
    assert memory.part("weights, float32").update_bytes == 4 * whole, "on each rank"
    (problem,) = plan_run(
        RunSize(SIZES["7b"], cfg, 10, 8, 4096, document_tokens=4096.0), Machine(nodes=1)
    ).problems
    assert "parallel.name=fsdp2 (" in problem
