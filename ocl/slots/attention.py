"""Slot Attention (Locatello et al. 2020, algorithm 1) and the variants that published code hides under that name."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn

from ocl.errors import ConfigError, ShapeError
from ocl.interfaces import SlotModule
from ocl.nn.mlp import glorot_, mlp
from ocl.nn.positions import CoordinateCode
from ocl.ops.slot_attention import EpsOn, slot_attention
from ocl.types import Features, Slots


@final
class SlotAttention(SlotModule):
    """Slots compete for tokens, then a GRU and a residual MLP update them; repeated `num_iterations` times.

    The attention that is returned is the last iteration's, summed over heads, before renormalising over tokens.

    Args:
        feature_dim: width of the tokens; must equal the encoder's width.
        slot_dim: width of a slot.
        out_dim: width of the returned slots through LayerNorm and a linear map; None returns the slots as they are.
        num_iterations: rounds of competition.
        num_heads: the softmax runs over heads x slots (SLATE, STEVE, LSD, CODA).
        mlp_dim: hidden width of the residual MLP; None is slot_dim.
        eps: keeps a slot that no token chose alive. 1e-8 vanishes in float16, so the softmax is kept in float32.
        eps_on: "weights" adds eps to every weight before renormalising, "denominator" to their sum only.
        position: add a linear code of the token's place to the features.
        input_mlp: LayerNorm and MLP on the features before the first iteration.
        gru_state: the GRU's memory is the slot as it was ("raw", published code) or after its LayerNorm ("normalised").
        scale: logits are divided by the root of the slot's width ("slot", also with several heads) or of a head's ("head").
        form: "absorbed" projects K slots in place of N tokens, which is exact and cheaper; "plain" is the paper's text.
        gradient: "full" through all iterations; "bilevel" through the last, straight through to the initial slots (BO-QSA,
            Jia et al. 2023); "implicit" through one more step at the fixed point (Chang et al. 2022, first order).
        start: "glorot" weights (published code), or "clusters": weights with which the untrained module is a soft k-means on
            the features, so that slots part from the first step on. Ours; see docs/training.md for what it saves.
    """

    def __init__(
        self,
        feature_dim: int,
        slot_dim: int,
        *,
        out_dim: int | None = None,
        num_iterations: int = 3,
        num_heads: int = 1,
        mlp_dim: int | None = None,
        eps: float = 1e-8,
        eps_on: EpsOn = "weights",
        position: bool = False,
        input_mlp: bool = False,
        gru_state: Literal["raw", "normalised"] = "raw",
        scale: Literal["slot", "head"] = "slot",
        form: Literal["absorbed", "plain"] = "absorbed",
        gradient: Literal["full", "bilevel", "implicit"] = "full",
        start: Literal["glorot", "clusters"] = "glorot",
    ) -> None:
        super().__init__()
        if slot_dim % num_heads:
            raise ConfigError(f"SlotAttention needs slot_dim divisible by num_heads, got {slot_dim} and {num_heads}.")
        if num_iterations < 1:
            raise ConfigError(f"SlotAttention needs num_iterations >= 1, got {num_iterations}.")
        self.feature_dim, self.slot_dim, self.out_dim = feature_dim, slot_dim, out_dim or slot_dim
        self.num_iterations, self.num_heads, self.eps, self.eps_on = num_iterations, num_heads, eps, eps_on
        self.gru_state, self.form, self.gradient = gru_state, form, gradient
        self.scale = (slot_dim if scale == "slot" else slot_dim // num_heads) ** -0.5
        self.position = CoordinateCode(feature_dim) if position else None
        self.input = nn.Sequential(nn.LayerNorm(feature_dim), mlp(feature_dim, feature_dim, feature_dim)) if input_mlp else None
        self.norm_features = nn.LayerNorm(feature_dim)
        self.norm_slots = nn.LayerNorm(slot_dim)
        self.to_q = glorot_(nn.Linear(slot_dim, slot_dim, bias=False))
        self.to_k = glorot_(nn.Linear(feature_dim, slot_dim, bias=False))
        self.to_v = glorot_(nn.Linear(feature_dim, slot_dim, bias=False))
        self.gru = nn.GRUCell(slot_dim, slot_dim)
        self.norm_mlp = nn.LayerNorm(slot_dim)
        self.mlp = mlp(slot_dim, mlp_dim or slot_dim, slot_dim)
        self.output = nn.Sequential(nn.LayerNorm(slot_dim), nn.Linear(slot_dim, out_dim)) if out_dim else None
        if start == "clusters":
            start_as_clusters(self)

    def forward(self, features: Features, init: Tensor) -> Slots:
        """Features of width feature_dim and initial slots [B, K, slot_dim] -> Slots with vectors [B, K, out_dim]."""
        self._check(features, init)
        tokens = self._prepare(features)
        if self.form == "plain":
            slots, attn = self._iterate((self._heads(self.to_k(tokens)), self._heads(self.to_v(tokens))), init)
        else:
            slots, attn = self._iterate(tokens, init)
        vectors = slots if self.output is None else self.output(slots)
        return Slots(vectors=vectors, attn=attn, grid=features.grid)

    def _prepare(self, features: Features) -> Tensor:
        tokens = features.tokens
        if self.position is not None:
            tokens = tokens + self.position(features.grid)
        if self.input is not None:
            tokens = self.input(tokens)
        return self.norm_features(tokens)

    def _iterate(self, tokens: Tensor | tuple[Tensor, Tensor], init: Tensor) -> tuple[Tensor, Tensor]:
        free = {"full": 0, "bilevel": self.num_iterations - 1, "implicit": self.num_iterations}[self.gradient]
        slots = init.detach() if free else init
        with torch.no_grad():
            for _ in range(free):
                slots, _ = self._step(tokens, slots)
        if self.gradient == "bilevel":
            slots = slots.detach() + init - init.detach()
        for _ in range(max(self.num_iterations - free, 1) - 1):
            slots, _ = self._step(tokens, slots)
        slots, attn = self._step(tokens, slots, return_attn=True)
        return slots, attn.sum(dim=1)

    def _step(self, tokens: Tensor | tuple[Tensor, Tensor], slots: Tensor, *, return_attn: bool = False) -> tuple[Tensor, Tensor]:
        """One iteration: the next slots, and attn [B, H, K, N], or nothing so that no such array is written."""
        normalised = self.norm_slots(slots)
        query = self._heads(self.to_q(normalised))
        if isinstance(tokens, tuple):
            updates, attn = self._group(query, *tokens, return_attn)
        else:
            updates, attn = self._attend_absorbed(tokens, query, return_attn)
        updates = updates.transpose(1, 2).flatten(2)
        state = slots if self.gru_state == "raw" else normalised
        slots = self.gru(updates.flatten(0, 1), state.flatten(0, 1).to(updates.dtype)).view_as(updates)
        return slots + self.mlp(self.norm_mlp(slots)), attn

    def _attend_absorbed(self, tokens: Tensor, query: Tensor, return_attn: bool) -> tuple[Tensor, Tensor]:
        """k . q = x . (W_k^T q) and W w v = W_v (w x): H heads of K slots are H * K rows that look at the bare tokens."""
        heads = (self.num_heads, -1)
        rows = _per_head(query, self.to_k.weight.unflatten(0, heads)).flatten(1, 2)[:, None]
        x = tokens[:, None]
        means, attn = self._group(rows, x, x, return_attn)
        updates = _per_head(means[:, 0].unflatten(1, heads), self.to_v.weight.unflatten(0, heads).transpose(1, 2))
        return updates, attn[:, 0].unflatten(1, heads) if return_attn else attn

    def _group(self, query: Tensor, key: Tensor, value: Tensor, return_attn: bool) -> tuple[Tensor, Tensor]:
        """query [B, H, K, D], key and value [B, H, N, .] -> updates [B, H, K, .], attn [B, H, K, N] or nothing."""
        if return_attn:
            return slot_attention(query, key, value, scale=self.scale, eps=self.eps, eps_on=self.eps_on, return_attn=True)
        return slot_attention(query, key, value, scale=self.scale, eps=self.eps, eps_on=self.eps_on), query.new_empty(0)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _check(self, features: Features, init: Tensor) -> None:
        if features.width != self.feature_dim:
            raise ShapeError(
                f"SlotAttention expects features of width {self.feature_dim}, got {list(features.tokens.shape)}; "
                f"pass feature_dim={features.width} or another encoder."
            )
        if init.ndim != 3 or init.shape[0] != features.tokens.shape[0] or init.shape[-1] != self.slot_dim:
            raise ShapeError(
                f"SlotAttention expects initial slots [B, K, D] = [{features.tokens.shape[0]}, K, {self.slot_dim}], "
                f"got {list(init.shape)}."
            )


def _per_head(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, H, K, D], weight [H, D, E] -> [B, H, K, E]: one product per head, not one per image and head."""
    rows = x.transpose(0, 1).flatten(1, 2)
    return torch.bmm(rows, weight).unflatten(1, (x.shape[0], -1)).transpose(0, 1)


@torch.no_grad()
def start_as_clusters(attention: SlotAttention, *, sharpness: float = 2.0, place: float = 3.0) -> None:
    """Set weights with which one iteration is a step of soft k-means: tokens go to the slot they resemble, slots to their mean.

    Keys and values are one projection, queries the slot itself times `sharpness`; the GRU mostly takes over the update, and
    the residual MLP adds nothing yet. The place code is made `place` times as loud, so that clusters are compact at first.
    """
    width = attention.slot_dim
    nn.init.orthogonal_(attention.to_k.weight, gain=max(1.0, width / attention.feature_dim) ** 0.5)
    attention.to_v.weight.copy_(attention.to_k.weight)
    attention.to_q.weight.copy_(sharpness * torch.eye(width, device=attention.to_q.weight.device))
    gates_in, gates_state = attention.gru.weight_ih, attention.gru.weight_hh  # rows: reset, update, new
    gates_in[2 * width :] = torch.eye(width, device=gates_in.device)
    gates_state[2 * width :] = 0
    gates_in[width : 2 * width] *= 0.3
    gates_state[width : 2 * width] *= 0.3
    attention.gru.bias_ih.zero_()
    attention.gru.bias_hh.zero_()
    attention.gru.bias_ih[width : 2 * width] = -2.0  # keep about a tenth of the old slot
    last = attention.mlp[-1]
    assert isinstance(last, nn.Linear)
    last.weight.zero_()
    if attention.position is not None:
        attention.position.projection.weight *= place
