"""Segmentation over a data set: the same numbers in any order, over any split, through JSON."""

import json
import math
import random

import pytest
import torch

from ocl.errors import ConfigError, RangeError, ShapeError
from ocl.metrics import PROTOCOLS, Segmentation, relabel, segmentation_scores
from ocl.types import Batch

ALL = tuple(PROTOCOLS)


def batch_of(instances, classes=None):
    return Batch(torch.zeros(len(instances), 3, *instances.shape[1:]), instances, classes)


def draw(seed, count=6, num_true=5):
    """pred, and ground truth with void (-1), gaps in the ids and an image without objects."""
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randint(0, 4, (count, 8, 9), generator=generator)
    true = torch.randint(-1, num_true, (count, 8, 9), generator=generator, dtype=torch.int32) * 2
    true = true.clamp(min=-1)
    true[0] = 0
    return pred, true


def counted(parts, **options):
    metric = Segmentation(ALL, **options)
    for pred, true in parts:
        metric.update(pred, batch_of(true))
    return metric


def same(left, right):
    return json.dumps(left) == json.dumps(right)


def test_a_score_is_the_mean_over_the_images_that_the_protocol_scores():
    pred, true = draw(0)
    means = counted([(pred, true)]).compute()
    for protocol in ALL:
        scores = segmentation_scores(pred, relabel(true).clamp(min=0), true == -1, protocol)
        assert means[f"FG-ARI[{protocol}]"] == pytest.approx(scores["fg_ari"].nanmean().item(), abs=1e-15)
        if protocol not in ("savi", "lsd"):
            assert means[f"mBO_i[{protocol}]"] == pytest.approx(scores["mbo"].nanmean().item(), abs=1e-15)


def test_batches_and_processes_may_come_in_any_order():
    parts = [draw(seed, count) for seed, count in enumerate((1, 3, 6, 2, 5))]
    whole = counted(parts).compute()
    one_by_one = counted([(pred[i : i + 1], true[i : i + 1]) for pred, true in parts for i in range(len(pred))])
    assert same(one_by_one.compute(), whole)
    for seed in range(5):
        shuffled = random.Random(seed).sample(parts, len(parts))
        merged = counted(shuffled[:2]).merge(counted(shuffled[2:3])).merge(counted(shuffled[3:]))
        assert same(merged.compute(), whole)


def test_merging_changes_neither_side():
    left, right = counted([draw(0)]), counted([draw(1)])
    before = left.state(), right.state()
    left.merge(right).update(draw(2)[0], batch_of(draw(2)[1]))
    assert (left.state(), right.state()) == before


def test_state_travels_through_json():
    metric = counted([draw(0), draw(1)])
    text = json.dumps(metric.state(), allow_nan=False)
    restored = Segmentation.from_state(json.loads(text))
    assert restored.state() == metric.state()
    assert same(restored.merge(counted([draw(2)])).compute(), counted([draw(0), draw(1), draw(2)]).compute())


def test_a_damaged_state_is_refused():
    state = counted([draw(0)]).state()
    state["scores"]["FG-ARI[coda]"].pop()
    with pytest.raises(ConfigError, match="equally long lists"):
        Segmentation.from_state(state)
    with pytest.raises(ConfigError, match="equally long lists"):
        Segmentation.from_state({**state, "protocols": ["coda"]})


def test_names_carry_protocol_and_level():
    assert list(Segmentation().compute()) == ["ARI[coda]", "FG-ARI[coda]", "mBO_i[coda]", "mIoU_i[coda]", "FG-mIoU_i[coda]"]
    assert list(Segmentation(("coda", "spot"), "classes").compute()) == [
        "mBO_c[coda]", "mIoU_c[coda]", "FG-mIoU_c[coda]", "mBO_c[spot]", "FG-mIoU_c[spot]",
    ]
    assert list(Segmentation(("savi",)).compute()) == ["ARI[savi]", "FG-ARI[savi]"]


def test_nothing_counted_is_not_a_number():
    assert all(math.isnan(value) for value in Segmentation(ALL).compute().values())


def test_classes_are_scored_against_the_class_map_without_counting_absent_classes():
    classes = torch.zeros(1, 4, 4, dtype=torch.int32)
    classes[:, :2] = 15
    instances = torch.arange(16, dtype=torch.int32).view(1, 4, 4)
    pred = (classes > 0).long()
    metric = Segmentation(("coda",), "classes")
    metric.update(pred, batch_of(instances, classes))
    assert metric.compute() == {"mBO_c[coda]": 1, "mIoU_c[coda]": 1, "FG-mIoU_c[coda]": 1}


def test_gaps_count_as_missed_objects_only_where_asked():
    true = torch.tensor([[[0, 0, 1, 1, 5, 5]]], dtype=torch.int32)
    for count_gaps, expected in ((False, 1.0), (True, 0.4)):
        metric = Segmentation(("coda",), count_gaps=count_gaps)
        metric.update(true.long(), batch_of(true))
        assert metric.compute()["mBO_i[coda]"] == pytest.approx(expected)


def test_lsd_averages_over_objects_and_the_others_over_images():
    true = torch.tensor([[[1, 1, 1, 1]], [[1, 2, 3, 4]]], dtype=torch.int32)
    pred = torch.tensor([[[0, 0, 0, 0]], [[0, 0, 1, 3]]])
    metric = Segmentation(("lsd", "oclf"))
    metric.update(pred, batch_of(true))
    per_image = [1, (0.5 + 0.5 + 1 + 1) / 4]
    assert metric.per_image()["mBO_i[lsd]"] == per_image
    assert metric.compute()["mBO_i[oclf]"] == pytest.approx((per_image[0] + per_image[1]) / 2)
    assert metric.compute()["mBO_i[lsd]"] == pytest.approx((1 * per_image[0] + 4 * per_image[1]) / 5)


def test_missing_ground_truth_other_sizes_and_other_labels_are_refused_before_anything_is_counted():
    pred, true = draw(0)
    metric = counted([(pred, true)])
    before = metric.state()
    with pytest.raises(ShapeError, match=r"needs Batch\.classes"):
        Segmentation(level="classes").update(pred, batch_of(true))
    with pytest.raises(ShapeError, match="of one shape"):
        metric.update(pred[:, :4], batch_of(true))
    with pytest.raises(RangeError, match="true >= 0, got -2"):
        metric.update(pred, batch_of(true - 1))
    assert metric.state() == before


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="levels instances, classes, got 'pixels'"):
        Segmentation(level="pixels")
    with pytest.raises(ConfigError, match="protocols coda"):
        Segmentation(("dinosaur",))
    with pytest.raises(ConfigError, match="expects a list of protocols"):
        Segmentation("coda")
    with pytest.raises(ConfigError, match="equal settings"):
        Segmentation(("coda",)).merge(Segmentation(("oclf",)))
