"""What every test shares: recorded data, tiny real models, tolerances per dtype, fixed seeds, and no network."""

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
