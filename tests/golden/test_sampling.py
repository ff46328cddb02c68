"""The sampling run of the official CODA implementation, from its recorded slots and seed, through every backend."""

import pytest
import torch
from safetensors.torch import load_file

from ocl.encoders import ViT
from ocl.generate import sample
from ocl.generate.sample import sample_latents
from ocl.models.importers import coda_model
from ocl.ops import backend
from ocl.types import Slots


@pytest.fixture(scope="module")
def model(folder):
    encoder = ViT(str(folder / "tiny-dinov2"))
    return coda_model(folder / "official-layout-checkpoint", weights=str(folder / "tiny-stable-diffusion"), encoder=encoder)


@pytest.mark.parametrize("passes", ["merged", "separate"])
def test_images_equal_the_published_code(model, folder, passes, implementation):
    recorded = load_file(folder / "sampling.safetensors")
    given = Slots(recorded["slots"], torch.full((2, 5, 16), 0.2), (4, 4))
    model.decoder.denoiser.passes = passes
    for_all = torch.Generator().manual_seed(7)
    with backend(implementation):
        images = sample(model.decoder, given, (64, 64), steps=10, guidance=2.0, generator=for_all)
        latents = sample_latents(model.decoder, given, (8, 8), steps=10, guidance=2.0, sampler="ddim",
                                 generator=for_all.manual_seed(7))  # fmt: skip
    torch.testing.assert_close(2 * images - 1, recorded["images"].clamp(-1, 1), atol=1e-3, rtol=0)
    beyond = model.decoder.autoencoder.model.module.decode(latents / model.decoder.autoencoder.scale).sample
    torch.testing.assert_close(beyond, recorded["images"], atol=1e-3, rtol=0)  # recorded before clamping
