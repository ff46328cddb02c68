"""How much slots tell about an image's latents, read from denoising errors (I-MMSE: Guo, Shamai & Verdu 2005).

Latents z are seen as signal * z + noise * eps at the signal-to-noise ratio g = signal^2 / noise^2. With eps_hat the best guess of
eps, |z - z_hat|^2 = |eps - eps_hat|^2 / g, and so

    I(s; z) = 1/2 integral of mmse(g) - mmse(g | s) over g  =  1/2 integral of E|eps - eps_hat|^2 - E|eps - eps_hat(s)|^2 over log g

in nats per image: with predictions turned into eps, every level has the weight 1/2 d log g, whatever the denoiser predicts. Over a
schedule that ends before g = 0 and infinity, the integral is I(s; z seen at the least noise) - I(s; z seen at the most).

The first term needs a denoiser that knows no slots. Two surrogates for it: no slots (registers alone), which is the unconditional
branch if slots were dropped in training; and slots s' of another image, as in CODA's contrastive term. For an ideal denoiser the
latter gives the mean of KL(p(z | s) || p(z | s')) (mismatched estimation: Verdu 2010), which is mutual plus lautum information
(Palomar & Verdu 2008), an upper bound of I. For a trained denoiser both are estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion.cross_attention import recording_maps
from ocl.decoders.diffusion.schedule import NoiseSchedule
from ocl.errors import ConfigError
from ocl.nn.draws import normal
from ocl.types import Randomness, Slots


def denoising_errors(
    decoder: LatentDiffusion, clean: Tensor, given: Mapping[str, Slots], levels: Tensor, draws: Randomness, *, record: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """How wrong the noise in clean latents [B, C, h, w] is predicted from different slots, with the same noise for each.

    Returns name in `given` -> |eps - eps_hat|^2 [T, B], and layer -> attention mass on the slots of `record`, [T, B, K], mean over
    queries and heads; both float64 on the CPU. The noise of a level is drawn from `draws`, level after level.
    """
    errors: dict[str, list[Tensor]] = {name: [] for name in given}
    masses: dict[str, list[Tensor]] = {}
    for number in levels:
        level = number.expand(len(clean))
        noise = normal(clean.shape, draws, device=clean.device).to(clean)
        noisy, time = decoder.schedule.add_noise(clean, noise, level), decoder.schedule.time[level]
        for name, slots in given.items():
            with recording_maps(decoder.denoiser) if name == record else nullcontext() as state:
                prediction = decoder.denoiser(noisy, time, decoder.conditioner(slots)).prediction
            errors[name].append(noise_error(decoder.schedule, prediction, noisy, noise, level).cpu())
            for layer, maps in ({} if state is None else state.maps).items():
                masses.setdefault(layer, []).append(maps.double().mean(dim=2).cpu())
    return {name: torch.stack(each) for name, each in errors.items()}, {name: torch.stack(each) for name, each in masses.items()}


def noise_error(schedule: NoiseSchedule, prediction: Tensor, noisy: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """|eps - eps_hat|^2 of each image, summed over its latent, float64 [B]; prediction: of the kind that `schedule` names."""
    error = schedule.as_noise(prediction.double(), noisy.double(), level) - noise.double()
    return error.square().flatten(1).sum(1)


def nats(gap: Tensor, log_snr: Tensor) -> Tensor:
    """1/2 integral over log-SNR (trapezoid) of error gaps [..., T] at rising `log_snr` [T] -> float64 [...]."""
    return torch.trapezoid(gap.double() / 2, log_snr.double(), dim=-1)


def spread_levels(schedule: NoiseSchedule, count: int) -> Tensor:
    """About `count` levels at equal distances of log-SNR, from most to least noise, int64; the ends are in it.

    Levels without any signal or noise are left out. Fewer come where the schedule is too coarse for so many.
    Raises ConfigError for less than two.
    """
    log_snr = schedule.log_snr()
    usable = log_snr.isfinite().nonzero().flatten()
    if not 2 <= count <= len(usable):
        raise ConfigError(f"an integral over noise levels needs 2 to {len(usable)} of them, got {count}.")
    lowest, highest = float(log_snr[usable[-1]]), float(log_snr[usable[0]])
    wanted = torch.linspace(lowest, highest, count, device=log_snr.device)
    nearest = (log_snr[usable] - wanted[:, None]).abs().argmin(1)
    return usable[nearest.unique().flip(0)]
