"""Pairs of 320 px masks scored per second under all protocols: ours against a loop over images of one-hot tensors.

    python benchmarks/metrics/segmentation_throughput.py [--quick] [--out FILE]

The loop is the published way (one-hot both maps, multiply, score; per image and protocol), spared its repetitions: it builds
the one-hot tensors once per protocol, not once per score. Both sides score the same pairs, must agree to 1e-9 before any
time is reported, and are timed in one process; the loop on the first pairs only, because its time per pair is constant.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d, one_hot

from ocl.metrics import PROTOCOLS, Protocol, Segmentation
from ocl.ops import native_summary
from ocl.types import Batch

SIZE, SLOTS, BATCH, DISTINCT = 320, 7, 50, 200


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="1,000 pairs instead of 10,000, and 10 instead of 100 for the loop")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path)
    known = options.parse_args()
    torch.set_num_threads(known.threads)
    row = measure(num_pairs=1000 if known.quick else 10_000, num_looped=10 if known.quick else 100)
    print("ours {ours:.0f} pairs/s, loop of one-hot tensors {loop:.2f} pairs/s, ratio {ratio:.0f}".format(**row))
    if known.out:
        result = {"benchmark": "segmentation_throughput", "threads": known.threads, "native": native_summary(), "rows": [row]}
        known.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(*, num_pairs: int, num_looped: int) -> dict[str, float]:
    pred, true = draw_pairs(DISTINCT)
    image = torch.zeros(BATCH, 3, SIZE, SIZE)
    batches = [(pred[i : i + BATCH], Batch(image, true[i : i + BATCH])) for i in range(0, DISTINCT, BATCH)]
    _score_all(batches[:1])

    started = time.perf_counter()
    metric = _score_all([batches[i % len(batches)] for i in range(num_pairs // BATCH)])
    ours = num_pairs / (time.perf_counter() - started)

    started = time.perf_counter()
    looped = [one_hot_scores(pred[i], true[i]) for i in range(num_looped)]
    loop = num_looped / (time.perf_counter() - started)

    _check(metric.per_image(), looped)
    return {"pairs": num_pairs, "looped_pairs": num_looped, "protocols": len(PROTOCOLS), "ours": ours, "loop": loop,
            "ratio": ours / loop}


def draw_pairs(count: int) -> tuple[Tensor, Tensor]:
    """pred int64 [count, 320, 320] as an argmax gives it; true int32 with 2 to 10 ellipses and a void ring of 5 px (-1)."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    true = torch.zeros(count, SIZE, SIZE, dtype=torch.int32)
    for labels in true:
        for label in range(1, int(torch.randint(3, 12, (), generator=generator))):
            centre = torch.rand(2, generator=generator) * SIZE
            radius = SIZE * (0.05 + 0.15 * torch.rand(2, generator=generator))
            labels[((rows - centre[0]) / radius[0]) ** 2 + ((columns - centre[1]) / radius[1]) ** 2 < 1] = label
    coarse = true[:, ::16, ::16].long() % SLOTS
    logits = one_hot(coarse, SLOTS).movedim(-1, 1) + 0.7 * torch.rand(count, SLOTS, *coarse.shape[1:], generator=generator)
    pred = torch.cat([interpolate(part, size=(SIZE, SIZE), mode="bilinear").argmax(1) for part in logits.split(BATCH)])
    ids = true[:, None].float()
    ring = max_pool2d(ids, 5, stride=1, padding=2) != -max_pool2d(-ids, 5, stride=1, padding=2)
    return pred, true.masked_fill(ring[:, 0], -1)


def _score_all(batches: list[tuple[Tensor, Batch]]) -> Segmentation:
    metric = Segmentation(tuple(PROTOCOLS))
    for pred, batch in batches:
        metric.update(pred, batch)
    metric.compute()
    return metric


def one_hot_scores(pred: Tensor, true: Tensor) -> dict[str, float]:
    """All scores of one image under all protocols, with one-hot tensors."""
    scores = {}
    for protocol in PROTOCOLS.values():
        for score, value in _one_protocol(pred.flatten(), true.flatten().long(), protocol).items():
            scores[f"{score}[{protocol.name}]"] = value
    return scores


def _one_protocol(pred: Tensor, true: Tensor, protocol: Protocol) -> dict[str, float]:
    void = true < 0
    true = torch.where(void, 0, torch.unique(true.clamp(min=0), return_inverse=True)[1])
    if protocol.void == "extra_segment":
        pred = torch.where(void, pred.max() + 1, pred)
    segment, region = one_hot(pred).double(), one_hot(true).double()
    if protocol.void == "ignore":
        segment[void] = 0
    if protocol.void in ("ignore", "gt_only"):
        region[void] = 0
    shared = region.T @ segment
    sizes, segment_sizes = region.sum(0), segment.sum(0)
    iou = (shared / (sizes[:, None] + segment_sizes - shared).clamp(min=1)).numpy()
    cosine = (shared / (sizes[:, None] * segment_sizes).sqrt().clamp(min=1)).numpy()
    similarity = cosine if protocol.matching == "cosine" else iou

    def matched(first: int) -> float:
        rows, columns = linear_sum_assignment(similarity[first:], maximize=True)
        count = len(rows) if protocol.unmatched == "dropped" else len(iou) - first
        return float(iou[first:][rows, columns].sum()) / count

    first = 0 if protocol.mbo_background else 1
    best = iou.max(1)[first:]
    if protocol.unmatched == "dropped":
        best = best[linear_sum_assignment(similarity[1:], maximize=True)[0]]
    values = {"ARI": _rand_index(shared), "FG-ARI": _rand_index(shared[1:]), "mBO_i": float(np.mean(best)),
              "mIoU_i": matched(0), "FG-mIoU_i": matched(1)}
    wanted = {"ari": "ARI", "fg_ari": "FG-ARI", "mbo": "mBO_i", "miou": "mIoU_i", "fg_miou": "FG-mIoU_i"}
    return {wanted[score]: values[wanted[score]] for score in protocol.scores}


def _rand_index(shared: Tensor) -> float:
    def pairs(sizes: Tensor) -> Tensor:
        return (sizes * (sizes - 1)).sum()

    together, in_true, in_pred, in_all = pairs(shared), pairs(shared.sum(1)), pairs(shared.sum(0)), pairs(shared.sum())
    expected = in_true * in_pred / in_all.clamp(min=1)
    most = (in_true + in_pred) / 2
    return float((together - expected) / (most - expected)) if most != expected else 1.0


def _check(ours: dict[str, list[float]], looped: list[dict[str, float]]) -> None:
    for index, scores in enumerate(looped):
        for name, expected in scores.items():
            if not math.isclose(ours[name][index], expected, abs_tol=1e-9):
                raise SystemExit(f"no time reported: image {index}, {name} is {ours[name][index]}, the loop says {expected}")


if __name__ == "__main__":
    sys.exit(main())
