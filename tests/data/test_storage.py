"""What packing loses: nothing, the rounding of a dtype, or half a step of 8 bits per token."""

import pytest
import torch

from ocl.data.storage import SCALE, pack, unpack
from ocl.errors import RangeError

ROUNDING = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8}


def values():
    return torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.01, 1.0, 100.0])[:, None, None]


@pytest.mark.parametrize("storage", ROUNDING)
def test_a_dtype_keeps_values_up_to_its_own_rounding(storage):
    found = unpack("x", pack("x", values(), storage))
    assert found.dtype == torch.float32
    assert ((found - values()).abs() <= ROUNDING[storage] * values().abs() + 2**-25).all()


def test_eight_bits_keep_each_token_to_half_a_step_of_its_own_largest_value():
    stored = pack("x", values(), "int8")
    assert stored["x"].dtype == torch.int8 and stored["x" + SCALE].shape == (3, 5)
    step = values().abs().amax(-1, keepdim=True) / 127
    assert ((unpack("x", stored) - values()).abs() <= 0.5001 * step).all()


def test_a_token_of_zeros_stays_one():
    assert torch.equal(unpack("x", pack("x", torch.zeros(1, 2, 3), "int8")), torch.zeros(1, 2, 3))


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(RangeError, match="tokens reach 1e\\+05, which fp16 cannot hold; use bf16 or fp32"):
        pack("tokens", torch.tensor([1e5]), "fp16")
    with pytest.raises(RangeError, match="tokens hold NaN"):
        pack("tokens", torch.tensor([float("nan")]), "int8")
