"""Costs on paper against numbers counted elsewhere, against measured bytes of real passes, and against themselves."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ocl.decoders.diffusion import LearnedRegisters
from ocl.encoders import CNN
from ocl.models import coda, slot_attention
from ocl.ops import backend
from ocl.train import joint, plan
from ocl.train.cost import Memory, PartCost, cache_bytes, memory, on_fake_cpu, part_costs, passed
from ocl.types import Batch, Mismatch

pytest.importorskip("diffusers", reason='pip install "ocl[diffusion]" to test latent-diffusion decoders')
GIB = 2**30
XL = "stabilityai/stable-diffusion-xl-base-1.0"


def on_meta(**options):
    with torch.device("meta"):
        return coda(num_slots=6, **options)


# GFLOP of one image, counted by hand with torch's counter on models built directly with diffusers and transformers:
# (side, U-Net forward, its backward, the backward of the contrastive half, autoencoder, trunk that both halves share)
COUNTED = [(256, 180, 188, 181, 273, 6), (512, 804, 883, 867, 1117, 41)]


@pytest.mark.parametrize(("side", "forward", "backward", "other_backward", "autoencoder", "trunk"), COUNTED)
def test_operations_are_those_counted_elsewhere(side, forward, backward, other_backward, autoencoder, trunk):
    parts = {part.name: part for part in part_costs(on_meta(), (side, side), contrast=True)}
    unet = parts["denoiser"]
    assert parts["encoder"].forward / 1e9 == pytest.approx(214, abs=1)  # DINOv2 base on images resized to 448
    assert parts["autoencoder"].forward / 1e9 == pytest.approx(autoencoder, abs=1)
    assert unet.forward / 1e9 == pytest.approx(forward, rel=5e-3)
    assert unet.backward / 1e9 == pytest.approx(backward, rel=5e-3)
    # Counted with gradients to all 83 tokens; here registers of that half have none: 2 x 77 x 21 M key and value weights less.
    assert (other_backward - unet.contrast_backward / 1e9) == pytest.approx(3.2, abs=1)
    assert (unet.forward - unet.contrast) / 1e9 == pytest.approx(trunk, abs=4)  # and the first layer's queries, and registers
    assert unet.parameters == 859_520_964 and unet.trained == 31_572_160
    assert parts["slots"].trained == 8_279_040 and parts["autoencoder"].trained == parts["encoder"].trained == 0
    assert {name for name, part in parts.items() if part.cacheable} == {"encoder", "autoencoder"}


def test_a_step_at_512_pixels_is_a_third_cheaper_from_a_cache():
    parts = part_costs(on_meta(), (512, 512), contrast=True)
    total = sum(part.total for part in parts)
    assert total / sum(part.total for part in parts if not part.cacheable) == pytest.approx(1.40, abs=0.01)


# Millions of (frozen, trained) parameters on paper. Frozen: the denoiser but its projections (of SDXL 443, of SD3 24 x 2 x 1536 x
# 1537 = 113), DINOv2 base 87 and the autoencoder 84. Trained: the projections of the denoiser and 8 of the slots.
ON_PAPER = {XL: (2567 - 443 + 87 + 84, 443 + 8), "sd3-medium": (2028 - 113 + 87 + 84, 113 + 8)}


@pytest.mark.parametrize("model", ON_PAPER)
def test_memory_of_states_on_eight_gpus_is_that_computed_on_paper(model):
    """In float32, of which ZeRO divides what is trained: the engine keeps frozen weights whole in every process.

    From stage 1 on a copy of the own share of the weights is updated, and two buffers hold a fourth of what is trained.
    Totals of models that are trained as a whole, such as those of DeepSpeed's estimator, are much lower at stage 3.
    """
    parts = part_costs(on_meta(**({"weights": model} if model == XL else {})), (64, 64), contrast=False)
    if model != XL:
        parts[-1] = joint.joint_cost(joint.joint_denoiser(model), (64, 64), num_tokens=83, contrast=False)
    counts = [sum(getattr(part, name) for part in parts) for name in ("parameters", "trained")]
    frozen, trained = (4e6 * millions for millions in ON_PAPER[model])  # bytes
    shares = [4, 2 + 3 / 8 + 2 / 4, 1 + 4 / 8 + 2 / 4, 5 / 8 + 2 / 4]
    expected = [frozen + share * trained for share in shares]
    found = [plan.states(*counts, stage=stage, gpus=8, largest=max(part.largest for part in parts)).total for stage in plan.STAGES]
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("model", "millions", "gflop"), [(XL, 2567, (1594, 6769)), ("sd3-medium", 2028, (1686, 8257))])
def test_larger_denoisers_are_counted_on_paper(model, millions, gflop):
    for side, expected in zip((512, 1024), gflop, strict=True):
        if model == XL:
            part = part_costs(on_meta(weights=model), (side, side), contrast=False)[-1]
        else:
            part = joint.joint_cost(joint.joint_denoiser(model), (side, side), num_tokens=83, contrast=False)
        assert part.parameters / 1e6 == pytest.approx(millions, abs=1)
        assert part.forward / 1e9 == pytest.approx(expected, rel=5e-3)


# against measured bytes


def small(folder, meta=False):
    torch.manual_seed(0)
    with torch.device("meta" if meta else "cpu"):
        registers = LearnedRegisters(5, 32)
        return coda(weights=str(folder), num_slots=3, slot_dim=8, encoder=CNN(8, stride=4), registers=registers).train()


def loss_of(model, image):
    decoding = model(Batch(image), mismatch=Mismatch()).decoding
    return decoding.error().mean() - decoding.contrast_error().mean()


@pytest.mark.parametrize(("precision", "checkpointing"), [("fp32", False), ("bf16", False), ("fp32", True)])
def test_saved_bytes_are_those_of_a_real_pass(tiny_pipeline, precision, checkpointing):
    from ocl.decoders.diffusion.checkpointing import enable_checkpointing

    models = [small(tiny_pipeline("sd"), meta) for meta in (False, True)]
    if checkpointing:
        for model in models:
            enable_checkpointing(model.decoder.denoiser.backbone.module, model.decoder.denoiser.state)
    measured = [_saved(models[0], torch.rand(size, 3, 64, 64), precision) for size in (2, 4)]
    found = memory(models[1], (64, 64), contrast=True, precision=precision)
    assert found.saved == pytest.approx((measured[1] - measured[0]) / 2, rel=0.1)


def _saved(model, image, precision):
    """Bytes of everything that autograd keeps at the end of a forward pass, without the parameters themselves."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    own = {value.untyped_storage()._cdata for value in [*model.parameters(), *model.buffers()]}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast(
        "cpu", dtype=torch.bfloat16, enabled=precision == "bf16"
    ):
        loss = loss_of(model, image)
    del loss
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


def test_an_image_of_a_large_batch_is_not_hidden_by_gradients():
    """Where many weights are trained, the peak of a small batch is that of their gradients, whatever an image takes."""
    with torch.device("meta"):
        model = slot_attention(num_slots=3, slot_dim=512, image_size=16, encoder=CNN(8, stride=4)).train()
    with backend("reference"):
        found, (large, larger) = memory(model, (16, 16), contrast=False), (_peak_of(model, size) for size in (256, 512))
        assert found.per_image == pytest.approx((larger - large) / 256, rel=0.1)
        assert all(found.at(size) >= 0.999 * _peak_of(model, size) for size in (2, 4, 64, 256))


def _peak_of(model, size):
    with on_fake_cpu(model) as fake:
        fake.train()
        return passed(lambda: fake(Batch(torch.empty(size, 3, 16, 16))).decoding.error().mean(), precision="fp32")[1]


PEAK = """
import ctypes, gc, sys, torch
sys.path.insert(0, {tests!r})
import test_cost
torch.set_num_threads(1)
model = test_cost.small({folder!r})
image = torch.rand({size}, 3, 64, 64)
test_cost.loss_of(model, image[:2]).backward()
model.zero_grad(set_to_none=True)
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
before = test_cost.resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
test_cost.loss_of(model, image).backward()
print(test_cost.resident("VmHWM") - before)
"""


def resident(name):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured where Linux's /proc is")
def test_the_peak_of_a_real_pass_lies_within_the_margin(tiny_pipeline):
    size, folder = 32, str(tiny_pipeline("sd"))
    code = PEAK.format(tests=str(Path(__file__).parent), folder=folder, size=size)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.split()[-1])
    counted = memory(small(folder, meta=True), (64, 64), contrast=True).at(size)
    assert measured > 100 * 2**20, "too small to be told from noise"
    assert 0.8 * measured <= counted * plan.MARGIN <= 1.5 * measured


# arithmetic


def test_a_cache_takes_tokens_and_two_moments(tiny_vit, tiny_pipeline):
    sizes = cache_bytes(on_meta(), (512, 512))
    assert sizes == {"features": 1024 * 768 * 2, "latents": 2 * 4 * 64 * 64 * 2}
    assert list(cache_bytes(small(tiny_pipeline("sd"), meta=True), (64, 64))) == ["latents"]  # its encoder is trained


def test_parts_of_a_model_without_diffusion_are_counted():
    with torch.device("meta"):
        model = slot_attention(num_slots=3, slot_dim=16, image_size=32, encoder=CNN(8, stride=4))
    parts = {part.name: part for part in part_costs(model, (32, 32), contrast=False)}
    assert parts.keys() == {"encoder", "slots", "decoder"}
    assert all(part.forward > 0 and part.backward > part.forward for part in parts.values())
    with backend("reference"):
        assert memory(model, (32, 32), contrast=False).per_image > 0


def test_counting_leaves_a_model_as_it_was(tiny_pipeline):
    from ocl.decoders import LatentDiffusion
    from ocl.decoders.diffusion import AdaptedUNet, PooledSlots

    folder = str(tiny_pipeline("sd"))
    with torch.device("meta"):  # adapters keep the maps of the last pass
        decoder = LatentDiffusion(folder, denoiser=AdaptedUNet(folder, map_block=-1), conditioner=PooledSlots())
        model = coda(num_slots=3, slot_dim=8, encoder=CNN(8, stride=4), decoder=decoder)
    part_costs(model, (32, 32), contrast=False)
    assert all(value.grad is None for value in model.parameters())
    assert memory(model, (32, 32), contrast=False).per_image > 0


PARTS = [PartCost("encoder", 100, 0, 10.0, cacheable=True), PartCost("denoiser", 1000, 60, 40.0, 50.0)]


def test_each_stage_shares_one_more_thing_of_what_is_trained():
    totals = [plan.states(1100, 60, stage=stage, gpus=4) for stage in plan.STAGES]
    assert [(each.weights, each.gradients, each.optimizer, each.buffers) for each in totals] == [
        (4400, 240, 480, 0), (4400, 240, 180, 120), (4400, 60, 180, 120), (4 * 1040 + 60, 60, 180, 120),
    ]  # fmt: skip
    assert plan.states(1100, 60, stage=2, gpus=4, largest=40).buffers == 2 * 4 * 40


def test_the_largest_batch_fits_and_one_more_does_not():
    pass_memory = Memory(fixed=100, per_image=50, saved=40)
    (fit,) = plan.fits(PARTS, pass_memory, None, gpus=1, memory=10_000, batch=3, cached=False)
    needs = [plan.MARGIN * (fit.states.total + pass_memory.at(size)) for size in (fit.largest_batch, fit.largest_batch + 1)]
    assert needs[0] <= 10_000 < needs[1]
    assert fit.needed == plan.MARGIN * (fit.states.total + 250)


def test_checkpointing_is_recommended_only_where_no_stage_does_without():
    large, small_passes, parts = Memory(0, 1000, 0), Memory(0, 100, 0), [PartCost("denoiser", 1100, 1000)]

    def chosen(memory_bytes, batch):
        options = {"gpus": 4, "memory": memory_bytes, "batch": batch, "cached": False}
        return plan.recommended(plan.fits(parts, large, small_passes, **options), batch=batch)

    assert (chosen(26_000, 4).stage, chosen(26_000, 4).checkpointing) == (0, False)
    assert (chosen(14_500, 4).stage, chosen(14_500, 4).checkpointing) == (3, False)
    assert chosen(14_500, 20).checkpointing
    assert chosen(100, 1) is None


def test_traffic_grows_to_a_limit_and_is_more_where_weights_are_shared():
    def sent(gpus, stage):
        return plan.traffic(PARTS, gpus=gpus, stage=stage, batch=2, bandwidth=10, rate=10, cached=False)

    assert sent(1, 0).bytes == 0
    assert sent(2, 0).bytes == 0.5 * 4 * 2 * 60 and sent(2, 3).bytes == 0.5 * 4 * 3 * 60
    assert sent(4096, 0).bytes < 4 * 2 * 60 < sent(4096, 0).bytes * 1.001
    found = sent(2, 0)
    assert found.compute == 2 * 100 / 10 and found.seconds == 24 and found.exposed == 20 / 44 and found.hidden == 20 / 24
