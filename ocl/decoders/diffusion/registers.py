"""Register tokens beside the slots. Null prompt: CODA (Nguyen et al. 2026); learned: Darcet et al. 2024, as its alternative."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from ocl.decoders.diffusion.pipeline import (
    context_width,
    has_part,
    load_text_encoder,
    load_tokenizer,
    part_class,
    part_config,
)
from ocl.errors import CheckpointError, ConfigError
from ocl.interfaces import RegisterBank
from ocl.nn.freezing import is_restoring
from ocl.nn.hub import builds_on_meta


@final
class NullPrompt(RegisterBank):
    """What the pipeline's own text encoder makes of the empty prompt: fixed tokens, its unconditional branch but for some XL.

    XL pipelines with `force_zeros_for_empty_prompt` sample against zeros instead. As registers those would all be one and the
    same key with nothing to say, so that the encoded prompt is taken there too.

    Computed once, when it is made; the text encoder is then dropped. The tokens are saved with every checkpoint: inside
    `ocl.nn.freezing.restoring` none are computed, and the text encoder need not be there, as a checkpoint brings them.
    CLIP prompts are padded to their full length (77) and all tokens are kept, start token included: it is the sink that the
    denoiser was trained with. T5 and Gemma prompts keep the tokens that the pipeline attends to, without padding.

    Args:
        weights: pipeline folder or hub id; its tokenizer and text_encoder are used (both pairs of an XL pipeline).
        skip: leave out the first tokens. With skip = num_slots, slots and registers together are as many as a prompt has.
        local_files_only: never download; None decides by OCL_OFFLINE and HF_HUB_OFFLINE.
    """

    table: Tensor | None

    def __init__(self, weights: str, *, skip: int = 0, local_files_only: bool | None = None) -> None:
        super().__init__()
        self.skip = skip
        if is_restoring():
            self.width = context_width(weights, local_files_only=local_files_only)
            self.register_buffer("table", None)
            return
        table = null_prompt(weights, local_files_only=local_files_only)
        if not 0 <= skip < len(table):
            raise ConfigError(f"NullPrompt of {weights} has {len(table)} tokens, got skip={skip}; pass 0 to {len(table) - 1}.")
        self.width = table.shape[1]
        self.register_buffer("table", table[skip:].clone())

    @classmethod
    def stored(cls, table: Tensor, *, weights: str | None = None, skip: int = 0) -> Self:
        """From tokens [R, C] that a checkpoint holds, without any text encoder. weights, skip: what would make them again."""
        bank = cls.__new__(cls)
        RegisterBank.__init__(bank)
        bank.width, bank.skip = table.shape[1], skip
        bank.register_buffer("table", table.detach().clone())
        if weights is not None:
            bank.made_with = {"weights": weights, "skip": skip}
        return bank

    @property
    def awaits(self) -> dict[str, tuple[int | None, ...]]:
        """See `restoring`: the table [R, C], if it is not there yet."""
        return {"table": (None, self.width)} if self.table is None else {}

    def forward(self) -> Tensor:
        """[R, C], without gradient. Raises CheckpointError where a checkpoint was to bring the tokens and none was loaded."""
        if self.table is None:
            raise CheckpointError("NullPrompt waits for the tokens of a checkpoint; load one, or make it outside of restoring().")
        return self.table

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        found = state_dict.get(f"{prefix}table")
        if self.table is None and found is not None:
            self.table = torch.empty_like(found)
        super()._load_from_state_dict(state_dict, prefix, *args)


@final
class LearnedRegisters(RegisterBank):
    """Trained tokens, Glorot at the start.

    Args:
        num_registers: how many tokens R.
        width: width C of the denoiser's conditioning.
    """

    def __init__(self, num_registers: int, width: int) -> None:
        super().__init__()
        if num_registers < 1:
            raise ConfigError(f"LearnedRegisters needs num_registers >= 1, got {num_registers}; for none pass NoRegisters.")
        self.width = width
        self.table = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, num_registers, width))[0])

    def forward(self) -> Tensor:
        """[R, C]."""
        return self.table


@final
class NoRegisters(RegisterBank):
    """No token at all, for builders whose default is a null prompt: the denoiser attends to slots alone."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.width = 0
        self.register_buffer("table", torch.empty(0, self.width), persistent=False)

    def forward(self) -> Tensor:
        """[0, 0]."""
        return self.table


@torch.no_grad()
def null_prompt(weights: str, *, local_files_only: bool | None = None) -> Tensor:
    """The empty prompt as tokens [R, C] of the pipeline's own text encoder, float32. XL: both encoders side by side.

    Raises CheckpointError where the pipeline has no text encoder or tokenizer.
    """
    suffixes = [suffix for suffix in ("", "_2") if has_part(weights, f"text_encoder{suffix}", local_files_only=local_files_only)]
    if not suffixes:
        raise CheckpointError(
            f"the pipeline {weights} has no text_encoder, which the null prompt is made with; pass a complete pipeline, "
            "registers=LearnedRegisters(...), or NoRegisters() for none (registers: NoRegisters)."
        )
    is_xl = "_2" in suffixes
    encoded = [_encode(weights, suffix, penultimate=is_xl, local_files_only=local_files_only) for suffix in suffixes]
    return torch.cat(encoded, dim=-1)


def _encode(weights: str, suffix: str, *, penultimate: bool, local_files_only: bool | None) -> Tensor:
    name = part_class(weights, f"text_encoder{suffix}", local_files_only=local_files_only)
    if builds_on_meta():
        return torch.empty(_shape(part_config(weights, f"text_encoder{suffix}", local_files_only=local_files_only)))
    tokenizer = load_tokenizer(weights, f"tokenizer{suffix}", local_files_only=local_files_only)
    encoder = load_text_encoder(weights, f"text_encoder{suffix}", local_files_only=local_files_only)
    padded = {"padding": "max_length", "max_length": tokenizer.model_max_length} if name.startswith("CLIP") else {}
    tokens = tokenizer("", return_tensors="pt", **padded).input_ids
    if penultimate:
        return encoder(tokens, output_hidden_states=True).hidden_states[-2][0]
    return encoder(tokens).last_hidden_state[0]


def _shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """[R, C] of the empty prompt: CLIP's is padded, T5's is its end token, Gemma's its start token."""
    clip = "max_position_embeddings" in config and config.get("model_type", "clip_text_model") == "clip_text_model"
    return int(config["max_position_embeddings"]) if clip else 1, int(config.get("hidden_size") or config["d_model"])
