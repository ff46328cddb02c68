"""VOC folders in the layouts people have."""

import numpy as np
import pytest
import torch
from PIL import Image

from ocl.data.voc import VOCInstances
from ocl.errors import DataError

INSTANCES = np.array([[0, 1, 1, 0], [0, 4, 4, 255], [0, 0, 9, 9]], np.uint8)
CLASSES = np.array([[0, 15, 15, 0], [0, 7, 255, 7], [0, 0, 3, 3]], np.uint8)
LAYOUTS = {
    "official": ("VOCdevkit/VOC2012", "JPEGImages", "ImageSets/Segmentation"),
    "flat": ("", "JPEGImages", "ImageSets/Segmentation"),
    "slotdiffusion": ("voc", "images", "sets"),
}


def mask(path, indices):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(indices)
    picture.putpalette([level for entry in range(256) for level in (entry % 5, 0, 0)])
    picture.save(path)


def build(root, layout="official", names=("2007_000032", "2007_000039"), lists=None):
    below, images, sets = LAYOUTS[layout]
    base = root / below
    for name in names:
        (base / images).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (9, 9, 9)).save(base / images / f"{name}.jpg")
        mask(base / "SegmentationObject" / f"{name}.png", INSTANCES)
        mask(base / "SegmentationClass" / f"{name}.png", CLASSES)
    (base / sets).mkdir(parents=True, exist_ok=True)
    for split, lines in (lists or {"val": names}).items():
        (base / sets / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return base


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_same_samples(tmp_path, layout):
    build(tmp_path, layout)
    dataset = VOCInstances(tmp_path)
    assert [sample.key for sample in dataset] == ["2007_000032", "2007_000039"]
    sample = dataset[0]
    assert sample.instances.dtype == sample.classes.dtype == torch.int32
    assert sample.instances.tolist() == [[0, 1, 1, 0], [0, 2, -1, -1], [0, 0, 3, 3]]
    assert sample.classes.tolist() == [[0, 15, 15, 0], [0, 7, -1, -1], [0, 0, 3, 3]]
    assert sample.properties["instance_ids"] == (1, 4, 9)


def test_ids_are_contiguous_after_the_crop(tmp_path):
    build(tmp_path, names=("wide",))
    base = tmp_path / "VOCdevkit/VOC2012"
    Image.new("RGB", (6, 2)).save(base / "JPEGImages/wide.jpg")
    wide = np.array([[1, 1, 5, 5, 2, 2]] * 2, np.uint8)
    mask(base / "SegmentationObject/wide.png", wide)
    mask(base / "SegmentationClass/wide.png", np.ones_like(wide))
    sample = VOCInstances(tmp_path, image_size=2)[0]
    assert sample.instances.tolist() == [[1, 1], [1, 1]] and sample.properties["instance_ids"] == (5,)


def test_lists_of_deeplab_with_paths_are_read(tmp_path):
    build(tmp_path, lists={"val": ["/JPEGImages/2007_000039.jpg /SegmentationClass/2007_000039.png", ""]})
    assert [sample.key for sample in VOCInstances(tmp_path)] == ["2007_000039"]


def test_augmented_splits_have_class_masks_only(tmp_path):
    base = build(tmp_path, lists={"trainaug": ["2007_000032"]})
    assert VOCInstances(tmp_path, "trainaug")[0].classes is None
    mask(base / "SegmentationClassAug/2007_000032.png", np.full((3, 4), 255, np.uint8))
    sample = VOCInstances(tmp_path, "trainaug")[0]
    assert sample.instances is None and sample.classes.tolist() == [[-1] * 4] * 3


@pytest.mark.parametrize("folder, suffix", [("JPEGImages", "jpg"), ("SegmentationObject", "png"), ("SegmentationClass", "png")])
def test_a_missing_file_names_its_line_in_the_list(tmp_path, folder, suffix):
    base = build(tmp_path)
    (base / folder / f"2007_000039.{suffix}").unlink()
    with pytest.raises(DataError, match=rf"{folder}/2007_000039\.{suffix} is missing \(val\.txt line 2\).*ocl data check"):
        VOCInstances(tmp_path)[1]


@pytest.mark.parametrize("folder", ["SegmentationObject", "SegmentationClass"])
def test_a_mask_of_another_size_names_both_files_and_sizes(tmp_path, folder):
    base = build(tmp_path)
    mask(base / folder / "2007_000032.png", np.zeros((5, 4), np.uint8))
    with pytest.raises(DataError, match=rf"{folder}/2007_000032\.png is 5 x 4.*JPEGImages/2007_000032\.jpg is 3 x 4"):
        VOCInstances(tmp_path)[0]


def test_a_bad_mask_can_be_skipped_and_is_counted(tmp_path):
    base = build(tmp_path)
    (base / "SegmentationObject/2007_000032.png").write_bytes(b"")
    dataset = VOCInstances(tmp_path, on_error="skip")
    with pytest.warns(UserWarning, match="2007_000032"):
        assert dataset[0].key == "2007_000039"
    assert "empty" in dataset.skipped["2007_000032"]


def test_an_unknown_split_lists_those_there_are(tmp_path):
    build(tmp_path, lists={"val": ["2007_000032"], "train": ["2007_000039"]})
    with pytest.raises(DataError, match=r"test\.txt is missing; the splits there are train, val"):
        VOCInstances(tmp_path, "test")


def test_an_empty_list_is_an_error(tmp_path):
    build(tmp_path, lists={"val": [""]})
    with pytest.raises(DataError, match="lists no image"):
        VOCInstances(tmp_path)


def test_a_folder_of_something_else_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"is not a VOC folder.*JPEGImages.*VOCdevkit/VOC2012"):
        VOCInstances(tmp_path)


def test_without_lists_every_image_with_both_masks_is_taken(tmp_path):
    base = build(tmp_path, "flat", lists={})
    for path in sorted((base / "ImageSets").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (base / "ImageSets").rmdir()
    Image.new("RGB", (4, 3)).save(base / "JPEGImages/unlabelled.jpg")
    assert [sample.key for sample in VOCInstances(tmp_path)] == ["2007_000032", "2007_000039"]


def test_real_photographs_keep_every_object_and_their_void(photos):
    dataset = VOCInstances(photos / "voc_photos")
    assert [sample.key for sample in dataset] == ["2011_000003", "2011_000006", "2011_000025"]
    assert [sample.properties["instance_ids"] for sample in dataset] == [(1, 2, 3), (1, 2, 3, 4, 5, 7), (1, 2, 3)]
    for sample in dataset:
        stored = np.array(Image.open(photos / "voc_photos/SegmentationClass" / f"{sample.key}.png"))
        assert np.array_equal(sample.classes.numpy() == -1, stored == 255)
        assert np.array_equal(sample.instances.numpy() == -1, stored == 255)
