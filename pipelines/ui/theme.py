"""Colours, fonts and the little style sheet of the page. No font or script is fetched from elsewhere."""

from __future__ import annotations

import gradio as gr

SANS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = """
.gradio-container { width: 100%; max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container > main { width: 100%; }
.gh-head h1 { margin: 0; font-size: 1.7rem; letter-spacing: -0.02em; }
.gh-head p { margin: .15rem 0 0; opacity: .75; }
.gh-card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: .7rem .9rem; font-size: .88rem;
  background: var(--background-fill-secondary); }
.gh-card dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: .35rem 0 0; }
.gh-card dt { opacity: .65; } .gh-card dd { margin: 0; }
.gh-table { border: 0 !important; width: 100%; border-collapse: collapse; font-size: .9rem; }
.gh-table thead, .gh-table tbody, .gh-table tr, .gh-table th, .gh-table td { border: 0 !important; }
.gh-table th, .gh-table td { text-align: left; padding: .3rem .5rem !important; }
.gh-table th { font-weight: 600; opacity: .65; }
.gh-table td { border-top: 1px solid var(--border-color-primary) !important; vertical-align: middle; }
.gh-table img, .gh-chip { border-radius: 8px; display: block; }
.gh-chips { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-end; }
.gh-chips figure { margin: 0; font-size: .82rem; text-align: center; max-width: 150px; }
.gh-chips figcaption { margin-top: .25rem; overflow-wrap: anywhere; }
.gh-note { opacity: .75; font-size: .88rem; }
.gh-verdict { font-size: 1.05rem; font-weight: 600; margin: .2rem 0 .5rem; }
.gh-yes { color: #15803d; } .gh-no { color: #b45309; }
.dark .gh-yes { color: #4ade80; } .dark .gh-no { color: #fbbf24; }
.gh-scale { width: 100%; height: auto; max-width: 760px; }
.gh-scale text { fill: var(--body-text-color); font-size: 12px; }
.gh-video video { max-height: 320px; }
.gh-funnel { display: flex; flex-wrap: wrap; gap: .5rem; margin: .4rem 0; }
.gh-funnel div { flex: 1 1 7rem; border: 1px solid var(--border-color-primary); border-radius: 10px;
  padding: .45rem .6rem; text-align: center; background: var(--background-fill-secondary); }
.gh-funnel b { display: block; font-size: 1.25rem; }
.gh-funnel span { font-size: .8rem; opacity: .75; }
.gh-text { font-size: 1.05rem; line-height: 1.9; white-space: pre-wrap; overflow-wrap: anywhere; min-height: 6rem;
  border: 1px solid var(--border-color-primary); border-radius: 10px; padding: .7rem .9rem; margin: .3rem 0; }
.gh-given { font-style: italic; }
.gh-caret { display: inline-block; width: .5em; height: 1em; vertical-align: text-bottom; background: currentColor;
  opacity: .6; animation: gh-blink 1s steps(2) infinite; }
@keyframes gh-blink { to { opacity: 0; } }
.gh-tok { background: color-mix(in srgb, var(--c) 30%, transparent); border-bottom: 2px solid var(--c);
  border-radius: 3px; padding: .1em 0; }
.gh-tok[data-token] { cursor: pointer; }
.gh-tok.gh-p1 { background-image: repeating-linear-gradient(45deg, var(--c) 0 1px, transparent 1px 6px); }
.gh-tok.gh-p2 { background-image: repeating-linear-gradient(90deg, var(--c) 0 1px, transparent 1px 5px); }
.gh-tok.gh-p3 { background-image: repeating-linear-gradient(0deg, var(--c) 0 1px, transparent 1px 5px); }
.gh-double { border-bottom: 4px double var(--c); }
.gh-tok.gh-given { border-bottom-style: dotted; }
.gh-tok:hover, .gh-tok[aria-selected="true"] { outline: 2px solid var(--body-text-color); }
.gh-tok:focus-visible { outline: 3px solid var(--color-accent); }
.gh-tok:focus-visible::after, .gh-numbers .gh-tok::after { content: attr(data-expert); font-size: .62em;
  font-weight: 700; font-style: normal; vertical-align: sub; padding: 0 .15em; }
.gh-keys { display: flex; flex-wrap: wrap; gap: .3rem .8rem; font-size: .88rem; }
.gh-key .gh-tok { font-weight: 700; } .gh-plain .gh-tok { background: none; }
.gh-quote { border: 1px solid var(--border-color-primary); border-radius: 5px; padding: 0 .3em; white-space: pre; }
.gh-verdict small { font-weight: 400; opacity: .75; }
.gh-bars { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: .15rem 1.6rem;
  font-size: .85rem; max-width: 46rem; }
.gh-bar { display: grid; grid-template-columns: 1.6rem 1fr 3.4rem; gap: .4rem; align-items: center; }
.gh-bar > :last-child { text-align: right; } .gh-worked { font-weight: 700; }
.gh-track { background: color-mix(in srgb, currentColor 9%, transparent); border-radius: 3px; height: .8rem; }
.gh-fill { display: block; height: 100%; border-radius: 3px; background: var(--c); min-width: 1px; }
.gh-bar:not(.gh-worked) .gh-fill { opacity: .45; }
.gh-scroll { overflow-x: auto; }
.gh-grid { border: 0 !important; border-collapse: separate; border-spacing: 2px; font-size: .8rem; margin: 0; }
.gh-grid thead, .gh-grid tbody, .gh-grid tr { border: 0 !important; }
.gh-grid th { font-weight: 500; opacity: .65; padding: 0 .35rem !important; border: 0 !important; white-space: nowrap; }
.gh-grid td { min-width: 2rem; padding: 0 !important; text-align: center; border: 0 !important; border-radius: 3px;
  background: color-mix(in srgb, currentColor 6%, transparent); }
.gh-grid td .gh-tok { display: block; } .gh-here th { opacity: 1; font-weight: 700; }
.gh-here td { background: color-mix(in srgb, currentColor 16%, transparent); }
.gh-shade { background: color-mix(in srgb, #d55e00 var(--s), transparent); border-radius: 3px; }
.gh-canvas { width: 100%; max-width: 30rem; border: 1px solid var(--border-color-primary); border-radius: 10px;
  overflow: hidden; background: var(--background-fill-secondary); }
.gh-canvas img { width: 100%; height: 100%; display: block; }
.gh-progress { --c: var(--color-accent); max-width: 30rem; height: .5rem; }
.gh-pieces { line-height: 1.9; overflow-wrap: anywhere; max-height: 12rem; overflow-y: auto; }
.gh-ribbon { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(30px, 46px); gap: 2px; }
.gh-ribbon > div { display: flex; flex-direction: column; align-items: center; }
.gh-ribbon small { font-size: .65rem; opacity: .7; height: .9rem; white-space: nowrap; }
.gh-look { height: 46px; width: 70%; display: flex; align-items: flex-end; border-bottom: 1px solid currentColor; }
.gh-look i { display: block; width: 100%; background: #0d9488; border-radius: 3px 3px 0 0; min-height: 1px; }
.gh-bandrows { display: grid; grid-template-columns: minmax(5rem, max-content) 1fr; gap: 2px .6rem; font-size: .8rem;
  align-items: center; line-height: 1; }
.gh-cut { opacity: .6; text-decoration: line-through 2px #d55e00; }
"""


def theme() -> gr.themes.Base:
    """The theme for `launch(theme=...)`."""
    return gr.themes.Soft(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=SANS, font_mono=MONO)
