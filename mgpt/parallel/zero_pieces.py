"""Where DeepSpeed keeps a parameter's float32 weight and state on this rank, at every stage.

DeepSpeed splits flattened parameters; a rank's part of one is a run of its elements, from `start`
on, none or all of them. Stage 3 cuts each parameter into equal runs and pads the last one. Stages 1
and 2 lay all parameters of a group end to end and cut that, so a rank holds most of them wholly or
not at all, and the cuts go through a few. What is offloaded is fetched and put back here.

    >>> pieces = stage_pieces(engine, dict(module.named_weights()), shapes)
    >>> start, numel = pieces.span("model.norm.weight")
    >>> pieces.read("model.norm.weight")  # float32: elements start to start + numel - 1
    >>> pieces.write("model.norm.weight", values, "exp_avg")
    >>> pieces.refresh()  # the weights of the forward pass from those written
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mgpt.parallel.zero_optimizer import ZeroOptimizer

__all__ = ["Pieces", "stage_pieces"]


class Pieces(Protocol):
    """This rank's elements of every parameter. Names are those of the model."""

    def prepare(self, optimizer: ZeroOptimizer) -> None:
        """Gives the optimizer its zero state; comes before all else."""
        ...

    def span(self, name: str) -> tuple[int, int]:
        """First element of the flattened parameter that is here, and the number of them."""
        ...

    def read(self, name: str, state: str | None = None) -> Tensor:
        """A copy of them, or of one of their state tensors."""
        ...

    def write(self, name: str, values: Tensor, state: str | None = None) -> None:
        """Sets them, or one of their state tensors."""
        ...

    def judge_norms(self, judge: Callable[[float], bool]) -> None:
        """Calls `judge` with the norm of the gradient before each update, nan where it is not
        finite. Where it says no, DeepSpeed discards the update, as it does one not finite. Where
        single gradients are not finite it may be discarded without a call."""
        ...

    def refresh(self) -> None:
        """Copies what was written into the weights that the next forward pass uses; collective.

        DeepSpeed does this by itself only after an update.
        """
        ...


def stage_pieces(
    engine: Any, parameters: Mapping[str, nn.Parameter], shapes: Mapping[str, torch.Size]
) -> Pieces:
    """The pieces of an engine, by its stage."""
    if engine.zero_optimization_stage() == 3:
        return _Stage3Pieces(engine.optimizer, parameters, shapes)
    return _FlatPieces(engine.optimizer, parameters)


class _Stage3Pieces:
    def __init__(
        self,
        optimizer: Any,
        parameters: Mapping[str, nn.Parameter],
        shapes: Mapping[str, torch.Size],
    ) -> None:
        self._optimizer, self._parameters, self._shapes = optimizer, parameters, shapes

    def prepare(self, optimizer: ZeroOptimizer) -> None:
        for index, master in enumerate(self._optimizer.fp32_partitioned_groups_flat):
            on_disk = self._optimizer._swappable_optimizer_subgroup(index)
            if on_disk:
                self._optimizer._optimizer_states_and_gradient_swap_in(index)
            optimizer.prepare(master, self._optimizer.sub_group_to_group_id[index])
            if on_disk:
                self._optimizer._optimizer_states_and_gradient_swap_out(index)

    def span(self, name: str) -> tuple[int, int]:
        whole = self._shapes[name].numel()
        padded = -(-whole // dist.get_world_size())
        start = min(padded * dist.get_rank(), whole)
        return start, min(padded, whole - start)

    def read(self, name: str, state: str | None = None) -> Tensor:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        parameter: Any = self._parameters[name]
        if state is None:
            padded = safe_get_local_fp32_param(parameter)
        else:
            padded = safe_get_local_optimizer_state(parameter, state)
        return padded.detach()[: self.span(name)[1]].clone()

    def write(self, name: str, values: Tensor, state: str | None = None) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        parameter: Any = self._parameters[name]
        padded = torch.zeros(parameter.ds_tensor.ds_numel, device=values.device)
        padded[: values.numel()] = values
        if state is None:
            safe_set_local_fp32_param(parameter, padded)
        else:
            safe_set_local_optimizer_state(parameter, padded, state)

    def judge_norms(self, judge: Callable[[float], bool]) -> None:
        measure = self._optimizer._get_norm_groups

        def judged() -> list[Tensor]:
            norms: list[Tensor] = measure()  # of each group; -1 stands for one that is not finite
            norm = math.nan
            if all(float(one) >= 0 for one in norms):
                norm = float(torch.linalg.vector_norm(torch.stack(norms)))
            return norms if judge(norm) else [torch.full_like(norms[0], math.nan)]

        self._optimizer._get_norm_groups = judged

    def refresh(self) -> None:
        optimizer = self._optimizer
        # Small weights stay gathered, and would not be gathered anew.
        optimizer._partition_all_parameters()
        for index in range(len(optimizer.fp16_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


class _FlatPieces:
    """Of stages 1 and 2. A parameter without elements on this rank has no mapping."""

    def __init__(self, optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> None:
        self._optimizer, self._parameters = optimizer, parameters

    def prepare(self, optimizer: ZeroOptimizer) -> None:
        # Stage 1 in bfloat16 is a class of its own in DeepSpeed.
        is_plain = hasattr(self._optimizer, "single_partition_of_fp32_groups")
        name = "single_partition_of_fp32_groups" if is_plain else "fp32_groups_flat_partition"
        for group, master in enumerate(getattr(self._optimizer, name)):
            optimizer.prepare(master, group)
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _mapping(self, name: str) -> Any:
        return self._parameters[name]._hp_mapping  # type: ignore[attr-defined]

    def span(self, name: str) -> tuple[int, int]:
        mapping = self._mapping(name)
        if mapping is None:
            return 0, 0
        return mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel

    def read(self, name: str, state: str | None = None) -> Tensor:
        mapping = self._mapping(name)
        if mapping is None:
            return torch.empty(0, device=self._parameters[name].device)
        held: Tensor = mapping.get_hp_fragment(state)
        return held.detach().clone().to(self._parameters[name].device)

    def write(self, name: str, values: Tensor, state: str | None = None) -> None:
        mapping = self._mapping(name)
        if mapping is not None:
            mapping.get_hp_fragment(state).data.copy_(values)

    def judge_norms(self, judge: Callable[[float], bool]) -> None:
        if hasattr(self._optimizer, "scaled_global_norm"):
            self._judge_norm(judge)
        else:
            self._judge_gradients(judge)

    def _judge_norm(self, judge: Callable[[float], bool]) -> None:
        measure = self._optimizer.scaled_global_norm

        def judged(*args: Any, **kwargs: Any) -> Tensor:
            norm = torch.as_tensor(measure(*args, **kwargs))  # -1: not finite
            is_well = judge(float(norm) if float(norm) >= 0 else math.nan)
            return norm if is_well else torch.full_like(norm, -1.0)

        self._optimizer.scaled_global_norm = judged

    def _judge_gradients(self, judge: Callable[[float], bool]) -> None:
        """The same where the norm is taken by a function that is not the optimiser's."""
        from deepspeed.runtime.utils import get_global_norm_of_tensors

        measure = self._optimizer.get_grads_for_norm

        def judged(for_clipping: bool = False) -> Any:
            if for_clipping:
                return measure(for_clipping=True)
            gradients, of_experts = measure()
            norm = float(get_global_norm_of_tensors(input_tensors=gradients))
            if judge(norm if norm >= 0 and math.isfinite(norm) else math.nan):
                return gradients, of_experts
            return [torch.full_like(gradients[0], math.nan)], of_experts

        self._optimizer.get_grads_for_norm = judged

    def refresh(self) -> None:
        self._optimizer.update_lp_params()
