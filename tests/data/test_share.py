"""A batch is divided among processes so that nothing is lost and contrastive partners stay together."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ocl.data import Scenes
from ocl.data.loader import batches
from ocl.data.order import share
from ocl.errors import ConfigError
from ocl.slots.mismatch import partners
from ocl.types import Mismatch


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(1, 8))
def test_shares_are_a_partition_of_the_batch(own, size):
    places = [place for rank in range(size) for place in share(own * size, rank, size)]
    assert sorted(places) == list(range(own * size))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_partners_of_the_whole_batch_are_partners_in_a_share(size):
    total = 4 * size
    whole = partners(total, Mismatch(), device=torch.device("cpu"))
    for rank in range(size):
        places = share(total, rank, size)
        own = partners(len(places), Mismatch(), device=torch.device("cpu"))
        assert [places[index] for index in own] == whole[places].tolist()


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(ConfigError, match="a batch of 6 images cannot be divided among 4 processes; choose a multiple of 4"):
        share(6, 0, 4)


def test_the_shares_of_two_readers_are_the_batch_of_one():
    data = Scenes(image_size=64)
    whole = [batch.keys for batch in islice(batches(data, batch_size=8, seed=1, start=16), 3)]
    readers = [batches(data, batch_size=8, seed=1, start=16, rank=rank, size=2) for rank in (0, 1)]
    parts = [[batch.keys for batch in islice(reader, 3)] for reader in readers]
    for index, keys in enumerate(whole):
        assert [keys[place] for rank in (0, 1) for place in share(8, rank, 2)] == [*parts[0][index], *parts[1][index]]
