"""What every test shares: recorded data, tiny real models, tolerances per dtype, fixed seeds, and no network."""

import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
TOLERANCE = {
    torch.float64: {"atol": 1e-10, "rtol": 1e-8},
    torch.float32: {"atol": 1e-5, "rtol": 1e-4},
    torch.float16: {"atol": 5e-3, "rtol": 5e-3},
    torch.bfloat16: {"atol": 3e-2, "rtol": 3e-2},
}
LOOK_UPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
LOCAL_FAMILIES = {0, 1}  # unspecified and AF_UNIX, which is how worker processes talk to each other

_network = {"allowed": True}


def _refuse_network(event, args):
    if _network["allowed"]:
        return
    if event in LOOK_UPS or (event == "socket.__new__" and int(args[1]) not in LOCAL_FAMILIES):
        raise RuntimeError(f"tests open no network socket, got {event}{args[1:]}; use local files")


sys.addaudithook(_refuse_network)


def pytest_sessionstart(session):
    """From here on, every attempt to open an internet socket or to look a host name up is an error, in fixtures too."""
    _network["allowed"] = False


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Global random state is the same at the start of every test, whichever tests ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tolerance():
    """dtype -> {atol, rtol} for torch.testing.assert_close: rounding of that dtype, and nothing more."""
    return TOLERANCE


def _folder(variable, default):
    folder = Path(os.environ.get(variable, default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing; set {variable} to the folder that holds this data")
    return folder


@pytest.fixture(scope="session")
def golden():
    """Outputs recorded from published implementations."""
    return _folder("OCL_GOLDEN", SHARED / "golden")


@pytest.fixture(scope="session")
def photos():
    """Real photographs with masks: a folder that holds voc_photos and coco_photos."""
    return _folder("OCL_DATA", SHARED / "data")


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory):
    """kind -> folder of a real transformers ViT with random weights: 2 layers, width 32, patches of 8, made for 48 x 48.

    Kinds: dinov2, dinov2_registers, dino, dinov3, mae, clip, siglip.
    """
    transformers = pytest.importorskip("transformers", reason='pip install "ocl[diffusion]" to test transformers encoders')
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8, "image_size": 48}
    makers = {
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**common, mlp_ratio=2)),
        "dinov2_registers": lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**common, mlp_ratio=2, num_register_tokens=4)
        ),
        "dino": lambda: transformers.ViTModel(transformers.ViTConfig(**common, intermediate_size=64), add_pooling_layer=False),
        "dinov3": lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**common, intermediate_size=64, num_register_tokens=4)
        ),
        "mae": lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**common, intermediate_size=64)),
        "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**common, intermediate_size=64)),
        "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**common, intermediate_size=64)),
    }
    root = tmp_path_factory.mktemp("vits")

    def make(kind):
        folder = root / kind
        if not folder.exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                makers[kind]().save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory):
    """kind -> folder of a whole diffusers pipeline with random weights, conditioning of width 32, latents half the image's side.

    Kinds: sd (as Stable Diffusion 1.x), sd_v (2.x: v-prediction, linear projections), sdxl, pixart, sana.
    """
    pytest.importorskip("diffusers", reason='pip install "ocl[diffusion]" to test latent-diffusion decoders')
    root = tmp_path_factory.mktemp("pipelines")

    def make(kind):
        folder = root / kind
        if not folder.exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                _write_pipeline(folder, kind)
        return folder

    return make


def _write_pipeline(folder, kind):
    import diffusers

    parts = {"vae": _vae(kind), **_texts(kind)}
    if kind in ("pixart", "sana"):
        parts["transformer"] = _pixart() if kind == "pixart" else _sana()
    else:
        parts["unet"] = _unet(kind)
    prediction = "v_prediction" if kind == "sd_v" else "epsilon"
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    parts["scheduler"] = (
        diffusers.DPMSolverMultistepScheduler(**flow) if kind == "sana"
        else diffusers.DDPMScheduler(**betas, prediction_type=prediction, steps_offset=1, clip_sample=False)
    )  # fmt: skip
    index = {"_class_name": "Pipeline", "_diffusers_version": diffusers.__version__}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        library = "transformers" if name.startswith("t") and name != "transformer" else "diffusers"
        index[name] = [library, "CLIPTokenizer" if name.startswith("tokenizer") and "sd" in kind else type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))


def _vae(kind):
    import diffusers

    if kind == "sana":
        return diffusers.AutoencoderDC(
            latent_channels=4, attention_head_dim=4, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
            decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.4,
        )  # fmt: skip
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4, norm_num_groups=4, sample_size=32,
    )  # fmt: skip


def _unet(kind):
    import diffusers

    options = dict(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    if kind == "sd_v":
        options |= {"use_linear_projection": True, "attention_head_dim": [2, 4]}
    if kind == "sdxl":
        options |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "use_linear_projection": True, "transformer_layers_per_block": (1, 2), "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 20,
        }  # fmt: skip
    return diffusers.UNet2DConditionModel(**options)


def _pixart():
    import diffusers

    return diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=4, num_attention_heads=4, in_channels=4, out_channels=8,
        cross_attention_dim=16, caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip


def _sana():
    import diffusers

    return diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_cross_attention_heads=4,
        cross_attention_head_dim=4, cross_attention_dim=16, caption_channels=32, sample_size=8, patch_size=1,
    )  # fmt: skip


def _texts(kind):
    """Prompt encoders with their tokenizers; each maps the empty prompt to tokens of width 32 (sdxl: 12 + 20)."""
    import transformers

    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    if kind == "pixart":
        config = transformers.T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, vocab_size=8)
        return {"text_encoder": transformers.T5EncoderModel(config), "tokenizer": _words("$A </s>")}
    if kind == "sana":
        config = transformers.Gemma2Config(**common, head_dim=8, num_key_value_heads=4, vocab_size=8)
        return {"text_encoder": transformers.Gemma2Model(config), "tokenizer": _words("<s> $A")}
    clip = common | {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}

    def encoder(model, width, heads):
        return model(transformers.CLIPTextConfig(**clip | {"hidden_size": width, "num_attention_heads": heads}, projection_dim=20))

    if kind != "sdxl":
        return {"text_encoder": encoder(transformers.CLIPTextModel, 32, 4), "tokenizer": _bytes()}
    return {
        "text_encoder": encoder(transformers.CLIPTextModel, 12, 2), "tokenizer": _bytes(),
        "text_encoder_2": encoder(transformers.CLIPTextModelWithProjection, 20, 4), "tokenizer_2": _bytes(),
    }  # fmt: skip


def _bytes():
    """CLIP's tokenizer over single bytes."""
    import tokenizers
    import transformers

    symbols = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77, pad_token="<|endoftext|>")


def _words(template):
    import tokenizers
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "<s>": 2, "<unk>": 3}, "<unk>"))
    special = [("<s>", 2)] if "<s> " in template else [("</s>", 1)]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=special)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
