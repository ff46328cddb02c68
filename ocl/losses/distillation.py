"""Self-distillation of masks: the slot module learns to see what the decoder drew (SPOT: Kakogeorgiou et al. 2024, section 3.2)."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor

from ocl.interfaces import Loss
from ocl.losses.rules import drawn_masks, first_update, positive_weight
from ocl.types import Step


@final
class MaskDistillation(Loss):
    """weight * cross-entropy of the slot module's masks against the decoder's, mean over cells; a float32 scalar.

    A decoder that must draw the image often cuts it better than the slots' attention did. The decoder's masks are the target:
    hard labels, averaged over the slot module's cells, without gradient. Published is a second model as the teacher, with
    slots matched to its own; here one model teaches itself, so slots match by number.

    Args:
        weight: factor of this term in the sum of losses; positive and finite.
        start_step: updates before it sets in, so that the decoder has something to teach.
    """

    def __init__(self, *, weight: float = 0.01, start_step: int = 0) -> None:
        super().__init__()
        self.weight, self.start_step = positive_weight(self, weight), first_update(self, "start_step", start_step)

    def forward(self, step: Step) -> Tensor:
        drawn, seen = drawn_masks(self, step), step.output.slots.maps().float()
        if step.index < self.start_step:
            return 0.0 * seen.detach().mean()
        labels = F.one_hot(drawn.detach().argmax(dim=1), drawn.shape[1]).movedim(-1, 1).float()
        target = F.adaptive_avg_pool2d(labels, (seen.shape[-2], seen.shape[-1]))
        return self.weight * -(target * seen.clamp_min(1e-8).log()).sum(dim=1).mean()
