"""The tree of runs, the film strip and the comparison of the Time travel page, as HTML and SVG. No gradio, no torch.

A `say` is called with a format string and its fields, and answers in the visitor's language. Runs are counted from 1 on
the page and from 0 in the code; calls are counted as those that are done: "after 0 calls" is the noise.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.ui import draw

from .canvas import apart
from .contract import SAMPLER_TITLES, DiffusionRequest
from .travel import Node, Tree
from .view import Say, note, picture

WIDTH, ROW, THUMB, LEFT, TOP = 760, 78, 64, 14, 22
RIGHT = WIDTH - THUMB - 22  # where a lane ends, before its picture
LONGEST = 200  # letters of a label that are measured: no lane has room for as many
FRAME = 76  # pixels of a frame's side
FULL = 128.0  # levels of 255 at which a difference is drawn brightest

# A press on anything with data-run or data-call, and Enter or the space bar on it; arrow keys walk between the calls.
# Not the click event: while a film strip grows, its frames are replaced between pressing and letting go, and the
# browser then makes no click. A click without a pointer (detail 0) is a screen reader's.
ASK = """
const marked = '[data-run],[data-call]';
function ask(target) {
  const told = {};
  for (const name of ['run', 'call']) if (target.dataset[name] !== undefined) told[name] = Number(target.dataset[name]);
  trigger('click', told);
}
let pressed = null;
const same = (one, other) => one.dataset.run === other.dataset.run && one.dataset.call === other.dataset.call;
element.addEventListener('pointerdown', event => { pressed = event.button === 0 && event.target.closest(marked); });
element.addEventListener('pointerup', event => {
  const target = event.target.closest(marked);
  if (pressed && target && same(pressed, target)) ask(target);
  pressed = null;
});
element.addEventListener('click', event => {
  const target = event.target.closest(marked);
  if (target && event.detail === 0) ask(target);
});
element.addEventListener('keydown', event => {
  const target = event.target.closest(marked);
  if (!target) return;
  if (event.key === 'Enter' || event.key === ' ') ask(target);
  else {
    const way = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!way) return;
    const all = [...element.querySelectorAll('[tabindex]')], next = all[all.indexOf(target) + way];
    if (next) next.focus();
  }
  event.preventDefault();
});
"""


@dataclass(frozen=True)
class Frame:
    """One call in the film strip, as texts of <img src>: the latents before it, and the end that it predicted."""

    call: int
    latents: str
    end: str


def frame(call: int, latents: np.ndarray, end: np.ndarray) -> Frame:
    """latents, end (h, w, 3) uint8: as `insight.moment` gives them."""
    return Frame(call, draw.data_uri(larger(latents, FRAME), FRAME), draw.data_uri(larger(end, FRAME), FRAME))


def larger(image: np.ndarray, side: int) -> np.ndarray:
    """(h, w, 3) with whole cells repeated until the longest side is at least `side`; a rough look has few pixels."""
    times = max(1, -(-side // max(image.shape[:2])))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def frames_of(calls: range, most: int) -> list[int]:
    """The calls whose frames are shown: all, or `most` of them evenly spread, the first and the last among them."""
    if len(calls) <= most:
        return list(calls)
    return sorted({calls[round(k * (len(calls) - 1) / (most - 1))] for k in range(most)})


# --- what a run is, in words -----------------------------------------------------------------------------------------


def settings(request: DiffusionRequest, say: Say) -> str:
    """Sampler, steps, guidance and seed."""
    return say(
        "{sampler}, {steps} steps, guidance {guidance}, seed {seed}", sampler=SAMPLER_TITLES[request.sampler],
        steps=request.num_steps, guidance=f"{request.guidance_scale:g}", seed=request.seed,
    )  # fmt: skip


def changed(changes: Mapping[str, tuple[Any, Any]], say: Say) -> list[str]:
    """What a fork has changed, a phrase each."""
    if not changes:
        return [say("nothing changed")]
    pairs = {
        name: {"before": _short(SAMPLER_TITLES.get(before, before)), "after": _short(SAMPLER_TITLES.get(after, after))}
        for name, (before, after) in changes.items()
    }
    said = {
        "prompt": lambda pair: say("prompt “{after}”", after=pair["after"]),
        "negative_prompt": lambda pair: say("negative prompt “{after}”", after=pair["after"]),
        "guidance_scale": lambda pair: say("guidance {before} → {after}", **pair),
        "sampler": lambda pair: say("sampler {before} → {after}", **pair),
        "num_steps": lambda pair: say("steps {before} → {after}", **pair),
        "seed": lambda pair: say("seed {before} → {after}", **pair),
        "backend": lambda pair: say("implementation {before} → {after}", **pair),
        "precision": lambda pair: say("precision {before} → {after}", **pair),
    }
    return [said[name](pair) for name, pair in pairs.items()]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def title(tree: Tree, index: int, say: Say) -> str:
    """A run in one line: the root by its prompt and settings, a fork by what it changed."""
    node = tree.nodes[index]
    if node.parent is None:
        return f"“{node.request.prompt}” · {settings(node.request, say)}"
    said = changed(tree.changes(index), say)
    return say("after {n} calls: {changes}", n=node.call, changes=", ".join(said))


# --- the tree --------------------------------------------------------------------------------------------------------


def rows(tree: Tree) -> list[int]:
    """The runs from top to bottom: each above its forks, the late forks before the early ones, so that no line
    crosses another."""
    found: list[int] = []
    waiting = [0] if tree.nodes else []
    while waiting:
        index = waiting.pop()
        found.append(index)
        # The last one put down is taken up first: the latest fork, and of those at one call the oldest.
        waiting += sorted(tree.children(index), key=lambda child: (tree.nodes[child].call, -child))
    return found


def place(node: Node, call: int) -> float:
    """Where a call stands on its lane: by its time in the training schedule, from noise (left) to picture (right)."""
    times = node.history.timesteps
    share = 1.0 - float(times[call - node.first]) / 1000.0 if call - node.first < len(times) else 1.0
    return LEFT + (RIGHT - LEFT) * min(max(share, 0.0), 1.0)


def tree_picture(tree: Tree, picked: int, call: int, say: Say) -> str:
    """All runs as lanes from noise to picture, each leaving its parent where it was forked; the picked run and its call
    are marked. Pictures and the dots of calls can be clicked."""
    order = rows(tree)
    height = TOP + ROW * len(order)
    middle = {index: TOP + ROW * row + ROW / 2 for row, index in enumerate(order)}
    path = set(tree.path(picked))
    parts = [
        f'<text x="{LEFT}" y="13" opacity=".7">{html.escape(say("noise →"))}</text>',
        f'<text x="{RIGHT}" y="13" text-anchor="end" opacity=".7">{html.escape(say("→ picture"))}</text>',
    ]
    for index in order:
        parts += _lane(tree, index, middle, index in path)
    for index in order:
        parts += _dots(tree.nodes[index], index, middle[index], call if index == picked else None, say)
        parts += _label(tree, index, middle[index], say)
        parts += _thumb(tree, index, middle[index], index == picked, say)
    name = html.escape(say("Tree of runs"))
    return (
        f'<div class="gh-scroll"><svg class="gh-scale" style="max-width:{WIDTH}px;min-width:600px" '
        f'viewBox="0 0 {WIDTH} {height}" role="group" aria-label="{name}">{"".join(parts)}</svg></div>'
    )


def _ink(strong: bool) -> str:
    return 'stroke="var(--color-accent)" stroke-width="2.5"' if strong else 'stroke="currentColor" opacity=".35"'


def _lane(tree: Tree, index: int, middle: Mapping[int, float], strong: bool) -> list[str]:
    node, y = tree.nodes[index], middle[index]
    start, parts = place(node, node.first), []
    if node.parent is not None:
        x, above = place(tree.nodes[node.parent], node.call), middle[node.parent]
        parts.append(
            f'<path d="M{x:.1f} {above:.1f} V{y - 12:.1f} Q{x:.1f} {y:.1f} {x + 12:.1f} {y:.1f} '
            f'H{max(start, x + 12):.1f}" fill="none" {_ink(strong)}/>'
        )
    parts.append(f'<line x1="{start:.1f}" x2="{RIGHT + 8}" y1="{y}" y2="{y}" {_ink(strong)}/>')
    return parts


def _dots(node: Node, index: int, y: float, call: int | None, say: Say) -> list[str]:
    parts = []
    for at in node.calls:
        x, here = place(node, at), at == call
        name = html.escape(say("Run {run}, after {n} calls", run=index + 1, n=at))
        mark = 'r="6" fill="var(--color-accent)"' if here else 'r="3" fill="currentColor" opacity=".55"'
        parts.append(
            f'<g data-run="{index}" data-call="{at}" style="cursor:pointer"><title>{name}</title>'
            f'<circle cx="{x:.1f}" cy="{y}" r="9" fill="transparent"/><circle cx="{x:.1f}" cy="{y}" {mark}/></g>'
        )
    return parts


def _label(tree: Tree, index: int, y: float, say: Say) -> list[str]:
    """Above the lane, from where it begins; where that is too late for the text, up to where the lane ends."""
    node, text = tree.nodes[index], title(tree, index, say)
    start = place(node, node.first) + 4
    late = start + 24 + _pixels(text) > RIGHT and start > (LEFT + RIGHT) / 2
    x, anchor, room = (RIGHT, "end", RIGHT - LEFT) if late else (start, "start", RIGHT - start)
    shown = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    while _pixels(shown) > room - 24:
        shown = shown[: -4 if shown.endswith("…") else -3] + "…"
    return [
        f'<text x="{x:.1f}" y="{y - 13:.1f}" text-anchor="{anchor}" paint-order="stroke" stroke-width="4" '
        f'stroke="var(--background-fill-primary)"><title>{html.escape(text)}</title>'
        f'<tspan font-weight="700">{index + 1}</tspan>&#160; {html.escape(shown)}</text>'
    ]


def _pixels(text: str) -> float:
    """About how wide a label is; letters of East Asia are twice as wide."""
    return sum(12.5 if unicodedata.east_asian_width(char) in "WF" else 6.7 for char in text)


def _thumb(tree: Tree, index: int, y: float, here: bool, say: Say) -> list[str]:
    node, x, top = tree.nodes[index], RIGHT + 10, y - THUMB / 2
    name = html.escape(say("Run {run}: {what}", run=index + 1, what=title(tree, index, say)))
    edge = 'stroke="var(--color-accent)" stroke-width="4"' if here else 'stroke="currentColor" stroke-opacity=".25"'
    uri = draw.data_uri(larger(node.image, 2 * THUMB), 2 * THUMB)
    return [
        f'<g data-run="{index}" role="button" tabindex="0" aria-pressed="{"true" if here else "false"}" '
        f'aria-label="{name}" style="cursor:pointer"><title>{name}</title>'
        f'<image href="{uri}" x="{x}" y="{top:.1f}" width="{THUMB}" height="{THUMB}"/>'
        f'<rect x="{x}" y="{top:.1f}" width="{THUMB}" height="{THUMB}" fill="none" rx="4" {edge}/></g>'
    ]


# --- the film strip --------------------------------------------------------------------------------------------------


def strip(frames: Sequence[Frame], chosen: int | None, wanted: int, say: Say) -> str:
    """Two rows of small pictures: the latents before each call, and the end that it predicted. chosen: the call that is
    looked at. wanted: frames that there will be."""
    if not frames:
        return ""
    near = min((each.call for each in frames), key=lambda at: abs(at - (chosen if chosen is not None else -1)))
    cells = []
    for each in frames:
        here = chosen is not None and each.call == near
        edge = "3px solid var(--color-accent)" if here else "3px solid transparent"
        name = html.escape(say("After {n} calls", n=each.call))
        cells.append(
            f'<div role="option" tabindex="{0 if here or chosen is None else -1}" data-call="{each.call}" '
            f'aria-selected="{"true" if here else "false"}" aria-label="{name}" '
            f'style="flex:none;cursor:pointer;border-radius:8px;padding:2px;text-align:center;border:{edge}">'
            f'<small style="display:block;line-height:1.3">{each.call}</small>{_small(each.latents)}{_small(each.end)}'
            "</div>"
        )
    cells += [_blank(n) for n in range(min(wanted - len(frames), 1))]
    side = "".join(
        f'<div style="height:{FRAME}px;display:flex;align-items:center">{html.escape(text)}</div>'
        for text in (say("the latents"), say("the predicted end"))
    )
    name = html.escape(say("Film strip: the run call by call"))
    return (
        '<div style="display:flex;gap:.4rem"><div class="gh-note" style="flex:none;width:4.2rem;'
        f'padding-top:1.35rem">{side}</div><div role="listbox" aria-orientation="horizontal" aria-label="{name}" '
        f'style="display:flex;gap:1px;overflow-x:auto;min-width:0">{"".join(cells)}</div></div>'
    )


def _small(uri: str) -> str:
    return f'<img src="{uri}" alt="" style="display:block;width:{FRAME}px;height:{FRAME}px;object-fit:contain">'


def _blank(_: int) -> str:
    return '<div class="gh-note" style="flex:none;align-self:center;padding:0 .6rem">…</div>'


# --- a moment --------------------------------------------------------------------------------------------------------


def moment(latents: np.ndarray, end: np.ndarray, image: np.ndarray, call: int, say: Say) -> str:
    """The latents after some calls, the end that the next call predicts, and what the run ended in, side by side."""
    named = (
        (latents, say("the latents after {n} calls, seen as a picture", n=call)),
        (end, say("the end as the next call predicts it")),
        (image, say("the end of this run")),
    )
    return figures([(larger(each, 256), text) for each, text in named])


def figures(pictures: Iterable[tuple[np.ndarray, str]], least: int = 140) -> str:
    """Captioned pictures that share the width, none narrower than `least` pixels."""
    cells = "".join(
        f'<figure style="flex:1 1 {least}px;max-width:256px;margin:0">{picture(image, text)}'
        f'<figcaption class="gh-note">{html.escape(text)}</figcaption></figure>'
        for image, text in pictures
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:.6rem">{cells}</div>'


# --- a run beside the one that it was forked from --------------------------------------------------------------------


def compare(tree: Tree, index: int, say: Say) -> str:
    """The parent's picture, the run's own, and where they differ."""
    node = tree.nodes[index]
    if node.parent is None:
        text = say("Run {run} is the root: “{prompt}”, {settings}.", run=index + 1, prompt=node.request.prompt,
                   settings=settings(node.request, say))  # fmt: skip
        return note(text)
    parent = tree.nodes[node.parent]
    far, where = apart(parent.image, node.image)
    verdict = (
        say("The very same picture, to the last bit.") if far == 0
        else say("The two pictures are {far} levels of 255 apart on average.", far=f"{far:.1f}")
    )  # fmt: skip
    pictures = [
        (larger(parent.image, 256), say("Run {run}, the parent", run=node.parent + 1)),
        (larger(node.image, 256), say("Run {run}", run=index + 1)),
        (larger(draw.heat(where / FULL), 256), say("difference; brightest from {n} levels on", n=f"{FULL:.0f}")),
    ]
    head = say("Run {run}, forked from run {parent} after {n} calls", run=index + 1, parent=node.parent + 1,
               n=node.call)  # fmt: skip
    said = changed(tree.changes(index), say)
    return (
        f'<p class="gh-verdict">{html.escape(head)} <small>{html.escape(", ".join(said))}</small></p>'
        f'{figures(pictures, 90)}<p class="gh-note">{html.escape(verdict)}</p>'
    )
