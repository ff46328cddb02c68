"""The transformers encoder: the same tokens as transformers itself, any size, frozen for good, and clear refusals."""

import json
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F

from ocl.encoders import DINO, MAE, DINOv2, DINOv3, ViT
from ocl.errors import CheckpointError, ConfigError, MissingExtra, RangeError, ShapeError
from ocl.nn.freezing import trainable_state_dict

transformers = pytest.importorskip("transformers", reason='pip install "ocl[diffusion]" to test transformers encoders')

KINDS = ["dinov2", "dinov2_registers", "dino", "dinov3", "mae", "clip", "siglip"]
NUM_PREFIX = {"dinov2": 1, "dinov2_registers": 5, "dino": 1, "dinov3": 5, "mae": 1, "clip": 1, "siglip": 0}
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
CLIP = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])[:, :, None, None]
SIGNED = torch.full((2, 3, 1, 1), 0.5)
STATISTICS = {"clip": CLIP, "siglip": SIGNED}


def own_tokens(folder, kind, image):
    """What transformers says about the same pixels, with its own class for that folder."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    mean, std = STATISTICS.get(kind, IMAGENET)
    options = {} if kind.startswith("dinov") else {"interpolate_pos_encoding": True}
    if kind == "mae":
        model.config.mask_ratio = 0.0
        num_patches = image.shape[-2] * image.shape[-1] // 64
        options["noise"] = torch.linspace(0, 1, num_patches).expand(len(image), -1)
    with torch.no_grad():
        return model((image - mean) / std, **options).last_hidden_state[:, NUM_PREFIX[kind] :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(48, 48), (32, 72)])
def test_tokens_are_those_of_transformers(tiny_vit, tolerance, kind, size):
    image = torch.rand(2, 3, *size)
    features = ViT(str(tiny_vit(kind)))(image)
    assert features.grid == (size[0] // 8, size[1] // 8)
    torch.testing.assert_close(features.tokens, own_tokens(tiny_vit(kind), kind, image), **tolerance[torch.float32])


def test_recorded_tiny_dinov2_gives_the_tokens_of_transformers(golden, tolerance):
    folder = golden / "coda_reference" / "tiny-dinov2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing; set OCL_GOLDEN to the folder of recorded outputs")
    side = json.loads((golden / "coda_reference" / "parameters.json").read_text())["grid"] * 14
    image = torch.rand(2, 3, 64, 64)
    pixels = (F.interpolate(image, size=(side, side), mode="bilinear", antialias=True) - IMAGENET[0]) / IMAGENET[1]
    with torch.no_grad():
        expected = transformers.Dinov2Model.from_pretrained(folder).eval()(pixels).last_hidden_state[:, 1:]
    features = DINOv2(weights=str(folder), image_size=side)(image)
    torch.testing.assert_close(features.tokens, expected, **tolerance[torch.float32])


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_stand_row_by_row_where_their_patch_is(tiny_vit, kind):
    """Shuffled patches, a transposed grid or a class token among them would move the change elsewhere."""
    encoder = ViT(str(tiny_vit(kind)), layer=1)
    image = torch.rand(1, 3, 48, 72)
    changed = image.clone()
    changed[:, :, 16:24, 40:48] = 1 - changed[:, :, 16:24, 40:48]
    moved = (encoder(image).tokens - encoder(changed).tokens).norm(dim=-1)[0].unflatten(0, encoder(image).grid)
    assert moved.argmax().item() == 2 * 9 + 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [1, 2])
def test_a_layer_is_the_bare_output_of_its_block(tiny_vit, tolerance, kind, layer):
    folder = str(tiny_vit(kind))
    seen = {}
    whole = ViT(folder)
    blocks = next(part for part in whole.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == 2)
    blocks[layer - 1].register_forward_hook(lambda module, inputs, output: seen.update(tokens=output))
    image = torch.rand(1, 3, 48, 48)
    whole(image)
    tokens = seen["tokens"][0] if isinstance(seen["tokens"], tuple) else seen["tokens"]
    torch.testing.assert_close(ViT(folder, layer=layer)(image).tokens, tokens[:, -36:], **tolerance[torch.float32])


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_a_layer_that_does_not_exist_is_refused(tiny_vit, layer):
    with pytest.raises(ConfigError, match="2 layers"):
        ViT(str(tiny_vit("dinov2")), layer=layer)


@pytest.mark.parametrize(
    ("image_size", "size", "grid"),
    [
        (None, (48, 48), (6, 6)),
        (None, (50, 43), (6, 5)),
        (None, (3, 3), (1, 1)),
        (64, (48, 48), (8, 8)),
        (64, (100, 50), (16, 8)),
        (30, (48, 48), (4, 4)),
    ],
)
def test_any_size_becomes_whole_patches_and_keeps_its_shape(tiny_vit, image_size, size, grid):
    features = ViT(str(tiny_vit("dinov2")), image_size=image_size)(torch.rand(1, 3, *size))
    assert features.grid == grid
    assert features.tokens.shape == (1, grid[0] * grid[1], 32)


def test_a_folder_s_own_statistics_are_used(tiny_vit, tmp_path, tolerance):
    folder = tmp_path / "vit"
    shutil.copytree(tiny_vit("dinov2"), folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}))
    encoder = ViT(str(folder))
    torch.testing.assert_close(encoder.normalise.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(encoder.normalise.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))


def test_a_model_for_plain_pixels_gets_plain_pixels(tiny_vit, tmp_path):
    folder = tmp_path / "vit"
    shutil.copytree(tiny_vit("dinov2"), folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "image_mean": [9, 9, 9]}))
    image = torch.rand(1, 3, 48, 48)
    torch.testing.assert_close(ViT(str(folder)).normalise(image), image, rtol=0, atol=0)


def test_an_image_without_pixels_cannot_be_asked_for(tiny_vit):
    with pytest.raises(ConfigError, match="at least 1"):
        ViT(str(tiny_vit("dinov2")), image_size=0)


def test_a_damaged_preprocessor_file_is_refused(tiny_vit, tmp_path):
    folder = tmp_path / "vit"
    shutil.copytree(tiny_vit("dinov2"), folder)
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json cannot be read"):
        ViT(str(folder))


def test_frozen_weights_stay_as_they_are(tiny_vit):
    encoder = ViT(str(tiny_vit("dinov2"))).train()
    tokens = encoder(torch.rand(1, 3, 48, 48).requires_grad_()).tokens
    assert not tokens.requires_grad
    assert not encoder.backbone.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert trainable_state_dict(encoder) == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [None, 1])
def test_every_trainable_weight_gets_a_gradient(tiny_vit, kind, layer):
    encoder = ViT(str(tiny_vit(kind)), trainable=True, layer=layer).train()
    encoder(torch.rand(1, 3, 48, 48)).tokens.square().sum().backward()
    idle = [name for name, weight in encoder.named_parameters() if weight.requires_grad and weight.grad is None]
    assert idle == []
    assert set(trainable_state_dict(encoder)) == set(encoder.state_dict())


def test_clip_with_its_text_half_gives_its_vision_half(tmp_path, tolerance):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.CLIPConfig(
        vision_config={**sizes, "patch_size": 8, "image_size": 48},
        text_config={**sizes, "vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "clip")
    image = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        expected = model.vision_model(pixel_values=(image - CLIP[0]) / CLIP[1]).last_hidden_state[:, 1:]
    torch.testing.assert_close(ViT(str(tmp_path / "clip"))(image).tokens, expected, **tolerance[torch.float32])


@pytest.mark.parametrize(("name", "encoder"), [("dinov2", DINOv2), ("dinov3", DINOv3), ("dino", DINO), ("mae", MAE)])
def test_short_names_take_local_weights(tiny_vit, name, encoder):
    named = encoder(weights=str(tiny_vit(name)), image_size=56, layer=2)
    plain = ViT(str(tiny_vit(name)), image_size=56, layer=2)
    image = torch.rand(1, 3, 40, 40)
    assert named.width == plain.width == 32
    torch.testing.assert_close(named(image).tokens, plain(image).tokens, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "width", "millions"),
    [
        (lambda: DINOv2("small"), 384, 22.1),
        (lambda: DINOv2("base", registers=True), 768, 86.6),
        (lambda: DINOv2("large"), 1024, 304.4),
        (lambda: DINOv2("giant"), 1536, 1136.5),
        (lambda: DINOv3("base"), 768, 85.7),
        (lambda: DINO("small", patch=8), 384, 21.8),
        (lambda: MAE("huge"), 1280, 630.8),
    ],
)
def test_known_sizes_are_built_on_meta_without_weights(make, width, millions):
    """Millions of parameters as their authors publish them (DINO's with transformers' pooler)."""
    with torch.device("meta"):
        encoder = make()
        features = encoder(torch.rand(1, 3, 112, 112))
    assert features.tokens.is_meta
    assert encoder.width == features.width == width
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_a_folder_is_built_on_meta_from_its_config_alone(tiny_vit, tmp_path):
    shutil.copy(tiny_vit("dino") / "config.json", tmp_path)
    with torch.device("meta"):
        assert ViT(str(tmp_path)).width == 32


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("./nowhere", "folder nowhere of weights is missing; pass an existing one"),
        ("/nowhere/at/all", "folder /nowhere/at/all of weights is missing"),
        ("facebook/dinov2-base", r"not in the local cache.*hf download facebook/dinov2-base"),
    ],
)
@pytest.mark.parametrize("variable", ["OCL_OFFLINE", "HF_HUB_OFFLINE"])
def test_missing_weights_name_the_way_out(monkeypatch, tmp_path, weights, message, variable):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(variable, "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        ViT(weights)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_an_empty_name_is_refused():
    with pytest.raises(ConfigError, match="weights is empty"):
        ViT("")


def copied(source, target, change):
    shutil.copytree(source, target)
    change(target)
    return str(target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "stranger"}'), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 999), "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_refused(tiny_vit, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        ViT(copied(tiny_vit("dinov2"), tmp_path / "vit", change))


def test_weights_that_lack_a_tensor_are_refused(tiny_vit, tmp_path):
    from safetensors.torch import load_file, save_file

    def drop(folder):
        state = load_file(folder / "model.safetensors")
        del state["encoder.layer.1.norm1.weight"]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=r"lack 1 tensors \(encoder.layer.1.norm1.weight"):
        ViT(copied(tiny_vit("dinov2"), tmp_path / "vit", drop))


def test_pickled_weights_are_not_read(tiny_vit, tmp_path):
    def pickle(folder):
        (folder / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match="cannot be loaded"):
        ViT(copied(tiny_vit("dinov2"), tmp_path / "vit", pickle))


def test_a_language_model_is_refused(tmp_path):
    transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a bert, ViT needs a vision transformer"):
        ViT(str(tmp_path))


def test_images_that_are_none_are_refused(tiny_vit):
    encoder = ViT(str(tiny_vit("dinov2")))
    with pytest.raises(ShapeError, match=r"got \[3, 48, 48\]; use image\[None\]"):
        encoder(torch.rand(3, 48, 48))
    with pytest.raises(RangeError, match="use image / 255"):
        encoder(torch.zeros(1, 3, 48, 48, dtype=torch.uint8))


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install \"ocl\[diffusion\]\""):
        ViT("facebook/dinov2-base")


def test_loading_says_nothing_on_the_terminal(tiny_vit, capfd):
    folder = str(tiny_vit("dino"))
    capfd.readouterr()
    ViT(folder)
    assert capfd.readouterr() == ("", "")
