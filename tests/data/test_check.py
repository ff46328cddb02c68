"""The report on a dataset."""

from typing import final

import pytest
import torch
from PIL import Image

from ocl.data.check import check_dataset
from ocl.data.folder import ImageFolder
from ocl.data.order import ENDLESS
from ocl.data.sample import Dataset, Sample
from ocl.data.voc import VOCInstances
from ocl.errors import ConfigError


@final
class Given(Dataset):
    def __init__(self, *samples, length=None):
        self.samples = samples
        self.length = length or len(samples)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.samples[index % len(self.samples)]


def image(height=4, width=6):
    return torch.zeros(3, height, width, dtype=torch.uint8)


def labels(*values):
    return torch.tensor(values, dtype=torch.int32)


def test_images_objects_and_sizes_are_counted():
    one = Sample(image(1, 4), labels([0, 1, 5, -1]), labels([0, 3, 3, -1]), key="a")
    none = Sample(image(1, 4), labels([0, 0, 0, 0]), key="b")
    report = check_dataset(Given(one, none, Sample(image(2, 2), key="c")))
    assert (report.images, report.objects, report.empty, report.problems) == (3, 2, 1, ())
    assert report.sizes == {(1, 4): 2, (2, 2): 1} and report.sound
    assert "images   3" in str(report) and "1 x 4 (2)" in str(report) and "problems none" in str(report)


@pytest.mark.parametrize("sample, words", [
    (Sample(image().float(), key="k"), "image must be uint8"),
    (Sample(image(), torch.zeros(4, 5, dtype=torch.int32), key="k"), "instances must be int32"),
    (Sample(image(), torch.zeros(4, 6), key="k"), "instances must be int32"),
    (Sample(image(1, 2), classes=labels([0, -2]), key="k"), "got -2"),
    (Sample(image(1, 2), labels([0, 1]), labels([0, 0]), key="k"), "1 pixels belong to an object"),
])
def test_each_flaw_is_one_problem_that_names_the_sample(sample, words):
    report = check_dataset(Given(sample))
    assert len(report.problems) == 1 and not report.sound
    assert words in report.problems[0] and "sample 0 (k)" in report.problems[0] and words in str(report)


def test_a_key_that_comes_twice_is_a_problem():
    assert "key a of sample 0" in check_dataset(Given(Sample(image(), key="a"), Sample(image(), key="a"))).problems[0]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.filterwarnings("ignore:skipped")
def test_broken_files_are_problems_once_each_whatever_the_option(tmp_path, on_error):
    for number in range(4):
        Image.new("RGB", (5, 5)).save(tmp_path / f"{number}.png")
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(b"")
    report = check_dataset(ImageFolder(tmp_path, on_error=on_error))
    assert report.images == 2 and len(report.problems) == 2
    assert "1.png is empty" in report.problems[0] and "2.png is empty" in report.problems[1]


def test_an_endless_dataset_needs_a_limit():
    endless = Given(Sample(image()), length=ENDLESS)
    with pytest.raises(ConfigError, match="limit"):
        check_dataset(endless)
    assert check_dataset(endless, limit=3).images == 3


def test_real_photographs_are_sound(photos):
    report = check_dataset(VOCInstances(photos / "voc_photos"))
    assert (report.images, report.objects, report.problems) == (3, 12, ())
    assert report.sizes == {(375, 500): 2, (338, 500): 1}
