"""Activations computed again in the backward pass (Chen et al. 2016), by layers that are told anew what each pass is about."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Literal, final

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from ocl.decoders.diffusion.cross_attention import Pass

Checkpointing = bool | Literal["selective"]
Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]

_COSTLY = ("mm", "addmm", "bmm", "baddbmm", "convolution", "mkldnn_convolution", "mkldnn_linear", "_mkl_linear")


def enable_checkpointing(model: Any, state: Pass, *, selective: bool = False) -> None:
    """Every block of a diffusers model computes its activations again in the backward pass, in eval mode too.

    state: what the layers of this model are told about a pass; a block computed again is told what it was told at first.
    selective: but for the results of costly operations, which are kept. A frozen model draws nothing at random, so that no
    random state is kept for the second time.
    """
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    contexts: Contexts = noop_context_fn
    if selective:
        contexts = options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_costly)

    def checkpointed(block: Any, *args: Any) -> Any:
        if torch.compiler.is_compiling():  # a graph computes again what was traced, whatever `state` is by then
            return checkpoint(block, *args, **options)
        told = replace(state, maps={}, projections=None)  # without tensors of the graph, which would keep itself alive
        return checkpoint(block, *args, **options | {"context_fn": partial(_contexts, contexts, state, told)})

    model.enable_gradient_checkpointing(gradient_checkpointing_func=checkpointed)


def _contexts(inner: Contexts, state: Pass, told: Pass) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What surrounds a block at first and when it is computed again."""
    first, again = inner()
    return first, _Again(state, told, again)


@final
class _Again(AbstractContextManager[None]):
    """A block is told what it was told at first; entered once for every backward pass through a graph that is kept."""

    def __init__(self, state: Pass, told: Pass, inner: AbstractContextManager[Any]) -> None:
        self.state, self.told, self.inner = state, told, inner
        self.entered = ExitStack()

    def __enter__(self) -> None:
        self.entered.enter_context(self.state.again(self.told))
        self.entered.enter_context(self.inner)

    def __exit__(self, *error: Any) -> bool | None:
        return self.entered.__exit__(*error)


def _keep_costly(context: Any, operation: Any, *args: Any, **options: Any) -> CheckpointPolicy:
    namespace, _, name = operation.name().partition("::")
    costly = namespace == "ocl" or name.partition(".")[0] in _COSTLY or "scaled_dot_product" in name
    return CheckpointPolicy.MUST_SAVE if costly else CheckpointPolicy.PREFER_RECOMPUTE
