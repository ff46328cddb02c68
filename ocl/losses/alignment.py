"""Contrastive alignment: slots must explain their own image better than slots of other images do (CODA: Nguyen et al. 2026)."""

from __future__ import annotations

from typing import Literal, final

from torch import Tensor

from ocl.errors import ConfigError
from ocl.interfaces import Loss
from ocl.losses.rules import first_update, positive_weight
from ocl.types import Mismatch, Step


@final
class ContrastiveAlignment(Loss):
    """- weight * mean over the batch of the error under mismatched slots; zero in the warm-up. Trains slots, not the decoder.

    The gap between both errors stands in for the information that slots and image share. Unbounded: keep the weight small.
    Defaults are those of the published code (weight 0.03 on COCO, 0.05 elsewhere), in which a negative may equal its positive.

    Args:
        weight: factor of this term in the sum of losses; positive and finite.
        warmup_steps: updates before it sets in.
        rate: how likely, or how large a share of the slots, is swapped.
        swap: "independent" draws for each slot (published), "exact" swaps floor(K * rate) slots of each image, at least one,
            "complementary" lets partners exchange the same slots, so that every slot is in exactly one of both mixtures.
        pairing: "halves" pairs image i with i + B / 2 (published), "ring" image i with i + 1, which share one noise.
        stop_gradient: false lets this term reach the decoder, which then learns to be wrong: an ablation of the paper.
    """

    def __init__(
        self,
        *,
        weight: float = 0.05,
        warmup_steps: int = 20_000,
        rate: float = 0.5,
        swap: Literal["independent", "exact", "complementary"] = "independent",
        pairing: Literal["halves", "ring"] = "halves",
        stop_gradient: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < rate <= 1:
            raise ConfigError(f"ContrastiveAlignment.rate must lie in (0, 1], got {rate}.")
        if swap == "complementary" and pairing == "ring":
            raise ConfigError("ContrastiveAlignment: complementary mixtures need pairs of images; pass pairing=halves.")
        self.weight, self.warmup_steps = positive_weight(self, weight), first_update(self, "warmup_steps", warmup_steps)
        self._waiting = Mismatch(rate, swap, pairing, decode=False, stop_gradient=stop_gradient)
        self._decoding = Mismatch(rate, swap, pairing, stop_gradient=stop_gradient)

    def mismatch(self, index: int) -> Mismatch:
        """Partners share noise from the start; swapped slots are decoded once the warm-up is over."""
        return self._decoding if index >= self.warmup_steps else self._waiting

    def forward(self, step: Step) -> Tensor:
        decoding = step.output.decoding
        if step.index < self.warmup_steps:
            return 0.0 * decoding.error().detach().mean()
        return -self.weight * decoding.contrast_error().mean()
