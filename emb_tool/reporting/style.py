"""The style of pages and charts, and the page template, which blocks external resources."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Content-Security-Policy: no scripts and no external resources, even if injected by a name."""

LIGHT = {
    "bg": "#ffffff", "card": "#f6f7f9", "ink": "#1b1f24", "dim": "#5b6470", "rule": "#dfe3e8",
    "c0": "#2b6cd4", "c1": "#c8641c", "c2": "#2e8b57", "c3": "#8a56c2", "c4": "#b5485d",
    "c5": "#6f7a86", "good": "#1d7a46", "bad": "#b3261e",
}  # fmt: skip
"""Colors by the name of their CSS variable; `c0` to `c5` are the series colors."""

DARK = {
    "bg": "#14171b", "card": "#1d2127", "ink": "#e4e7eb", "dim": "#9aa4af", "rule": "#333a42",
    "c0": "#79a8f5", "c1": "#f0a05e", "c2": "#6cc894", "c3": "#bb94ea", "c4": "#ec8799",
    "c5": "#a3adb8", "good": "#6cc894", "bad": "#f28b82",
}  # fmt: skip

SERIES = tuple(f"c{number}" for number in range(6))

CHART_SIZE = (3.8, 2.4)
"""Size of a chart in a page in inches, about the width of a phone."""

TEXT_SIZE, LABEL_SIZE = 10, 9
"""Font sizes in points, of axis titles and of other text."""

MATPLOTLIB = {
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT["dim"],
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.labelcolor": LIGHT["ink"],
    "axes.prop_cycle": f"cycler(color={[LIGHT[name] for name in SERIES]})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": TEXT_SIZE,
    "grid.color": LIGHT["rule"],
    "legend.fontsize": LABEL_SIZE,
    "legend.frameon": False,
    "lines.markersize": 4,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,
    "xtick.color": LIGHT["dim"],
    "xtick.labelsize": LABEL_SIZE,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.color": LIGHT["dim"],
    "ytick.labelsize": LABEL_SIZE,
    "ytick.major.size": 0,
}
"""matplotlib settings of every chart."""


def _variables(colors: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


STYLE = (
    f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
"""
    + """\
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 4rem; background: var(--bg);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--rule); }
h3 { font-size: .95rem; margin: 0 0 .5rem; font-weight: 600; overflow-wrap: anywhere; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
.dim { color: var(--dim); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .7rem;
  margin-top: 1.3rem; }
.tile { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.tile b { display: block; white-space: nowrap; font-size: 1.35rem; font-weight: 650;
  line-height: 1.3; }
.tile span { color: var(--dim); font-size: .85rem; }
.note { background: var(--card); border-left: 4px solid var(--c1); padding: .5rem .9rem;
  margin: .8rem 0; border-radius: 0 .3rem .3rem 0; }
.note.bad { border-color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr));
  gap: 1.2rem 1.6rem; }
.charts > figure { margin: 0; min-width: 0; }
.wide { max-width: 29rem; }
.tables { display: flex; flex-wrap: wrap; gap: 0 3rem; } .tables > * { max-width: 100%; }
.scroll { overflow-x: auto; margin: .5rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; overflow-wrap: anywhere; }
th, td { text-align: left; padding: .25rem 1.1rem .25rem 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
th { color: var(--dim); font-weight: 500; }
.figure { text-align: right; white-space: nowrap; }
pre, code { font: .85rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: var(--card); padding: .8rem 1rem; border-radius: .5rem; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
td code { overflow-wrap: anywhere; }
ol, ul { padding-left: 1.3rem; } li { overflow-wrap: anywhere; }
@media (max-width: 40rem) { table { font-size: .84rem; } th, td { padding-right: .65rem; }
  .figure { white-space: normal; } }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--dim); }
a { color: var(--c0); }
svg { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }
svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
.bars { font-size: .85rem; } .bars div { display: flex; }
.bars p { display: flex; justify-content: space-between; margin: .6rem 0 .1rem; }
.bars i { height: 1rem; min-width: 1px; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0;
  margin: .5rem 0 0; font-size: .85rem; color: var(--dim); }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: .15rem;
  margin-right: .4rem; vertical-align: -.08rem; }
"""
)


def document(title: str, body: str) -> str:
    """A complete HTML page around an HTML body."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""
