"""Which of two processes is slow is told by its number, whether its data or its passes take long."""

import json

import pytest

BASE = {"model": "slots", "size": 2, "zero": {"stage": 2}, "training": {"steps": 6, "log_every": 2}}
SLOW = 0.4  # seconds; a pass of these models takes a few milliseconds


@pytest.fixture(scope="module")
def runs(carry_out_all):
    troubles = {"data-0": {"rank": 0, "slow_data": SLOW}, "passes-1": {"rank": 1, "slow_passes": SLOW}}
    return carry_out_all([{**BASE, "name": name, "trouble": trouble} for name, trouble in troubles.items()])


@pytest.mark.parametrize(("name", "rank"), [("data-0", 0), ("passes-1", 1)])
def test_the_slow_process_is_named(runs, name, rank):
    lines = [json.loads(line) for line in (runs[name] / "log.jsonl").read_text().splitlines()]
    assert [line["slowest_rank"] for line in lines] == [rank] * 3
    assert all(0.3 < line["slowest_by"] <= 1 for line in lines)  # of two processes one takes at most twice the mean
