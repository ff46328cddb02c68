"""The stream of batches as a function of its position; samples kept in memory."""

import os
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from itertools import islice
from typing import final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ocl.data.folder import ImageFolder
from ocl.data.loader import batches, evaluation_batches
from ocl.data.memory import InMemory
from ocl.data.order import ENDLESS, Order
from ocl.data.sample import Dataset, Sample
from ocl.errors import ConfigError, DataError, ShapeError


@final
class Numbers(Dataset):
    """Sample i is an image whose left half has brightness i, so that the pixels tell the index and the flip."""

    def __init__(self, length, *, fatal=None):
        self.length = length
        self.fatal = fatal  # (index, what to do)
        self.reads = 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.reads += 1
        if self.fatal and index == self.fatal[0]:
            self.fatal[1]()
        image = torch.zeros(3, 2, 4, dtype=torch.uint8)
        image[..., :2] = index % 250 + 1
        return Sample(image, image[0].int(), key=str(index))


def keys(stream, count):
    return [key for batch in islice(stream, count) for key in batch.keys]


def taken(stream, count):
    """Keys and pixels of the first `count` batches."""
    found = list(islice(stream, count))
    return [key for batch in found for key in batch.keys], torch.cat([batch.image for batch in found])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 23), st.integers(1, 7), st.integers(0, 60), st.integers(0, 2**40), st.booleans())
def test_the_stream_from_any_start_is_the_tail_of_the_stream_from_zero(length, batch_size, start, seed, shuffle):
    options = {"batch_size": batch_size, "seed": seed, "shuffle": shuffle, "flip": 0.5}
    skip = -(-start // batch_size) + 6
    whole_keys, whole_pixels = taken(batches(Numbers(length), **options), skip)
    tail_keys, tail_pixels = taken(batches(Numbers(length), start=start, **options), 5)
    part = slice(start, start + 5 * batch_size)
    assert tail_keys == whole_keys[part] and torch.equal(tail_pixels, whole_pixels[part])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 2**40))
def test_every_epoch_holds_each_sample_once_whatever_the_batch_size(length, batch_size, seed):
    stream = keys(batches(Numbers(length), batch_size=batch_size, seed=seed), -(-3 * length // batch_size))
    for epoch in range(3):
        assert sorted(map(int, stream[epoch * length : (epoch + 1) * length])) == list(range(length))


def test_epochs_and_seeds_have_different_orders():
    first, second = ([Order(100, seed=1).index(epoch * 100 + place) for place in range(100)] for epoch in (0, 1))
    other = [Order(100, seed=2).index(place) for place in range(100)]
    assert first != second and first != other and first != sorted(first)


def test_an_endless_dataset_comes_in_its_own_order():
    order = Order(ENDLESS, seed=5)
    assert [order.index(number) for number in (0, 1, 10**9)] == [0, 1, 10**9]
    assert keys(batches(Numbers(ENDLESS), batch_size=3, seed=0, start=7), 1) == ["7", "8", "9"]


def test_the_order_of_a_seed_is_the_one_that_older_runs_had():
    assert [Order(6, seed=7).index(number) for number in range(12)] == [2, 4, 5, 3, 0, 1, 1, 2, 5, 0, 4, 3]


@pytest.mark.parametrize("start", [0, 5])
def test_workers_change_nothing(start):
    options = {"batch_size": 3, "seed": 11, "start": start, "flip": 0.5}
    alone = taken(batches(Numbers(10), **options), 9)
    helped = taken(batches(Numbers(10), workers=2, **options), 9)
    assert alone[0] == helped[0] and torch.equal(alone[1], helped[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_state_is_neither_read_nor_changed(workers):
    before = torch.get_rng_state()
    first = keys(batches(Numbers(10), batch_size=4, seed=1, flip=0.5, workers=workers), 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert keys(batches(Numbers(10), batch_size=4, seed=1, flip=0.5, workers=workers), 3) == first


def test_flips_mirror_labels_with_pixels_and_differ_between_epochs():
    flips = []
    for batch in islice(batches(Numbers(8), batch_size=8, seed=0, shuffle=False, flip=0.5), 4):
        mirrored = batch.image[:, 0, 0, 0] == 0
        assert torch.equal(mirrored, batch.instances[:, 0, 0] == 0)
        flips.append(mirrored.tolist())
    assert 4 < sum(map(sum, flips)) < 28 and len({tuple(epoch) for epoch in flips}) > 1


def test_evaluation_reads_each_sample_once_in_order():
    found = [batch.keys for batch in evaluation_batches(Numbers(7), batch_size=3)]
    assert found == [("0", "1", "2"), ("3", "4", "5"), ("6",)]
    assert [batch.keys for batch in evaluation_batches(Numbers(7), batch_size=3, limit=4)] == [("0", "1", "2"), ("3",)]
    assert [batch.keys for batch in evaluation_batches(Numbers(2), batch_size=3, limit=9, workers=1)] == [("0", "1")]


def test_an_endless_dataset_needs_a_limit_to_be_evaluated():
    with pytest.raises(ConfigError, match="limit"):
        evaluation_batches(Numbers(ENDLESS), batch_size=2)
    assert len(list(evaluation_batches(Numbers(ENDLESS), batch_size=2, limit=4))) == 2


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"start": -1}, {"workers": -1}, {"flip": 1.5}])
def test_impossible_options_are_refused_at_once(wrong):
    with pytest.raises(ConfigError, match="batch_size >= 1"):
        batches(Numbers(3), **{"batch_size": 2, "seed": 0, **wrong})


def test_an_empty_dataset_is_refused_at_once():
    with pytest.raises(DataError, match="empty dataset"):
        batches(Numbers(0), batch_size=2, seed=0)


def draw(root, names, broken=(), size=(6, 5)):
    for name in names:
        Image.new("RGB", size).save(root / name)
    for name in broken:
        (root / name).write_bytes(b"")


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_end_the_stream_with_their_own_error(tmp_path, workers):
    draw(tmp_path, ["0.png", "1.png", "2.png"], broken=["2.png"])
    stream = batches(ImageFolder(tmp_path), batch_size=2, seed=0, shuffle=False, workers=workers)
    assert next(stream).keys == ("0.png", "1.png")
    with pytest.raises(DataError, match=r"2\.png is empty"):
        next(stream)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_files_are_counted_in_the_main_process_and_warned_of_once(tmp_path, workers):
    draw(tmp_path, [f"{i}.png" for i in range(6)], broken=["1.png", "4.png"])
    folder = ImageFolder(tmp_path, on_error="skip")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        used = keys(batches(InMemory(folder), batch_size=4, seed=0, shuffle=False, workers=workers), 3)
    assert used == ["0.png", "2.png", "2.png", "3.png", "5.png", "5.png"] * 2
    assert set(folder.skipped) == {"1.png", "4.png"}
    assert len([warning for warning in caught if "skipped" in str(warning.message)]) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_leaves_out_samples_that_stand_in_for_others(tmp_path, workers):
    draw(tmp_path, [f"{i}.png" for i in range(5)], broken=["0.png", "1.png", "3.png"])
    folder = ImageFolder(tmp_path, on_error="skip")
    with pytest.warns(UserWarning, match="skipped"):
        found = [batch.keys for batch in evaluation_batches(folder, batch_size=2, workers=workers)]
    assert found == [("2.png",), ("4.png",)] and set(folder.skipped) == {"0.png", "1.png", "3.png"}


def test_images_of_several_sizes_say_what_to_pass(tmp_path):
    draw(tmp_path, ["0.png"])
    draw(tmp_path, ["1.png"], size=(9, 9))
    with pytest.raises(ShapeError, match="image_size"):
        next(batches(ImageFolder(tmp_path), batch_size=2, seed=0, workers=1))


@pytest.mark.parametrize("index", [0, 4])
def test_a_dead_worker_is_an_error_with_a_way_out(index):
    dying = Numbers(8, fatal=(index, lambda: os._exit(1)))
    with pytest.raises(DataError, match=r"worker process that reads Numbers died.*workers=0"):
        keys(batches(dying, batch_size=2, seed=0, shuffle=False, workers=1), 4)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [RuntimeError, ConnectionResetError])
def test_other_errors_of_a_dataset_keep_their_kind(workers, kind):
    def fail():
        raise kind("a bug of the dataset")

    with pytest.raises(kind, match="a bug of the dataset") as caught:
        keys(batches(Numbers(8, fatal=(0, fail)), batch_size=2, seed=0, shuffle=False, workers=workers), 1)
    assert not isinstance(caught.value, DataError)


def test_a_program_that_ends_in_the_middle_of_a_stream_leaves_no_worker():
    code = (
        "from ocl.data import Scenes; from ocl.data.loader import batches\n"
        "kept = [batches(Scenes(), batch_size=2, seed=0, workers=2)]\n"
        "print(next(kept[0]).keys)\n"
        "import builtins; builtins.kept = kept  # nothing closes it before the interpreter ends\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("workers outlived the program")
    assert process.returncode == 0 and "scenes/plain/train/1" in out


def test_kept_samples_are_read_once_and_weighed():
    source = Numbers(5)
    kept = InMemory(source)
    assert kept.kept_bytes == 0 and kept.estimated_bytes() == 5 * (3 * 8 + 4 * 8)
    first = keys(batches(kept, batch_size=5, seed=0, shuffle=False), 4)
    assert first == keys(batches(source, batch_size=5, seed=0, shuffle=False), 4)
    assert kept.kept_bytes == kept.estimated_bytes() and source.reads == 5 + 20
    assert kept[-1] is kept[4]


def test_an_endless_dataset_cannot_be_kept():
    with pytest.raises(ConfigError, match="endless"):
        InMemory(Numbers(ENDLESS))
