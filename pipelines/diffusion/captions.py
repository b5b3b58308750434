"""How the training says what a picture shows: one thing, many wordings, so that free prompts work later."""

from __future__ import annotations

import numpy as np

from .data import STYLES, EmojiData

# The first wording of each style is the plain one, used by evaluation.
STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "noto": ("noto style", "noto", "noto emoji", "in noto style", "google noto style"),
    "twemoji": ("twemoji style", "twemoji", "in twemoji style", "twitter emoji", "as twemoji"),
    "fluent-emoji": (
        "fluent-emoji style",
        "fluent emoji style",
        "fluent 3d style",
        "fluent",
        "fluent 3d",
        "in 3d style",
        "3d",
    ),
    "fluent-emoji-flat": (
        "fluent-emoji-flat style",
        "fluent emoji flat style",
        "fluent flat style",
        "fluent flat",
        "in flat style",
        "flat",
    ),
}
OPENINGS = ("", "", "", "", "a drawing of ", "a picture of ", "an emoji of ", "an icon of ", "draw ", "emoji ")


def plain(name: str, style: str) -> str:
    """The wording that evaluation uses: "a red apple, twemoji style"."""
    return f"{with_article(name.replace('-', ' '))}, {STYLE_WORDS[style][0]}"


def with_article(words: str) -> str:
    """ "red apple" -> "a red apple"; English plurals are left alone where the last letter tells."""
    if words.endswith("s") and not words.endswith(("ss", "us", "is")):
        return words
    return f"{'an' if words[:1] in 'aeiou' else 'a'} {words}"


def draw(name: str, keywords: tuple[str, ...], style: str, rng: np.random.Generator) -> str:
    """One random wording. The name is nearly always said, keywords often, the style in most draws."""
    spoken = name.replace("-", " ")
    thing = with_article(spoken) if rng.random() < 0.6 else spoken
    if keywords and rng.random() < 0.06:  # by what it is about only
        thing = " ".join(_some(keywords, 2, 4, rng))
    elif keywords and rng.random() < 0.35:
        extra = _some(keywords, 1, 3, rng)
        joined = ", ".join(extra) if rng.random() < 0.7 else " ".join(extra)
        thing = f"{thing}, {joined}" if rng.random() < 0.7 else f"{joined}, {thing}"
    thing = str(rng.choice(OPENINGS)) + thing
    if rng.random() < 0.08:
        return thing
    words = STYLE_WORDS[style]
    said = words[0] if rng.random() < 0.4 else str(rng.choice(words))
    where = rng.random()
    if where < 0.7:
        return f"{thing}, {said}"
    if where < 0.85:
        return f"{thing} {said if said.startswith(('in ', 'as ')) else 'in ' + said}"
    return f"{said}, {thing}"


def corpus(emoji: EmojiData, seed: int = 0, draws: int = 8) -> list[str]:
    """Captions to train the tokenizer on: the plain ones and some random ones of every name."""
    rng = np.random.default_rng(seed)
    lines = [plain(name, style) for name in emoji.names for style in STYLES]
    for name, keywords in zip(emoji.names, emoji.keywords, strict=True):
        lines += [draw(name, keywords, STYLES[int(rng.integers(len(STYLES)))], rng) for _ in range(draws)]
    return lines


def _some(keywords: tuple[str, ...], low: int, high: int, rng: np.random.Generator) -> list[str]:
    count = min(len(keywords), int(rng.integers(low, high + 1)))
    return [keywords[i] for i in rng.choice(len(keywords), size=count, replace=False)]
