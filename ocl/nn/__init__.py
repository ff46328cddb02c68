"""Small pieces that parts are made of."""

from ocl.nn.cross_attention import ProjectedRegisters, RegisterCrossAttention

__all__ = ["ProjectedRegisters", "RegisterCrossAttention"]
