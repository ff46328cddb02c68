"""Switches that make a step cheaper: the losses and gradients of a CODA step are the same with each of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ocl.decoders.diffusion import LearnedRegisters
from ocl.encoders import CNN
from ocl.errors import ConfigError
from ocl.losses import ContrastiveAlignment, Reconstruction
from ocl.models import coda, slot_attention
from ocl.nn.freezing import trainable_state_dict
from ocl.train import LocalEngine, Training
from ocl.train.compiling import compiled
from ocl.types import Batch, Step

pytest.importorskip("diffusers", reason='pip install "ocl[diffusion]" to test latent-diffusion decoders')


@pytest.fixture
def make(tiny_pipeline):
    def build():
        torch.manual_seed(0)
        parts = {"encoder": CNN(8, stride=4), "registers": LearnedRegisters(5, 32)}
        return coda(weights=str(tiny_pipeline("sd")), num_slots=3, slot_dim=8, **parts).train()

    return build


def step(model, call=None, place=lambda batch: batch):
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    losses = [Reconstruction(), ContrastiveAlignment(weight=0.05, warmup_steps=0)]
    batch = place(Batch(image))
    output = (call or model)(batch, generator=torch.Generator().manual_seed(2), mismatch=losses[1].mismatch(0))
    loss = torch.stack([each(Step(batch, output)) for each in losses]).sum()
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def assert_same(found, expected, tolerance):
    torch.testing.assert_close(found[0], expected[0], **tolerance[torch.float32])
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, **tolerance[torch.float32])


def test_a_compiled_denoiser_takes_the_same_step(make, tolerance):
    """aot_eager traces forward and backward as inductor does, and then runs torch's own kernels."""
    model = make()
    names = trainable_state_dict(model).keys()
    call = compiled(model, "denoiser", backend="aot_eager")
    assert call is model and trainable_state_dict(model).keys() == names
    assert_same(step(model), step(make()), tolerance)


@pytest.mark.parametrize(("how", "graphs"), [("denoiser", False), ("denoiser-graphs", True)])
def test_cuda_graphs_are_asked_for_by_name(make, how, graphs):
    """Nothing is compiled before the first pass."""
    engine = LocalEngine(make(), Training(compile=how))
    settings = engine.model.decoder.denoiser.backbone.module._compiled_call_impl.get_compiler_config()
    assert bool(settings and settings.get("triton.cudagraphs")) is graphs


@pytest.mark.slow
@pytest.mark.parametrize("how", ["denoiser", "denoiser-graphs"])  # on a CPU the latter runs without graphs
def test_a_denoiser_compiled_by_inductor_takes_the_same_step(make, tolerance, how):
    model = make()
    compiled(model, how)
    assert_same(step(model), step(make()), tolerance)


@pytest.mark.slow
def test_inductor_sends_gradients_through_an_upsampling(tolerance):
    """On a CPU, torch before 2.14 runs the loop that follows the upsampling's derivative before it: all gradients are zero."""
    model, image = Upsampling(), torch.randn(2, 8, 4, 4)
    with torch.compiler.config.patch(force_disable_caches=True):
        found, expected = gradient(compiled(model, True), image), gradient(model, image)
    assert expected.norm() > 1
    torch.testing.assert_close(found, expected, **tolerance[torch.float32])


class Upsampling(nn.Module):
    """The end of a U-Net's block: a residual sum that is scaled, then upsampled."""

    def __init__(self):
        super().__init__()
        self.skip, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.inner = nn.Sequential(nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.requires_grad_(False)

    def forward(self, x):
        scaled = (self.skip(x) + self.inner(x)) / 1.0
        return self.last(F.interpolate(scaled, scale_factor=2.0, mode="nearest"))


def gradient(model, image):
    image = image.clone().requires_grad_()
    model(image).square().sum().backward()
    return image.grad


def test_the_channels_last_layout_takes_the_same_step(make, tolerance):
    model = make()
    engine = LocalEngine(model, Training(channels_last=True))
    weight = model.decoder.denoiser.backbone.module.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert_same(step(model, engine.model, engine.place), step(make()), tolerance)


def test_a_model_without_denoiser_is_not_compiled_as_one():
    model = slot_attention(num_slots=3, slot_dim=8, image_size=16, encoder=CNN(8, stride=4))
    with pytest.raises(ConfigError, match=r"training\.compile=denoiser needs a latent-diffusion decoder"):
        LocalEngine(model, Training(compile="denoiser"))
