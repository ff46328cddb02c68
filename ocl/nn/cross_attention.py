"""Cross-attention of a decoder to slots and registers, with the parameter names of diffusers' `Attention` (Rombach et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, overload

import torch
from torch import Tensor, nn

from ocl.errors import ShapeError
from ocl.ops import register_attention


@dataclass(frozen=True)
class ProjectedRegisters:
    """Keys and values of registers for one layer, [H, R, D] each: made once, used by every image and every step."""

    key: Tensor
    value: Tensor


@final
class RegisterCrossAttention(nn.Module):
    """Decoder tokens attend to the slots of their image and to registers that the whole batch shares, in one softmax.

    Slots are projected per image, registers once per call, or not at all where `project_registers` was called before, which
    pays wherever registers and projections are frozen (sampling). State dicts are those of diffusers' `Attention` for
    cross-attention: to_q, to_k, to_v, to_out.0; with `sinks` also sink_logits.

    Args:
        query_dim: width of the decoder's tokens, and of the output.
        cross_attention_dim: width of slots and registers; None is query_dim.
        heads: number of heads.
        dim_head: width of a head; logits are divided by its root.
        bias: whether to_q, to_k and to_v have a bias.
        out_bias: whether to_out.0 has one.
        sinks: one learned logit per head that takes attention and gives no value; starts at 0.
    """

    def __init__(
        self,
        query_dim: int,
        cross_attention_dim: int | None = None,
        *,
        heads: int = 8,
        dim_head: int = 64,
        bias: bool = False,
        out_bias: bool = True,
        sinks: bool = False,
    ) -> None:
        super().__init__()
        width = heads * dim_head
        self.query_dim, self.cross_attention_dim, self.heads = query_dim, cross_attention_dim or query_dim, heads
        self.to_q = nn.Linear(query_dim, width, bias=bias)
        self.to_k = nn.Linear(self.cross_attention_dim, width, bias=bias)
        self.to_v = nn.Linear(self.cross_attention_dim, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, query_dim, bias=out_bias)])
        self.sink_logits = nn.Parameter(torch.zeros(heads)) if sinks else None

    def project_registers(self, registers: Tensor) -> ProjectedRegisters:
        """registers [R, cross_attention_dim] -> what `forward` takes in their place for as long as no weight changes."""
        self._check("registers", registers, 2)
        return ProjectedRegisters(self._heads(self.to_k(registers)), self._heads(self.to_v(registers)))

    @overload
    def forward(
        self, hidden_states: Tensor, slots: Tensor, registers: Tensor | ProjectedRegisters | None = ..., *,
        slot_mask: Tensor | None = ..., return_maps: Literal[False] = ...,
    ) -> Tensor: ...  # fmt: skip

    @overload
    def forward(
        self, hidden_states: Tensor, slots: Tensor, registers: Tensor | ProjectedRegisters | None = ..., *,
        slot_mask: Tensor | None = ..., return_maps: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip

    def forward(
        self,
        hidden_states: Tensor,
        slots: Tensor,
        registers: Tensor | ProjectedRegisters | None = None,
        *,
        slot_mask: Tensor | None = None,
        return_maps: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """hidden_states [B, M, query_dim], slots [B, K, C], registers [R, C] or projected -> [B, M, query_dim].

        slot_mask: bool [B, K], False = not attended to. With return_maps also maps [B, K, M]: attention mass of each slot, mean
        over heads. Raises ShapeError for other ranks and widths.
        """
        self._check("hidden_states", hidden_states, 3)
        self._check("slots", slots, 3)
        if registers is None:
            registers = slots.new_empty(0, self.cross_attention_dim)
        if isinstance(registers, Tensor):
            registers = self.project_registers(registers)
        query, key, value = (self._heads(to(x)) for to, x in ((self.to_q, hidden_states), (self.to_k, slots), (self.to_v, slots)))
        tensors = (query, key, value, registers.key, registers.value)
        if not return_maps:
            return self._join(register_attention(*tensors, slot_mask=slot_mask, sink_logits=self.sink_logits))
        output, maps = register_attention(*tensors, slot_mask=slot_mask, sink_logits=self.sink_logits, return_maps=True)
        return self._join(output), maps

    def _join(self, output: Tensor) -> Tensor:
        """Heads [B, H, M, D] -> [B, M, query_dim]."""
        return self.to_out[0](output.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """[..., rows, H * D] -> [..., H, rows, D], without a copy."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def _check(self, name: str, x: Tensor, rank: int) -> None:
        width = self.query_dim if name == "hidden_states" else self.cross_attention_dim
        if x.ndim != rank or x.shape[-1] != width:
            form = ", ".join(["B", "M" if name == "hidden_states" else "K", str(width)] if rank == 3 else ["R", str(width)])
            raise ShapeError(
                f"RegisterCrossAttention expects {name} [{form}], got {list(x.shape)}; "
                f"set {'query_dim' if name == 'hidden_states' else 'cross_attention_dim'} or project first."
            )
