"""Keys and values of sequences being decoded together, of different lengths and ages.

Row b of a forward call is row b of the cache, and a token's position is its place in the row. What
stands behind a row's own length is never attended to, so rows of different lengths share one
tensor, and a padded prompt may write past its end. A finished row is closed by moving the last one
into its place. Ids are kept for a model whose rotary embedding knows lines and columns.

    >>> cache = KvCache(model.cfg, rows=8, dtype=torch.float32, device="cpu")
    >>> hidden_BTD = model(prompt_ids_BT, positions_BT, cache=cache.window(0, 2))  # two prompts
    >>> hidden_B1D = model(next_ids_B1, lengths_B1, cache=cache.window(0, 2))  # one token each

Shape suffixes: R rows of the cache, C places reserved in a row, B rows of a call, T its new tokens,
L places attended to, H query heads, J key-value heads, K head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mgpt.models.attention import attend_causal
from mgpt.models.rotary import angles_at, picture_places
from mgpt.models.transformer_config import TransformerConfig

__all__ = ["KvCache"]

# Places are reserved in multiples of this, and at least a quarter more at a time: untouched memory
# costs time to clear, and growing costs a copy.
_PLACES = 64


class KvCache:
    """Storage for `rows` sequences; places grow as they are needed."""

    _keys: list[Tensor]
    _values: list[Tensor]
    _ids_RC: Tensor
    # Of the forward under way, set by `begin`.
    _rows_B1: Tensor
    _positions_BT: Tensor
    _length: int
    _mask_B1TL: Tensor | None
    _fresh: bool

    def __init__(
        self,
        cfg: TransformerConfig,
        rows: int,
        dtype: torch.dtype,
        device: torch.device | str,
        capacity: int = _PLACES,
    ):
        shape_RJCK = (rows, cfg.kv_heads, capacity, cfg.head_dim)
        self._keys = [
            torch.zeros(shape_RJCK, dtype=dtype, device=device) for _ in range(cfg.layers)
        ]
        self._values = [torch.zeros_like(keys) for keys in self._keys]
        self._ids_RC = torch.zeros(rows, capacity, dtype=torch.int64, device=device)

    @property
    def rows(self) -> int:
        return self._keys[0].shape[0]

    @property
    def capacity(self) -> int:
        """Places reserved in every row, in tokens."""
        return self._keys[0].shape[2]

    def reserve(self, length: int) -> None:
        """Makes room for `length` tokens in every row; windows made before are then stale."""
        if length > self.capacity:
            wanted = max(length, self.capacity * 5 // 4)
            more = -(-wanted // _PLACES) * _PLACES - self.capacity
            self._keys = [F.pad(keys, (0, 0, 0, more)) for keys in self._keys]
            self._values = [F.pad(values, (0, 0, 0, more)) for values in self._values]
            self._ids_RC = F.pad(self._ids_RC, (0, more))

    def move(self, source: int, target: int) -> None:
        """Copies the sequence in row `source` over row `target`."""
        for stored in (*self._keys, *self._values, self._ids_RC):
            stored[target] = stored[source]

    def window(self, start: int, stop: int) -> KvCache:
        """Rows start..stop-1 as a cache of their own, on the same storage."""
        part = object.__new__(KvCache)
        part._keys = [keys[start:stop] for keys in self._keys]
        part._values = [values[start:stop] for values in self._values]
        part._ids_RC = self._ids_RC[start:stop]
        return part

    def begin(self, ids_BT: Tensor, positions_BT: Tensor) -> None:
        """Stores the new ids, and prepares the mask that every layer of one forward call uses."""
        batch, new_tokens = positions_BT.shape
        assert batch == self.rows, f"{batch} rows of ids for {self.rows} rows of cache"
        self._length = int(positions_BT.max()) + 1
        assert self._length <= self.capacity, f"{self._length} tokens, {self.capacity} places"
        self._rows_B1 = torch.arange(batch, device=positions_BT.device)[:, None]
        self._positions_BT = positions_BT
        self._ids_RC[self._rows_B1, positions_BT] = ids_BT
        self._fresh = new_tokens > 1 and not bool(positions_BT[:, 0].any())
        places_L = torch.arange(self._length, device=positions_BT.device)
        self._mask_B1TL = None
        if not self._fresh and bool((positions_BT < self._length - 1).any()):
            self._mask_B1TL = (places_L <= positions_BT[..., None])[:, None]

    def rotary_angles(self, cfg: TransformerConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, T, 1, K / 2] at the positions of `begin`'s tokens."""
        if not cfg.axial_rope_dims:
            return angles_at(cfg, self._positions_BT, (), dtype)
        ids_BL = self._ids_RC[:, : self._length]
        positions_BL = torch.arange(self._length, device=ids_BL.device).expand_as(ids_BL)
        # Places need every earlier id; cosines are only taken of the new tokens.
        new = (self._rows_B1, self._positions_BT)
        axes = [axis_BL[new] for axis_BL in picture_places(cfg, ids_BL, positions_BL)]
        return angles_at(cfg, self._positions_BT, axes, dtype)

    def attend(self, layer: int, q_BTHK: Tensor, k_BTJK: Tensor, v_BTJK: Tensor) -> Tensor:
        """Stores the new keys and values of `layer`, then attends over all up to each position."""
        keys, values = self._keys[layer], self._values[layer]
        keys[self._rows_B1, :, self._positions_BT] = k_BTJK
        values[self._rows_B1, :, self._positions_BT] = v_BTJK
        if self._fresh:
            return attend_causal(q_BTHK, k_BTJK, v_BTJK)
        out_BHTK = F.scaled_dot_product_attention(
            q_BTHK.transpose(1, 2),
            keys[:, :, : self._length],
            values[:, :, : self._length],
            attn_mask=self._mask_B1TL,
            enable_gqa=q_BTHK.shape[2] != keys.shape[1],
        )
        return out_BHTK.transpose(1, 2)
