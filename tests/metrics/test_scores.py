"""Segmentation scores against scikit-learn, against masks compared one by one, and against laws they must keep."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from ocl import ops
from ocl.errors import ConfigError, RangeError, ShapeError
from ocl.metrics import PROTOCOLS, relabel, segmentation_scores

SCORES = ("ari", "fg_ari", "mbo", "miou", "fg_miou")
seeds = st.integers(0, 2**32 - 1)


def draw(seed, shape=(2, 9, 11), num_pred=5, num_true=4, void=0.2):
    """Random labels; about half of them in runs, so that some regions are large and some segments are empty."""
    generator = torch.Generator().manual_seed(seed)

    def labels(count):
        used = torch.randint(0, count, (count,), generator=generator)
        return used[torch.randint(0, count, shape, generator=generator)]

    return labels(num_pred), labels(num_true), torch.rand(shape, generator=generator) < void


def same(left, right, tolerance=1e-12):
    return torch.allclose(left, right, rtol=0, atol=tolerance, equal_nan=True)


# ---- an independent reference: boolean masks, one image, one protocol, every permutation tried


def mask_iou(a, b):
    union = (a | b).sum()
    return (a & b).sum() / union if union else 0.0


def mask_cosine(a, b):
    return (a & b).sum() / math.sqrt(a.sum() * b.sum()) if a.any() and b.any() else 0.0


def best_matching(similarity):
    """Index pairs of the largest total, by trying every assignment of the smaller side."""
    rows, columns = similarity.shape
    if rows > columns:
        return [(row, column) for column, row in best_matching(similarity.T)]
    choices = itertools.permutations(range(columns), rows)
    best = max(choices, key=lambda choice: sum(similarity[row, column] for row, column in enumerate(choice)))
    return list(enumerate(best))


def by_hand(pred, true, ignore, protocol):
    """What the project of that name computes, from its description in ocl.metrics.protocols."""
    pred, true, ignore = (x.numpy().ravel().copy() for x in (pred, true, ignore))
    if protocol in ("coda", "slotdiffusion"):
        true[ignore] = 0
        pred[ignore] = pred.max() + 1
        num_regions = true.max() + 1
        counted = np.ones_like(ignore)
        segment_pixels = counted
    elif protocol in ("spot", "videosaur"):
        true[ignore] = 0
        counted = segment_pixels = np.ones_like(ignore)
    elif protocol == "genera1z":
        counted, segment_pixels = ~ignore, np.ones_like(ignore)
    else:
        counted = segment_pixels = ~ignore
    if protocol not in ("coda", "slotdiffusion"):
        num_regions = None
    num_segments = pred.max() + 1
    segments = [(pred == label) & segment_pixels for label in range(num_segments)]
    regions = {label: (true == label) & counted for label in np.unique(true[counted])}
    objects = {label: mask for label, mask in regions.items() if label > 0}

    def mean(values, count):
        return sum(values) / count if count else math.nan

    def best_of(chosen, count):
        return mean([max(mask_iou(mask, segment) for segment in segments) for mask in chosen.values()], count)

    def matched(chosen, count):
        masks = list(chosen.values())
        if not masks:
            return math.nan if not count else 0.0
        iou = np.array([[mask_iou(mask, segment) for segment in segments] for mask in masks])
        return mean([iou[pair] for pair in best_matching(iou)], count)

    foreground = counted & (true > 0)
    scores = dict.fromkeys(SCORES, math.nan)
    scores["ari"] = adjusted_rand_score(true[counted], pred[counted])
    scores["fg_ari"] = adjusted_rand_score(true[foreground], pred[foreground])
    count = len(objects) if num_regions is None else num_regions - 1
    if protocol == "lsd":
        cosine = np.array([[mask_cosine(mask, segment) for segment in segments] for mask in objects.values()])
        pairs = best_matching(cosine.reshape(len(objects), num_segments)) if objects else []
        masks = list(objects.values())
        scores["fg_miou"] = mean([mask_iou(masks[row], segments[column]) for row, column in pairs], len(pairs))
        scores["mbo"] = mean([max(mask_iou(masks[row], segment) for segment in segments) for row, _ in pairs], len(pairs))
    else:
        scores["mbo"] = best_of(regions, len(regions)) if protocol == "genera1z" else best_of(objects, count)
        scores["miou"] = matched(regions, len(regions) if num_regions is None else num_regions)
        scores["fg_miou"] = matched(objects, count)
    if protocol == "videosaur" and not objects:
        scores["fg_ari"] = math.nan
    kept = {
        "coda": SCORES, "slotdiffusion": SCORES, "lsd": ("fg_ari", "mbo", "fg_miou"), "oclf": ("ari", "fg_ari", "mbo", "fg_miou"),
        "spot": ("fg_ari", "mbo", "fg_miou"), "videosaur": ("ari", "fg_ari", "mbo", "fg_miou"),
        "genera1z": ("ari", "fg_ari", "mbo", "miou"), "savi": ("ari", "fg_ari"),
    }
    return {name: value if name in kept[protocol] else math.nan for name, value in scores.items()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=20, deadline=None)
@given(seed=seeds, num_pred=st.integers(1, 5), num_true=st.integers(1, 5), void=st.sampled_from([0.0, 0.3]))
def test_scores_are_those_of_masks_compared_one_by_one(protocol, seed, num_pred, num_true, void):
    pred, true, ignore = draw(seed, (3, 5, 6), num_pred, num_true, void)
    scores = segmentation_scores(pred, true, ignore, protocol)
    for image in range(3):
        for name, expected in by_hand(pred[image], true[image], ignore[image], protocol).items():
            got = scores[name][image].item()
            assert math.isnan(got) if math.isnan(expected) else got == pytest.approx(expected, abs=1e-12), name


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_ari_is_scikit_learns(seed):
    pred, true, _ = draw(seed, (4, 20, 20), 6, 6)
    ari = segmentation_scores(pred, true, protocol="savi")["ari"]
    expected = [adjusted_rand_score(t.flatten(), p.flatten()) for p, t in zip(pred, true, strict=True)]
    assert same(ari, torch.tensor(expected, dtype=torch.float64))


# ---- laws


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_names_of_segments_do_not_matter(protocol, seed):
    pred, true, ignore = draw(seed)
    pred.view(2, -1)[:, 0] = pred.max()  # the number of slots is the largest label, which renaming must keep
    names = torch.randperm(int(pred.max()) + 1, generator=torch.Generator().manual_seed(seed))
    before, after = (segmentation_scores(p, true, ignore, protocol) for p in (pred, names[pred]))
    for name in SCORES:
        if protocol == "lsd" and name != "fg_ari":
            continue  # ties between equal cosines, and labels up to the largest one, depend on the names
        assert same(before[name], after[name]), name


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_names_of_objects_do_not_matter(protocol, seed):
    pred, true, ignore = draw(seed, num_true=6)
    true = relabel(true.masked_fill(ignore, 0))
    count = int(true.max())
    names = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(count, generator=torch.Generator().manual_seed(seed))])
    for one_pred, one_true, one_ignore in zip(pred, true, ignore, strict=True):
        if one_true.max() < count:
            continue  # renaming would open a gap, which coda counts
        maps = one_pred[None], one_ignore[None], protocol
        before = segmentation_scores(maps[0], one_true[None], *maps[1:])
        after = segmentation_scores(maps[0], names[one_true][None], *maps[1:])
        for name in SCORES:
            if protocol != "lsd" or name == "fg_ari":
                assert same(before[name], after[name]), name


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_the_order_of_pixels_does_not_matter(protocol, seed):
    maps = [labels.flatten(1) for labels in draw(seed)]
    order = torch.randperm(maps[0].shape[1], generator=torch.Generator().manual_seed(seed))
    before = segmentation_scores(*maps, protocol)
    after = segmentation_scores(*[labels[:, order] for labels in maps], protocol)
    assert all(torch.equal(before[name].nan_to_num(9), after[name].nan_to_num(9)) for name in SCORES)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_ari_is_symmetric(seed):
    pred, true, _ = draw(seed)
    assert same(segmentation_scores(pred, true, protocol="savi")["ari"], segmentation_scores(true, pred, protocol="savi")["ari"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_a_perfect_partition_scores_one(protocol, seed):
    _, true, _ = draw(seed, num_true=6)
    true = relabel(true)
    true.view(2, -1)[:, :2] = torch.tensor([0, 1])
    for name, score in segmentation_scores(true, true, protocol=protocol).items():
        assert score.isnan().all() if name not in PROTOCOLS[protocol].scores else (score == 1).all(), name


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_some_protocols_forgive_a_perfect_mask_its_void_ring(protocol):
    true = torch.zeros(1, 20, 20, dtype=torch.int64)
    true[:, 4:16, 4:16] = 1
    ring = torch.zeros_like(true, dtype=torch.bool)
    ring[:, 3:17, 3:17] = True
    ring[:, 5:15, 5:15] = False
    scores = segmentation_scores(true, true, ring, protocol)
    assert scores["fg_ari"].item() == 1
    if protocol in ("spot", "videosaur"):
        assert scores["mbo"].item() == pytest.approx(100 / 144)
    elif protocol == "genera1z":
        assert scores["mbo"].item() == pytest.approx((100 / 144 + 204 / 256) / 2)
    elif protocol != "savi":
        assert scores["mbo"].item() == 1
    if protocol == "coda":
        assert scores["miou"].item() == pytest.approx((1 + 204 / 300) / 2)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_an_image_scores_the_same_bits_in_any_batch(protocol, seed):
    small, large = draw(seed, (2, 6, 7)), draw(seed + 1, (3, 6, 7), num_pred=17, num_true=13)
    together = segmentation_scores(*[torch.cat(pair) for pair in zip(small, large, strict=True)], protocol)
    alone = segmentation_scores(*small, protocol)
    for name in SCORES:
        assert together[name][:2].tolist() == pytest.approx(alone[name].tolist(), abs=0, rel=0, nan_ok=True), name


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_reference_backend_scores_the_same_bits(protocol):
    maps = draw(3, (4, 30, 30))
    compiled = segmentation_scores(*maps, protocol)
    with ops.backend("reference"):
        reference = segmentation_scores(*maps, protocol)
    assert all(torch.equal(compiled[name].nan_to_num(9), reference[name].nan_to_num(9)) for name in SCORES)


# ---- sizes and cases where published code goes wrong


@pytest.mark.parametrize("protocol", ["coda", "videosaur", "genera1z", "savi"])
def test_random_labels_of_a_whole_clip_score_zero(protocol):
    generator = torch.Generator().manual_seed(0)
    pred = torch.randint(0, 11, (1, 24, 256, 256), generator=generator, dtype=torch.uint8)
    true = torch.randint(0, 11, (1, 24, 256, 256), generator=generator, dtype=torch.uint8)
    scores = segmentation_scores(pred, true, protocol=protocol)
    assert abs(scores["ari"].item()) <= 0.001
    assert abs(scores["fg_ari"].item()) <= 0.001


def test_ari_of_a_clip_is_the_exact_ratio_of_its_pair_counts():
    frames, height, width = 24, 256, 256
    pred = (torch.arange(width) * 7 // width).expand(1, frames, height, width)
    true = (torch.arange(frames * height).view(frames, height, 1) % 5).expand(1, frames, height, width)
    table = np.zeros((7, 5), dtype=object)
    for p, t in itertools.product(range(7), range(5)):
        table[p, t] = int((pred[0, 0, 0] == p).sum()) * int((true[0, :, :, 0] == t).sum())

    def pairs(sizes):
        return sum(int(size) * (int(size) - 1) for size in np.ravel(sizes))

    chance = Fraction(pairs(table.sum(0)) * pairs(table.sum(1)), pairs(table.sum()))
    exact = (pairs(table) - chance) / (Fraction(pairs(table.sum(0)) + pairs(table.sum(1)), 2) - chance)
    assert segmentation_scores(pred, true, protocol="savi")["ari"].item() == float(exact)


def test_more_than_255_instances_are_told_apart():
    true = torch.arange(1, 1 + 32 * 32, dtype=torch.int16).view(1, 32, 32).repeat_interleave(3, 1).repeat_interleave(3, 2)
    scores = segmentation_scores(true, true, protocol="oclf")
    assert scores["mbo"].item() == scores["fg_ari"].item() == scores["fg_miou"].item() == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ids_of_any_size_score_as_small_ones(protocol):
    pred, true, ignore = draw(5, (2, 12, 12), num_true=7)
    scattered = torch.where(true > 0, true * 128_000_000_001, 0).masked_fill(ignore, -1)
    free_of_gaps = replace(PROTOCOLS[protocol], gaps="skipped")
    before, after = (segmentation_scores(pred, labels, ignore, free_of_gaps) for labels in (true, scattered))
    assert all(same(before[name], after[name]) for name in SCORES)


def test_coda_counts_ids_that_nobody_carries_unless_they_are_renumbered():
    perfect = torch.tensor([[[0, 0, 1, 1, 5, 5]]])
    as_published = segmentation_scores(perfect, perfect, protocol="coda")
    assert as_published["mbo"].item() == pytest.approx(2 / 5)
    assert as_published["miou"].item() == pytest.approx(3 / 6)
    assert segmentation_scores(perfect, relabel(perfect), protocol="coda")["mbo"].item() == 1
    assert segmentation_scores(perfect, perfect, protocol="oclf")["mbo"].item() == 1
    with_sparse_ids = torch.where(perfect == 5, 10**9, perfect)
    assert segmentation_scores(perfect, with_sparse_ids, protocol="coda")["mbo"].item() == pytest.approx(2e-9)


EMPTY = {  # protocol -> (fg_ari, mbo) of an image that is all background
    "coda": (1, None), "slotdiffusion": (1, None), "lsd": (1, None), "oclf": (1, None), "spot": (1, None),
    "videosaur": (None, None), "genera1z": (1, 0.5), "savi": (1, None),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_image_without_objects_is_scored_as_the_project_does(protocol):
    pred = torch.tensor([[[0, 0, 1, 1]]])
    scores = segmentation_scores(pred, torch.zeros_like(pred), protocol=protocol)
    for name, expected in zip(("fg_ari", "mbo"), EMPTY[protocol], strict=True):
        assert scores[name].isnan().item() if expected is None else scores[name].item() == expected, name
    assert scores["fg_miou"].isnan().item()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_image_of_nothing_but_void_has_no_objects(protocol):
    pred, true, _ = draw(1)
    scores = segmentation_scores(pred, true, torch.ones_like(true, dtype=torch.bool), protocol)
    assert scores["fg_miou"].isnan().all()
    assert not scores["ari"].isinf().any()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4)])
def test_no_images_and_no_pixels_are_fine(protocol, shape):
    nothing = torch.zeros(shape, dtype=torch.int64)
    for name, score in segmentation_scores(nothing, nothing, protocol=protocol).items():
        assert score.shape == shape[:1] and score.dtype == torch.float64, name
        assert score.isnan().all() or (score == 1).all()


def test_one_object_scores_one_only_if_it_lies_in_one_segment():
    true = torch.tensor([[[0, 0, 1, 1, 1, 1]], [[0, 0, 1, 1, 1, 1]]])
    pred = torch.tensor([[[0, 1, 2, 2, 2, 2]], [[0, 1, 2, 2, 2, 3]]])
    assert segmentation_scores(pred, true)["fg_ari"].tolist() == [1, 0]


def test_a_clip_is_one_partition():
    true = torch.tensor([[[[0, 1]], [[0, 1]]]])
    swapped = torch.tensor([[[[0, 1]], [[1, 0]]]])
    assert segmentation_scores(swapped, true, protocol="savi")["ari"].item() < 0.1
    assert segmentation_scores(swapped[0], true[0], protocol="savi")["ari"].tolist() == [1, 1]


def test_more_objects_than_segments_count_zero_or_are_dropped():
    true = torch.tensor([[[1, 1, 2, 2, 3, 3]]])
    pred = torch.tensor([[[0, 0, 1, 1, 1, 1]]])
    assert segmentation_scores(pred, true, protocol="oclf")["fg_miou"].item() == pytest.approx((1 + 0.5 + 0) / 3)
    assert segmentation_scores(pred, true, protocol="lsd")["fg_miou"].item() == pytest.approx((1 + 0.5) / 2)


# ---- misuse


def test_an_unknown_protocol_lists_the_names():
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"coda, slotdiffusion, lsd, oclf, spot, videosaur, genera1z, savi, got 'dinosaur'"):
        segmentation_scores(labels, labels, protocol="dinosaur")


@pytest.mark.parametrize("which", ["pred", "true"])
def test_negative_labels_are_named(which):
    maps = {"pred": torch.zeros(1, 2, 2, dtype=torch.int64), "true": torch.zeros(1, 2, 2, dtype=torch.int64)}
    maps[which][0, 0, 0] = -1
    with pytest.raises(RangeError, match=f"labels {which} >= 0, got -1"):
        segmentation_scores(**maps)


def test_soft_masks_are_refused():
    with pytest.raises(ShapeError, match="take the argmax over slots"):
        segmentation_scores(torch.rand(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
