"""Information from denoising errors, against Gaussians whose mutual information is known in closed form."""

from types import SimpleNamespace

import pytest
import torch

from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion.decoder import drop_slots
from ocl.decoders.diffusion.schedule import NoiseSchedule
from ocl.errors import ConfigError
from ocl.evaluate.information import denoising_errors, nats, noise_error, spread_levels
from ocl.types import Slots

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SCHEDULES = {kind: {**BETAS, "prediction_type": kind} for kind in ("epsilon", "v_prediction", "sample")}
SCHEDULES["flow_prediction"] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SIZE = (4, 8, 8)


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    pytest.importorskip("diffusers", reason='pip install "ocl[diffusion]" to test latent-diffusion decoders')
    return NoiseSchedule(SCHEDULES[request.param])


def test_the_target_of_every_kind_stands_for_the_noise(schedule):
    torch.manual_seed(0)
    clean, noise = torch.randn(3, 4, 8, 8).double(), torch.randn(3, 4, 8, 8).double()
    level = torch.tensor([5, 400, 900])
    noisy = schedule.add_noise(clean, noise, level)
    found = schedule.as_noise(schedule.target(clean, noise, level), noisy, level)
    torch.testing.assert_close(found, noise, atol=1e-5, rtol=0)  # signal^2 + noise^2 is 1 to float32
    error = noise_error(schedule, schedule.target(clean, noise, level), noisy, noise + 1, level)
    torch.testing.assert_close(error, torch.full([3], 256.0).double(), atol=1e-2, rtol=0)


class Ideal(torch.nn.Module):
    """The best guess for latents z = s + rest, s ~ N(0, share) read from the slots and rest ~ N(0, 1 - share), in any kind."""

    def __init__(self, schedule, share):
        super().__init__()
        self.schedule, self.share = schedule, share

    def forward(self, noisy, time, conditioning):
        level = (self.schedule.time - time[0]).abs().argmin().expand(len(noisy))
        a, b = (table[level].double().view(-1, 1, 1, 1) for table in (self.schedule.signal, self.schedule.noise))
        told = conditioning.slots.view(len(noisy), *SIZE)
        mean, variance = (told, 1 - self.share) if conditioning.slot_mask is None else (0 * told, 1.0)
        guess = b * (noisy - a * mean) / (a * a * variance + b * b)
        clean = (noisy - b * guess) / a
        return SimpleNamespace(prediction=self.schedule.target(clean, guess, level), maps=None)


def gaussian(tiny_pipeline, schedule, share, *, images=1024, timesteps=40):
    """(nats per image by baseline, log-SNR of the levels) as `analyse` finds them, on drawn latents."""
    decoder = LatentDiffusion(str(tiny_pipeline("sd")))
    decoder.schedule, decoder.denoiser = schedule, Ideal(schedule, share)
    generator = torch.Generator().manual_seed(0)
    told, rest = (torch.randn(images, *SIZE, generator=generator, dtype=torch.float64) for _ in range(2))
    told = share**0.5 * told
    own = Slots(told.view(images, 8, 32), torch.full((images, 8, 4), 1 / 8), (2, 2))
    other = Slots(own.vectors.roll(-1, dims=0), own.attn, own.grid)
    given = {"own": own, "swapped": other, "dropped": drop_slots(own, torch.zeros(images, dtype=torch.bool))}
    levels = spread_levels(schedule, timesteps)
    errors, masses = denoising_errors(decoder, told + (1 - share) ** 0.5 * rest, given, levels, generator, record="own")
    assert masses == {}
    log_snr = schedule.log_snr()[levels]
    return {name: nats((each - errors["own"]).mT, log_snr).mean().item() for name, each in errors.items()}, log_snr


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_it_is_the_mutual_information_of_gaussians_whatever_is_predicted(tiny_pipeline, schedule, share):
    found, log_snr = gaussian(tiny_pipeline, schedule, share)
    snr = log_snr.exp()[[0, -1]]
    dims, rest = 4 * 8 * 8, 1 - share
    informed = 0.5 * dims * ((1 + snr).log() - (1 + rest * snr).log())  # I(s; z seen at this ratio)
    assert found["dropped"] == pytest.approx((informed[1] - informed[0]).item(), rel=0.02)
    both = dims * share * (-1 / (rest * (1 + rest * snr)))  # mutual and lautum information: E KL(p(z|s) || p(z|s'))
    assert found["swapped"] == pytest.approx((both[1] - both[0]).item(), rel=0.02)
    assert found["swapped"] > found["dropped"] > 0 and found["own"] == 0


def test_slots_that_tell_nothing_hold_no_information(tiny_pipeline):
    pytest.importorskip("diffusers")
    found, _ = gaussian(tiny_pipeline, NoiseSchedule(SCHEDULES["epsilon"]), 0.0, timesteps=8)
    assert found["dropped"] == pytest.approx(0, abs=1e-9) and found["swapped"] == pytest.approx(0, abs=1e-9)


def test_levels_are_at_equal_distances_of_log_snr_without_the_ends_that_have_none(schedule):
    levels = spread_levels(schedule, 6)
    log_snr = schedule.log_snr()
    assert len(levels) == 6 and log_snr[levels].isfinite().all()
    steps = log_snr[levels].diff()
    assert (steps > 0).all() and (steps - steps.mean()).abs().max() < 0.15 * steps.mean()
    assert levels[-1] == 0 and levels[0] >= schedule.num_levels - 2


@pytest.mark.parametrize("count", [1, 1001])
def test_too_few_or_too_many_levels_are_refused(count):
    pytest.importorskip("diffusers")
    with pytest.raises(ConfigError, match=f"needs 2 to 1000 of them, got {count}"):
        spread_levels(NoiseSchedule(SCHEDULES["epsilon"]), count)
