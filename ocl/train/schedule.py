"""The learning rate over a run: linear warm-up (Goyal et al. 2017), then a decay (cosine: Loshchilov & Hutter 2017)."""

from __future__ import annotations

import math

from ocl.train.options import Schedule


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """Factor on the peak learning rate for update number `step` (0 is the first) of `steps`.

    With W = warmup_steps, f = final and t = (step - W) / (steps - W), clamped to [0, 1]:
        warm-up      (step + 1) / W while step < W, so that the first update already learns
        constant     1
        linear       1 - t (1 - f)
        cosine       f + (1 - f) (1 + cos(pi t)) / 2
        exponential  f ^ (step / steps), from step 0 on, times the warm-up (Locatello et al. 2020, appendix)
    """
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    if schedule.kind == "exponential":
        return warmup * schedule.final ** (step / steps)
    progress = min(1.0, max(0.0, (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)))
    if schedule.kind == "linear":
        return warmup * (1 - progress * (1 - schedule.final))
    if schedule.kind == "cosine":
        return warmup * (schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2)
    return warmup
