"""How published projects turn label maps into scores: one name, several definitions, each written down as data.

Sources are the projects' own evaluation code; tests/golden compares the presets with outputs recorded from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ocl.errors import ConfigError

Score = Literal["ari", "fg_ari", "mbo", "miou", "fg_miou"]
SCORES: tuple[Score, ...] = get_args(Score)
Void = Literal["ignore", "background", "extra_segment", "gt_only"]


@dataclass(frozen=True)
class Protocol:
    """One way of scoring a predicted partition against ground truth in which 0 is background.

    scores: what the project computes; the others are NaN. `ari` and `miou` count the background as one more region,
        `fg_ari` and `fg_miou` look at objects only.
    void: what becomes of ignored pixels. "ignore": left out. "background": background in the ground truth, as they are in
        the prediction. "extra_segment": background in the ground truth, a segment of their own in the prediction.
        "gt_only": left out of the ground truth, but they still enlarge the segments that cover them.
    mbo_background: the background is averaged into mBO like an object.
    matching: how the segments of mIoU are matched to regions, one to one: largest total IoU, or largest total cosine.
    unmatched: objects without a segment (more objects than segments) count 0, or are "dropped" from mBO and mIoU.
    gaps: ids below the largest one that no pixel carries are "skipped", or count 0 ("zero") as objects that nobody found.
    empty: FG-ARI of an image without objects is "one", or the image is "skipped" (NaN). IoU scores always skip it.
    average: what a data set's mBO and mIoU average over.
    """

    name: str
    void: Void = "ignore"
    scores: tuple[Score, ...] = SCORES
    mbo_background: bool = False
    matching: Literal["iou", "cosine"] = "iou"
    unmatched: Literal["zero", "dropped"] = "zero"
    gaps: Literal["zero", "skipped"] = "skipped"
    empty: Literal["one", "skipped"] = "one"
    average: Literal["image", "object"] = "image"


_PRESETS = (
    # sony/coda src/metric/segmentation.py; the same functions as SlotDiffusion's img_based/models/eval_utils.py.
    Protocol("coda", void="extra_segment", gaps="zero"),
    Protocol("slotdiffusion", void="extra_segment", gaps="zero"),
    # JindongJiang/latent-slot-diffusion src/eval/eval.py; its data has no void, visible objects only.
    Protocol("lsd", scores=("fg_ari", "mbo", "fg_miou"), matching="cosine", unmatched="dropped", average="object"),
    # amazon-science/object-centric-learning-framework ocl/metrics/masks.py (DINOSAUR).
    Protocol("oclf", scores=("ari", "fg_ari", "mbo", "fg_miou")),
    # gkakogeorgiou/spot eval_spot.py on VOC, where 255 becomes background; on COCO it leaves overlaps out: use oclf.
    Protocol("spot", void="background", scores=("fg_ari", "mbo", "fg_miou")),
    # martius-lab videosaur and slotcontrast metrics.py: clips or images, no void channel.
    Protocol("videosaur", void="background", scores=("ari", "fg_ari", "mbo", "fg_miou"), empty="skipped"),
    # Genera1Z object-centric-bench, fourth version (SmoothSA, DIAS, RandSF.Q), without its integer overflow on clips.
    Protocol("genera1z", void="gt_only", scores=("ari", "fg_ari", "mbo", "miou"), mbo_background=True),
    # google-research/slot-attention-video savi/lib/metrics.py: a clip is one partition, padding is left out.
    Protocol("savi", scores=("ari", "fg_ari")),
)
PROTOCOLS: dict[str, Protocol] = {preset.name: preset for preset in _PRESETS}


def protocol_named(protocol: str | Protocol) -> Protocol:
    """The preset of that name, or the protocol itself. Raises ConfigError listing the names."""
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ConfigError(f"metrics know the protocols {', '.join(PROTOCOLS)}, got {protocol!r}.")
    return PROTOCOLS[protocol]
