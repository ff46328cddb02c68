"""The reconstruction loss is the decoder's error, and nothing else."""

import pytest
import torch

from ocl.errors import ConfigError
from ocl.losses import Reconstruction
from ocl.types import Batch, Decoding, Features, Output, Slots, Step


def step_with(prediction: torch.Tensor, target: torch.Tensor) -> Step:
    size = len(prediction)
    slots = Slots(torch.zeros(size, 2, 4), torch.full((size, 2, 1), 0.5), (1, 1))
    output = Output(Features(torch.zeros(size, 1, 4), (1, 1)), slots, Decoding(prediction, target))
    return Step(Batch(torch.zeros(size, 3, 2, 2)), output)


def test_it_is_the_mean_squared_error_over_the_batch():
    prediction, target = torch.rand(3, 5, 4), torch.rand(3, 5, 4)
    expected = torch.nn.functional.mse_loss(prediction, target)
    torch.testing.assert_close(Reconstruction()(step_with(prediction, target)), expected)


def test_weight_scales_the_loss():
    step = step_with(torch.rand(2, 7), torch.rand(2, 7))
    torch.testing.assert_close(Reconstruction(weight=0.25)(step), 0.25 * Reconstruction()(step))


def test_gradient_reaches_the_prediction():
    prediction = torch.rand(2, 7, requires_grad=True)
    target = torch.rand(2, 7)
    Reconstruction()(step_with(prediction, target)).backward()
    torch.testing.assert_close(prediction.grad, 2 * (prediction.detach() - target) / 14)


def test_half_precision_is_summed_in_float32():
    prediction = torch.full((1, 100_000), 0.1, dtype=torch.float16)
    loss = Reconstruction()(step_with(prediction, torch.zeros_like(prediction)))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_makes_no_sense_is_refused(weight):
    with pytest.raises(ConfigError, match="weight must be positive"):
        Reconstruction(weight=weight)
