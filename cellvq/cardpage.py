"""The frame of the page of code cards: look and script of one file that needs nothing else.

The cards themselves are plain HTML, so the page reads without the script; the script only hides
the cards that a reader does not look for.
"""

from __future__ import annotations

import html

STYLE = """
:root { color-scheme: light dark; --ink: #17324d; --text: #22303c; --soft: #f3f6f8;
  --line: #d8e0e6; --back: #ffffff; --accent: #0b6e99; --good: #00745a; --warm: #a34f00;
  --quiet: #52616d; }
@media (prefers-color-scheme: dark) { :root:not([data-theme="light"]) { --ink: #e8eef4;
  --text: #d6dee5; --soft: #1c242c; --line: #35424e; --back: #12181e; --accent: #6cc0e5;
  --good: #4fd0a8; --warm: #f0a860; --quiet: #9dabb7; } }
:root[data-theme="dark"] { color-scheme: dark; --ink: #e8eef4; --text: #d6dee5; --soft: #1c242c;
  --line: #35424e; --back: #12181e; --accent: #6cc0e5; --good: #4fd0a8; --warm: #f0a860;
  --quiet: #9dabb7; }
:root[data-theme="light"] { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.5 "Avenir Next",
  "Segoe UI", "Helvetica Neue", Helvetica, "DejaVu Sans", Arial, sans-serif; }
header, main, footer { max-width: 72rem; margin: 0 auto; padding: 1rem 1.2rem; }
h1 { color: var(--ink); margin: 0.4rem 0; letter-spacing: -0.01em; }
h2, h3, p { margin: 0; }
a { color: var(--accent); }
.notes { margin: 0.6rem 0 0; color: var(--quiet); font-size: 0.92rem; }
form { position: sticky; top: 0; z-index: 1; background: var(--back); padding: 0.6rem 0;
  border-bottom: 1px solid var(--line); display: flex; flex-wrap: wrap; gap: 0.5rem 0.7rem;
  align-items: center; }
input, select, button { font: inherit; color: inherit; background: var(--soft);
  border: 1px solid var(--line); border-radius: 6px; padding: 0.3rem 0.6rem; max-width: 100%; }
input[type="search"] { flex: 1 1 16rem; min-width: 10rem; }
button { cursor: pointer; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
#found { color: var(--quiet); margin-left: auto; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(31rem, 100%), 1fr));
  gap: 1rem; align-items: start; }
article { border: 1px solid var(--line); border-top: 4px solid var(--accent); border-radius: 10px;
  padding: 0.8rem 1rem; content-visibility: auto; contain-intrinsic-size: auto 30rem;
  scroll-margin-top: 6rem; min-width: 0; }
article.parent { border-top-style: double; }
article.unstable { border-top-color: var(--warm); }
article:target { border-color: var(--accent); box-shadow: 0 0 0 2px var(--accent); }
article[hidden] { display: none; }
h2 { font-size: 1.2rem; color: var(--ink); overflow-wrap: anywhere; }
h2 a { text-decoration: none; }
h2 small { font-weight: 400; color: var(--quiet); }
h3 { font-size: 0.78rem; letter-spacing: 0.06em; text-transform: uppercase; color: var(--quiet);
  margin: 0.7rem 0 0.1rem; }
.name { font-size: 1.06rem; font-weight: 650; overflow-wrap: anywhere; }
.unknown { color: var(--quiet); font-style: italic; font-weight: 400; }
.why { color: var(--quiet); font-size: 0.9rem; overflow-wrap: anywhere; }
.flag { border: 1px solid currentcolor; border-radius: 999px; padding: 0 0.55rem; float: right;
  font-size: 0.82rem; color: var(--quiet); }
.stable .flag { color: var(--good); }
.unstable .flag { color: var(--warm); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 0.8rem; margin: 0.6rem 0 0;
  font-size: 0.92rem; }
dt { color: var(--quiet); max-width: 9.5rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums;
  width: 100%; }
th { text-align: left; font-weight: 400; color: var(--quiet); }
th, td { padding: 0.12rem 0.6rem 0.12rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td:first-child { overflow-wrap: anywhere; }
.gene td:first-child { font-style: italic; }
td:not(:first-child), th:not(:first-child) { text-align: right; white-space: nowrap; }
.sets :is(td, th):last-child { white-space: normal; text-align: left; }
.sets td:last-child { font-style: italic; }
@media print { form, #theme { display: none; } main { display: block; }
  article { break-inside: avoid; content-visibility: visible; margin-bottom: 1rem; } }
@media (max-width: 40rem) { form { position: static; } h2 { font-size: 1.1rem; }
  article { padding: 0.7rem; scroll-margin-top: 1rem; } }
"""

SCRIPT = """
"use strict";
const $ = (name) => document.getElementById(name);
const cards = [...document.querySelectorAll("article")];
const root = document.documentElement;
const remember = (value) => { try {
  if (value) localStorage.setItem("cellvq-theme", value);
  return localStorage.getItem("cellvq-theme");
} catch { return null; } };  // a browser may refuse storage to a file
if (remember()) root.dataset.theme = remember();
$("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remember(root.dataset.theme);
});
const texts = new Map();
const text = (card) => {
  if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
  return texts.get(card);
};
const genes = new Map();
const marks = (card, gene) => {
  if (!genes.has(card)) genes.set(card, [...card.querySelectorAll(".gene td:first-child")].map(
    (cell) => cell.textContent.toLowerCase()));
  return genes.get(card).some((name) => name.startsWith(gene));
};
function sift() {
  const words = $("text").value.toLowerCase().split(" ").filter(Boolean);
  const gene = $("gene").value.trim().toLowerCase();
  let found = 0;
  for (const card of cards) {
    const { level, parent, name } = card.dataset;
    const fits = (!$("stable").checked || card.classList.contains("stable"))
      && (!$("level").value || level === $("level").value)
      && (!$("parent").value || parent === $("parent").value || card.id === $("parent").value)
      && (!$("name").value || name === $("name").value)
      && (!gene || marks(card, gene)) && words.every((word) => text(card).includes(word));
    card.hidden = !fits;
    found += fits;
  }
  $("found").textContent = `${found} of ${cards.length} cards`;
}
for (const field of $("sift").elements) field.addEventListener("input", sift);
$("sift").addEventListener("submit", (event) => event.preventDefault());
$("sift").addEventListener("reset", () => setTimeout(sift));
function goThere() {
  let wanted = location.hash.slice(1);
  try { wanted = decodeURIComponent(wanted); } catch { /* a bare percent sign in a name */ }
  const card = wanted && $(wanted);
  if (!card) return;
  if (card.hidden) { $("sift").reset(); sift(); }
  card.scrollIntoView();
}
addEventListener("hashchange", goThere);
sift();
goThere();
"""


def frame(title: str, lead: str, notes: list[str], fields: str, cards: str) -> str:
    """Put cards into a page of their own.

    Args:
        title: words at the top; any text.
        lead: one sentence below it; any text.
        notes: what was left out and why; any text.
        fields: choices of the filters, HTML.
        cards: the cards, HTML.

    Example:
        >>> frame("A < B", "Two.", [], "", "").count("A &lt; B")
        2
    """
    said = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    said = f'<ul class="notes">{said}</ul>' if said else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><header>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{said}"
        '<form id="sift"><input type="search" id="text" placeholder="Search all words of a card" '
        'aria-label="Search all words of a card"><input id="gene" size="9" placeholder="Gene" '
        f'aria-label="Codes that this gene marks">{fields}<label><input type="checkbox" '
        'id="stable"> stable only</label><button type="reset">All</button>'
        '<button type="button" id="theme" aria-label="Light or dark page">Light / dark</button>'
        f'<output id="found"></output></form></header>\n<main>\n{cards}\n</main>\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )
