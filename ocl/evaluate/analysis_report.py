"""An analysis as JSON, as a section of the report, and as PNG plots."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocl.evaluate.analysis import Analysis
from ocl.evaluate.curves import Curve
from ocl.evaluate.report import Picture, Section
from ocl.vis.grid import picture_grid

NOISE_AXIS = "log signal-to-noise ratio (right: less noise)"


def summary(found: Analysis) -> dict[str, Any]:
    """Everything but the drawings as plain values for JSON, NaN as null, with what each number means."""
    return {
        "images": list(found.keys),
        "time": list(found.time),
        "log_snr": _plain(torch.tensor(found.log_snr)),
        "attention": {
            "what": "layer -> [timestep][image][slot], mass of one softmax, mean over queries and heads; the rest is on registers",
            "num_registers": found.num_registers,
            "on_registers": {name: _plain(mass.mean(-1)) for name, mass in register_mass(found).items()},
            "on_slots": {name: _plain(mass) for name, mass in found.attention.items()},
        },
        "information": {
            "what": "nats per image between the least and the most noise: half the integral over log_snr of the error gap, given "
            "as [timestep][image]; swapped: against all slots of the next image, dropped: against no slots",
            "nats": {name: _mean(values) | {"images": _plain(values)} for name, values in found.nats.items()},
            "gap": {name: _plain(gap) for name, gap in found.gaps.items()},
        },
        "entanglement": {
            "what": "mixing: of pictures drawn from one slot alone; spill: of the change when one is removed; 0 none, 1 all",
            "mixing": _mean(found.mixing) | {"images": _plain(found.mixing)},
            "spill": _mean(found.spill) | {"images": _plain(found.spill)},
            "shares": _plain(found.shares),
            "living": found.living.tolist(),
        },
    }


def section(found: Analysis) -> Section:
    """What the report shows: the three findings in words, attention and information over noise levels, the drawings."""
    steps = range(len(found.log_snr))
    registers = register_mass(found) or {name: mass.amax(-1) for name, mass in found.attention.items()}
    what = f"Attention on {found.num_registers} registers" if found.num_registers else "Attention on the most attended slot"
    attention = {short(name): [(found.log_snr[t], float(mass[t].mean())) for t in steps] for name, mass in registers.items()}
    gaps = {name: [(found.log_snr[t], float(gap[t].mean()) / 2) for t in steps] for name, gap in found.gaps.items()}
    curves = [Curve(what, attention, NOISE_AXIS), Curve("Information, nats per unit of log-SNR", gaps, NOISE_AXIS)]
    rows = picture_grid([list(row) for row in found.drawings])
    drawings = Picture(rows, "Each row: the image, drawn from all slots, drawn from each slot alone.")
    return Section("Looking into the decoder", _words(found), curves, [drawings])


def register_mass(found: Analysis) -> Mapping[str, Tensor]:
    """layer -> attention on the registers, [T, I]; nothing where there are none."""
    return {name: 1 - mass.sum(-1) for name, mass in found.attention.items()} if found.num_registers else {}


def short(layer: str) -> str:
    """down_blocks.0.attentions.1.transformer_blocks.0.attn2 -> down 0.1.0."""
    return f"{layer.partition('_')[0]} {'.'.join(re.findall(r'(?<=[.])[0-9]+', layer))}"


def mean_text(values: Tensor) -> str:
    """12.3 (standard error 0.4), over images; undefined where no value is a number."""
    found = _mean(values)
    if found["mean"] is None:
        return "undefined (too few slots own pixels, or removing one changes nothing)"
    error = "" if found["standard_error"] is None else f" (standard error {found['standard_error']:.2g})"
    return f"{found['mean']:.4g}{error}"


def write_plots(found: Analysis, folder: Path) -> list[Path]:
    """attention.png, information.png and entanglement.png; nothing where matplotlib is not installed (pip install matplotlib)."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {"attention": _attention(found), "information": _information(found), "entanglement": _entanglement(found)}
    paths = [folder / f"{name}.png" for name in drawings]
    for path, drawing in zip(paths, drawings.values(), strict=True):
        drawing.savefig(path, dpi=110)
    return paths


def _words(found: Analysis) -> list[str]:
    where = f"{len(found.keys)} images, {len(found.log_snr)} noise levels."
    if found.num_registers:
        mass = torch.stack([each.mean() for each in register_mass(found).values()]).mean()
        where += f" Registers hold {float(mass):.1%} of the attention on average."
    else:
        where += " Its layers attend to no registers, so that slots share all of the attention." if found.attention else ""
    against = {name: f"{mean_text(value)} nats per image" for name, value in found.nats.items()}
    return [
        where,
        f"Information: {against['dropped']} against no slots, {against['swapped']} against slots of another image. For an ideal "
        "denoiser the first is the mutual information of slots and latents, the second an upper bound of it; for a trained one "
        "both are estimates, and say how much it uses its slots.",
        f"Entanglement, 0 for none and 1 for all: mixing {mean_text(found.mixing)} (how much of a picture drawn from one slot "
        f"shows other slots), spill {mean_text(found.spill)} (change per pixel outside a slot's mask when it is removed, "
        "relative to that inside).",
    ]


def _attention(found: Analysis) -> Any:
    """Layers by noise levels: attention on registers, and on the slot that gets most."""
    panels: dict[str, Mapping[str, Tensor]] = {"most attended slot": {k: mass.amax(-1) for k, mass in found.attention.items()}}
    if found.num_registers:
        panels = {f"{found.num_registers} registers": register_mass(found), **panels}
    figure, axes = _figure(len(panels), height=2 + 0.25 * len(found.attention))
    for axis, (title, masses) in zip(axes, panels.items(), strict=True):
        if not masses:
            continue
        picture = axis.imshow(torch.stack([mass.mean(1) for mass in masses.values()]).numpy(), aspect="auto", vmin=0)
        axis.set_title(f"attention on {title}")
        axis.set_xticks(range(len(found.log_snr)), [f"{value:.1f}" for value in found.log_snr])
        axis.set_yticks(range(len(masses)), list(map(short, masses)))
        axis.set_xlabel(NOISE_AXIS)
        figure.colorbar(picture, ax=axis)
    return figure


def _information(found: Analysis) -> Any:
    """A panel per baseline: a thin line per image, a thick one for the mean."""
    figure, axes = _figure(len(found.gaps), height=3.2)
    for axis, (name, gap) in zip(axes, found.gaps.items(), strict=True):
        axis.plot(found.log_snr, gap.numpy() / 2, color="0.8", linewidth=0.8)
        axis.plot(found.log_snr, gap.mean(1).numpy() / 2, color="#0b5fa5", linewidth=2)
        axis.axhline(0, color="0.3", linewidth=0.6)
        axis.set_title(f"against {name} slots: {mean_text(found.nats[name])} nats per image")
        axis.set_xlabel(NOISE_AXIS)
        axis.set_ylabel("nats per unit of log-SNR")
    return figure


def _entanglement(found: Analysis) -> Any:
    """What each slot's picture shows, mean over the images that mixing is defined for; both measures, per image and per slot."""
    figure, (left, right) = _figure(2, height=3.2)
    drawn = (found.living & found.mixing.isfinite()[:, None]).double()[..., None]
    picture = left.imshow(((found.shares * drawn).sum(0) / drawn.sum(0).clamp(min=1)).numpy(), vmin=0, vmax=1)
    left.set_title("share of the picture drawn from one slot")
    left.set_xlabel("slot that it shows")
    left.set_ylabel("slot that it was drawn from")
    figure.colorbar(picture, ax=left)
    values = {"mixing, per image": found.mixing, "spill, per slot": found.spill.flatten()}
    right.hist([value[value.isfinite()].numpy() for value in values.values()], bins=[i / 10 for i in range(16)], label=list(values))
    right.set_title("entanglement: 0 none, 1 all")
    right.legend()
    return figure


def _figure(panels: int, *, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * panels, height), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _mean(values: Tensor) -> dict[str, float | None]:
    """Mean and its standard error over images, of those that are numbers."""
    per_image = values if values.ndim == 1 else values.nanmean(dim=1)
    kept = per_image[per_image.isfinite()]
    error = kept.std() / len(kept) ** 0.5 if len(kept) > 1 else torch.tensor(torch.nan)
    return {"mean": _plain(kept.mean()), "standard_error": _plain(error)}


def _plain(values: Tensor) -> Any:
    """Nested lists of numbers of six digits, NaN as None."""
    if values.ndim:
        return [_plain(each) for each in values]
    number = float(values)
    return float(f"{number:.6g}") if number == number else None
