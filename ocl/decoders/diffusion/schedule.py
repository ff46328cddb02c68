"""How latents are noised and what a denoiser predicts of them: DDPM (Ho et al. 2020), v (Salimans & Ho 2022), flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from ocl.decoders.diffusion.pipeline import import_diffusers, part_config, quiet_diffusers
from ocl.errors import ConfigError

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


@final
class NoiseSchedule(nn.Module):
    """noisy = signal[i] * clean + noise[i] * eps for level i = 0 ... num_levels - 1 (the last is the noisiest).

    prediction: "epsilon" is eps; "v_prediction" signal * eps - noise * clean; "sample" clean; "flow_prediction" eps - clean.
    time[i] is what the denoiser is told. None of this is saved in checkpoints. config: that of the pipeline's scheduler.
    """

    signal: Tensor
    noise: Tensor
    time: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.prediction: str = _prediction(config)
        if self.prediction not in PREDICTIONS:
            raise ConfigError(f"prediction_type {self.prediction} of the scheduler is unknown; known: {', '.join(PREDICTIONS)}.")
        signal, noise, time = _flow(config) if self.prediction == "flow_prediction" else _diffusion(config)
        for name, values in (("signal", signal), ("noise", noise), ("time", time)):
            self.register_buffer(name, values, persistent=False)

    @classmethod
    def of(cls, weights: str, *, local_files_only: bool | None = None) -> Self:
        """The schedule that a pipeline was trained with."""
        return cls(part_config(weights, "scheduler", local_files_only=local_files_only))

    @property
    def num_levels(self) -> int:
        return len(self.signal)

    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Clean latents [B, C, h, w] and noise at levels [B] -> noisy latents."""
        signal, amount = self._at(level, clean)
        return signal * clean + amount * noise

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the denoiser should predict."""
        signal, amount = self._at(level, clean)
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return clean
        return signal * noise - amount * clean if self.prediction == "v_prediction" else noise - clean

    def as_noise(self, prediction: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        """The noise eps that a prediction of any kind stands for, given the noisy latents it was made from.

        signal * v + noise * noisy = (signal^2 + noise^2) * eps; noisy + signal * flow = (signal + noise) * eps. Infinite or NaN
        where the kind cannot tell: "sample" at a level without noise.
        """
        signal, amount = self._at(level, noisy)
        if self.prediction == "epsilon":
            return prediction
        if self.prediction == "sample":
            return (noisy - signal * prediction) / amount
        if self.prediction == "v_prediction":
            return (signal * prediction + amount * noisy) / (signal.square() + amount.square())
        return (noisy + signal * prediction) / (signal + amount)

    def log_snr(self) -> Tensor:
        """log(signal^2 / noise^2) of every level, float64 [levels], falling; -inf at a level without signal."""
        return 2 * (self.signal.double().log() - self.noise.double().log())

    def _at(self, level: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = (table[level].to(like.dtype).view(-1, 1, 1, 1) for table in (self.signal, self.noise))
        return signal, noise


def _prediction(config: Mapping[str, Any]) -> str:
    if str(config.get("_class_name", "")).startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return "flow_prediction"
    return str(config.get("prediction_type", "epsilon"))


def _diffusion(config: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    with quiet_diffusers():
        kept = import_diffusers().DDPMScheduler.from_config(dict(config)).alphas_cumprod.to(torch.get_default_device())
    return kept.sqrt(), (1 - kept).sqrt(), torch.arange(len(kept))


def _flow(config: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """sigma = shift s / (1 + (shift - 1) s) on an even grid (Esser et al. 2024, eq. 23); the denoiser is told sigma * levels."""
    levels = int(config.get("num_train_timesteps", 1000))
    even = torch.arange(1, levels + 1, dtype=torch.float32) / levels
    shift = float(config.get("flow_shift", config.get("shift", 1.0)))
    sigma = shift * even / (1 + (shift - 1) * even)
    return 1 - sigma, sigma, sigma * levels
