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
.gh-funnel { display: flex; flex-wrap: wrap; gap: .5rem; margin: .4rem 0; }
.gh-funnel div { flex: 1 1 7rem; border: 1px solid var(--border-color-primary); border-radius: 10px;
  padding: .45rem .6rem; text-align: center; background: var(--background-fill-secondary); }
.gh-funnel b { display: block; font-size: 1.25rem; }
.gh-funnel span { font-size: .8rem; opacity: .75; }
"""


def theme() -> gr.themes.Base:
    """The theme for `launch(theme=...)`."""
    return gr.themes.Soft(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=SANS, font_mono=MONO)
