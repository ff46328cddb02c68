"""The learning rate's formulas, by their values at the ends and in the middle."""

from itertools import pairwise

import pytest

from ocl.train import Schedule
from ocl.train.schedule import factor

KINDS = ("constant", "linear", "cosine", "exponential")


@pytest.mark.parametrize(
    ("kind", "start", "middle", "end"),
    [("constant", 1, 1, 1), ("linear", 1, 0.6, 0.2), ("cosine", 1, 0.6, 0.2), ("exponential", 1, 0.2**0.5, 0.2)],
)
def test_each_kind_goes_from_one_to_final(kind, start, middle, end):
    schedule = Schedule(kind=kind, final=0.2)
    assert [factor(schedule, step, 100) for step in (0, 50, 100)] == pytest.approx([start, middle, end])


def test_the_warm_up_rises_linearly_and_its_first_step_is_not_zero():
    schedule = Schedule(kind="constant", warmup_steps=4)
    assert [factor(schedule, step, 100) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_decay_starts_at_the_peak_where_the_warm_up_ends(kind):
    schedule = Schedule(kind=kind, warmup_steps=10, final=0)
    assert factor(schedule, 10, 110) == pytest.approx(1)
    assert factor(schedule, 60, 110) == pytest.approx(0.5)
    assert factor(schedule, 110, 110) == pytest.approx(0)


def test_exponential_decay_halves_in_equal_times():
    """Slot Attention's '0.5 every 100k steps' over 300k steps is final = 0.5 ** 3."""
    schedule = Schedule(kind="exponential", warmup_steps=10, final=0.5**3)
    values = [factor(schedule, step, 300) for step in (100, 200, 300)]
    assert values == pytest.approx([0.5, 0.25, 0.125])


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_never_leaves_its_range(kind):
    schedule = Schedule(kind=kind, warmup_steps=7, final=0.1)
    values = [factor(schedule, step, 50) for step in range(80)]
    assert all(0 < value <= 1 for value in values)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(values[7:]))
