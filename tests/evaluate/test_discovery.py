"""Object discovery scores of a model and of baselines."""

import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from ocl.data import Dataset, Sample, Scenes
from ocl.data.sample import collate
from ocl.decoders import FeatureMLP
from ocl.errors import ConfigError, DataError
from ocl.evaluate.baselines import BASELINES
from ocl.evaluate.discovery import evaluate, score_baselines
from ocl.evaluate.inference import inference, run
from ocl.models.autoencoder import SlotAutoencoder

RED_GREEN_BLUE = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)


class Given(Dataset):
    """The samples it was given."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def _coloured(count, *, seed=0):
    """Red background with green and blue regions, and ground truth that says so."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for number in range(count):
        labels = torch.randint(3, (4, 4), generator=generator).repeat_interleave(4, 0).repeat_interleave(4, 1).int()
        image = RED_GREEN_BLUE[labels.long()].permute(2, 0, 1)
        samples.append(Sample(image, labels, (labels > 0).int(), key=f"image {number}"))
    return Given(samples)


def _equal(one, other):
    return one.keys() == other.keys() and all(one[key] == pytest.approx(other[key], abs=1e-12, nan_ok=True) for key in one)


def test_masks_that_equal_the_ground_truth_score_one(by_colour):
    found = evaluate(by_colour, _coloured(5), protocols=("coda", "oclf"))
    for name in ("FG-ARI[coda]", "mBO_i[coda]", "mIoU_i[coda]", "ARI[coda]", "FG-ARI[oclf]", "mBO_i[oclf]"):
        assert found.scores["decoder"][name] == 1
    assert found.images == 5 and found.error == 0


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_no_score_depends_on_the_batch_size(untrained, batch_size):
    data = _coloured(7)
    one, other = evaluate(untrained, data, batch_size=3), evaluate(untrained, data, batch_size=batch_size)
    assert all(_equal(one.scores[masks], other.scores[masks]) for masks in ("slots", "decoder"))
    assert all(_equal(a, b) for a, b in zip(one.table, other.table, strict=True))
    assert one.error == pytest.approx(other.error)
    assert one.scores["slots"]["mBO_i[coda]"] < 1


def test_no_score_of_an_image_depends_on_the_other_images(untrained):
    data = _coloured(6)
    whole = evaluate(untrained, data)
    part = evaluate(untrained, Given(data.samples[:1:-1]))
    assert [row["key"] for row in part.table] == [row["key"] for row in whole.table[:1:-1]]
    assert all(_equal(a, b) for a, b in zip(part.table, whole.table[:1:-1], strict=True))


def test_images_without_keys_are_scored_by_their_numbers(untrained):
    data = Given([replace(sample, key="") for sample in _coloured(4).samples])
    one, other = evaluate(untrained, data, batch_size=1), evaluate(untrained, data, batch_size=4)
    assert [row["key"] for row in one.table] == ["0", "1", "2", "3"]
    assert all(_equal(a, b) for a, b in zip(one.table, other.table, strict=True))


def test_another_seed_gives_other_slots_and_the_same_seed_the_same(untrained):
    data = _coloured(4)
    first, again, other = (evaluate(untrained, data, seed=seed).scores["slots"] for seed in (0, 0, 1))
    assert first == again != other


def test_scores_agree_with_sklearn_on_masks_upsampled_by_hand(untrained):
    data = _coloured(3)
    batch = collate(data.samples)
    with inference(untrained):
        output = run(untrained, batch, names=batch.keys, seed=0, device="cpu")
    labels = torch.nn.functional.interpolate(output.slots.maps(), (16, 16), mode="bilinear").argmax(1)
    table = evaluate(untrained, data).table
    for row, pred, true in zip(table, labels, batch.instances, strict=True):
        assert row["slots FG-ARI[coda]"] == pytest.approx(adjusted_rand_score(true[true > 0], pred[true > 0]), abs=1e-9)


def test_instances_and_classes_are_scored_where_there_are_any(untrained):
    both = evaluate(untrained, _coloured(2)).scores["slots"]
    assert "mBO_i[coda]" in both and "mBO_c[coda]" in both
    only = Given([replace(sample, instances=None) for sample in _coloured(2).samples])
    assert not any("_i[" in name for name in evaluate(untrained, only).scores["slots"])


def test_an_image_without_objects_is_none_in_the_table_and_left_out_of_the_mean(by_colour):
    data = _coloured(2)
    empty = Sample(data.samples[0].image, torch.zeros(16, 16, dtype=torch.int32), key="empty")
    data = Given([replace(sample, classes=None) for sample in data.samples] + [empty])
    found = evaluate(by_colour, data)
    assert found.table[-1]["decoder mBO_i[coda]"] is None
    assert found.scores["decoder"]["mBO_i[coda]"] == 1


def test_the_limit_counts_images_and_examples_are_the_first(untrained):
    done = []
    found = evaluate(untrained, _coloured(9), batch_size=2, limit=5, num_examples=3, progress=done.append)
    assert found.images == len(found.table) == 5 and done == [2, 4, 5]
    assert [example.name for example in found.examples] == ["image 0", "image 1", "image 2"]
    assert found.examples[0].reconstruction.shape == (16, 16, 3) and found.examples[0].truth.shape == (16, 16)


def test_a_decoder_of_features_is_scored_by_its_masks_too(untrained):
    model = SlotAutoencoder(
        untrained.encoder, untrained.init, untrained.slot_module, FeatureMLP(8, 3, grid=(8, 8), hidden_dim=16, depth=1)
    )
    found = evaluate(model, _coloured(2))
    assert set(found.scores) == {"slots", "decoder"} and found.examples[0].reconstruction is None


def test_a_dataset_without_ground_truth_is_refused(untrained):
    bare = [replace(sample, instances=None, classes=None) for sample in _coloured(2).samples]
    with pytest.raises(DataError, match="no ground truth"):
        evaluate(untrained, Given(bare))
    with pytest.raises(DataError, match="some images only"):
        evaluate(untrained, Given(_coloured(1).samples + bare), batch_size=1)
    with pytest.raises(DataError, match="holds no image"):
        evaluate(untrained, Given([]))


def test_an_unknown_protocol_is_refused(untrained):
    with pytest.raises(ConfigError, match="coda"):
        evaluate(untrained, _coloured(1), protocols=("codex",))


def test_the_model_keeps_its_mode_and_gets_no_gradient(untrained):
    untrained.train()
    evaluate(untrained, _coloured(1))
    assert untrained.training and all(parameter.grad is None for parameter in untrained.parameters())


def test_baselines_are_scored_beside_the_model_and_do_not_depend_on_the_batch_size():
    data = _coloured(6)
    scores, again = score_baselines(data, batch_size=4), score_baselines(data, batch_size=1)
    assert scores.keys() == BASELINES.keys() and scores == again
    assert scores["colour k-means, 3"]["mBO_i[coda]"] > 0.99  # three colours, three clusters
    assert scores["one segment"]["FG-ARI[coda]"] < 0.2
    assert abs(scores["random pixels"]["FG-ARI[coda]"]) < 0.05


def test_baselines_on_scenes_are_as_strong_as_they_are_known_to_be():
    scores = score_baselines(Scenes("plain", "test"), limit=24)
    assert scores["one segment"]["FG-ARI[coda]"] == pytest.approx(0, abs=1e-9)
    assert 0.4 < scores["grid 2x2"]["FG-ARI[coda]"] < 0.8
    assert scores["random pixels"]["mBO_i[coda]"] < 0.1 < scores["colour k-means, 7"]["mBO_i[coda]"]
    assert all(math.isfinite(value) for own in scores.values() for value in own.values())
