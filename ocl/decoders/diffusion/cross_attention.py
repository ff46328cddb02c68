"""What stands in the cross-attention layers of a diffusers model: slots per image, registers once per batch.

Slots and registers travel through the model as one tensor [B, K + R, C], so that whatever the model does to its conditioning
on the way (caption projections, norms) is done to both; the registers are read back from its first row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocl.errors import ConfigError
from ocl.ops import register_attention

Projection = Literal["to_q", "to_k", "to_v", "to_out"]


@dataclass
class Pass:
    """What the layers of one model are told about the pass in progress, and asked to tell about it.

    num_registers, num_text: how many of the last tokens are registers, or stand in for the text.
    detached: the last so many images send no gradient to any weight. shared: they repeat the latents of the first half.
    maps: where layers that are recorded put their attention [B, K, M]; projections: what is reused from pass to pass.
    """

    num_registers: int = 0
    num_text: int = 0
    detached: int = 0
    shared: bool = False
    recorded: frozenset[str] = frozenset()
    maps: dict[str, Tensor] = field(default_factory=dict)
    projections: dict[str, tuple[Tensor, ...]] | None = None

    def set(self, *, num_registers: int, num_text: int, detached: int, shared: bool) -> None:
        self.num_registers, self.num_text, self.detached, self.shared = num_registers, num_text, detached, shared
        self.maps = {}

    @contextmanager
    def again(self, told: Pass) -> Iterator[None]:
        """Inside, layers are told what they were told in an earlier pass, and what they tell is forgotten.

        For activations computed again in the backward pass, which may come after other passes.
        """
        before = dict(vars(self))
        vars(self).update(vars(told), maps={})
        try:
            yield
        finally:
            vars(self).update(before)

    @contextmanager
    def recording(self, names: Sequence[str]) -> Iterator[None]:
        """Inside, the named layers put their maps into `maps`, anew at every pass, as those do that are recorded already."""
        before, self.recorded = self.recorded, self.recorded | frozenset(names)
        try:
            yield
        finally:
            self.recorded = before

    @contextmanager
    def reusing_projections(self) -> Iterator[None]:
        """Inside, keys and values of the first pass serve all passes: for sampling, where conditioning and weights stay."""
        self.projections = {}
        try:
            yield
        finally:
            self.projections = None


@final
class DetachableLinear(nn.Linear):
    """A linear layer that can be run without gradient to its weights. The input's gradient is the same either way."""

    @classmethod
    def of(cls, linear: nn.Linear) -> DetachableLinear:
        """The same parameters under the same names."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    def forward(self, x: Tensor, detached: bool = False) -> Tensor:
        if not detached:
            return F.linear(x, self.weight, self.bias)
        return F.linear(x, self.weight.detach(), None if self.bias is None else self.bias.detach())


@final
class SlotCrossAttention:
    """Processor of a diffusers `Attention`: one softmax over an image's slots and the registers, which all images share.

    Registers are projected once, not once per image. For images that must not reach the weights (CODA's contrastive half)
    projections are applied detached, here, where it is known which images those are: nothing is switched on and off, so that
    one pass serves both halves, also under activation checkpointing and with partitioned weights.
    """

    def __init__(self, name: str, state: Pass, *, first: bool = False) -> None:
        self.name, self.state, self.first = name, state, first

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        assert encoder_hidden_states is not None and hidden_states.ndim == 3
        state, batch = self.state, len(encoder_hidden_states)
        num_slots = encoder_hidden_states.shape[1] - state.num_registers
        slots, registers = encoder_hidden_states[:, :num_slots], encoder_hidden_states[0, num_slots:]
        mask = None if attention_mask is None else attention_mask[:, 0, :num_slots] > -1
        shared = state.shared and self.first and state.detached > 0
        query = hidden_states[: batch // 2] if shared else hidden_states
        register_key, register_value = self._registers(attn, registers)
        outputs, maps = [], []
        for start, stop, detached in _halves(batch, state.detached):
            q = query if shared else query[start:stop]
            key, value = self._slots(attn, slots[start:stop], detached)
            output, *more = _attend(
                split_heads(_project(attn.to_q, q, detached), attn, attn.norm_q), key, value,
                *((register_key.detach(), register_value.detach()) if detached else (register_key, register_value)),
                scale=attn.scale, slot_mask=None if mask is None else mask[start:stop], return_maps=self.name in state.recorded,
            )  # fmt: skip
            maps += more
            outputs.append(_project(attn.to_out[0], output.transpose(1, 2).flatten(2), detached))
        if maps:
            state.maps[self.name] = torch.cat(maps)
        return finish(attn, outputs[0] if len(outputs) == 1 else torch.cat(outputs), hidden_states)

    def _registers(self, attn: Any, registers: Tensor) -> tuple[Tensor, Tensor]:
        """[R, C] -> keys and values [H, R, D]."""
        if (kept := self._kept("registers")) is not None:
            return kept
        key = split_heads(_project(attn.to_k, registers[None], False), attn, attn.norm_k)[0]
        return self._keep("registers", key, split_heads(_project(attn.to_v, registers[None], False), attn)[0])

    def _slots(self, attn: Any, slots: Tensor, detached: bool) -> tuple[Tensor, Tensor]:
        """[B, K, C] -> keys and values [B, H, K, D]."""
        what = "slots, detached" if detached else "slots"
        if (kept := self._kept(what)) is not None:
            return kept
        key = split_heads(_project(attn.to_k, slots, detached), attn, attn.norm_k)
        return self._keep(what, key, split_heads(_project(attn.to_v, slots, detached), attn))

    def _kept(self, what: str) -> tuple[Tensor, Tensor] | None:
        found = None if self.state.projections is None else self.state.projections.get(f"{self.name} {what}")
        return None if found is None else (found[0], found[1])

    def _keep(self, what: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.state.projections is not None:
            self.state.projections[f"{self.name} {what}"] = (key, value)
        return key, value


@final
class TextCrossAttention:
    """Processor that hides the slots from a layer: the tokens that stand in for the text go to the layer's own processor."""

    def __init__(self, state: Pass, original: Any) -> None:
        self.state, self.original = state, original

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        assert encoder_hidden_states is not None
        text = encoder_hidden_states[:, encoder_hidden_states.shape[1] - self.state.num_text :]
        output: Tensor = self.original(attn, hidden_states, encoder_hidden_states=text, temb=temb)
        return output


def cross_attentions(model: nn.Module) -> dict[str, Any]:
    """name -> layer, for every layer of a diffusers model that attends to its conditioning, in the order they are called."""
    found = {name: layer for name, layer in model.named_modules() if name.rpartition(".")[2] == "attn2"}
    if not found:
        raise ConfigError(f"{type(model).__name__} has no cross-attention layers (attn2); slots cannot reach it.")
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0].partition(".")[0], 0)))  # sorting is stable


@contextmanager
def recording_maps(model: nn.Module) -> Iterator[Pass]:
    """Inside, `maps` of what it yields holds the attention to slots, [B, K, M] each, of every layer of the last pass.

    What is missing from 1 in the sum over K went to the registers. Empty for a model in which no layer has a SlotCrossAttention.
    """
    processors = [found for layer in model.modules() if isinstance(found := getattr(layer, "processor", None), SlotCrossAttention)]
    state = processors[0].state if processors else Pass()
    with state.recording([processor.name for processor in processors]):
        yield state


def train_projections(attn: Any, names: Sequence[Projection]) -> None:
    """Let the named projections of a layer be trained; their parameters keep their names."""
    for name in names:
        holder, key = (attn.to_out, "0") if name == "to_out" else (attn, name)
        layer = DetachableLinear.of(getattr(holder, key))
        setattr(holder, key, layer.requires_grad_(True))


def _halves(batch: int, detached: int) -> Iterator[tuple[int, int, bool]]:
    """(first image, last image + 1, whether they are detached)."""
    if detached < batch:
        yield 0, batch - detached, False
    if detached:
        yield batch - detached, batch, True


def _project(layer: nn.Module, x: Tensor, detached: bool) -> Tensor:
    projected: Tensor = layer(x, detached) if isinstance(layer, DetachableLinear) else layer(x)
    return projected


def split_heads(x: Tensor, attn: Any, norm: nn.Module | None = None) -> Tensor:
    """[B, N, H * D] -> [B, H, N, D]; a norm of queries or keys is applied over all heads or within each, as it was built."""
    across = norm is not None and _width(norm) == x.shape[-1] and attn.heads > 1
    if norm is not None and across:
        x = norm(x)
    x = x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    return norm(x) if norm is not None and not across else x


def finish(attn: Any, output: Tensor, hidden_states: Tensor) -> Tensor:
    """What diffusers' processors do after the projection of the output."""
    output = attn.to_out[1](output)
    output = output + hidden_states if attn.residual_connection else output
    return output if attn.rescale_output_factor == 1 else output / attn.rescale_output_factor


def _width(norm: nn.Module) -> int | None:
    weight = getattr(norm, "weight", None)
    return None if weight is None else weight.shape[-1]


def _attend(*tensors: Tensor, return_maps: bool, **options: Any) -> tuple[Tensor, ...]:
    """(output,) or (output, maps)."""
    query, key, value, register_key, register_value = tensors
    if return_maps:
        return register_attention(query, key, value, register_key, register_value, return_maps=True, **options)
    return (register_attention(query, key, value, register_key, register_value, **options),)
