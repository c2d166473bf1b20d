"""Every decoder by name: its sizes, class, sharding plan and cost. A new one is a file and a row.

The type of a configuration says which decoder it is of, so whoever has a configuration or the name
of a size needs no other name:

    >>> decoder = decoder_of(sizes()["7b"])
    >>> cfg = decoder.for_vocabulary(sizes()["7b"], vocabulary)
    >>> decoder.sharding_plan(decoder.model(cfg))
    ['model.layers.0', ..., 'lm_head']
    >>> config_from(to_record(cfg)) == cfg
    True

A configuration is a frozen dataclass with at least the fields of `DecoderConfig`, a model an
nn.Module with at least what `DecoderModel` lists. Weights in a model folder stand under the names
of its state dict. Cost is operations (`forward_flops`) and bytes: `mgpt.plan.activations` runs the
class on the meta device (`traced`) and counts.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from mgpt.errors import CheckpointError, ConfigError
from mgpt.models.head_loss import HeadLoss, LossSums
from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer, TransformerConfig
from mgpt.models.transformer import sharding_plan as transformer_plan

__all__ = [
    "MODELS",
    "Decoder",
    "DecoderConfig",
    "DecoderModel",
    "ForwardFlops",
    "config_from",
    "decoder_of",
    "sizes",
    "to_record",
]

_NAME = "decoder"  # of a record; the decoder of older versions has none


class DecoderConfig(Protocol):
    """What every decoder's configuration says."""

    @property
    def hidden(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def dropout(self) -> float: ...


class DecoderModel(Protocol):
    """What stages, backends, plans and inference ask of a decoder; see Transformer for each."""

    cfg: Any

    @property
    def embed(self) -> nn.Embedding: ...
    @property
    def blocks(self) -> nn.ModuleList: ...
    @property
    def head(self) -> HeadLoss: ...
    @property
    def num_parameters(self) -> int: ...
    def train_head_rows(self, start: int, stop: int) -> "DecoderModel": ...
    def start_codes_from(self, first_row: int, vectors_NC: Tensor) -> "DecoderModel": ...
    def training_sums(
        self, ids_BT: Tensor, positions_BT: Tensor, labels_BT: Tensor, z_loss: float = 0.0
    ) -> LossSums: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def eval(self) -> Any: ...
    def to(self, *args: Any, **kwargs: Any) -> Any: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def get_submodule(self, target: str) -> nn.Module: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], *, assign: bool = False) -> Any: ...


class ForwardFlops(NamedTuple):
    """Floating-point operations of one token's forward pass."""

    blocks: float
    head: float


@dataclass(frozen=True)
class Decoder:
    """A row of MODELS."""

    config: type
    model: Callable[[Any], DecoderModel]
    sharding_plan: Callable[[Any], list[str]]
    """Names of the submodules of a model that are sharded and recomputed each on its own, in
    forward order; "lm_head" is the last."""
    forward_flops: Callable[[Any, float], ForwardFlops]
    """Takes a model, on the meta device, and the mean length of a document in tokens."""
    traced: Callable[[Any], Any]
    """From a configuration, one of two blocks without dropout, each of which takes the memory of
    one block of the model, and whose forward pass reads no values, only shapes."""
    for_vocabulary: Callable[[Any, Any], Any]
    """A size with the number of ids of a vocabulary, and those ids that the decoder looks for."""
    sizes: Mapping[str, Any]
    """Configurations by the name that `model.size` takes."""


def _two_blocks(cfg: TransformerConfig) -> TransformerConfig:
    # Angles by line and column have the size of those by position, and read ids.
    return replace(cfg, layers=2, dropout=0.0, axial_rope_dims=0)


def _with_ids(cfg: TransformerConfig, vocabulary: Any) -> TransformerConfig:
    cfg = replace(cfg, vocab_size=vocabulary.size)
    if not cfg.axial_rope_dims:
        return cfg
    return replace(
        cfg,
        begin_image_id=vocabulary.begin_image,
        end_line_id=vocabulary.end_line,
        end_image_id=vocabulary.end_image,
    )


def _transformer_flops(model: Transformer, document_tokens: float) -> ForwardFlops:
    """2 x parameters of the blocks + 2 x layers x hidden x document length (causal attention)."""
    cfg = model.cfg
    head = cfg.vocab_size * cfg.hidden
    blocks = model.num_parameters - 2 * head
    return ForwardFlops(2 * (blocks + cfg.layers * cfg.hidden * document_tokens), 2 * head)


MODELS: dict[str, Decoder] = {
    "chameleon": Decoder(
        config=TransformerConfig,
        model=Transformer,
        sharding_plan=transformer_plan,
        forward_flops=_transformer_flops,
        traced=_two_blocks,
        for_vocabulary=_with_ids,
        sizes=SIZES,
    ),
}
_UNNAMED = "chameleon"


def sizes() -> dict[str, Any]:
    """Every decoder's configurations by the name that `model.size` takes."""
    return {name: cfg for decoder in MODELS.values() for name, cfg in decoder.sizes.items()}


def decoder_of(cfg: Any) -> Decoder:
    """The row of the decoder that a configuration is of."""
    for decoder in MODELS.values():
        if type(cfg) is decoder.config:
            return decoder
    raise ConfigError(f"{type(cfg).__name__} is no configuration of {', '.join(MODELS)}")


def to_record(cfg: Any) -> dict[str, Any]:
    """A configuration as plain data, for config.json and checkpoints."""
    (name,) = [name for name, decoder in MODELS.items() if decoder is decoder_of(cfg)]
    return {**({} if name == _UNNAMED else {_NAME: name}), **asdict(cfg)}


def config_from(record: Mapping[str, Any]) -> Any:
    """The configuration of a record.

    Raises CheckpointError for an unknown decoder or fields that are not its own.
    """
    given = dict(record)
    name = given.pop(_NAME, _UNNAMED)
    if name not in MODELS:
        raise CheckpointError(
            f"the decoder is {name!r}, which this installation does not have; it has "
            f"{', '.join(MODELS)}: register it in mgpt.models.table.MODELS"
        )
    own = fields(MODELS[name].config)
    unknown = given.keys() - {field.name for field in own}
    # A field that an older version lacks has the default that stands for what that version did.
    missing = {field.name for field in own if field.default is MISSING} - given.keys()
    if missing or unknown:
        raise CheckpointError(
            f"fields missing {sorted(missing)}, unknown {sorted(unknown)}; it was written by "
            "another version of mgpt"
        )
    try:
        return MODELS[name].config(**given)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(str(error)) from error
