"""Counts of (predicted, true) label pairs (Hubert & Arabie 1985, table 1), from which every segmentation score follows."""

from __future__ import annotations

import torch
from torch import Tensor

from ocl.errors import RangeError, ShapeError
from ocl.ops import _library

MAX_COUNTS = 2**27  # entries of one table: 1 GiB
COMPILED_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def label_contingency(pred: Tensor, true: Tensor, ignore: Tensor | None = None) -> Tensor:
    """How many pixels of each image carry each pair of labels.

    pred, true: integers >= 0 of one shape [B, ...] (images [B, H, W], or clips [B, T, H, W], counted as one map each).
    ignore: bool of that shape; labels under True are not looked at and may be anything.
    Returns int64 [B, P, T] on the same device, P = largest pred + 1 and T = largest true + 1 over the batch (at least 1).
    Raises ShapeError for other shapes, dtypes or devices, RangeError for a negative label and where P and T are so large
    that the table would not fit in a gibibyte.
    """
    check_labels(pred, true, ignore)
    num_pred = num_labels("pred", pred, ignore)
    num_true = num_labels("true", true, ignore)
    return contingency_op(pred, true, ignore, num_pred, num_true)[..., :num_true].contiguous()


def reference(pred: Tensor, true: Tensor, ignore: Tensor | None, num_pred: int, num_true: int) -> Tensor:
    """What the operator does, on any device: int64 [B, num_pred, num_true + 1].

    The last column counts the ignored pixels by their pred label (those whose pred label fits). RangeError for a label
    outside its range on a pixel that is not ignored.
    """
    check_table_size(len(pred), num_pred, num_true)
    pred, true = pred.flatten(1).long(), true.flatten(1).long()
    pred_fits = (pred >= 0) & (pred < num_pred)
    true_fits = (true >= 0) & (true < num_true)
    if ignore is not None:
        ignore = ignore.flatten(1)
        true = torch.where(ignore, num_true, true)
        true_fits |= ignore
    misfit = ~(pred_fits & true_fits) if ignore is None else ~(pred_fits & true_fits | ignore)
    if misfit.any():
        raise _out_of_range(pred[misfit][0], true[misfit][0], num_pred, num_true)
    image = torch.arange(len(pred), device=pred.device)[:, None]
    pair = (image * num_pred + pred) * (num_true + 1) + true
    counts = torch.bincount(pair[pred_fits], minlength=len(pred) * num_pred * (num_true + 1))
    return counts.view(len(pred), num_pred, num_true + 1)


contingency_op = torch.library.custom_op("ocl::label_contingency", reference, mutates_args=())


@contingency_op.register_fake
def _(pred: Tensor, true: Tensor, ignore: Tensor | None, num_pred: int, num_true: int) -> Tensor:
    return pred.new_empty((pred.shape[0], num_pred, num_true + 1), dtype=torch.int64)


@contingency_op.register_kernel("cpu")
def _(pred: Tensor, true: Tensor, ignore: Tensor | None, num_pred: int, num_true: int) -> Tensor:
    module = _library.native()
    if not _choose_fused(pred.device) or module is None:
        return reference(pred, true, ignore, num_pred, num_true)
    check_table_size(len(pred), num_pred, num_true)
    pred, true = _compiled_dtype(pred), _compiled_dtype(true)
    tables, bad = module.label_contingency(
        pred.numpy(), true.numpy(), None if ignore is None else ignore.contiguous().numpy(), num_pred, num_true
    )
    if bad >= 0:
        raise _out_of_range(pred.view(-1)[bad], true.view(-1)[bad], num_pred, num_true)
    return torch.from_numpy(tables)


def label_range(labels: Tensor, ignore: Tensor | None = None) -> tuple[int, int]:
    """(smallest, largest) label outside `ignore`; (0, -1) where no pixel counts. Waits for the device."""
    module = _library.native()
    if _choose_fused(labels.device) and module is not None:
        mask = None if ignore is None else ignore.contiguous().numpy()
        low, high = module.label_range(_compiled_dtype(labels).numpy(), mask)
        return low, high
    counted = labels if ignore is None else labels[~ignore]
    if counted.numel() == 0:
        return 0, -1
    return int(counted.min()), int(counted.max())


def num_labels(name: str, labels: Tensor, ignore: Tensor | None = None) -> int:
    """Largest label outside `ignore` + 1, at least 1. RangeError naming the argument where a label is negative."""
    low, high = label_range(labels, ignore)
    if low < 0:
        raise RangeError(f"label_contingency expects {name} >= 0 outside ignore, got {low}; pass ignore=({name} < 0).")
    return max(high, 0) + 1


def check_labels(pred: Tensor, true: Tensor, ignore: Tensor | None) -> None:
    """ShapeError unless pred and true are integers of one shape [B, ...] on one device, and ignore is bool of that shape."""
    for name, labels in (("pred", pred), ("true", true)):
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            hint = "take the argmax over slots" if name == "pred" else "use true.long()"
            raise ShapeError(f"label_contingency expects {name} of integers, got {labels.dtype}; {hint}.")
        if labels.ndim < 2:
            shape = list(labels.shape)
            raise ShapeError(f"label_contingency expects {name} [B, ...], got {shape}; for one map use {name}[None].")
    if pred.shape != true.shape:
        raise ShapeError(
            f"label_contingency expects pred and true of one shape, got {list(pred.shape)} and {list(true.shape)}; "
            "resize soft masks to the ground truth before their argmax."
        )
    if ignore is not None and (ignore.dtype != torch.bool or ignore.shape != true.shape):
        raise ShapeError(
            f"label_contingency expects ignore of bool and shape {list(true.shape)} like true, "
            f"got {ignore.dtype} {list(ignore.shape)}; use ignore.bool()."
        )
    devices = {str(tensor.device) for tensor in (pred, true, ignore) if tensor is not None}
    if len(devices) > 1:
        raise ShapeError(f"label_contingency expects pred, true and ignore on one device, got {sorted(devices)}.")


def check_table_size(num_images: int, num_pred: int, num_true: int) -> None:
    """RangeError where a table of these sizes would be larger than a gibibyte."""
    if num_images * num_pred * (num_true + 1) > MAX_COUNTS:
        raise RangeError(
            f"label_contingency expects labels numbered from 0 with few gaps, got labels up to pred {num_pred - 1} and "
            f"true {num_true - 1} in {num_images} images, a table of more than 1 GiB; use ocl.metrics.relabel(labels) first, "
            "or fewer images at once."
        )


def _choose_fused(device: torch.device) -> bool:
    if device.type == "cpu":
        missing = "ocl._native is not built; with a C++ compiler run: pip install --no-build-isolation -e ."
    else:
        missing = f"there is no compiled implementation for {device.type} tensors"
    available = device.type == "cpu" and _library.native() is not None
    return _library.choose_fused("label_contingency", available=available, missing=missing)


def _compiled_dtype(labels: Tensor) -> Tensor:
    return (labels if labels.dtype in COMPILED_DTYPES else labels.long()).contiguous()


def _out_of_range(pred: Tensor, true: Tensor, num_pred: int, num_true: int) -> RangeError:
    return RangeError(
        f"label_contingency expects 0 <= pred < {num_pred} and 0 <= true < {num_true} outside ignore, "
        f"got a pixel with pred {int(pred)} and true {int(true)}."
    )
