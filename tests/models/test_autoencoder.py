"""The composition: widths are checked when it is made, parts are swapped by passing another one."""

import pytest
import torch

from ocl.decoders import FeatureMLP, PatchMLP
from ocl.encoders import CNN, ResNet, ViT
from ocl.errors import ShapeError
from ocl.losses import Reconstruction
from ocl.models import SlotAutoencoder, dinosaur, slot_attention
from ocl.slots import GaussianInit, LearnedInit, SlotAttention
from ocl.types import Batch, Step


def small(**parts):
    return slot_attention(num_slots=3, slot_dim=8, image_size=32, encoder=parts.pop("encoder", CNN(8, stride=4)), **parts)


def test_a_part_is_swapped_by_passing_another_one():
    model = small(encoder=ResNet(18, base_width=2), init=LearnedInit(3, 8), decoder=PatchMLP(8, image_size=32, hidden_dim=8))
    output = model(Batch(torch.rand(2, 3, 32, 32)))
    assert output.decoding.prediction.shape == (2, 3, 32, 32)
    assert output.slots.attn.shape[:2] == (2, 3)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (dict(init=GaussianInit(3, 9)), "init.slot_dim"),
        (dict(slot_module=SlotAttention(9, 8)), "slot_module.feature_dim"),
        (dict(decoder=PatchMLP(9, image_size=32)), "decoder.slot_dim"),
    ],
)
def test_parts_of_other_widths_are_refused_when_the_model_is_made(parts, message):
    with pytest.raises(ShapeError, match=message):
        small(**parts)


def test_noise_decides_the_slots_and_the_generator_decides_the_noise():
    model, image = small(), torch.rand(2, 3, 32, 32)
    noise = torch.randn(2, 3, 8)
    first, second = (model.encode(image, noise=noise)[1].vectors for _ in range(2))
    assert torch.equal(first, second)
    drawn = [model.encode(image, generator=torch.Generator().manual_seed(seed))[1].vectors for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_the_published_pixel_model_reconstructs_better_after_a_few_steps():
    torch.manual_seed(0)
    model = slot_attention(num_slots=3, slot_dim=16, image_size=32, encoder=CNN(16, stride=4))
    batch = Batch(torch.rand(8, 3, 1, 1).expand(-1, -1, 32, 32).contiguous())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    errors = []
    for index in range(40):
        loss = Reconstruction()(Step(batch, model(batch), index))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.5 * errors[0]


def test_dinosaur_predicts_frozen_features_and_trains_nothing_of_the_encoder(tiny_vit):
    encoder = ViT(str(tiny_vit("dinov2")))
    decoder = FeatureMLP(8, encoder.width, grid=(2, 2), hidden_dim=8)
    model = dinosaur(num_slots=3, slot_dim=8, grid=(2, 2), encoder=encoder, decoder=decoder)
    assert isinstance(model, SlotAutoencoder)
    output = model(Batch(torch.rand(2, 3, 56, 56)))
    output.decoding.error().sum().backward()
    assert output.decoding.target.shape == output.features.tokens.shape
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.slot_module.parameters())
