"""The books of a trace as HTML. No gradio, no torch: `say` translates. Layers and experts are counted from 1 here."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from pipelines.ui import draw

from .contract import Ledger, RoutingTrace, Taste
from .view import Say, paint, plain

MOST = 14  # tastes shown
INK = "#0072b2"
VERDICTS = {
    "liked": ("gh-yes", "too often for luck"),
    "chance": ("", "could be luck"),
    "few": ("", "too few places to say"),
}


def books(found: Ledger, layer: int, expert: int, say: Say) -> str:
    """Load of every expert in every layer, the entropies and losses, and how far identity goes."""
    experts = found.load.shape[1]
    names = [say("entropy"), say("of the load"), say("balance"), say("z-loss"), say("identity"), say("chance")]
    head = "".join(f"<th>{expert + 1}</th>" for expert in range(experts))
    head += "".join(f'<th style="padding-left:.7rem!important">{html.escape(name)}</th>' for name in names)
    lines = []
    for i, load in enumerate(found.load):
        cells = [_cell(share, experts, (i, e) == (layer, expert), i, e, say) for e, share in enumerate(load.tolist())]
        numbers = (
            f"{found.entropy[i]:.2f}", f"{found.load_entropy[i]:.2f}", f"{found.balance[i]:.3f}", f"{found.z[i]:.2f}",
            _percent(found.identity[i]), _percent(found.chance[i]),
        )  # fmt: skip
        cells += [f'<td style="background:none;padding-left:.7rem!important">{number}</td>' for number in numbers]
        lines.append(f"<tr><th>{i + 1}</th>{''.join(cells)}</tr>")
    corner = html.escape(say("layer \\ expert"))
    return (
        f'<div class="gh-scroll"><table class="gh-grid"><thead><tr><th>{corner}</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{_explained(found, say)}"
    )


def _cell(share: float, experts: int, chosen: bool, layer: int, expert: int, say: Say) -> str:
    strength = min(share * experts / 2, 1.0)  # full at twice the even share
    edge = "outline:2px solid var(--body-text-color);" if chosen else ""
    title = html.escape(say("Layer {layer}, expert {expert}", layer=layer + 1, expert=expert + 1))
    ink = f"color-mix(in srgb, {INK} {strength * 70:.0f}%, transparent)"
    return f'<td style="background:{ink};{edge}" title="{title}">{share:.0%}</td>'


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"


def _explained(found: Ledger, say: Say) -> str:
    experts = found.load.shape[1]
    share = say(
        "Each cell is an expert's share of its layer's choices; {even} is even. Entropy, in bits: of what the router "
        "says of one token on average, and of the load, {most} at most.", even=f"{1 / experts:.1%}",
        most=f"{math.log2(experts):.2f}",
    )  # fmt: skip
    active = found.dropped.shape[2]
    balance = say(
        "Balance loss: 1 is even, {most} is one expert for everything; {mean} on average over the layers. The library "
        "pools all layers before it counts: {pooled}, which is {each} for each of the {active} choices. That "
        "forgives an expert that idles in one layer if its namesake in another is busy.", most=experts,
        mean=f"{found.balance.mean():.3f}", pooled=f"{found.pooled:.3f}", each=f"{found.pooled / active:.3f}",
        active=active,
    )  # fmt: skip
    z = say(
        "The z-loss is the mean squared log-sum of the router's logits: training keeps it small. The last two columns "
        "are the votes above, layer by layer."
    )
    return f'<p class="gh-note">{html.escape(share)} {html.escape(balance)} {html.escape(z)}</p>'


def identity(found: Ledger, say: Say) -> str:
    """How much of the routing the token itself explains, in plain words, before any expert is called a specialist."""
    if np.isnan(found.identity).any() or np.isnan(found.chance).any():
        text = say("No token stands twice among others here: whether routing follows the token cannot be told.")
        return f'<p class="gh-verdict">{html.escape(text)}</p>'
    own, blind = float(found.identity.mean()), float(found.chance.mean())
    text = say(
        "Which token it is foretells its strongest expert in {own} of the places; luck would in {blind}.",
        own=f"{own:.0%}", blind=f"{blind:.0%}",
    )  # fmt: skip
    if own - blind > 0.5:
        word = say("So these experts divide up the vocabulary more than topics: most of what looks like a specialist "
                   "is a list of tokens.")  # fmt: skip
    elif own - blind > 0.15:
        word = say("So the token decides part of the routing, and what stands around it another part.")
    else:
        word = say("So the token by itself decides next to nothing here.")
    how = say(
        "Each place of a token that stands here more than once is guessed by a vote of the token's other places; for "
        "the chance, as many places of other tokens vote, drawn at random."
    )
    return f'<p class="gh-verdict">{html.escape(text)} {html.escape(word)}</p><p class="gh-note">{html.escape(how)}</p>'


def tastes(found: Sequence[Taste], layer: int, expert: int, say: Say) -> str:
    """What an expert likes, and what only looks so."""
    sure = [taste for taste in found if taste.verdict == "liked"]
    few = sum(taste.verdict == "few" for taste in found)
    lead = say(
        "Expert {expert} of layer {layer}: {sure} of {all} different tokens come too often for luck, {few} have too "
        "few places to say.", expert=expert + 1, layer=layer + 1, sure=len(sure), all=len(found), few=few,
    )  # fmt: skip
    rows = []
    for taste in [taste for taste in found if taste.share][:MOST]:
        style, word = VERDICTS[taste.verdict]
        shown = plain(taste.piece).replace("\n", "") or "∅"  # the arrow of a line end, without the end
        rows.append([
            f'<span class="gh-quote">{shown}</span>', str(taste.count), f"{taste.share:.0%}", f"{taste.lift:.1f}×",
            f"{taste.chance:.1g}", f'<span class="{style}">{html.escape(say(word))}</span>',
        ])  # fmt: skip
    headers = [
        say("Token"), say("Places"), say("The expert got"), say("Against its share of all"), say("By luck"), "",
    ]  # fmt: skip
    note = say(
        "By luck: the probability that as many or more of its places fall to the expert if its work were dealt out "
        "blindly. The limit is 5 % over all tokens together: a long list must not find its specialist by chance."
    )
    return (
        f'<p class="gh-verdict">{html.escape(lead)}</p>{draw.table(headers, rows)}'
        f'<p class="gh-note">{html.escape(note)}</p>'
    )


def capacity(
    trace: RoutingTrace, dropped: np.ndarray, texts: Sequence[str], layer: int, factor: float, say: Say
) -> str:
    """What a capacity would have refused: shares of all layers, and the tokens of one. dropped (L, N, k) bool."""
    count, active = dropped.shape[1:]
    experts = trace.logits.shape[-1]
    room = math.ceil(factor * count * active / experts)
    lost = int(dropped[layer].all(axis=1).sum())
    lead = say(
        "With room for {room} of {count} tokens in each expert ({factor} even shares), {share} of all choices would "
        "have been refused.", room=room, count=count, factor=f"{factor:g}", share=f"{dropped.mean():.1%}",
    )  # fmt: skip
    by_layer = say("By layer: {shares}.", shares=", ".join(f"{share:.0%}" for share in dropped.mean(axis=(1, 2))))
    note = say(
        "In layer {layer}, below: the redder a token, the more of its {active} experts had no room left; {lost} "
        "token(s) would have passed the layer untouched. The model itself drops nothing when it writes: this is what "
        "training with a capacity (Switch) would have done.", layer=layer + 1, active=active, lost=lost,
    )  # fmt: skip
    parts = []
    for n, text in enumerate(texts):
        share = float(dropped[layer, n].mean())
        names = ", ".join(str(e + 1) for e in trace.experts[layer, n][dropped[layer, n]])
        title = html.escape(say("no room in expert {experts}", experts=names)) if share else ""
        strike = "text-decoration:line-through;" if share == 1 else ""
        parts.append(
            f'<span class="gh-shade" style="--s:{share * 70:.0f}%;{strike}" title="{title}">{plain(text) or "∅"}</span>'
        )
    return (
        f'<p class="gh-verdict">{html.escape(lead)}</p>'
        f'<p class="gh-note">{html.escape(by_layer)} {html.escape(note)}</p>'
        f'<div class="gh-text" dir="auto">{"".join(parts)}</div>'
    )


def places(trace: RoutingTrace, texts: Sequence[str], layer: int, expert: int) -> str:
    """The text, with the tokens that an expert got in its colour, stronger with the weight that it had."""
    classes, style = paint(expert)
    parts = []
    for n, text in enumerate(texts):
        shown = plain(text) or "∅"
        at = np.flatnonzero(trace.experts[layer, n] == expert)
        if not len(at):
            parts.append(shown)
            continue
        weight = float(trace.weights[layer, n, at[0]])
        parts.append(f'<span class="gh-tok {classes}" style="{style}" title="{weight:.2f}">{shown}</span>')
    return f'<div class="gh-text" dir="auto">{"".join(parts)}</div>'
