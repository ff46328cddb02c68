"""Folders of photographs to masks, overlays and cut-outs."""

import json
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from ocl.errors import ConfigError, DataError
from ocl.evaluate.segment import output_names, segment
from ocl.vis.png import read_index_png

SIZE = 16
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def _halves(height, width, first=RED, second=GREEN):
    """`first` on the left half, `second` on the right; one colour if it is one pixel wide."""
    picture = np.empty((height, width, 3), dtype=np.uint8)
    picture[:, : (width + 1) // 2], picture[:, (width + 1) // 2 :] = first, second
    return picture


def _save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **options)


def _files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    _save(folder / "one.png", _halves(24, 40))
    _save(folder / "sub" / "two.png", _halves(40, 24, BLUE, RED))
    _save(folder / "three.png", np.random.default_rng(0).integers(0, 256, (33, 21, 3), dtype=np.uint8))
    return folder


@pytest.mark.parametrize("resize", ["stretch", "pad"])
@pytest.mark.parametrize("size", [(24, 64), (64, 24), (16, 16), (1, 30), (30, 1), (1, 1), (200, 100)])
def test_masks_have_the_shape_and_place_of_the_photograph(by_colour, tmp_path, size, resize):
    _save(tmp_path / "in" / "photo.png", _halves(*size))
    segment(by_colour, tmp_path / "in", tmp_path / "out", image_size=SIZE, resize=resize)
    labels = read_index_png(tmp_path / "out" / "masks" / "photo.png")
    assert labels.shape == size
    expected = np.where(_halves(*size)[..., 0] > 0, 0, 1)
    near_the_border = max(1, *size) / SIZE + 1
    clear = np.abs(np.arange(size[1]) + 0.5 - (size[1] + 1) // 2) > near_the_border
    assert np.array_equal(labels[:, clear], expected[:, clear])


def test_cut_outs_shares_and_manifest_agree_with_the_masks(untrained, photos, tmp_path):
    result = segment(untrained, photos, tmp_path / "out", image_size=SIZE)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {image["file"] for image in manifest["images"]} == {"one.png", "three.png", "sub/two.png"}
    for image in manifest["images"]:
        photograph = np.array(Image.open(photos / image["file"]).convert("RGB"))
        labels = read_index_png(tmp_path / "out" / image["mask"])
        assert labels.shape == photograph.shape[:2] == (image["height"], image["width"])
        assert image["shares"] == [float((labels == slot).mean()) for slot in range(3)]
        assert np.array(Image.open(tmp_path / "out" / image["overlay"])).shape == photograph.shape
        for slot, path in enumerate(image["cut_outs"]):
            assert (path is None) == (image["shares"][slot] == 0)
            if path is not None:
                piece = np.array(Image.open(tmp_path / "out" / path))
                assert np.array_equal(piece[..., 3] > 0, labels == slot) and np.array_equal(piece[..., :3], photograph)
    assert [image.file for image in result.images] == [image["file"] for image in manifest["images"]]


@pytest.mark.parametrize("masks", ["slots", "decoder"])
def test_masks_do_not_depend_on_the_batch_or_on_the_other_photographs(untrained, photos, tmp_path, masks):
    for name, batch_size in (("a", 1), ("b", 3)):
        segment(untrained, photos, tmp_path / name, image_size=SIZE, batch_size=batch_size, masks=masks)
    (photos / "one.png").unlink()
    segment(untrained, photos, tmp_path / "c", image_size=SIZE, masks=masks)
    for file in ("masks/three.png", "masks/sub/two.png"):
        a, b, c = (read_index_png(tmp_path / name / file) for name in "abc")
        assert np.array_equal(a, b) and np.array_equal(a, c)


def test_another_seed_gives_other_slots(untrained, photos, tmp_path):
    for seed in (0, 1):
        segment(untrained, photos, tmp_path / str(seed), image_size=SIZE, seed=seed)
    first, second = (read_index_png(tmp_path / seed / "masks" / "three.png") for seed in "01")
    assert not np.array_equal(first, second)


def test_every_kind_of_picture_is_read(by_colour, tmp_path):
    folder = tmp_path / "in"
    colours = _halves(20, 30)
    _save(folder / "grey.png", colours[..., 0])
    _save(folder / "alpha.png", np.dstack([colours, np.full((20, 30), 255, np.uint8)]))
    _save(folder / "deep.png", colours[..., 0].astype(np.uint16) * 257)
    Image.fromarray(colours).quantize(4).save(folder / "palette.png")
    Image.fromarray(colours).save(folder / "photo.webp", lossless=True)
    result = segment(by_colour, folder, tmp_path / "out", image_size=SIZE)
    assert len(result.images) == 5
    for name in ("alpha", "palette", "photo"):
        labels = read_index_png(tmp_path / "out" / "masks" / f"{name}.png")
        assert (labels[:, :12] == 0).all() and (labels[:, 18:] == 1).all()


def test_a_turned_photograph_gets_an_upright_mask(by_colour, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    _save(tmp_path / "in" / "turned.jpg", _halves(20, 30), exif=exif, quality=95)
    segment(by_colour, tmp_path / "in", tmp_path / "out", image_size=SIZE)
    labels = read_index_png(tmp_path / "out" / "masks" / "turned.png")
    assert labels.shape == (30, 20) and (labels[:12] == 0).all() and (labels[18:] == 1).all()


def test_equal_names_do_not_overwrite_each_other(by_colour, tmp_path):
    for file in ("cat.png", "cat.bmp", "Cat.PNG", "sub/cat.png", "cat_bmp.png"):
        _save(tmp_path / "in" / file, _halves(8, 8))
    result = segment(by_colour, tmp_path / "in", tmp_path / "out", image_size=SIZE)
    masks = [image.mask for image in result.images]
    assert len({mask.casefold() for mask in masks}) == 5
    assert all((tmp_path / "out" / mask).is_file() for mask in masks)


def test_names_keep_folders_and_drop_suffixes_where_they_can():
    names = output_names(["a.jpg", "a.png", "A.PNG", "sub/a.jpg", "b.tar.png"])
    assert names == {"a.jpg": "a", "a.png": "a_png", "A.PNG": "A_PNG_2", "sub/a.jpg": "sub/a", "b.tar.png": "b.tar"}


def test_a_broken_photograph_stops_everything_and_leaves_nothing(by_colour, photos, tmp_path):
    (photos / "zero.jpg").write_bytes(b"")
    before = _files(tmp_path)
    with pytest.raises(DataError, match=r"zero.jpg is empty.*skip_broken"):
        segment(by_colour, photos, tmp_path / "out", image_size=SIZE)
    assert _files(tmp_path) == before and not (tmp_path / "out").exists()


def test_broken_photographs_are_skipped_on_request_and_counted(by_colour, photos, tmp_path):
    (photos / "zero.jpg").write_bytes(b"")
    (photos / "cut.png").write_bytes((photos / "three.png").read_bytes()[:200])
    seen = []
    options = {"batch_size": 2, "skip_broken": True, "progress": lambda *at: seen.append(at)}
    result = segment(by_colour, photos, tmp_path / "out", image_size=SIZE, **options)
    assert set(result.skipped) == {"zero.jpg", "cut.png"} and len(result.images) == 3
    assert set(json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"]) == {"zero.jpg", "cut.png"}
    assert seen[-1] == (5, 5)


def test_a_folder_of_nothing_but_broken_photographs_is_an_error(by_colour, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "zero.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 1 images"):
        segment(by_colour, tmp_path / "in", tmp_path / "out", image_size=SIZE, skip_broken=True)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_an_error(by_colour, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        segment(by_colour, tmp_path / "in", tmp_path / "out", image_size=SIZE)


def test_segments_are_replaced_only_on_request(by_colour, photos, tmp_path):
    segment(by_colour, photos, tmp_path / "out", image_size=SIZE)
    (photos / "one.png").unlink()
    with pytest.raises(ConfigError, match="overwrite"):
        segment(by_colour, photos, tmp_path / "out", image_size=SIZE)
    segment(by_colour, photos, tmp_path / "out", image_size=SIZE, overwrite=True)
    assert not (tmp_path / "out" / "masks" / "one.png").exists() and (tmp_path / "out" / "masks" / "three.png").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_former_segments_survive_a_failure(by_colour, photos, tmp_path):
    segment(by_colour, photos, tmp_path / "out", image_size=SIZE)
    before = _files(tmp_path / "out")
    (photos / "zero.jpg").write_bytes(b"")
    with pytest.raises(DataError):
        segment(by_colour, photos, tmp_path / "out", image_size=SIZE, overwrite=True)
    assert _files(tmp_path / "out") == before


def test_a_folder_of_other_files_is_never_replaced(by_colour, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="other files"):
        segment(by_colour, photos, tmp_path / "out", image_size=SIZE, overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("inside", [".", "out"])
def test_segments_do_not_go_among_the_photographs(by_colour, photos, inside):
    with pytest.raises(ConfigError, match="inside the folder of images"):
        segment(by_colour, photos, photos / inside, image_size=SIZE)


def test_the_page_links_to_files_that_exist_and_shows_hostile_names_as_text(by_colour, photos, tmp_path):
    _save(photos / "<script>alert(1)" / "50% & #1?.png", _halves(8, 8))
    segment(by_colour, photos, tmp_path / "out", image_size=SIZE)
    page = (tmp_path / "out" / "index.html").read_text()
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert len(links) > 8 and all((tmp_path / "out" / unquote(unescape(link))).is_file() for link in links)
    assert "<script" not in page and "50% &amp; #1?.png" in page


def test_the_model_is_left_as_it_was(untrained, photos, tmp_path):
    untrained.train()
    untrained.encoder.eval()
    before = {name: value.clone() for name, value in untrained.state_dict().items()}
    segment(untrained, photos, tmp_path / "out", image_size=SIZE)
    assert untrained.training and untrained.decoder.training and not untrained.encoder.training
    assert all(value.equal(before[name]) for name, value in untrained.state_dict().items())


def test_real_photographs_keep_their_size(untrained, shared_data, tmp_path):
    folder = Path(shared_data) / "voc_photos" / "JPEGImages"
    result = segment(untrained, folder, tmp_path / "out", image_size=SIZE)
    assert len(result.images) == len(list(folder.glob("*.jpg"))) > 0
    for image in result.images:
        assert (image.width, image.height) == Image.open(folder / image.file).size
        assert (image.width, image.height) == Image.open(tmp_path / "out" / image.mask).size
        assert sum(image.shares) == pytest.approx(1)
