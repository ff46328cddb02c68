"""Results for people: a block of lines per row while it runs, and the Markdown of a whole file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from benchmarks.ops.cases import MODE_TEXT
from benchmarks.ops.goals import HEAD, Outcome, judge

Row = Mapping[str, Any]

WIDTHS = {"median": 10, "least": 10, "spread": 8, "ours is": 9} | {"GB/s": 8, "TFLOP/s": 9, "of roof": 9}
WIDTHS |= {"peak MB": 9, "error": 9, "timer": 11}


def title(row: Row) -> str:
    """What all shapes of one table have in common."""
    parts = [row["op"].replace("_", " "), row["dtype"], MODE_TEXT[row["mode"]]]
    parts += ["with CODA's mask"] * row["mask"] + ["keys are values"] * row["shared"]
    return ", ".join(parts)


def shape(row: Row) -> str:
    return f"{row['model']} {row['shape']}".strip()


def block(row: Row) -> str:
    """One row as the terminal shows it: a line per provider, the fastest first."""
    lines = [f"{title(row)}: {shape(row)}", " " * 17 + "".join(name.rjust(width) for name, width in WIDTHS.items())]
    providers = row["providers"]
    ours = providers.get("ours", {}).get("median")
    timed = sorted((name for name in providers if "median" in providers[name]), key=lambda name: providers[name]["median"])
    for name in timed:
        found = providers[name]
        ratio = f"{found['median'] / ours:.2f}x" if ours and name != "ours" else ""
        cells = [
            seconds(found["median"]), seconds(found["least"]), f"{found['spread']:.0%}", ratio,
            _number(found, "gb_per_s", ".1f"), _number(found, "tflop_per_s", ".3f"), _number(found, "roof", ".0%"),
            f"{found['peak_bytes'] / 1e6:.1f}", f"{max(found['errors'].values()):.1e}", found["timer"],
        ]  # fmt: skip
        lines.append(f"  {name:<15}" + "".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS.values(), strict=True)))
    for name, found in providers.items():
        if "median" not in found:
            lines.append(f"  {name:<15}{'wrong: ' + found['wrong'] if 'wrong' in found else found['unavailable']}")
    return "\n".join([*lines, f"  {_verdict(row)}"])


def _verdict(row: Row) -> str:
    parts = []
    if "ratio" in row:
        parts.append(f"{row['ratio']:.2f}x the best baseline ({row['best_baseline']})")
    if "error_ratio" in row:
        parts.append(f"error {row['error_ratio']:.2f}x that of {row['yardstick']}{'' if row['error_ok'] else ' (too much)'}")
    bits = row["providers"].get("ours", {}).get("same_bits")
    if bits is not None:
        parts.append("the same bits in any run and batch" if bits else "bits differ between runs or batch sizes")
    return "; ".join(parts) or "nothing to compare"


def seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def _number(found: Mapping[str, Any], name: str, form: str) -> str:
    return format(found[name], form) if name in found else ""


def columns(outcomes: Sequence[Outcome]) -> str:
    """Goals for the terminal."""
    cells = [HEAD, *(astuple(outcome) for outcome in outcomes)]
    widths = [max(len(row[number]) for row in cells) for number in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)


def markdown_goals(outcomes: Sequence[Outcome]) -> str:
    return "\n".join(_table(HEAD, [astuple(outcome) for outcome in outcomes]))


def goals_of(result: Mapping[str, Any]) -> list[Outcome]:
    return judge(result["rows"], "cpu" if result["device"] == "cpu" else "cuda")


def source(result: Mapping[str, Any]) -> str:
    """Where the numbers come from, in a sentence."""
    made, rows = result["environment"], result["rows"]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    threads = ", ".join(str(count) for count in dict.fromkeys(row["threads"] for row in rows))
    roof = result["roof"]
    rates = ", ".join(f"{rate / 1e9:.4g} GFLOP/s {dtype}" for dtype, rate in roof["flops_per_s"].items())
    return (
        f"`{result['command']}`, commit {commits}, torch {made['torch']}, {made['date']}"
        + (f", threads: {threads}" if result["device"] == "cpu" else "")
        + f". Roof measured here: copy {roof['bytes_per_s'] / 1e9:.4g} GB/s, products {rates}."
    )


def markdown(result: Mapping[str, Any], plots: Sequence[str]) -> str:
    """The whole file of one machine."""
    parts = [f"# Operators on {result['environment']['hardware']}\n", source(result), ""]
    parts += ["- {operator} on {device}: {implementation}, {reason}".format(**kernel) for kernel in result["kernels"]]
    parts += ["\n## Goals\n", markdown_goals(goals_of(result)), ""]
    parts += [f"![{name}]({name})\n" for name in plots]
    parts += ["## Rows\n", NOTES]
    for name, group in groups(result["rows"]).items():
        parts += ["", f"### {name[:1].upper()}{name[1:]}\n", *_group(group)]
    return "\n".join(parts) + "\n"


NOTES = """\
Times are medians; in brackets how many times faster ours is. `best`: ours against the fastest baseline. GB/s, TFLOP/s and the
fraction of the roof are those of ours, for the bytes and operations that no implementation can avoid; a shape that stays in
a cache can exceed the roof, which is that of memory. Peak memory is what torch's allocator held beyond the inputs, ours / best
baseline. Errors are relative to float64, worst tensor of ours / of the yardstick (sdpa, else eager); `x` is the worst ratio in
one tensor. `sdpa-joined` is given keys that were joined before the clock started, `sdpa-once` projects registers once,
`absorbed` is our module in plain PyTorch: they are shown, and are no baselines."""


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that share a table, in the order in which they first appear."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(title(row), []).append(row)
    return found


def _group(rows: Sequence[Row]) -> Iterator[str]:
    everyone = list(dict.fromkeys(name for row in rows for name in row["providers"]))
    shown = [name for name in everyone if name != "ours" and any(_time(row["providers"].get(name, {}), None) for row in rows)]
    counted = any("roof_seconds" in row for row in rows)
    rates = ["GB/s", "TFLOP/s", "of roof"] if counted else []
    head = ["shape", "ours", "best", *shown, *rates, "peak MB", "error", "x", "same bits"]
    yield from _table(head, [_cells(row, shown, counted) for row in rows])
    reasons = dict.fromkeys(
        f"{name}: {found['unavailable']}" for row in rows for name, found in row["providers"].items() if "unavailable" in found
    )
    if reasons:
        yield "\nNot run: " + "; ".join(reasons) + "."


def _cells(row: Row, names: Sequence[str], counted: bool) -> list[str]:
    providers = row["providers"]
    ours = providers.get("ours", {})
    best = f"{row['ratio']:.2f}x ({row['best_baseline']})" if "ratio" in row else ""
    rates = [_number(ours, "gb_per_s", ".3g"), _number(ours, "tflop_per_s", ".3g"), _number(ours, "roof", ".0%")] if counted else []
    peaks = [providers.get(name, {}).get("peak_bytes") for name in ("ours", row["best_baseline"])]
    worst = [max(providers.get(name, {}).get("errors", {"": None}).values(), key=_size) for name in ("ours", row.get("yardstick"))]
    return [
        shape(row), _time(ours, None), best, *(_time(providers.get(name, {}), ours.get("median")) for name in names), *rates,
        " / ".join("" if peak is None else f"{peak / 1e6:.3g}" for peak in peaks),
        " / ".join("" if error is None else f"{_size(error):.1e}" for error in worst),
        f"{row['error_ratio']:.2f}{'' if row['error_ok'] else ' (too much)'}" if "error_ratio" in row else "",
        {True: "yes", False: "no", None: ""}[ours.get("same_bits")],
    ]  # fmt: skip


def _size(error: Any) -> float:
    return float("inf") if error == "infinite" else error


def _time(found: Mapping[str, Any], ours: float | None) -> str:
    if "wrong" in found:
        return f"wrong: {found['wrong']}"
    if "median" not in found:
        return ""
    return seconds(found["median"]) + (f" ({found['median'] / ours:.2f})" if ours else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
