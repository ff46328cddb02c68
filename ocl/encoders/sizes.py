"""Shapes of published vision transformers, so that a model can be built on the meta device without network or weights."""

from __future__ import annotations

from typing import Any

# size: (width, layers, heads)
_WIDTHS = {
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "giant": (1536, 40, 24),
    "huge": (1280, 32, 16),
}


def dinov2_id(size: str, registers: bool) -> str:
    return f"facebook/dinov2-{'with-registers-' if registers else ''}{size}"


def dino_id(size: str, patch: int) -> str:
    return f"facebook/dino-vit{size[0]}{patch}"


def dinov3_id(size: str) -> str:
    return f"facebook/dinov3-vit{size[0]}16-pretrain-lvd1689m"


def mae_id(size: str) -> str:
    return f"facebook/vit-mae-{size}"


def _shape(size: str, patch: int, image_size: int, mlp: str = "intermediate_size") -> dict[str, Any]:
    width, layers, heads = _WIDTHS[size]
    hidden = 4 if mlp == "mlp_ratio" else 4 * width
    return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "patch_size": patch, "image_size": image_size, mlp: hidden}  # fmt: skip


def _dinov2(size: str) -> dict[str, Any]:
    return _shape(size, 14, 518, "mlp_ratio") | {"use_swiglu_ffn": size == "giant"}


_DINOV2 = ("small", "base", "large", "giant")

# hub id: (transformers model type, sizes of its config)
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    **{dinov2_id(size, False): ("dinov2", _dinov2(size)) for size in _DINOV2},
    **{dinov2_id(size, True): ("dinov2_with_registers", _dinov2(size) | {"num_register_tokens": 4}) for size in _DINOV2},
    **{dino_id(size, patch): ("vit", _shape(size, patch, 224)) for size in ("small", "base") for patch in (8, 16)},
    **{dinov3_id(size): ("dinov3_vit", _shape(size, 16, 224) | {"num_register_tokens": 4})
       for size in ("small", "base", "large")},
    **{mae_id(size): ("vit_mae", _shape(size, 14 if size == "huge" else 16, 224)) for size in ("base", "large", "huge")},
}  # fmt: skip
