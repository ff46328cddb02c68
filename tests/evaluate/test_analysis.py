"""Looking into latent-diffusion decoders: laws of attention and information on tiny pipelines, and independence of the batch."""

import json

import pytest
import torch

from ocl.data import Dataset
from ocl.data.sample import Sample
from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion import AdaptedUNet, PooledSlots
from ocl.encoders import CNN
from ocl.errors import ConfigError, DataError
from ocl.evaluate.analysis import analyse
from ocl.evaluate.analysis_report import section, short, summary, write_plots
from ocl.models import coda, slotadapt, stable_lsd
from ocl.nn.draws import named_generator

IMAGES, K, T, R = 3, 4, 3, 77
OPTIONS = {"images": IMAGES, "timesteps": T, "steps": 2}


class Pictures(Dataset):
    """Small pictures of noise over a slope, which an encoder can tell apart. names: their keys."""

    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        drawn = torch.randint(0, 128, (3, 16, 16), generator=named_generator(self.names[index], seed=0), dtype=torch.uint8)
        return Sample(drawn + 8 * torch.arange(16, dtype=torch.uint8), key=self.names[index])


@pytest.fixture(scope="module")
def scenes():
    return Pictures(["a", "b", "c"])


def small(builder, folder, **parts):
    torch.manual_seed(0)
    return builder(weights=str(folder), num_slots=K, slot_dim=8, encoder=CNN(8, stride=4), **parts)


@pytest.fixture(scope="module")
def model(tiny_pipeline):
    return small(coda, tiny_pipeline("sd"))


@pytest.fixture(scope="module")
def found(model, scenes):
    return analyse(model, scenes, **OPTIONS)


def equal(one, other):
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_every_layer_level_image_and_slot_is_there(found):
    assert len(found.attention) == 4 and all(mass.shape == (T, IMAGES, K) for mass in found.attention.values())
    assert found.num_registers == R and len(found.log_snr) == T and sorted(found.log_snr) == list(found.log_snr)
    assert {gap.shape for gap in found.gaps.values()} == {(T, IMAGES)} and found.nats["swapped"].shape == (IMAGES,)
    assert found.shares.shape == (IMAGES, K, K) and found.spill.shape == (IMAGES, K) and found.mixing.shape == (IMAGES,)
    assert [len(row) for row in found.drawings] == [2 + K] * IMAGES and found.drawings[0][0].shape == (16, 16, 3)


def test_an_image_does_not_see_its_batch(model, scenes, found):
    alone = analyse(model, scenes, **OPTIONS, batch_size=1)
    assert alone.keys == found.keys
    for name, mass in found.attention.items():
        equal(alone.attention[name], mass)
    for name, gap in found.gaps.items():
        torch.testing.assert_close(alone.gaps[name], gap, atol=1e-2, rtol=1e-3)  # sums of 256 squares in float32
    torch.testing.assert_close(alone.spill, found.spill, atol=1e-3, rtol=1e-3, equal_nan=True)  # of drawn pictures
    assert abs(alone.shares - found.shares).max() < 0.05


def test_attention_without_preferences_is_shared_evenly(tiny_pipeline, scenes):
    model = small(coda, tiny_pipeline("sd"))
    with torch.no_grad():
        for name, value in model.decoder.named_parameters():
            if ".attn2.to_k." in name:
                value.zero_()
    for mass in analyse(model, scenes, **OPTIONS).attention.values():
        equal(mass, torch.full_like(mass, 1 / (K + R)))


def test_a_decoder_that_ignores_its_slots_holds_no_information_and_spills_nothing(tiny_pipeline, scenes):
    model = small(coda, tiny_pipeline("sd"))
    with torch.no_grad():
        for name, value in model.decoder.named_parameters():
            if ".attn2.to_out." in name:
                value.zero_()
    found = analyse(model, scenes, **OPTIONS)
    assert all(not gap.any() for gap in found.gaps.values()) and found.spill.isnan().all()
    equal(found.mixing[found.living.sum(1) > 1], torch.ones_like(found.mixing[found.living.sum(1) > 1]))


def test_equal_slots_in_two_images_are_swapped_without_a_loss(model):
    """The same image twice, under one name, starts from one noise: its slots are exchanged for themselves."""
    found = analyse(model, Pictures(["one", "one"]), **OPTIONS | {"images": 2})
    torch.testing.assert_close(found.gaps["swapped"], torch.zeros(T, 2).double(), atol=1e-2, rtol=0)
    assert found.gaps["dropped"].abs().min() > 1e-3


@pytest.mark.parametrize("builder", [stable_lsd, slotadapt])
def test_models_without_registers_share_all_attention_among_slots(tiny_pipeline, scenes, builder, tmp_path):
    folder = str(tiny_pipeline("sd"))
    adapted = lambda: LatentDiffusion(folder, denoiser=AdaptedUNet(folder, map_block=-1), conditioner=PooledSlots())  # noqa: E731
    found = analyse(small(builder, folder, **({} if builder is stable_lsd else {"decoder": adapted()})), scenes, **OPTIONS)
    assert found.num_registers == 0 and found.attention
    for mass in found.attention.values():
        equal(mass.sum(-1), torch.ones(T, IMAGES).double())
    assert "no registers" in section(found).paragraphs[0] and summary(found)["attention"]["on_registers"] == {}
    assert len(write_plots(found, tmp_path)) in (0, 3)


@pytest.mark.parametrize("kind", ["sd_v", "pixart", "sana"])
def test_other_pipelines_are_looked_into(tiny_pipeline, scenes, kind):
    found = analyse(small(coda, tiny_pipeline(kind)), scenes, **OPTIONS)
    assert found.attention and all(gap.isfinite().all() for gap in found.gaps.values()) and found.nats["dropped"].isfinite().all()


def test_the_summary_is_json_and_the_plots_are_pictures(found, tmp_path):
    pytest.importorskip("matplotlib", reason="pip install matplotlib to draw plots")
    content = json.loads(json.dumps(summary(found), allow_nan=False))
    nats = content["information"]["nats"]["swapped"]
    assert nats["mean"] == pytest.approx(float(found.nats["swapped"].mean()), rel=1e-4) and len(nats["images"]) == IMAGES
    layer = next(iter(found.attention))
    on_registers = 1 - float(found.attention[layer][0].sum(-1).mean())
    assert content["attention"]["on_registers"][layer][0] == pytest.approx(on_registers, rel=1e-4)
    paths = write_plots(found, tmp_path)
    assert [path.name for path in paths] == ["attention.png", "information.png", "entanglement.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_layers_have_short_names():
    assert short("down_blocks.0.attentions.1.transformer_blocks.0.attn2") == "down 0.1.0"
    assert short("mid_block.attentions.0.transformer_blocks.0.attn2") == "mid 0.0"
    assert short("transformer_blocks.3.attn2") == "transformer 3"


def test_what_cannot_be_analysed_is_refused(model, scenes, untrained):
    with pytest.raises(ConfigError, match="has a SpatialBroadcast; an analysis looks into latent-diffusion decoders only"):
        analyse(untrained, scenes)
    with pytest.raises(ConfigError, match="needs two of each, got 1 and 4"):
        analyse(model, scenes, images=1)
    with pytest.raises(DataError, match="Pictures holds 1 images that can be read"):
        analyse(model, Pictures(["one"]), timesteps=T)
