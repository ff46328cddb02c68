"""label_contingency: the compiled pass, the PyTorch reference and one pixel at a time agree; misuse is named."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ocl import ops
from ocl.errors import ConfigError, RangeError, ShapeError
from ocl.ops import _library
from ocl.ops.label_contingency import contingency_op, label_range

DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
needs_native = pytest.mark.skipif(
    _library.native() is None, reason="ocl._native is not built; run pip install --no-build-isolation -e . with a C++ compiler"
)


def one_pixel_at_a_time(pred, true, ignore, num_pred, num_true):
    tables = np.zeros((len(pred), num_pred, num_true), dtype=np.int64)
    for image in range(len(pred)):
        maps = [labels[image].flatten().tolist() for labels in (pred, true, ignore)]
        for p, t, ignored in zip(*maps, strict=True):
            if not ignored:
                tables[image, p, t] += 1
    return torch.from_numpy(tables)


def label_maps(seed, shape, num_labels, dtype=torch.int64, run=1):
    """Random labels in runs of `run` pixels along the last axis."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, num_labels, (*shape[:-1], -(-shape[-1] // run)), generator=generator)
    return coarse.repeat_interleave(run, dim=-1)[..., : shape[-1]].to(dtype)


@pytest.mark.parametrize("name", ["auto", "reference"])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(1, 1), (3, 7), (2, 5, 9), (2, 33, 64), (2, 3, 4, 5)]),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    run=st.sampled_from([1, 5, 50]),
)
def test_counts_what_a_loop_over_pixels_counts(name, seed, shape, dtypes, run):
    pred, true = label_maps(seed, shape, 6, dtypes[0], run), label_maps(seed + 1, shape, 4, dtypes[1], run)
    ignore = label_maps(seed + 2, shape, 2, torch.bool, run)
    ignore.view(-1)[0] = False
    kept_pred, kept_true = pred[~ignore], true[~ignore]
    expected = one_pixel_at_a_time(pred, true, ignore, int(kept_pred.max()) + 1, int(kept_true.max()) + 1)
    with ops.backend(name):
        counts = ops.label_contingency(pred, true, ignore)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, expected)


def test_every_pixel_is_counted_once_and_ignored_pixels_stand_apart():
    pred, true = label_maps(0, (3, 40, 40), 5), label_maps(1, (3, 40, 40), 7)
    ignore = label_maps(2, (3, 40, 40), 2, torch.bool)
    table = contingency_op(pred, true, ignore, 5, 7)
    assert table.shape == (3, 5, 8)
    assert torch.equal(table.sum((1, 2)), torch.full((3,), 1600))
    assert torch.equal(table[..., -1].sum(1), ignore.flatten(1).sum(1))


def test_maps_that_are_not_contiguous_are_read_right():
    pred, true = label_maps(0, (2, 8, 12), 5), label_maps(1, (2, 8, 12), 5)
    across = ops.label_contingency(pred.transpose(1, 2), true.transpose(1, 2))
    assert torch.equal(across, ops.label_contingency(pred, true))


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4)])
@pytest.mark.parametrize("name", ["auto", "reference"])
def test_nothing_to_count_gives_a_table_of_zeros(shape, name):
    empty = torch.zeros(shape, dtype=torch.int64)
    with ops.backend(name):
        assert torch.equal(ops.label_contingency(empty, empty), torch.zeros(shape[0], 1, 1, dtype=torch.int64))


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_labels_under_ignore_may_be_anything(name):
    pred = torch.tensor([[0, 1, -7, 2**40]])
    true = torch.tensor([[1, 0, 2**40, -1]])
    with ops.backend(name):
        counts = ops.label_contingency(pred, true, torch.tensor([[False, False, True, True]]))
        assert label_range(pred, torch.ones_like(pred, dtype=torch.bool)) == (0, -1)
    assert counts.tolist() == [[[0, 1], [1, 0]]]


@pytest.mark.parametrize("name", ["auto", "reference"])
@pytest.mark.parametrize("which", ["pred", "true"])
def test_a_negative_label_is_an_error_that_names_the_argument(which, name):
    maps = {"pred": torch.zeros(1, 4, dtype=torch.int64), "true": torch.zeros(1, 4, dtype=torch.int64)}
    maps[which][0, 2] = -1
    with ops.backend(name), pytest.raises(RangeError, match=f"expects {which} >= 0 outside ignore, got -1"):
        ops.label_contingency(**maps)


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_the_operator_never_writes_outside_its_table(name):
    labels = torch.tensor([[0, 1, 5, 0]])
    with ops.backend(name), pytest.raises(RangeError, match="got a pixel with pred 5 and true 0"):
        contingency_op(labels, torch.zeros_like(labels), None, 3, 1)
    with ops.backend(name), pytest.raises(RangeError, match="got a pixel with pred 0 and true 5"):
        contingency_op(torch.zeros_like(labels), labels, None, 1, 3)


def test_sparse_ids_are_refused_before_memory_is_taken():
    coco_ids = torch.tensor([[0, 900_000_000_000]])
    with pytest.raises(RangeError, match=r"use ocl\.metrics\.relabel"):
        ops.label_contingency(torch.zeros_like(coco_ids), coco_ids)


@pytest.mark.parametrize(
    ("pred", "true", "ignore", "rule"),
    [
        (torch.zeros(2, 4), torch.zeros(2, 4).long(), None, "pred of integers, got torch.float32; take the argmax over slots"),
        (torch.zeros(2, 4).long(), torch.zeros(2, 4).bool(), None, "true of integers, got torch.bool"),
        (torch.zeros(4).long(), torch.zeros(4).long(), None, r"pred \[B, ...\], got \[4\]"),
        (torch.zeros(2, 4).long(), torch.zeros(2, 5).long(), None, "pred and true of one shape"),
        (torch.zeros(2, 4).long(), torch.zeros(2, 4).long(), torch.zeros(2, 4), "ignore of bool"),
        (torch.zeros(2, 4).long(), torch.zeros(2, 4).long(), torch.zeros(2, 3).bool(), r"shape \[2, 4\] like true"),
        (torch.zeros(2, 4).long(), torch.zeros(2, 4, device="meta").long(), None, "one device"),
    ],
)
def test_misuse_names_the_argument_and_the_rule(pred, true, ignore, rule):
    with pytest.raises(ShapeError, match=rule):
        ops.label_contingency(pred, true, ignore)


@pytest.mark.parametrize("name", ["auto", "reference"])
@pytest.mark.parametrize("with_ignore", [False, True])
def test_operator_is_well_registered(name, with_ignore):
    pred, true = label_maps(0, (2, 6, 6), 4), label_maps(1, (2, 6, 6), 3, torch.uint8)
    ignore = label_maps(2, (2, 6, 6), 2, torch.bool) if with_ignore else None
    with ops.backend(name):
        torch.library.opcheck(contingency_op, (pred, true, ignore, 4, 3))


def test_operator_compiles_into_one_graph():
    pred, true = label_maps(0, (2, 6, 6), 4), label_maps(1, (2, 6, 6), 3)
    compiled = torch.compile(lambda p, t: contingency_op(p, t, None, 4, 3).sum(1), fullgraph=True)
    assert torch.equal(compiled(pred, true), contingency_op(pred, true, None, 4, 3).sum(1))


def test_backend_is_restored_even_after_an_error():
    with pytest.raises(RuntimeError), ops.backend("reference"):
        assert ops.active_backend() == "reference"
        raise RuntimeError
    assert ops.active_backend() == "auto"


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(ConfigError, match="auto, reference, fused, sdpa, xformers, got 'cuda'"), ops.backend("cuda"):
        pass


def test_fused_without_a_compiled_library_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(_library, "native", lambda: None)
    labels = torch.zeros(1, 4, dtype=torch.int64)
    with ops.backend("fused"), pytest.raises(ConfigError, match=r"ocl\._native is not built.*pip install"):
        ops.label_contingency(labels, labels)
    assert ops.label_contingency(labels, labels).tolist() == [[[4]]]


@needs_native
def test_compiled_module_says_how_it_was_built():
    info = _library.native().build_info()
    assert {"version", "compiler", "flags"} <= set(info)
    assert info["compiler"] in ops.native_summary()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device; run on a machine that has one")
def test_counts_on_a_gpu_are_those_of_the_cpu():
    pred, true = label_maps(0, (3, 64, 64), 7), label_maps(1, (3, 64, 64), 9)
    ignore = label_maps(2, (3, 64, 64), 2, torch.bool)
    on_gpu = ops.label_contingency(pred.cuda(), true.cuda(), ignore.cuda())
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), ops.label_contingency(pred, true, ignore))
