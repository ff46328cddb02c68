"""Frozen weights that are read when they are used for the first time, and what a part's fingerprint is made of."""

import shutil

import pytest
import torch
from torch import nn

from ocl.encoders import ViT
from ocl.nn.fingerprint import differences, part_fingerprint, state_digest
from ocl.nn.freezing import Frozen, postponing, trainable_state_dict


def test_a_postponed_encoder_gives_the_tokens_of_one_that_was_read_at_once(tiny_vit):
    folder, image = str(tiny_vit("dinov2")), torch.rand(2, 3, 32, 32)
    at_once = ViT(folder, layer=1)
    with postponing():
        later = ViT(folder, layer=1)
    assert not later.backbone.is_read and later.width == at_once.width and not list(later.parameters())
    later = later.double()
    assert not later.backbone.is_read
    with torch.inference_mode():
        found = later(image.double()).tokens
    assert later.backbone.is_read and next(later.parameters()).dtype == torch.float64
    torch.testing.assert_close(found, at_once.double()(image.double()).tokens)
    assert not any(parameter.is_inference() for parameter in later.parameters())


def test_a_trained_encoder_is_never_postponed(tiny_vit):
    with postponing():
        assert any(parameter.requires_grad for parameter in ViT(str(tiny_vit("dinov2")), trainable=True).parameters())


def test_what_is_saved_does_not_depend_on_what_was_read():
    net = nn.ModuleDict({"frozen": Frozen(lambda: nn.Linear(2, 2)), "head": nn.Linear(2, 1)})
    before = trainable_state_dict(net)
    net["frozen"].module(torch.zeros(1, 2))
    assert before.keys() == trainable_state_dict(net).keys() == {"head.weight", "head.bias"}


def test_weights_are_read_without_drawing_random_numbers(tiny_vit):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    ViT(str(tiny_vit("dinov2")))
    assert torch.equal(torch.rand(2), expected)


@pytest.fixture
def original(tiny_vit):
    with torch.device("meta"):
        return part_fingerprint(ViT(str(tiny_vit("dinov2"))))


def test_equal_weights_elsewhere_have_one_fingerprint(tiny_vit, tmp_path, original):
    copied = shutil.copytree(tiny_vit("dinov2"), tmp_path / "copy")
    assert part_fingerprint(ViT(str(copied))) == original


def test_a_change_of_settings_or_weights_is_named(tiny_vit, tmp_path, original):
    assert differences(original, part_fingerprint(ViT(str(tiny_vit("dinov2")), layer=1))) == ["settings..layer: nothing -> 1"]
    copied = shutil.copytree(tiny_vit("dinov2"), tmp_path / "copy")
    path = copied / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (line,) = differences(original, part_fingerprint(ViT(str(copied))))
    assert line.startswith("weights.backbone/model.safetensors: ")


def test_tensors_in_no_file_have_a_digest_of_their_own():
    torch.manual_seed(0)
    part = Frozen(nn.Linear(2, 2))
    before = state_digest(part)
    assert part_fingerprint(part)["weights"] == {} and before is not None and before == state_digest(part)
    with torch.no_grad():
        part.module.bias[0] += 1
    assert state_digest(part) != before
