"""The transformer against transformers' own Chameleon: the same weights, the same logits.

Sizes are drawn at random, weights, norms and biases too. Compared are the logits before
transformers masks the image tokens: `m.lm_head(m.model(ids).last_hidden_state)`.

Shape suffixes: B rows, T positions, V vocabulary.
"""

import itertools
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration
from transformers.models.chameleon.modeling_chameleon import ChameleonRotaryEmbedding

from mgpt.models.kv_cache import KvCache
from mgpt.models.rotary import rotary_angles
from mgpt.models.sizes import SIZES
from mgpt.models.transformer import Transformer, TransformerConfig

# fp32 has 24 bits: logits of size 1 to 5 through a few layers agree within 4e-6 (48 models).
FP32_TOLERANCE = 1e-5
# bf16 has 8 bits: a step at logits of 4 to 8 is 2^-5. Both sides round at the same places but
# inside attention. Measured over 48 models: 0.15 at most from transformers' eager attention, whose
# own distance is 0.12 from its fused attention and 0.20 from fp32.
BF16_TOLERANCE = 6 * 2**-5
ROWS, LENGTH = 2, 23

# Norm placement, qk-norm groups, query heads to a key-value head: 7B is (pre, 1, 1), 34B
# (post, 4, 8).
LAYOUTS = list(itertools.product(["pre", "post"], [1, 4], [1, 2, 3]))


def random_config(placement: str, groups: int, share: int, seed: int = 0) -> TransformerConfig:
    """Small sizes, odd where transformers allows it: its hidden size is heads times head size."""
    draw = random.Random(f"{placement} {groups} {share} {seed}")
    kv_heads = groups * draw.choice([1, 2, 3])
    head_dim = 2 * draw.randint(2, 9)
    return TransformerConfig(
        hidden=kv_heads * share * head_dim,
        ffn=2 * draw.randint(10, 60) + 1,
        layers=draw.randint(1, 3),
        heads=kv_heads * share,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=2 * draw.randint(20, 100) + 1,
        norm_placement=placement,
        qk_norm_groups=groups,
    )


def random_model(cfg: TransformerConfig, seed: int = 0) -> Transformer:
    """Matrices keep the size of what they multiply; norms and biases are far from the identity."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(cfg).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if "norm" in name:
                parameter.mul_(0.3).add_(0.0 if name.endswith("bias") else 1.0)
            else:
                parameter.div_(parameter.shape[-1] ** 0.5)
    return model


def reference(
    model: Transformer, dtype: torch.dtype = torch.float32
) -> ChameleonForConditionalGeneration:
    """transformers' model with the same weights, qk-norms repeated for each head."""
    cfg = model.cfg
    small_vq = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1}
    small_vq |= {"embed_dim": 2, "num_embeddings": 2, "latent_channels": 2}
    theirs = ChameleonForConditionalGeneration(
        ChameleonConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.hidden,
            intermediate_size=cfg.ffn,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            num_key_value_heads=cfg.kv_heads,
            swin_norm=cfg.norm_placement == "post",
            model_parallel_size=cfg.qk_norm_groups,
            vocabulary_map={"<image>": 0},
            vq_config=small_vq,
            attn_implementation="eager",
        )
    )
    weights = {name: by_head(name, tensor, cfg) for name, tensor in model.state_dict().items()}
    missing, left_over = theirs.load_state_dict(weights, strict=False)
    assert not left_over
    assert all(name.startswith("model.vqmodel.") for name in missing)
    return theirs.to(dtype).eval()


def by_head(name: str, tensor: Tensor, cfg: TransformerConfig) -> Tensor:
    if "q_norm" not in name and "k_norm" not in name:
        return tensor
    heads = cfg.heads if "q_norm" in name else cfg.kv_heads
    return tensor.repeat_interleave(heads // len(tensor), dim=0)


def random_ids(cfg: TransformerConfig) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(cfg.vocab_size, (ROWS, LENGTH), generator=generator)


def positions(start: int, stop: int) -> Tensor:
    return torch.arange(start, stop).expand(ROWS, -1)


def our_logits(model: Transformer, ids_BT: Tensor) -> Tensor:
    return model.head.logits(model(ids_BT, positions(0, ids_BT.shape[1])))


def their_logits(theirs: ChameleonForConditionalGeneration, ids_BT: Tensor) -> Tensor:
    return theirs.lm_head(theirs.model(ids_BT).last_hidden_state).float()


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.abs().max() > 1, "logits too small for an absolute tolerance"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=FP32_TOLERANCE)


@pytest.mark.parametrize(("placement", "groups", "share"), LAYOUTS)
@torch.no_grad()
def test_logits(placement: str, groups: int, share: int) -> None:
    for seed in range(3):
        model = random_model(random_config(placement, groups, share, seed), seed)
        ids_BT = random_ids(model.cfg)
        assert_equal(our_logits(model, ids_BT), their_logits(reference(model), ids_BT))


@pytest.mark.parametrize(("placement", "groups", "share"), LAYOUTS)
@torch.no_grad()
def test_logits_with_a_cache(placement: str, groups: int, share: int) -> None:
    """A prompt at once, then tokens one by one, then the rest at once."""
    model = random_model(random_config(placement, groups, share))
    ids_BT = random_ids(model.cfg)
    cache = KvCache(model.cfg, ROWS, torch.float32, "cpu")
    ends = [7, *range(8, 18), LENGTH]
    parts = [
        model.head.logits(model(ids_BT[:, start:stop], positions(start, stop), cache=cache))
        for start, stop in itertools.pairwise([0, *ends])
    ]
    assert_equal(torch.cat(parts, dim=1), their_logits(reference(model), ids_BT))


@torch.no_grad()
def test_logits_of_documents_packed_into_one_row() -> None:
    model = random_model(random_config("post", 4, 2))
    ids_BT = random_ids(model.cfg)
    packed_BT = torch.cat([positions(0, LENGTH)[0]] * ROWS)[None]
    logits_BTV = model.head.logits(model(ids_BT.reshape(1, -1), packed_BT))
    expected_BTV = their_logits(reference(model), ids_BT)
    assert_equal(logits_BTV.view_as(expected_BTV), expected_BTV)


@pytest.mark.parametrize(("placement", "groups", "share"), LAYOUTS)
@torch.no_grad()
def test_logits_in_bf16(placement: str, groups: int, share: int) -> None:
    """Equal where attention has one token; elsewhere nearer than bf16 is to fp32."""
    model = random_model(random_config(placement, groups, share))
    ids_BT = random_ids(model.cfg)
    exact_BTV = their_logits(reference(model), ids_BT)
    theirs = reference(model, torch.bfloat16)
    theirs_BTV = their_logits(theirs, ids_BT)
    model.bfloat16()
    difference_BTV = our_logits(model, ids_BT) - theirs_BTV
    assert difference_BTV.abs().max() <= BF16_TOLERANCE
    assert difference_BTV.std() < (theirs_BTV - exact_BTV).std()
    assert torch.equal(our_logits(model, ids_BT[:, :1]), their_logits(theirs, ids_BT[:, :1]))


def test_loss_and_gradients() -> None:
    model = random_model(random_config("post", 4, 3))
    theirs = reference(model)
    ids_BT = random_ids(model.cfg)
    labels_BT = F.pad(ids_BT[:, 1:], (0, 1), value=-100)
    sums = model.training_sums(ids_BT, positions(0, LENGTH), labels_BT)
    sums.loss_sum.backward()
    logits_NV = theirs.lm_head(theirs.model(ids_BT).last_hidden_state).flatten(0, 1)
    expected = F.cross_entropy(logits_NV, labels_BT.flatten(), reduction="sum")
    expected.backward()
    torch.testing.assert_close(sums.loss_sum, expected, rtol=1e-6, atol=0)
    gradients = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        wanted = gradients[name].grad
        if parameter.shape != wanted.shape:  # a group's gradient is the sum over its heads
            wanted = wanted.unflatten(0, (len(parameter), -1)).sum(1)
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-4, msg=name)


@torch.no_grad()
def test_norms_by_head_load_as_they_are() -> None:
    """A released folder of transformers has one qk-norm a head; each may differ."""
    cfg = replace(random_config("pre", 1, 2), qk_norm="head")
    model = random_model(cfg)
    theirs = reference(model)
    own = {n: t for n, t in theirs.state_dict().items() if not n.startswith("model.vqmodel.")}
    assert own.keys() == model.state_dict().keys()
    ids_BT = random_ids(cfg)
    assert_equal(our_logits(model, ids_BT), their_logits(theirs, ids_BT))


@torch.no_grad()
def test_tied_embeddings_are_the_same_matrix_twice() -> None:
    """Released models are untied. A tied one of transformers loads with its matrix as both."""
    model = random_model(replace(random_config("pre", 1, 2), qk_norm="head"))
    theirs = reference(model)
    theirs.config.tie_word_embeddings = True
    theirs.tie_weights()
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    ids_BT = random_ids(model.cfg)
    expected_BTV = their_logits(theirs, ids_BT)
    assert (our_logits(model, ids_BT) - expected_BTV).abs().max() > 0.1
    own = {n: t for n, t in theirs.state_dict().items() if not n.startswith("model.vqmodel.")}
    model.load_state_dict({**own, "lm_head.weight": own["model.embed_tokens.weight"]})
    assert_equal(our_logits(model, ids_BT), expected_BTV)


@pytest.mark.parametrize(("size", "published"), [("7b", 7_013_142_528), ("34b", 34_293_424_128)])
def test_released_sizes(size: str, published: int) -> None:
    """Names, shapes and the number of parameters, without allocating any."""
    with torch.device("meta"):
        model = Transformer(SIZES[size])
        theirs = reference(model)
    shapes = {name: by_head(name, t, model.cfg).shape for name, t in model.state_dict().items()}
    assert shapes == {
        name: tensor.shape
        for name, tensor in theirs.state_dict().items()
        if not name.startswith("model.vqmodel.")
    }
    norms = ("q_norm", "k_norm")
    parameters = dict(model.named_parameters()).items()
    count = sum(p.numel() for name, p in parameters if not any(n in name for n in norms))
    assert count == published


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_angles_of_every_position(dtype: torch.dtype) -> None:
    """Bit for bit over the whole context, at the released head size."""
    embedding = ChameleonRotaryEmbedding(ChameleonConfig(vocabulary_map={}))
    positions_1T = torch.arange(4096)[None]
    theirs = embedding(torch.zeros(1, dtype=dtype), positions_1T)
    ours = rotary_angles(SIZES["7b"], positions_1T, positions_1T, dtype)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(torch.cat([one, one], dim=-1)[:, :, 0], other)
