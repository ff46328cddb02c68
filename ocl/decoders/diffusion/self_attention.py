"""What stands in the self-attention layers of a diffusers model."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from ocl.decoders.diffusion.cross_attention import finish, split_heads
from ocl.ops import attention


@final
class SelfAttention:
    """Processor of a diffusers `Attention` among tokens: what AttnProcessor2_0 does, by ocl.ops.attention."""

    def __init__(self, original: Any) -> None:
        self.original = original

    @classmethod
    def install(cls, model: nn.Module) -> None:
        """In every self-attention of the model that torch's SDPA would compute, but for those with norms over space."""
        for name, layer in model.named_modules():
            plain = type(getattr(layer, "processor", None)).__name__ == "AttnProcessor2_0"
            if name.rpartition(".")[2] == "attn1" and plain and layer.group_norm is None and layer.spatial_norm is None:
                layer.set_processor(cls(layer.processor))

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if encoder_hidden_states is not None or attention_mask is not None or hidden_states.ndim != 3:
            output: Tensor = self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return output
        query = split_heads(attn.to_q(hidden_states), attn, attn.norm_q)
        key = split_heads(attn.to_k(hidden_states), attn, attn.norm_k)
        output = attention(query, key, split_heads(attn.to_v(hidden_states), attn))
        return finish(attn, attn.to_out[0](output.transpose(1, 2).flatten(2)), hidden_states)
