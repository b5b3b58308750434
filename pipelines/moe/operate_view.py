"""What a change of the routers did, as HTML. No gradio, no torch: `say` translates. Experts are counted from 1 here."""

from __future__ import annotations

import html
from collections.abc import Sequence

from pipelines.ui import draw

from .config import MoeConfig
from .contract import Effect, RouterChange
from .view import Say, plain, writing

# Name of a row -> title. "own" is the visitor's.
ROWS = {
    "plain": "The model's own routers",
    "own": "Your change",
    "random": "Control: a random router",
    "hash": "Control: a hash router",
}
DARKEST = 2.0  # bits of divergence at which the shade is full


def in_words(change: RouterChange, config: MoeConfig, say: Say) -> str:
    """What is changed, as a list of phrases; "" where nothing is."""
    found = []
    if change.control == "random":
        found.append(say("a random router"))
    if change.control == "hash":
        found.append(say("a hash router"))
    for pairs, text in ((change.banned, "without expert {experts}"), (change.forced, "always expert {experts}")):
        if pairs:
            found.append(say(text, experts=_places(pairs, config, say)))
    if change.active is not None and change.active != config.active:
        found.append(say("{n} of {all} work", n=change.active, all=config.experts))
    if change.temperature != 1:
        found.append(say("router temperature {t}", t=f"{change.temperature:g}"))
    return ", ".join(found)


def _places(pairs: frozenset[tuple[int, int]], config: MoeConfig, say: Say) -> str:
    """The experts with their layers: "1, 3 (all layers)" or "2 (layer 1, 4)"."""
    layers: dict[int, list[int]] = {}
    for layer, expert in sorted(pairs):
        layers.setdefault(expert, []).append(layer)
    groups: dict[tuple[int, ...], list[int]] = {}
    for expert, found in sorted(layers.items()):
        groups.setdefault(tuple(found), []).append(expert)
    parts = []
    for places, experts in groups.items():
        where = say("all layers")
        if len(places) < config.layers:
            where = say("layer {layers}", layers=", ".join(str(layer + 1) for layer in places))
        parts.append(f"{', '.join(str(expert + 1) for expert in experts)} ({where})")
    return "; ".join(parts)


def verdict(found: Effect, words: str, say: Say) -> str:
    """One sentence on the visitor's change."""
    if not words:
        text = say(
            "Nothing is changed: {bits} bits per byte. Ban or force an expert, or choose another router.",
            bits=f"{found.plain.bits_per_byte:.3f}",
        )  # fmt: skip
    else:
        more = found.changed.bits_per_byte - found.plain.bits_per_byte
        text = say(
            "{words}: {change} bits per byte on the same text ({before} to {after}), and each token's prediction moves "
            "by {kl} bits on average.", words=words[0].upper() + words[1:],
            change=f"{more:+.3f}", before=f"{found.plain.bits_per_byte:.3f}",
            after=f"{found.changed.bits_per_byte:.3f}", kl=f"{found.divergence.mean():.3f}",
        )  # fmt: skip
    return f'<p class="gh-verdict">{html.escape(text)}</p>'


def table(effects: Sequence[tuple[str, str, Effect]], say: Say) -> str:
    """The visitor's change beside the controls. effects: (title, more words, what it did); all of the same text."""
    plain_bits = effects[0][2].plain.bits_per_byte
    rows = [[html.escape(say(ROWS["plain"])), f"{plain_bits:.3f}", "", "", ""]]
    for title, words, found in effects:
        more = found.changed.bits_per_byte - plain_bits
        mark = "gh-no" if more > 5e-4 else "gh-yes" if more < -5e-4 else ""
        name = html.escape(title) + (f': <span class="gh-note">{html.escape(words)}</span>' if words else "")
        rows.append([
            name, f"{found.changed.bits_per_byte:.3f}", f'<b class="{mark}">{more:+.3f}</b>',
            f"{found.divergence.mean():.3f}", f"{found.moved.mean():.0%}",
        ])  # fmt: skip
    headers = [
        "", say("Bits per byte"), say("Change"), say("Divergence (KL), bits a token"), say("Choices of experts moved"),
    ]  # fmt: skip
    note = say(
        "The random router knows only the position, the hash router only which token it is. Where these two cost "
        "little, what the model's own routers know matters little to this text."
    )
    return f'{draw.table(headers, rows)}<p class="gh-note">{html.escape(note)}</p>'


def shaded(found: Effect, texts: Sequence[str], say: Say) -> str:
    """The text, each token the darker the more the change moved the prediction that stood before it."""
    parts = []
    bits = found.changed.bits - found.plain.bits
    for text, apart, more in zip(texts, found.divergence.tolist(), bits.tolist(), strict=True):
        title = html.escape(say("KL {kl} bits; {more} bits of surprise", kl=f"{apart:.2f}", more=f"{more:+.2f}"))
        share = min(apart / DARKEST, 1.0)
        parts.append(f'<span class="gh-shade" style="--s:{share:.0%}" title="{title}">{plain(text) or "∅"}</span>')
    layers = ", ".join(f"{share:.0%}" for share in found.moved.tolist())
    note = say(
        "The stronger a token's colour, the further your change moved the prediction of it. Choices of experts moved, "
        "layer by layer: {layers}.", layers=layers,
    )  # fmt: skip
    return f'<p class="gh-note">{html.escape(note)}</p><div class="gh-text" dir="auto">{"".join(parts)}</div>'


def side(title: str, prompt: str, text: str, busy: bool) -> str:
    """One of the two texts under its heading."""
    title = html.escape(title[:1].upper() + title[1:])
    return f'<p class="gh-verdict">{title}</p>{writing(prompt, text, busy)}'


def apart(left: str, right: str, say: Say) -> str:
    """Where the two texts part."""
    if left == right:
        text = say("Both texts are the same, word for word.")
    else:
        same = next(
            (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
        )
        text = say("One seed, two texts: they part after {n} characters.", n=same)
    return f'<p class="gh-note">{html.escape(text)}</p>'
