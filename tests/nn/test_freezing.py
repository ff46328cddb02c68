"""Frozen parts: never trained, never saved, and refused checkpoints change nothing."""

import pytest
import torch
from torch import nn

from ocl.errors import CheckpointError
from ocl.nn.freezing import Frozen, load_trainable_state_dict, trainable_state_dict


def model():
    backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    return nn.ModuleDict({"backbone": Frozen(backbone), "head": nn.Linear(4, 2)})


def test_frozen_stays_in_eval_mode():
    net = model().train()
    assert net["head"].training
    assert not any(part.training for part in net["backbone"].modules())


def test_frozen_has_no_trainable_parameter_but_lets_gradients_through():
    net = model()
    x = torch.randn(2, 3, requires_grad=True)
    net["head"](net["backbone"].module(x)).sum().backward()
    assert all(parameter.grad is None for parameter in net["backbone"].parameters())
    assert x.grad.abs().sum() > 0


def test_checkpoints_hold_what_is_trained_and_nothing_else():
    assert set(trainable_state_dict(model())) == {"head.weight", "head.bias"}


def test_a_parameter_that_is_trained_inside_a_frozen_part_is_saved():
    net = model()
    net["backbone"].module[0].weight.requires_grad_(True)
    assert set(trainable_state_dict(net)) == {"head.weight", "head.bias", "backbone.module.0.weight"}


def test_buffers_of_trained_parts_are_saved():
    assert "running_mean" in trainable_state_dict(nn.BatchNorm1d(2))


def test_a_frozen_root_saves_nothing():
    assert trainable_state_dict(Frozen(nn.Linear(2, 2))) == {}


def test_loading_restores_the_trained_part_and_leaves_the_frozen_one():
    source, target = model(), model()
    frozen = {name: value.clone() for name, value in target["backbone"].state_dict().items()}
    load_trainable_state_dict(target, {name: value.clone() for name, value in trainable_state_dict(source).items()})
    torch.testing.assert_close(target["head"].state_dict(), source["head"].state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(target["backbone"].state_dict(), frozen, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.bias"), r"1 missing \(head.bias\)"),
        (lambda state: state.update(stranger=torch.zeros(1)), r"1 unknown \(stranger\)"),
        (lambda state: state.update({"head.weight": torch.zeros(9, 9)}), r"1 of another shape \(head.weight\)"),
        (lambda state: state.update({"backbone.module.0.weight": torch.zeros(4, 3)}), "1 unknown"),
    ],
)
def test_other_tensors_are_refused_and_nothing_changes(change, message):
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = {name: value + 1 for name, value in trainable_state_dict(net).items()}
    change(state)
    with pytest.raises(CheckpointError, match=message):
        load_trainable_state_dict(net, state)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_a_long_list_of_names_is_cut():
    net = nn.Sequential(*[nn.Linear(1, 1) for _ in range(4)])
    with pytest.raises(CheckpointError, match=r"8 missing \(0.bias, 0.weight, 1.bias, 1.weight, 2.bias, \.\.\.\)"):
        load_trainable_state_dict(net, {})
