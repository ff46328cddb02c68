"""Frozen encoders with the weights of an earlier run."""

import pytest
import torch
from safetensors.torch import save_file

from ocl.encoders import CNN, PretrainedEncoder
from ocl.errors import CheckpointError
from ocl.nn.freezing import trainable_state_dict


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(1)
    encoder = CNN(8, stride=4)
    path = tmp_path / "model.safetensors"
    save_file({f"encoder.{name}": value for name, value in encoder.state_dict().items()} | {"decoder.bias": torch.ones(2)}, path)
    return encoder, path


def test_it_gives_the_tokens_of_the_trained_encoder_and_trains_and_saves_nothing(trained):
    encoder, path = trained
    frozen = PretrainedEncoder(CNN(8, stride=4), path).train()
    image = torch.rand(2, 3, 16, 16, requires_grad=True)
    torch.testing.assert_close(frozen(image).tokens, encoder(image).tokens)
    assert not frozen(image).tokens.requires_grad
    assert not trainable_state_dict(frozen) and not any(value.requires_grad for value in frozen.parameters())


def test_on_the_meta_device_no_weight_is_read(tmp_path):
    with torch.device("meta"):
        assert PretrainedEncoder(CNN(8), tmp_path / "absent.safetensors").width == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": CNN(16, stride=4)}, "of another shape"),
        ({"encoder": CNN(8, stride=4, depth=5)}, "2 missing"),
        ({"prefix": "backbone."}, "begins with 'backbone.', only decoder, encoder; pass another prefix"),
        ({"weights": "absent.safetensors"}, "not a readable safetensors file"),
    ],
)
def test_what_does_not_fit_is_said(trained, options, message):
    _, path = trained
    with pytest.raises(CheckpointError, match=message):
        PretrainedEncoder(**{"encoder": CNN(8, stride=4), "weights": path, **options})
