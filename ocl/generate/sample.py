"""Images drawn by a latent-diffusion decoder: DDIM (Song et al. 2021), DPM-Solver++ (Lu et al. 2022), with guidance (Ho 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion.decoder import drop_slots
from ocl.decoders.diffusion.latents import require_finite
from ocl.decoders.diffusion.pipeline import import_diffusers, quiet_diffusers
from ocl.errors import ConfigError
from ocl.nn.draws import generators, normal
from ocl.types import Randomness, Slots

Sampler = Literal["ddim", "dpm++"]


@torch.no_grad()
def sample(
    decoder: LatentDiffusion,
    slots: Slots,
    image_size: tuple[int, int],
    *,
    steps: int = 50,
    guidance: float = 2.0,
    sampler: Sampler = "ddim",
    generator: Randomness = None,
) -> Tensor:
    """Slots [B, K, C] -> images [B, 3, H, W] in [0, 1].

    guidance: 1 is the prediction under the slots alone; w is unconditional + w * (conditional - unconditional), where the
    unconditional branch attends to registers and to no slot. Pass one generator per image (`named_generators`), and an image
    does not depend on the batch it is drawn in.
    """
    latents = sample_latents(decoder, slots, decoder.autoencoder.size(image_size), steps=steps, guidance=guidance, sampler=sampler,
                             generator=generator)  # fmt: skip
    return decoder.autoencoder.decode(latents)


@torch.no_grad()
def sample_latents(
    decoder: LatentDiffusion, slots: Slots, size: tuple[int, int], *, steps: int, guidance: float, sampler: Sampler,
    generator: Randomness,
) -> Tensor:  # fmt: skip
    """The same without the autoencoder: latents [B, C, h, w]. Raises RangeError where the denoiser draws what is not finite."""
    vectors = slots.vectors
    stepper = _stepper(decoder.schedule.config, sampler, steps, vectors.device)
    latents = normal((len(vectors), decoder.autoencoder.channels, *size), generator, device=vectors.device)
    latents = latents * stepper.init_noise_sigma
    conditioning, without = decoder.conditioner(slots), None
    if guidance != 1.0:  # both see the same latents: their predictions share what comes before the first cross-attention
        without = decoder.conditioner(drop_slots(slots, torch.zeros(len(vectors), dtype=torch.bool, device=vectors.device)))
    with decoder.denoiser.reusing_projections():
        for time in stepper.timesteps:
            noisy = stepper.scale_model_input(latents, time)
            found = decoder.denoiser(noisy, time.expand(len(noisy)), conditioning, without)
            prediction = found.prediction.to(latents)
            if found.contrast is not None:
                unconditional = found.contrast.to(latents)
                prediction = unconditional + guidance * (prediction - unconditional)
            latents = stepper.step(prediction, time, latents, return_dict=False)[0]
    require_finite(latents, "latents that the denoiser drew", "check the slots and its weights, or let it run in float32")
    return latents


def named_generators(names: Sequence[str], *, seed: int) -> list[torch.Generator]:
    """One generator per image, which follows from its name and the seed alone."""
    return generators(names, seed=seed, purpose="sample")


def _stepper(config: Mapping[str, Any], sampler: Sampler, steps: int, device: torch.device) -> Any:
    """A diffusers scheduler with the noise schedule that the pipeline was trained on."""
    diffusers = import_diffusers()
    flow = bool(config.get("use_flow_sigmas")) or str(config.get("_class_name", "")).startswith("FlowMatch")
    if sampler not in ("ddim", "dpm++") or steps < 1:
        raise ConfigError(f"sampling needs sampler ddim or dpm++ and at least one step, got {sampler!r} and {steps}.")
    if sampler == "ddim" and flow:
        raise ConfigError("this pipeline was trained by flow matching, which DDIM does not sample; use sampler dpm++.")
    kind = diffusers.DDIMScheduler if sampler == "ddim" else diffusers.DPMSolverMultistepScheduler
    more: dict[str, Any] = {}
    if flow:
        more = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        more["flow_shift"] = config.get("flow_shift", config.get("shift", 1.0))
    # DDIM was made for pixels and clips to [-1, 1] unless told not to; configs of other solvers do not know that word.
    with quiet_diffusers():
        stepper = kind.from_config({"clip_sample": False, **config, **more})
        stepper.set_timesteps(steps, device=device)
    return stepper
