"""torch.compile for a whole model, or for the backbone of its denoiser alone, where nearly all of a diffusion step is spent."""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

import torch
from torch import nn

from ocl.errors import ConfigError
from ocl.interfaces import Denoiser
from ocl.nn.freezing import Frozen

Compile = bool | Literal["denoiser", "denoiser-graphs"]
CHOICES: tuple[str, ...] = get_args(get_args(Compile)[1])


def compiled(model: nn.Module, how: Compile, *, backend: str = "inductor") -> nn.Module:
    """The model as it is to be called; parameters keep their names.

    "denoiser" compiles the backbone of every denoiser in place and leaves the rest, whose random draws and Python values would
    break a graph, as it is. "denoiser-graphs" does so with mode="reduce-overhead", which is what there is of CUDA graphs: torch
    captures them where shapes are fixed, on CUDA only. Each size of batch gets a graph of its own: there are few, and with sizes
    left open inductor may fail on a CPU (torch 2.13: cannot determine truth value of Relational). Raises ConfigError where the
    model has no denoiser.
    With the backend "inductor" torch before 2.14 is repaired, for the whole process (see _keep_order_of_writes).
    """
    if how is False:
        return model
    if backend == "inductor":
        _keep_order_of_writes()
    if how is True:
        found: nn.Module = torch.compile(model, backend=backend)  # type: ignore[assignment]
        return found
    denoisers = [part for part in model.modules() if isinstance(part, Denoiser)]
    if not denoisers:
        raise ConfigError(f"training.compile={how} needs a latent-diffusion decoder; use true or false for other models.")
    for denoiser in denoisers:
        backbone = denoiser.backbone
        assert isinstance(backbone, Frozen)
        backbone.module.compile(mode="reduce-overhead" if how == "denoiser-graphs" else None, backend=backend, dynamic=False)
    return model


# TODO once torch>=2.14 is required: remove
@functools.cache
def _keep_order_of_writes() -> None:
    """Have inductor, on a CPU, read what was scattered into a tensor, not what the tensor held before (pytorch issue 185509).

    To fuse loops of different shapes, its scheduler works out anew what a loop reads. Before torch 2.14 it then forgets that the
    buffer was written in between, and may run the loop before the write. The derivative of an upsampling scatters into zeros:
    what lies before it got zeros, without a word. Here the loop's dependencies are put back, as torch 2.14 does. Code that
    torch compiled before and keeps on disk is wrong too: a tag of its own in the cache's keys hides it.
    """
    if torch.__version__ >= "2.14":
        return
    from torch._inductor.dependencies import StarDep, WeakDep
    from torch._inductor.scheduler import SchedulerNode
    from torch.utils._ordered_set import OrderedSet

    recompute = SchedulerNode.recompute_size_and_body

    def recompute_and_keep(node: Any, *args: Any, **options: Any) -> None:
        order = OrderedSet(dep for dep in node.read_writes.reads if isinstance(dep, (StarDep, WeakDep)))
        recompute(node, *args, **options)
        node.set_read_writes(node.read_writes.with_read(order).rename(node.mutation_renames))

    SchedulerNode.recompute_size_and_body = recompute_and_keep  # type: ignore[assignment, method-assign]
    torch.compiler.config.cache_key_tag += "ocl-order-of-writes"
