"""The moving average follows its formula and can be put on and taken off without a trace."""

import copy

import pytest
import torch
from torch import nn

from ocl.train.ema import MovingAverage


def test_average_follows_the_formula():
    model = nn.Linear(3, 2)
    average = MovingAverage(model, decay=0.9)
    expected = model.weight.detach().clone()
    for _ in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(model)
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    torch.testing.assert_close(average.average["weight"], expected)


def test_buffers_are_copied_not_averaged():
    model = nn.BatchNorm1d(3)
    average = MovingAverage(model, decay=0.9)
    model(torch.randn(8, 3))
    average.update(model)
    assert torch.equal(average.average["running_mean"], model.running_mean)
    assert average.average["num_batches_tracked"].item() == 1


def test_weights_come_back_bit_for_bit():
    model = nn.Linear(3, 2)
    average = MovingAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight.add_(1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="inside"), average.applied(model):
        assert torch.equal(model.weight, average.average["weight"])
        raise RuntimeError("inside")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(model.weight, average.average["weight"])
