"""The training pictures: things that four emoji sets draw under one name, rendered from the sets' own vector files.

The sources are npm packages, unpacked beforehand under one folder (`npm install` makes such a `node_modules`):
@iconify-json/noto, @iconify-json/twemoji, @iconify-json/fluent-emoji, @iconify-json/fluent-emoji-flat for the
drawings and emojilib for the keywords. A name is the icon's key in those packages, hyphenated as it is there
("red-apple"), and a style is the package's own prefix.

Shapes: N names, S styles, P the picture's side.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STYLES = ("noto", "twemoji", "fluent-emoji", "fluent-emoji-flat")
SIDE = 128

# Left out: flags, keycaps, and the squares and loudspeaker that differ from others only in being "medium".
LEFT_OUT = ("flag", "keycap", "medium")


def held_out(name: str, style: str) -> bool:
    """Whether a pair is kept from every training stage, for evaluation: about one in 33."""
    return int(hashlib.sha1(f"{name}/{style}".encode()).hexdigest(), 16) % 33 == 0


@dataclass(frozen=True)
class EmojiData:
    """All pictures in memory: (N, S, P, P, 3) uint8 RGB on white. `keywords[n]` are words about name n."""

    names: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    pictures: np.ndarray

    def pairs(self, held: bool) -> np.ndarray:
        """(count, 2) int64 indices (name, style) of the held-out pairs or of all the others."""
        chosen = [
            (n, s)
            for n, name in enumerate(self.names)
            for s, style in enumerate(STYLES)
            if held_out(name, style) == held
        ]
        return np.array(chosen, dtype=np.int64).reshape(-1, 2)


def load(path: Path) -> EmojiData:
    """Reads what `prepare` wrote."""
    with np.load(path) as archive:
        names = tuple(str(name) for name in archive["names"])
        keywords = tuple(tuple(str(line).split("\n")) if line else () for line in archive["keywords"])
        return EmojiData(names, keywords, archive["pictures"])


def prepare(packages: Path, path: Path) -> EmojiData:
    """Renders every shared name in every style and writes one compressed file: minutes of work, done once."""
    icons = {style: _read(packages / "@iconify-json" / style / "icons.json") for style in STYLES}
    names = shared_names(icons)
    keywords = _keywords(packages, names)
    pictures = np.empty((len(names), len(STYLES), SIDE, SIDE, 3), dtype=np.uint8)
    for n, name in enumerate(names):
        for s, style in enumerate(STYLES):
            pictures[n, s] = render(svg(icons[style], name))
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(
        temporary, names=np.array(names), keywords=np.array(["\n".join(words) for words in keywords]), pictures=pictures
    )
    temporary.replace(path)
    return EmojiData(tuple(names), tuple(keywords), pictures)


def shared_names(icons: dict[str, dict]) -> list[str]:
    """Names that every set draws and shows, sorted."""
    shown = [{key for key, icon in each["icons"].items() if not icon.get("hidden")} for each in icons.values()]
    return sorted(name for name in set.intersection(*shown) if not any(word in name for word in LEFT_OUT))


def svg(icons: dict, name: str) -> str:
    """One icon of an Iconify collection as an SVG document; its size is its own, else the collection's, else 16."""
    icon = icons["icons"][name]
    left, top, width, height = (
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def render(document: str) -> np.ndarray:
    """(P, P, 3) uint8 on white, the drawing centred."""
    import io

    import resvg_py
    from PIL import Image

    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=document, width=SIDE, height=SIDE)))).convert(
        "RGBA"
    )
    canvas = Image.new("RGBA", (SIDE, SIDE), "white")
    canvas.alpha_composite(drawn, ((SIDE - drawn.width) // 2, (SIDE - drawn.height) // 2))
    return np.asarray(canvas.convert("RGB"))


def _keywords(packages: Path, names: list[str]) -> list[tuple[str, ...]]:
    """emojilib's words for each name, by way of the character that the name stands for."""
    chars = _read(packages / "@iconify-json" / "noto" / "chars.json")  # code points "1f34e" -> name
    words = {_bare(char): tags for char, tags in _read(packages / "emojilib" / "dist" / "emoji-en-US.json").items()}
    by_name: dict[str, list[str]] = {}
    for points, name in chars.items():
        char = _bare("".join(chr(int(point, 16)) for point in points.split("-")))
        by_name.setdefault(name, []).extend(words.get(char, ()))
    cleaned = []
    for name in names:
        own = name.replace("-", " ")
        tags = (tag.replace("_", " ").strip().lower() for tag in by_name.get(name, ()))
        cleaned.append(tuple(dict.fromkeys(tag for tag in tags if tag != own and _wordy(tag))))
    return cleaned


def _bare(char: str) -> str:
    """Without the variation selector, which the sources disagree on."""
    return char.replace("\ufe0f", "")


def _wordy(tag: str) -> bool:
    """Not an emoticon such as ":D"."""
    return sum(letter.isalnum() for letter in tag) >= max(2, 0.6 * len(tag))


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
