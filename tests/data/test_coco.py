"""COCO instance annotations as label maps."""

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ocl.data.coco import Annotation, COCOInstances, rasterise
from ocl.data.voc import VOCInstances
from ocl.errors import ConfigError, DataError, MissingExtra

coco_mask = pytest.importorskip("pycocotools.mask", reason='needs pycocotools: pip install "ocl[data]"')
HEIGHT, WIDTH = 20, 30


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(region):
    """Uncompressed run lengths, column by column, starting with zeros."""
    flat = region.T.reshape(-1).astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(region.shape), "counts": lengths if flat[0] == 0 else [0, *lengths]}


def packed(region):
    encoded = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def build(root, annotations, *, images=("a.jpg", "b.jpg"), below="val2017", categories=(1, 18)):
    """annotations: (image number, category, segmentation, further fields)."""
    folder = root / below
    folder.mkdir(parents=True, exist_ok=True)
    for name in images:
        Image.new("RGB", (WIDTH, HEIGHT), (7, 7, 7)).save(folder / name)
    content = {
        "images": [{"id": 10 + i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in enumerate(images)],
        "categories": [{"id": number, "name": f"class {number}"} for number in categories],
        "annotations": [
            {"id": i, "image_id": 10 + image, "category_id": category, "segmentation": shape, "iscrowd": 0, **more}
            for i, (image, category, shape, more) in enumerate(annotations)
        ],
    }
    (root / "annotations").mkdir(exist_ok=True)
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps(content))
    return file


def region(left, top, right, bottom):
    filled = np.zeros((HEIGHT, WIDTH), bool)
    filled[top:bottom, left:right] = True
    return filled


@pytest.mark.parametrize("below", ["val2017", "images/val2017", "images"])
def test_the_official_layouts_are_read(tmp_path, below):
    build(tmp_path, [(0, 18, box(2, 3, 8, 9), {})], below=below)
    sample = COCOInstances(tmp_path)[0]
    assert sample.key == "a.jpg" and sample.image.shape == (3, HEIGHT, WIDTH)
    assert np.array_equal(sample.instances.numpy() == 1, region(2, 3, 8, 9))
    assert np.array_equal(sample.classes.numpy() == 18, region(2, 3, 8, 9))
    assert sample.instances.dtype == sample.classes.dtype == torch.int32


def test_polygons_and_both_run_lengths_agree():
    polygon = Annotation(1, 3, box(4, 2, 19, 11))
    expected = rasterise([polygon], height=HEIGHT, width=WIDTH)
    for shape in (runs(expected[0] == 1), packed(expected[0] == 1)):
        for ours, theirs in zip(rasterise([Annotation(1, 3, shape)], height=HEIGHT, width=WIDTH), expected, strict=True):
            assert np.array_equal(ours, theirs)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_packed_run_lengths_agree_with_pycocotools(seed, density):
    drawn = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < density
    drawn[:, 10:20] = drawn[0, 0]  # some long runs
    instances, _ = rasterise([Annotation(1, 1, packed(drawn))], height=HEIGHT, width=WIDTH)
    assert np.array_equal(instances == 1, drawn)


def test_pixels_of_two_instances_are_ignored_and_the_later_class_wins():
    two = [Annotation(1, 5, runs(region(0, 0, 10, 10))), Annotation(2, 6, runs(region(5, 0, 15, 10)))]
    instances, classes = rasterise(two, height=HEIGHT, width=WIDTH)
    assert np.array_equal(instances == -1, region(5, 0, 10, 10))
    assert np.array_equal(classes == 6, region(5, 0, 15, 10)) and np.array_equal(classes == 5, region(0, 0, 5, 10))


@pytest.mark.parametrize("mark", [{"iscrowd": 1}, {"ignore": 1}])
def test_crowd_is_background_or_ignored_as_asked(tmp_path, mark):
    build(tmp_path, [(0, 1, runs(region(0, 0, 20, 10)), mark), (0, 18, runs(region(10, 5, 25, 15)), {})])
    background, ignored = COCOInstances(tmp_path)[0], COCOInstances(tmp_path, crowd="ignore")[0]
    single, crowd_alone = region(10, 5, 25, 15), region(0, 0, 20, 10) & ~region(10, 5, 25, 15)
    assert np.array_equal(background.instances.numpy(), single.astype(int))
    for labels, value in ((ignored.instances, 1), (ignored.classes, 18)):
        assert np.array_equal(labels.numpy(), np.where(crowd_alone, -1, single * value))


def test_images_without_annotations_are_kept_as_background(tmp_path):
    build(tmp_path, [])
    dataset = COCOInstances(tmp_path, image_size=8)
    assert len(dataset) == 2
    assert all((sample.instances == 0).all() and (sample.classes == 0).all() for sample in dataset)


def test_more_than_255_instances_stay_apart(tmp_path):
    cells = [(i % WIDTH, i // WIDTH) for i in range(400)]
    build(tmp_path, [(0, 1, runs(region(x, y, x + 1, y + 1)), {}) for x, y in cells])
    instances = COCOInstances(tmp_path)[0].instances
    assert instances.unique().tolist() == list(range(401))


def test_a_used_category_zero_is_not_mistaken_for_background(tmp_path):
    build(tmp_path, [(0, 0, box(2, 2, 9, 9), {}), (0, 2, box(12, 2, 19, 9), {})], categories=(0, 2))
    dataset = COCOInstances(tmp_path)
    assert dataset[0].classes.unique().tolist() == [0, 1, 3]
    assert dataset.class_names == {1: "class 0", 3: "class 2"}


def test_ids_are_contiguous_after_the_crop(tmp_path):
    build(tmp_path, [(0, 1, box(0, 0, 3, 20), {}), (0, 1, box(10, 0, 20, 20), {}), (0, 1, box(27, 0, 30, 20), {})])
    sample = COCOInstances(tmp_path, image_size=HEIGHT)[0]
    assert sample.instances.unique().tolist() == [0, 1] and sample.properties["instance_ids"] == (2,)


@pytest.mark.parametrize("shape", [[], [[]], [[1, 1, 5, 5]]])
def test_degenerate_polygons_cover_nothing(shape):
    instances, _ = rasterise([Annotation(1, 1, shape)], height=HEIGHT, width=WIDTH)
    assert not instances.any()


@pytest.mark.parametrize("shape", [
    {"size": [HEIGHT, WIDTH], "counts": [5, 5]},
    {"size": [WIDTH, HEIGHT], "counts": [600]},
    {"size": [HEIGHT, WIDTH], "counts": "~~~~~~"},
    {"size": [HEIGHT, WIDTH]},
    [[1, 1, 5, 5, 9, "x"]],
    "nonsense",
    None,
])
def test_a_damaged_mask_names_its_annotation(shape):
    with pytest.raises(DataError, match="annotation 42 is no valid mask"):
        rasterise([Annotation(42, 1, shape)], height=HEIGHT, width=WIDTH)


def test_a_truncated_run_length_string_is_an_error():
    checkered = np.indices((HEIGHT, WIDTH)).sum(0) % 2 == 0
    shape = packed(checkered)
    shape["counts"] = shape["counts"][:40]
    with pytest.raises(DataError, match="no valid mask"):
        rasterise([Annotation(1, 1, shape)], height=HEIGHT, width=WIDTH)


def test_a_damaged_mask_names_file_and_image_and_can_be_skipped(tmp_path):
    build(tmp_path, [(0, 1, {"size": [1, 1], "counts": [1]}, {})])
    with pytest.raises(DataError, match=r"instances_val2017\.json, image a\.jpg: annotation 0"):
        COCOInstances(tmp_path)[0]
    dataset = COCOInstances(tmp_path, on_error="skip")
    with pytest.warns(UserWarning, match=r"a\.jpg"):
        assert dataset[0].key == "b.jpg"
    assert list(dataset.skipped) == ["a.jpg"]


def test_an_image_of_another_size_names_both_files_and_sizes(tmp_path):
    build(tmp_path, [])
    Image.new("RGB", (8, 8)).save(tmp_path / "val2017/a.jpg")
    with pytest.raises(DataError, match=rf"a\.jpg is 8 x 8.*instances_val2017\.json says {HEIGHT} x {WIDTH}"):
        COCOInstances(tmp_path)[0]


@pytest.mark.parametrize("text, words", [
    ('{"images": [', "no complete JSON"),
    ("[]", "does not hold COCO instances"),
    ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "does not hold COCO instances"),
    ('{"images": [], "annotations": [], "categories": []}', "lists no image"),
])
def test_a_damaged_annotation_file_is_named(tmp_path, text, words):
    build(tmp_path, []).write_text(text)
    with pytest.raises(DataError, match=rf"instances_val2017\.json.*{words}"):
        COCOInstances(tmp_path)


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        COCOInstances(tmp_path / "nowhere")
    file = build(tmp_path, [])
    with pytest.raises(DataError, match=r"instances_train2017\.json.*splits there are val2017"):
        COCOInstances(tmp_path, "train2017")
    with pytest.raises(DataError, match=r"other\.json is missing"):
        COCOInstances(tmp_path, annotations=tmp_path / "other.json")
    (tmp_path / "val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"a\.jpg of {file} is in none of"):
        COCOInstances(tmp_path)
    assert len(COCOInstances(tmp_path / "elsewhere", annotations=file)) == 2


def test_annotations_of_unknown_images_are_reported(tmp_path):
    build(tmp_path, [(0, 1, box(2, 2, 9, 9), {}), (7, 1, box(2, 2, 9, 9), {})])
    with pytest.warns(UserWarning, match="1 annotations of images that it does not list"):
        assert len(COCOInstances(tmp_path)) == 2


def test_unknown_crowd_option_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="crowd"):
        COCOInstances(tmp_path, crowd="objects")


def test_without_pycocotools_the_extra_is_named(tmp_path, monkeypatch):
    build(tmp_path, [])
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(MissingExtra, match=r"ocl\[data\]"):
        COCOInstances(tmp_path)


def test_real_photographs_agree_with_their_voc_masks_up_to_boundaries(photos):
    voc = {sample.key: sample for sample in VOCInstances(photos / "voc_photos", image_size=224)}
    dataset = COCOInstances(photos / "coco_photos", image_size=224)
    assert len(dataset) == 3 and dataset.class_names[15] == "person"
    for sample in dataset:
        other = voc[sample.key.removeprefix("JPEGImages/").removesuffix(".jpg")]
        assert (sample.image.float() - other.image.float()).abs().mean() < 4  # two JPEG encodings of one photograph
        both = (sample.instances >= 0) & (other.instances >= 0)
        objects = other.instances.unique()[other.instances.unique() > 0].tolist()
        assert len(sample.properties["instance_ids"]) == len(objects)
        best = []
        for number in objects:
            truth = (other.instances == number) & both
            found = [(sample.instances == k + 1) & both for k in range(len(objects))]
            best.append(max(float((truth & mask).sum() / (truth | mask).sum()) for mask in found))
        assert min(best) > 0.9, f"{sample.key}: {best}"
        assert (sample.classes[both] == other.classes[both]).float().mean() > 0.98
