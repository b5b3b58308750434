"""Texts, experts and numbers as HTML for the pages of the Text tab. No gradio, no torch.

A `say` is called with a format string and its fields, and answers in the visitor's language. Layers and experts are
counted from 1 on the page and from 0 in the code.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pipelines.ui import draw

from .contract import Reading, RoutingTrace

# Okabe and Ito (2008): eight colours that stay apart without red-green vision. Beyond eight a pattern tells them apart,
# beyond thirty-two a double line as well.
PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#8f8f8f")
PATTERNS = 4
CARRIED = "◦"  # stands for a token that is the rest of a character begun in the token before
BEGIN = "▸ "  # stands for the mark that the tokenizer puts before a text
MARKS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # would turn the text around them
MOST = 3_000  # tokens that are shown one by one: each is an element of the page
SURPRISE = 12.0  # bits at which the shade is full: one in 4,096, a guess among all tokens of the story model


class Say(Protocol):
    def __call__(self, text: str, **values: object) -> str: ...


# --- characters ------------------------------------------------------------------------------------------------------


def visible(text: str) -> str:
    """The text with what a page cannot show made visible: control characters as their pictures, line ends as an arrow
    before the break, half surrogates and marks of writing direction as a replacement sign."""
    return "".join(_sign(char) for char in text)


def _sign(char: str) -> str:
    code = ord(char)
    if char == "\n":
        return "↵\n"
    if code < 32:
        return chr(0x2400 + code)
    if code == 127:
        return "␡"
    if char in MARKS or unicodedata.category(char) in ("Cs", "Cc"):
        return "\ufffd"
    return char


def plain(text: str) -> str:
    """Text as HTML: every sign of it, none of its markup."""
    return html.escape(visible(text))


def spelled(pieces: Sequence[bytes]) -> list[str]:
    """The text of each token. A character that is spread over several tokens stands at the first of them."""
    texts: list[str] = []
    held, waiting = b"", 0
    for piece in pieces:
        held, waiting = held + piece, waiting + 1
        if _cut(held) and waiting < 4:
            continue
        texts += [held.decode("utf-8", "replace"), *[CARRIED] * (waiting - 1)]
        held, waiting = b"", 0
    return [*texts, *["\ufffd"] * waiting]


def _cut(data: bytes) -> bool:
    """Whether the last character of these bytes may go on."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            return back < (4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1)
    return False


# --- text ------------------------------------------------------------------------------------------------------------


def writing(prompt: str, text: str, busy: bool = True) -> str:
    """A text that is being written, without colours."""
    caret = '<span class="gh-caret" aria-hidden="true"></span>' if busy else ""
    given = f'<span class="gh-given">{plain(prompt)}</span>' if prompt else ""
    return f'<div class="gh-text" dir="auto">{given}{plain(text)}{caret}</div>'


def paint(expert: int) -> tuple[str, str]:
    """Classes and style that show an expert: one of eight colours, and a pattern beyond."""
    group = expert // len(PALETTE)
    classes = f"gh-p{group % PATTERNS}" + (" gh-double" if group // PATTERNS % 2 else "")
    return classes, f"--c:{PALETTE[expert % len(PALETTE)]}"


def tokens(
    trace: RoutingTrace, texts: Sequence[str], layer: int, picked: int | None, numbered: bool, say: Say
) -> str:  # fmt: skip
    """Every token in the colour of its strongest expert in `layer`; given ones in italics over a dotted line."""
    first, weights = trace.experts[layer, :, 0], trace.weights[layer, :, 0]
    start = max(0, len(texts) - MOST)
    stop = picked if picked is not None and start <= picked < len(texts) else start  # that the tabulator key reaches
    parts = ["… "] if start else []
    for n, text in enumerate(texts[start:], start):
        classes, style = paint(int(first[n]))
        given = n < trace.prompt
        title = say(
            "Token {n}, expert {expert} with weight {weight}", n=n + 1, expert=int(first[n]) + 1,
            weight=f"{weights[n]:.2f}",
        )  # fmt: skip
        parts.append(
            f'<span class="gh-tok {classes}{" gh-given" if given else ""}" style="{style}" role="option" '
            f'data-token="{n}" data-expert="{first[n] + 1}" tabindex="{0 if n == stop else -1}" '
            f'aria-selected="{"true" if n == picked else "false"}" title="{html.escape(title)}">'
            f"{plain(text) or '∅'}</span>"
        )
    name = html.escape(say("The text, token by token"))
    numbers = " gh-numbers" if numbered else ""
    return f'<div class="gh-text{numbers}" dir="auto" role="listbox" aria-label="{name}">{"".join(parts)}</div>'


def legend(trace: RoutingTrace, layer: int, say: Say) -> str:
    """Colour, number and share of each expert of a layer, and how given tokens differ from written ones."""
    experts = trace.logits.shape[-1]
    load = np.bincount(trace.experts[layer, :, 0], minlength=experts) / max(trace.experts.shape[1], 1)
    items = []
    for expert in range(experts):
        classes, style = paint(expert)
        items.append(
            f'<span class="gh-key"><span class="gh-tok {classes}" style="{style}">&nbsp;{expert + 1}&nbsp;</span> '
            f"{load[expert]:.0%}</span>"
        )
    lead = say("Strongest expert in layer {layer} of {layers}, and its share of the tokens:", layer=layer + 1,
               layers=trace.logits.shape[0])  # fmt: skip
    given = f'<span class="gh-tok gh-given" style="--c:currentColor">{html.escape(say("given"))}</span>'
    wrote = f'<span class="gh-tok" style="--c:currentColor">{html.escape(say("written"))}</span>'
    hint = html.escape(say("Click a token, or walk with the arrow keys and press Enter."))
    return (
        f'<p class="gh-note">{html.escape(lead)}</p><div class="gh-keys">{"".join(items)}</div>'
        f'<p class="gh-note gh-plain">{given} {wrote} &nbsp; {hint}</p>'
    )


# --- one token -------------------------------------------------------------------------------------------------------


def detail(trace: RoutingTrace, texts: Sequence[str], token: int, layer: int, say: Say) -> str:
    """What the routers said of one token: its probabilities in `layer` as bars, its experts in all layers as a grid."""
    kind = say("given") if token < trace.prompt else say("written")
    head = say("Token {n} ({kind}), number {id} of the vocabulary", n=token + 1, kind=kind, id=int(trace.tokens[token]))
    bars = html.escape(say("Probability of each expert in layer {layer}; those that worked are bold.", layer=layer + 1))
    grid = html.escape(say("Its experts in every layer: the weight of each that worked, in percent."))
    return (
        f'<p class="gh-verdict"><span class="gh-quote">{plain(texts[token]) or "∅"}</span> '
        f"<small>{html.escape(head)}</small></p>"
        f'<p class="gh-note">{bars}</p>{_bars(trace, token, layer, say)}'
        f'<p class="gh-note">{grid}</p>{_grid(trace, token, layer, say)}'
    )


def _bars(trace: RoutingTrace, token: int, layer: int, say: Say) -> str:
    row = trace.logits[layer, token] - trace.logits[layer, token].max()
    chances = np.exp(row) / np.exp(row).sum()
    worked = set(trace.experts[layer, token].tolist())
    rows = []
    for expert, chance in enumerate(chances):
        classes, style = paint(expert)
        bold = " gh-worked" if expert in worked else ""
        rows.append(
            f'<div class="gh-bar{bold}" style="{style}"><span>{expert + 1}</span>'
            f'<span class="gh-track"><span class="gh-fill {classes}" style="width:{chance:.1%}"></span></span>'
            f"<span>{chance:.1%}</span></div>"
        )
    name = html.escape(say("Probabilities of the experts"))
    return f'<div class="gh-bars" role="img" aria-label="{name}">{"".join(rows)}</div>'


def _grid(trace: RoutingTrace, token: int, layer: int, say: Say) -> str:
    layers, _, experts = trace.logits.shape
    head = "".join(f"<th>{expert + 1}</th>" for expert in range(experts))
    lines = []
    for place in range(layers):
        weight = dict(zip(trace.experts[place, token].tolist(), trace.weights[place, token].tolist(), strict=True))
        cells = []
        for expert in range(experts):
            if expert not in weight:
                cells.append("<td></td>")
                continue
            classes, style = paint(expert)
            name = html.escape(say("Layer {layer}, expert {expert}", layer=place + 1, expert=expert + 1))
            share = f"{100 * weight[expert]:.0f}"
            cells.append(f'<td title="{name}"><span class="gh-tok {classes}" style="{style}">{share}</span></td>')
        here = ' class="gh-here"' if place == layer else ""
        lines.append(f"<tr{here}><th>{place + 1}</th>{''.join(cells)}</tr>")
    corner = html.escape(say("layer \\ expert"))
    return (
        f'<div class="gh-scroll"><table class="gh-grid"><thead><tr><th>{corner}</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


# --- a text that is scored -------------------------------------------------------------------------------------------


def score(reading: Reading, texts: Sequence[str], seconds: float, say: Say) -> str:
    """Bits per byte, and each token shaded by its surprise."""
    verdict = say("{bits} bits per byte", bits=f"{reading.bits_per_byte:.3f}")
    note = say(
        "{tokens} tokens, {bytes} bytes, {bits} bits together, in {seconds} s. The darker a token, the more it "
        "surprised the model that had read those before it; point at one for its bits.", tokens=len(reading.tokens),
        bytes=reading.bytes, bits=f"{reading.bits.sum():.0f}", seconds=f"{seconds:.2f}",
    )  # fmt: skip
    parts = []
    for text, bits in zip(texts[:MOST], reading.bits[:MOST].tolist(), strict=True):
        name = html.escape(say("{bits} bits", bits=f"{bits:.1f}"))
        share = 0.75 * min(max(bits / SURPRISE, 0.0), 1.0)
        parts.append(f'<span class="gh-shade" style="--s:{share:.0%}" title="{name}">{plain(text) or "∅"}</span>')
    return (
        f'<p class="gh-verdict">{html.escape(verdict)}</p><p class="gh-note">{html.escape(note)}</p>'
        f'<div class="gh-text" dir="auto">{"".join(parts)}{" …" if len(texts) > MOST else ""}</div>'
        f'<p class="gh-note">{html.escape(say("The largest surprises, in bits:"))} {_largest(reading, texts)}</p>'
    )


def _largest(reading: Reading, texts: Sequence[str]) -> str:
    order = np.argsort(-reading.bits, kind="stable")[:5]
    return ", ".join(f'<span class="gh-quote">{plain(texts[i]) or "∅"}</span> {reading.bits[i]:.1f}' for i in order)


# --- two implementations ---------------------------------------------------------------------------------------------


def swap(
    same: int, compared: int, gap: float, margin: float | None, speeds: tuple[float, float],
    prefill: tuple[float, float], say: Say,
) -> str:  # fmt: skip
    """What a local and a library run of one greedy text have in common.

    same: tokens before the two texts part. compared: tokens whose logits were compared, the one where they part
    included. gap: the largest difference of a logit. margin: by how much our first choice led where they part, None if
    they never do. speeds: tokens a second, ours first. prefill: seconds of the prompt.
    """
    if margin is None:
        verdict, mark = say("The same text in both, all {n} tokens.", n=same), "gh-yes"
    else:
        verdict = say(
            "The texts part after {n} tokens: the two likeliest were {margin} apart there.", n=same,
            margin=f"{margin:.1e}",
        )  # fmt: skip
        mark = "gh-no"
    rows = [
        [say("Largest difference of a logit, {n} tokens", n=compared), "", "", f"{gap:.2e}"],
        [say("Tokens a second"), f"{speeds[0]:.1f}", f"{speeds[1]:.1f}", f"{speeds[0] / speeds[1]:.1f}×"],
        [say("Reading the prompt, ms"), f"{1000 * prefill[0]:.1f}", f"{1000 * prefill[1]:.1f}",
         f"{prefill[1] / prefill[0]:.1f}×"],
    ]  # fmt: skip
    rows = [[html.escape(cell) for cell in row] for row in rows]
    table = draw.table(["", say("Rebuilt here"), say("Library"), say("Difference, ratio")], rows)
    note = say(
        "Warm, and in turn by chunks of a few tokens, so that whatever else the machine does falls on both. Timings of "
        "a busy machine vary from run to run."
    )
    return f'<p class="gh-verdict {mark}">{html.escape(verdict)}</p>{table}<p class="gh-note">{html.escape(note)}</p>'


def note(text: str) -> str:
    """A sentence as HTML."""
    return f'<p class="gh-note">{html.escape(text)}</p>'
