"""Randomness is a function of the seed and the number of a sample or step: none depends on how one came to it."""

import random

import numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ocl.nn.draws import normal
from ocl.train.seeding import mix, sample_generators, seed_globals


def test_the_finalizer_is_splitmix64():
    """First outputs of the published generator started at 0: our mix of one part adds the gamma and finalizes, as it does."""
    from ocl.train.seeding import _GOLDEN, _finalize

    outputs = [_finalize(_GOLDEN * count % 2**64) for count in (1, 2, 3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_neighbours_get_other_streams(seed, step):
    values = {mix(seed, step), mix(seed, step + 1), mix(seed + 1, step), mix(seed, step, 1)}
    assert len(values) == 4
    assert all(0 <= value < 2**64 for value in values)


def test_a_sample_draws_the_same_whatever_came_before_and_whoever_is_beside_it():
    def draw(numbers):
        return normal((len(numbers), 5), sample_generators(1, numbers), device=torch.device("cpu"))

    first = draw([7, 8, 9])
    torch.randn(100)
    assert torch.equal(first, draw([7, 8, 9]))
    assert torch.equal(first[1:2], draw([8])) and not torch.equal(first[0], first[1])


def test_every_global_generator_is_seeded():
    def draws():
        return torch.rand(3).tolist(), numpy.random.rand(3).tolist(), random.random()

    seed_globals(0, 3)
    first = draws()
    seed_globals(0, 4)
    other = draws()
    seed_globals(0, 3)
    assert draws() == first
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_processes_draw_apart_from_the_global_state():
    values = []
    for rank in (0, 1, 0):
        seed_globals(0, 3, rank)
        values.append(torch.rand(3).tolist())
    assert values[0] == values[2] != values[1]
