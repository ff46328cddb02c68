"""Functions on tensors, each with a readable reference and, where it was built, a compiled implementation."""

from ocl.ops._library import active_backend, backend, native_summary
from ocl.ops.attention import attention
from ocl.ops.label_contingency import label_contingency
from ocl.ops.register_attention import register_attention
from ocl.ops.slot_attention import slot_attention

__all__ = [
    "active_backend", "attention", "backend", "label_contingency", "native_summary", "register_attention", "slot_attention",
]  # fmt: skip
