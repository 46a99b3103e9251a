"""The frame of the graph explorer: its look, its scripts, and one page that needs nothing else.

The page carries the two scripts of the book that draw it. A content security policy in its head
lets these run and nothing else, and no address is ever loaded.
"""

from __future__ import annotations

import base64
import hashlib
import html
from pathlib import Path

from cellvq import InputError

SCRIPTS = ("cellvq-figure.js", "cellvq-explorer.js")
"""Scripts in the order in which a page loads them."""
THEME = """try { const theme = localStorage.getItem("cellvq-theme");
if (theme) document.documentElement.dataset.theme = theme; } catch { /* refused to a file */ }"""
LIGHT = """--cvx-back: #ffffff; --cvx-soft: #f3f6f8; --cvx-line: #d3dce3; --cvx-ink: #17324d;
  --cvx-text: #22303c; --cvx-quiet: #52616d; --cvx-accent: #0b6e99; --cvx-edge: #7f909f;
  --cvx-on: #ffffff; --cvx-warm: #a34f00; --cvx-dark: 0;"""
DARK = """--cvx-back: #12181e; --cvx-soft: #1c242c; --cvx-line: #35424e; --cvx-ink: #e8eef4;
  --cvx-text: #d6dee5; --cvx-quiet: #9dabb7; --cvx-accent: #6cc0e5; --cvx-edge: #7d8fa1;
  --cvx-on: #0e1418; --cvx-warm: #f0a860; --cvx-dark: 1;"""
STYLE = f"""
.cvx {{ {LIGHT} color-scheme: light; container-type: inline-size; text-align: left; }}
@media (prefers-color-scheme: dark) {{ html:not([data-theme="light"]) .cvx {{ {DARK}
  color-scheme: dark; }} }}
html[data-theme="dark"] .cvx {{ {DARK} color-scheme: dark; }}
html:has(.cvx-page), body:has(.cvx-page) {{ margin: 0; height: 100%; }}
.cellvq-figure[data-drawn] + .cvx-undrawn {{ display: none; }}
body:has(.cvx-page) .cellvq-figure {{ margin: 0; border: 0; border-radius: 0; }}
""" + """
.cvx, .cvx * { box-sizing: border-box; }
.cvx { background: var(--cvx-back); color: var(--cvx-text); line-height: 1.45; font: 15px/1.45
  "Avenir Next", "Segoe UI", "Helvetica Neue", Helvetica, "DejaVu Sans", Arial, sans-serif; }
.cvx [hidden] { display: none !important; }
.cvx :is(p, ul, ol, dl, dd, fieldset, h1) { margin: 0; padding: 0; border: 0; }
.cvx :is(ul, ol) { list-style: none; }
.cvx .cvx-frame { display: flex; flex-direction: column; min-height: 0; }
.cvx .cvx-head { display: flex; flex-wrap: wrap; gap: 0.1rem 0.8rem; align-items: baseline;
  padding: 0.8rem 1rem 0.2rem; }
.cvx .cvx-title { font-size: 1.2rem; font-weight: 650; line-height: 1.25; color: var(--cvx-ink);
  overflow-wrap: anywhere; }
.cvx .cvx-told { color: var(--cvx-quiet); font-size: 0.88rem; }
.cvx .cvx-bar { display: flex; flex-wrap: wrap; gap: 0.5rem; padding: 0.4rem 1rem 0.7rem;
  align-items: center; border-bottom: 1px solid var(--cvx-line); }
.cvx .cvx-group { display: inline-flex; gap: 0.3rem; }
.cvx .cvx-button { font: inherit; font-size: 0.88rem; line-height: 1.3; color: var(--cvx-text);
  cursor: pointer; min-height: 2rem; padding: 0.3rem 0.65rem; border-radius: 7px;
  border: 1px solid var(--cvx-line); background: var(--cvx-back); }
.cvx .cvx-button:hover { border-color: var(--cvx-accent); color: var(--cvx-accent); }
.cvx .cvx-bar .cvx-button[aria-pressed="true"] { background: var(--cvx-accent);
  border-color: var(--cvx-accent); color: var(--cvx-on); }
.cvx .cvx-head .cvx-button { min-height: 0; padding: 0.05rem 0.5rem; font-size: 0.82rem; }
.cvx :focus-visible { outline: 2px solid var(--cvx-accent); outline-offset: 1px; }
.cvx .cvx-theme { white-space: nowrap; }
.cvx .cvx-offer { position: relative; flex: 1 1 13rem; max-width: 22rem; min-width: 0; }
.cvx .cvx-field { width: 100%; font: inherit; font-size: 0.92rem; color: var(--cvx-text);
  background: var(--cvx-soft); border: 1px solid var(--cvx-line); border-radius: 7px;
  padding: 0.3rem 0.65rem; min-height: 2rem; }
.cvx .cvx-field::placeholder { color: var(--cvx-quiet); opacity: 1; }
.cvx .cvx-field[aria-invalid="true"] { border-color: var(--cvx-warm); }
.cvx .cvx-options { position: absolute; z-index: 5; top: calc(100% + 3px); left: 0; width: 22rem;
  max-width: calc(100cqw - 2rem); max-height: 21rem; overflow: auto; padding: 0.25rem;
  background: var(--cvx-back); border: 1px solid var(--cvx-line); border-radius: 9px;
  box-shadow: 0 8px 26px rgb(0 0 0 / 18%); }
.cvx .cvx-options li { display: flex; gap: 0.5rem; align-items: center; padding: 0.32rem 0.5rem;
  border-radius: 6px; cursor: pointer; font-size: 0.92rem; }
.cvx .cvx-options li[role]:is(:hover, [aria-selected="true"]) { background: var(--cvx-soft);
  box-shadow: inset 2px 0 0 var(--cvx-accent); }
.cvx .cvx-options bdi { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.cvx .cvx-options small, .cvx .cvx-none { color: var(--cvx-quiet); }
.cvx .cvx-icon { flex: none; width: 0.95rem; height: 0.95rem; overflow: visible; }
.cvx .cvx-icon path { stroke: var(--cvx-text); stroke-width: 0.8; }
.cvx .cvx-line { flex: none; width: 1.6rem; height: 0.5rem; align-self: center; }
.cvx label .cvx-line { align-self: flex-start; margin-top: 0.4rem; }
.cvx .cvx-line path { stroke: var(--cvx-text); stroke-width: 1.8; fill: none;
  stroke-linecap: round; }
.cvx .cvx-body { display: grid; grid-template: "filters" auto "main" auto "panel" auto
  / minmax(0, 1fr); min-height: 0; flex: 1; }
.cvx .cvx-filters { grid-area: filters; border-bottom: 1px solid var(--cvx-line); min-height: 0;
  padding: 0; margin: 0; background: none; border-radius: 0; }
.cvx .cvx-filters summary { cursor: pointer; padding: 0.45rem 1rem; font-weight: 600;
  font-size: 0.9rem; color: var(--cvx-ink); }
.cvx summary .cvx-note { font-weight: 400; margin-left: 0.6rem; }
.cvx .cvx-sieve { display: grid; gap: 1rem; padding: 0.2rem 1rem 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); }
.cvx fieldset { min-width: 0; }
.cvx legend, .cvx .cvx-kind-head { font-size: 0.76rem; letter-spacing: 0.05em; font-weight: 600;
  text-transform: uppercase; color: var(--cvx-quiet); padding: 0; margin: 0 0 0.25rem; float: none;
  width: auto; line-height: 1.4; }
.cvx fieldset label { display: flex; gap: 0.45rem; align-items: baseline; padding: 0.13rem 0;
  font-size: 0.88rem; line-height: 1.35; cursor: pointer; margin: 0; }
.cvx fieldset label span { flex: 1; min-width: 0; }
.cvx fieldset label em { font-style: normal; color: var(--cvx-quiet); font-size: 0.82rem;
  font-variant-numeric: tabular-nums; }
.cvx fieldset input { accent-color: var(--cvx-accent); flex: none; margin: 0; }
.cvx fieldset input:is([type="checkbox"], [type="radio"]) { width: 0.95rem; height: 0.95rem;
  transform: translateY(0.13rem); }
.cvx input[type="range"] { width: 100%; height: 1.6rem; display: block; padding: 0; }
.cvx output { font-size: 0.88rem; padding: 0; }
.cvx small { display: block; font-size: 0.8rem; line-height: 1.4; color: var(--cvx-quiet); }
.cvx .cvx-all { display: flex; gap: 0.3rem; margin-top: 0.3rem; }
.cvx .cvx-all .cvx-button { min-height: 1.6rem; padding: 0.05rem 0.55rem; font-size: 0.8rem; }
.cvx .cvx-stage { grid-area: main; position: relative; display: flex; flex-direction: column;
  min-width: 0; min-height: 0; }
.cvx .cvx-canvas { display: block; width: 100%; flex: 1 1 auto; min-height: 0; cursor: grab;
  touch-action: pan-y; user-select: none; height: clamp(340px, 62cqw, 560px); }
.cvx .cvx-canvas:focus, .cvx-page .cvx-canvas { touch-action: none; }
.cvx .cvx-canvas:focus-visible { outline-offset: -2px; }
.cvx .cvx-canvas:active { cursor: grabbing; }
.cvx .cvx-canvas.cvx-over { cursor: pointer; }
.cvx .cvx-zoom { position: absolute; top: 0.6rem; right: 0.6rem; display: flex;
  flex-direction: column; gap: 0.25rem; }
.cvx .cvx-zoom .cvx-button { width: 2.1rem; padding: 0; font-size: 1.05rem; }
.cvx .cvx-legend { display: flex; flex-wrap: wrap; gap: 0.3rem 0.5rem; padding: 0.5rem 1rem;
  border-top: 1px solid var(--cvx-line); align-items: center; }
.cvx .cvx-legend .cvx-button { display: inline-flex; gap: 0.4rem; align-items: center;
  border-radius: 999px; min-height: 1.75rem; padding: 0.05rem 0.7rem 0.05rem 0.5rem;
  font-size: 0.82rem; }
.cvx .cvx-legend [aria-pressed="false"] span { text-decoration: line-through;
  color: var(--cvx-quiet); }
.cvx .cvx-plain .cvx-icon path { fill: var(--cvx-edge); }
.cvx .cvx-legend [aria-pressed="false"] path { fill: none; }
.cvx .cvx-key { display: inline-flex; gap: 0.35rem; font-size: 0.82rem; color: var(--cvx-quiet);
  margin-left: 0.3rem; }
.cvx .cvx-panel { grid-area: panel; min-height: 0; min-width: 0; border-top: 1px solid
  var(--cvx-line); scroll-margin-top: 40vh; }
.cvx .cvx-card, .cvx .cvx-path { padding: 0.9rem 1rem 1.1rem; }
.cvx .cvx-path { border-bottom: 1px solid var(--cvx-line); }
.cvx .cvx-card-head { display: flex; gap: 0.55rem; align-items: flex-start; }
.cvx .cvx-card-head .cvx-icon { width: 1.15rem; height: 1.15rem; margin-top: 0.22rem; }
.cvx .cvx-name { font-size: 1.15rem; font-weight: 650; color: var(--cvx-ink); flex: 1;
  min-width: 0; overflow-wrap: anywhere; }
.cvx .cvx-name:focus { outline: none; }
.cvx .cvx-name:focus-visible { outline: 2px solid var(--cvx-accent); outline-offset: 2px;
  border-radius: 3px; }
.cvx .cvx-close { border: 0; font-size: 1.2rem; min-height: 1.8rem; padding: 0 0.5rem;
  line-height: 1; }
.cvx dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.1rem 0.9rem;
  margin: 0.4rem 0 0; font-size: 0.9rem; }
.cvx dt { font-weight: 400; color: var(--cvx-quiet); }
.cvx dd { overflow-wrap: anywhere; }
.cvx .cvx-row { display: flex; flex-wrap: wrap; gap: 0.4rem; margin: 0.7rem 0 0; }
.cvx .cvx-kind { margin-top: 1rem; border-top: 1px solid var(--cvx-line); padding-top: 0.7rem; }
.cvx .cvx-card > .cvx-kind-head, .cvx .cvx-card > .cvx-note { margin-top: 1rem; }
.cvx .cvx-kind-head em { font-style: normal; margin-left: 0.25rem; }
.cvx .cvx-proof, .cvx .cvx-note { font-size: 0.8rem; color: var(--cvx-quiet); line-height: 1.4; }
.cvx .cvx-card p:not([class]) { font-size: 0.92rem; margin-top: 0.3rem; }
.cvx :is(.cvx-card, .cvx-path) li { margin: 0.45rem 0 0; font-size: 0.92rem; line-height: 1.4;
  overflow-wrap: anywhere; }
.cvx .cvx-card li > .cvx-icon { width: 0.8rem; height: 0.8rem; margin-right: 0.45rem;
  vertical-align: -0.05rem; }
.cvx .cvx-kind > .cvx-button { margin-top: 0.5rem; min-height: 1.7rem; padding: 0.1rem 0.6rem; }
.cvx .cvx-link { color: var(--cvx-accent); text-decoration: none; }
.cvx .cvx-link:hover { text-decoration: underline; }
.cvx .cvx-ends { display: grid; grid-template-columns: 1fr auto; gap: 0.5rem 0.4rem;
  margin-bottom: 0.6rem; }
.cvx .cvx-ends .cvx-name { grid-column: 1; }
.cvx .cvx-ends .cvx-close { grid-area: 1 / 2; }
.cvx .cvx-end { grid-column: 1 / -1; display: flex; gap: 0.6rem; align-items: center;
  font-size: 0.9rem; }
.cvx .cvx-end > span { width: 2.6rem; color: var(--cvx-quiet); }
.cvx .cvx-end .cvx-offer { max-width: none; }
.cvx .cvx-end .cvx-options { width: 100%; }
.cvx .cvx-path ol { counter-reset: step; }
.cvx .cvx-path ol li { counter-increment: step; padding-left: 1.7rem; position: relative; }
.cvx .cvx-path ol li::before { content: counter(step); position: absolute; left: 0; top: 0.1rem;
  width: 1.2rem; height: 1.2rem; border-radius: 50%; background: var(--cvx-accent);
  color: var(--cvx-on); font-size: 0.75rem; font-weight: 600; line-height: 1.2rem;
  text-align: center; }
.cvx .cvx-tables { grid-area: main; overflow: auto; max-height: 640px; min-width: 0;
  min-height: 0; }
.cvx .cvx-alone .cvx-tables { grid-column: main-start / -1; }
.cvx .cvx-tables:focus-visible { outline-offset: -2px; }
.cvx .cvx-above { padding: 0.5rem 1rem; font-size: 0.85rem; color: var(--cvx-quiet);
  position: sticky; left: 0; }
.cvx .cvx-tables table { border-collapse: separate; border-spacing: 0; font-size: 0.86rem;
  font-variant-numeric: tabular-nums; min-width: 100%; display: table; margin: 0; }
.cvx.cvx.cvx .cvx-tables :is(th, td) { text-align: left; vertical-align: top; padding: 5px 14px 5px
  16px; line-height: 20px; border: 0; border-bottom: 1px solid var(--cvx-line); font-weight: 400;
  max-width: 22rem; overflow-wrap: break-word; background: var(--cvx-back); }
.cvx.cvx.cvx .cvx-tables tbody th { position: sticky; left: 0; min-width: 6.5rem; }
.cvx .cvx-tables .cvx-wide { min-width: 16rem; }
.cvx .cvx-tables .cvx-middle { min-width: 9.5rem; }
.cvx.cvx.cvx .cvx-tables thead th { position: sticky; top: 0; z-index: 1;
  background: var(--cvx-soft); }
.cvx .cvx-tables thead .cvx-button { border: 0; background: none; min-height: 1.6rem; padding: 0;
  font-weight: 600; font-size: 0.82rem; white-space: nowrap; }
.cvx.cvx.cvx .cvx-tables .cvx-number { text-align: right; white-space: nowrap; }
.cvx .cvx-live { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap; }
@container (min-width: 42rem) {
  .cvx .cvx-body { grid-template: "filters filters" auto "main panel" minmax(0, 1fr)
    / minmax(0, 1fr) minmax(15.5rem, 34%); }
  .cvx:not(.cvx-page) .cvx-body { grid-template-rows: auto 640px; }
  .cvx .cvx-panel { border-top: 0; border-left: 1px solid var(--cvx-line); overflow: auto;
    max-height: 640px; }
}
@container (min-width: 60rem) {
  .cvx .cvx-body { grid-template: "filters main panel" minmax(0, 1fr)
    / 17rem minmax(0, 1fr) 23rem; }
  .cvx:not(.cvx-page) .cvx-body { grid-template-rows: 640px; }
  .cvx .cvx-filters { border-bottom: 0; border-right: 1px solid var(--cvx-line); overflow: auto;
    max-height: 640px; }
  .cvx .cvx-filters:not([open]) { align-self: start; border: 0; }
  .cvx summary .cvx-note { display: block; margin: 0; }
  .cvx .cvx-sieve { grid-template-columns: minmax(0, 1fr); }
}
@media (min-width: 42rem) {
  .cvx-page .cvx-frame { height: 100dvh; }
  .cvx-page :is(.cvx-filters, .cvx-panel, .cvx-tables) { max-height: none !important; }
  .cvx-page .cvx-canvas { height: 0 !important; }
}
@media (max-width: 42rem) {
  .cvx-page .cvx-canvas { height: 44dvh; min-height: 15rem; }
  .cvx .cvx-title { font-size: 1.08rem; }
  .cvx .cvx-legend { flex-wrap: nowrap; overflow-x: auto; white-space: nowrap; }
  .cvx .cvx-legend > * { flex: none; }
  .cvx .cvx-head, .cvx .cvx-bar { padding-left: 0.8rem; padding-right: 0.8rem; }
  .cvx .cvx-bar > .cvx-offer { flex-basis: 100%; max-width: none; }
  .cvx .cvx-bar { gap: 0.4rem 0.5rem; }
  .cvx .cvx-bar .cvx-button { padding: 0.3rem 0.36rem; font-size: 0.78rem; }
  .cvx .cvx-bar .cvx-group { gap: 0.2rem; }
}
@media print { .cvx :is(.cvx-bar, .cvx-filters, .cvx-zoom) { display: none; } }
"""


def script() -> str:
    """Read the scripts that draw the explorer, of this package or of its checkout.

    Raises:
        InputError: the installation lacks them.
    """
    folder = Path(__file__).resolve().parent
    return "\n".join(_text(name, (folder, folder.parent / "book" / "_static")) for name in SCRIPTS)


def frame(title: str, figure: str, lead: str) -> str:
    """Put the explorer into a page of its own, in which nothing but its own scripts may run.

    Args:
        title: words in the tab of the browser; any text.
        figure: the explorer, HTML.
        lead: what the page holds, in a sentence; any text.

    Example:
        >>> text = frame("A < B", "", "Two genes.")
        >>> "<title>A &lt; B</title>" in text, "default-src 'none'" in text
        (True, True)
    """
    runs = script()
    allowed = " ".join(_hash(text) for text in (THEME, runs))
    policy = (f"default-src 'none'; script-src {allowed}; style-src {_hash(STYLE)}; "
              "img-src data: blob:; base-uri 'none'; form-action 'none'")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f'<title>{html.escape(title)}</title><meta name="description" '
        f'content="{html.escape(lead)}"><style>{STYLE}</style><script>{THEME}</script></head>\n'
        f"<body>{figure}\n<script>{runs}</script></body></html>\n"
    )


def _text(name: str, folders: tuple[Path, ...]) -> str:
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    raise InputError(f"this installation of cellvq lacks {name}; install the package anew")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
