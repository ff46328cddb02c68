"""ocl: object-centric learning from interchangeable parts. Importing it is light: no diffusers, transformers or deepspeed."""

__version__ = "0.1.0"
