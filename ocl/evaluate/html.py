"""HTML pages that need nothing beside themselves: one style sheet, no script, and every text escaped."""

from __future__ import annotations

import base64
from html import escape

import numpy as np

from ocl.vis.png import png_bytes


def page(title: str, body: str) -> bytes:
    """A whole HTML file in UTF-8. title: plain text. body: HTML made of the functions below, or escaped by the caller."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    opening = f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>'
    return f"{opening}\n<body><main>\n{body}\n</main></body></html>\n".encode("utf-8", "replace")


def tag(name: str, text: str, **attributes: str) -> str:
    """One element around plain text; a trailing underscore in an attribute's name is dropped (class_)."""
    return wrap(name, escape(text), **attributes)


def wrap(name: str, inner: str, **attributes: str) -> str:
    """One element around HTML; the values of attributes are escaped."""
    listed = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return f"<{name}{listed}>{inner}</{name}>"


def figure(picture: np.ndarray, caption: str) -> str:
    """A picture, uint8 [H, W, 3], inside the page itself, with its caption."""
    data = base64.b64encode(png_bytes(picture)).decode("ascii")
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
    return wrap("figure", image + tag("figcaption", caption))


STYLE = """
:root { --ink: #1f2430; --soft: #667085; --line: #e3e6ec; --wash: #f6f7f9; --best: #0b5fa5; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 40px 28px 64px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 40px 0 12px; padding-top: 20px; border-top: 1px solid var(--line); }
p { margin: 6px 0; max-width: 78ch; }
.soft, figcaption, caption { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 14px 0; }
caption { caption-side: bottom; text-align: left; padding: 8px 0 0; }
th, td { padding: 5px 12px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-right: 20px; }
thead th { font-size: 13px; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--ink); }
tr.ours td { background: var(--wash); }
td strong { color: var(--best); }
.panels { display: flex; flex-wrap: wrap; gap: 18px; }
figure { margin: 0; max-width: 100%; }
figure img { display: block; max-width: 100%; border: 1px solid var(--line); border-radius: 4px; }
figcaption { margin-top: 6px; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 20px; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: #667085; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 4px; padding: 12px 14px; overflow-x: auto;
      font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 12px 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 22px; margin-top: 24px; }
.card img { display: block; width: 100%; height: 180px; object-fit: contain; background: var(--wash); border-radius: 4px; }
.card .name { font-size: 13px; margin: 6px 0 2px; overflow-wrap: anywhere; }
.shares { display: flex; height: 6px; border-radius: 3px; overflow: hidden; margin: 6px 0; }
a { color: var(--best); text-decoration: none; } a:hover { text-decoration: underline; }
"""
