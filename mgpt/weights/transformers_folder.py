"""The exchange format: a folder as transformers' `ChameleonForConditionalGeneration` saves it.

Reading takes Chameleon's (qk-norm by head) and Lumina-mGPT's (by group), in one safetensors file
or several with an index. Our names are transformers' own, so only qk-norm, tied heads and the VQ
encoder (`model.vqmodel.*`) ask for work.

    >>> plan = plan_transformers(Path("chameleon-7b"))
    >>> tensors = transformers_tensors(plan.cfg, plan.tensors, plan.vq)
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from mgpt.errors import CheckpointError
from mgpt.models.tensor_files import LazyTensor, misfits, name_list, read_headers
from mgpt.models.transformer_config import TransformerConfig
from mgpt.weights.plan import ModelPlan, check_fit, checked_values
from mgpt.weights.qk_norm import QkLayout, by_group, by_head, find_layout, is_qk_norm
from mgpt.weights.transformers_config import SourceConfig, read_config
from mgpt.weights.vq_encoder import VqEncoder, encoder_shapes

__all__ = ["plan_transformers", "transformers_tensors"]

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
VQ_PREFIX = "model.vqmodel."
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Buffers that old versions of transformers saved; they follow from the configuration.
COMPUTED_SUFFIX = "rotary_emb.inv_freq"


def plan_transformers(folder: Path) -> ModelPlan:
    """The model in a transformers folder, from its configuration and its files' headers.

    Raises CheckpointError where a file, the configuration and the tensors do not agree.
    """
    config = read_config(folder)
    stored, files = _stored_tensors(folder)
    notes = []
    computed = [name for name in stored if name.endswith(COMPUTED_SUFFIX)]
    if computed:
        notes.append(f"left out, computed anew: {name_list(computed)}")
    vq = {name: tensor for name, tensor in stored.items() if name.startswith(VQ_PREFIX)}
    taken = {n: t for n, t in stored.items() if n not in vq and not n.endswith(COMPUTED_SUFFIX)}
    if config.is_tied:
        _untie(taken, folder)
        notes.append(f"tied embeddings: {HEAD} becomes a copy of {EMBED}")
    norms = {name: tensor for name, tensor in taken.items() if is_qk_norm(name)}
    layout = find_layout(
        norms, config.heads, config.kv_heads, config.groups_hint, folder, config.stated_layout
    )
    cfg = config.sizes(layout)
    tensors = [by_group(t, layout) if name in norms else t for name, t in taken.items()]
    check_fit(cfg, tensors, folder)
    return ModelPlan(
        layout=f"transformers folder, qk-norm {_words(norms, config)}",
        cfg=cfg,
        tensors=checked_values(tensors, folder),
        files=[config.path, *files],
        vq=_vq_encoder(vq, config) if vq else None,
        vq_fingerprint=config.vq_fingerprint,
        states_vq=config.states_vq,
        vocabulary_map=config.vocabulary_map,
        num_source_tensors=len(stored),
        notes=notes,
    )


def transformers_tensors(
    cfg: TransformerConfig, tensors: Iterable[LazyTensor], vq: VqEncoder | None
) -> list[LazyTensor]:
    """A model's tensors, and its VQ encoder's, as transformers has them."""
    heads = {True: cfg.heads, False: cfg.kv_heads}
    exported = [
        by_head(t, heads[".q_norm." in t.name]) if is_qk_norm(t.name) else t for t in tensors
    ]
    if vq is not None:
        exported += [replace(t, name=VQ_PREFIX + t.name) for t in vq.tensors]
    return exported


def _stored_tensors(folder: Path) -> tuple[dict[str, LazyTensor], list[Path]]:
    """Everything in the folder's safetensors, and the files that it stands in.

    Raises CheckpointError where the index and the files do not hold the same names.
    """
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
            why = f"; {pickles[0]} is a pickle, which is not read" if pickles else ""
            raise CheckpointError(
                f"{folder} holds neither {SINGLE} nor {INDEX}{why}; fetch the safetensors files"
            )
        return read_headers([folder / SINGLE]), [folder / SINGLE]
    try:
        places: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
        files = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / INDEX} is no index of safetensors: {error!r}") from error
    strange = [name for name in files if Path(name).name != name]
    missing = [name for name in files if not (folder / name).exists()]
    if strange or missing:
        raise CheckpointError(
            f"{folder / INDEX} names {name_list(strange or missing)}, which "
            f"{'are no file names' if strange else 'are not in the folder'}; fetch all of the model"
        )
    stored: dict[str, LazyTensor] = {}
    problems = []
    for file in files:
        tensors = read_headers([folder / file])
        wanted = {name for name, place in places.items() if place == file}
        for words, names in (("lacks", wanted - tensors.keys()), ("adds", tensors.keys() - wanted)):
            if names:
                problems.append(f"{file} {words} {name_list(names)}")
        stored |= tensors
    if problems:
        raise CheckpointError(
            f"{folder}: files and {INDEX} do not agree: {'; '.join(problems)}; fetch it again"
        )
    return stored, [folder / INDEX, *(folder / file for file in files)]


def _untie(tensors: dict[str, LazyTensor], folder: Path) -> None:
    """Gives a tied model its head; raises CheckpointError where one is stored that differs."""
    if EMBED not in tensors:
        return
    if HEAD in tensors and not torch.equal(tensors[HEAD].read(), tensors[EMBED].read()):
        raise CheckpointError(
            f"{folder}: config.json says tie_word_embeddings=true, but {HEAD} differs from "
            f"{EMBED}; set it to false where the head is its own"
        )
    tensors[HEAD] = replace(tensors[EMBED], name=HEAD)


def _vq_encoder(stored: dict[str, LazyTensor], config: SourceConfig) -> VqEncoder:
    cfg = config.vq_sizes()
    tensors = [replace(t, name=t.name.removeprefix(VQ_PREFIX)) for t in stored.values()]
    problems = misfits(encoder_shapes(cfg), {t.name: t.shape for t in tensors})
    if problems:
        raise CheckpointError(
            f"{config.path.parent}: {VQ_PREFIX}* do not fit vq_config in {config.path.name}: "
            f"{problems}"
        )
    return VqEncoder(cfg, checked_values(tensors, config.path.parent))


def _words(norms: dict[str, LazyTensor], config: SourceConfig) -> str:
    if not norms:
        return QkLayout("none").qk_norm
    rows = next(norm.shape[0] for name, norm in norms.items() if ".q_norm." in name)
    return "by head" if rows == config.heads else "by group"
