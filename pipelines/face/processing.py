"""Face processing in its two families, on aligned chips.

Many-to-one normalisation brings many conditions to one canonical face before it is embedded; one-to-many augmentation
makes many conditions out of one face. The families are those of Wang and Deng 2018, "Deep Face Recognition: A Survey",
section III-A. (Alignment, the first normalisation, is in align.py.)

Letters: S side of a chip, n chips, d numbers in an embedding. A chip is (S, S, 3) uint8 RGB; every function returns a
new one and leaves the given one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np

from pipelines.common.errors import UserError

# The yaw in degrees at which mirroring starts and at which the far half is replaced altogether. Below 15 both halves
# are well seen, and mirroring would only destroy the small asymmetries that tell people apart.
MIRROR_FROM, MIRROR_FULL = 15.0, 45.0
MIRROR_SEAM = 0.08  # half width of the seam, in sides of the chip
# How far from the middle the line of symmetry is looked for, away from and towards the side that the face looks to,
# and how wide a strip on each side of it is compared; all in sides of the chip.
SYMMETRY_RANGE, SYMMETRY_WINDOW = (0.03, 0.17), 0.27
CLAHE_CLIP, CLAHE_TILES = 2.0, 4
SUNGLASSES = (0.20, 0.44)  # rows of the bar, in sides: over the eyes of dlib's chips (0.30) and of facenet's (0.40)
MASK_FROM = 0.56  # row below which a mask hides the face


class Normalisation(NamedTuple):
    """function: (chip, yaw in degrees) -> chip. label: one line for the page."""

    function: Callable[[np.ndarray, float], np.ndarray]
    label: str


class Augmentation(NamedTuple):
    """function: (chip, generator) -> chip. label: one line for the page."""

    function: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    label: str


@dataclass(frozen=True)
class Effect:
    """What one switch does to the similarity of a pair.

    family: a normalisation was applied to both chips (as `FaceRequest.normalise` does to every face), an augmentation
    to the first. chip: the first chip as changed. Similarities are cosines in [-1, 1].
    """

    name: str
    label: str
    family: Literal["normalisation", "augmentation"]
    similarity_before: float
    similarity_after: float
    chip: np.ndarray

    @property
    def delta(self) -> float:
        """Below 0: the pair moved apart."""
        return self.similarity_after - self.similarity_before


def normalise(chip: np.ndarray, names: Sequence[str], yaw: float = 0.0) -> np.ndarray:
    """Apply normalisations in the given order. yaw: of the face in degrees, as `contract.Pose`.

    UserError: a name is unknown. ValueError: not a chip.
    """
    _check(chip)
    for name in names:
        if name not in NORMALISATIONS:
            raise UserError(_unknown("normalisation", name, NORMALISATIONS))
        chip = NORMALISATIONS[name].function(chip, yaw)
    return chip.copy()


def augment(chip: np.ndarray, name: str, seed: int = 0) -> np.ndarray:
    """Apply one augmentation; what is random about it (a place, a side) comes from the seed. Errors as `normalise`."""
    _check(chip)
    if name not in AUGMENTATIONS:
        raise UserError(_unknown("augmentation", name, AUGMENTATIONS))
    return AUGMENTATIONS[name].function(chip, np.random.default_rng(seed))


def effects(
    chip_a: np.ndarray,
    chip_b: np.ndarray,
    embed: Callable[[np.ndarray], np.ndarray],
    names: Sequence[str] | None = None,
    yaw_a: float = 0.0,
    yaw_b: float = 0.0,
    seed: int = 0,
) -> list[Effect]:
    """How far each normalisation and augmentation moves the similarity of a pair; all of them if `names` is None.

    embed: (n, S, S, 3) uint8 -> (n, d) of unit length. It is called once, with every chip that is needed.
    UserError: a name is unknown.
    """
    names = [*NORMALISATIONS, *AUGMENTATIONS] if names is None else names
    chips, places = [chip_a, chip_b], []
    for name in names:
        places.append(len(chips))
        if name in NORMALISATIONS:
            chips += [normalise(chip_a, [name], yaw_a), normalise(chip_b, [name], yaw_b)]
        elif name in AUGMENTATIONS:
            chips.append(augment(chip_a, name, seed))
        else:
            raise UserError(_unknown("switch", name, [*NORMALISATIONS, *AUGMENTATIONS]))
    vectors = np.asarray(embed(np.stack(chips)), np.float64)
    before = float(vectors[0] @ vectors[1])
    found = []
    for name, place in zip(names, places, strict=True):
        both = name in NORMALISATIONS
        after = float(vectors[place] @ vectors[place + 1 if both else 1])
        label = (NORMALISATIONS if both else AUGMENTATIONS)[name].label
        found.append(Effect(name, label, "normalisation" if both else "augmentation", before, after, chips[place]))
    return found


def clahe(chip: np.ndarray, yaw: float = 0.0) -> np.ndarray:
    """Even light: contrast-limited adaptive histogram equalisation of the lightness; colours keep their hue.

    Zuiderveld 1994, "Contrast limited adaptive histogram equalization", Graphics Gems IV; in CIELAB, so that only
    lightness changes.
    """
    lab = cv2.cvtColor(chip, cv2.COLOR_RGB2LAB)
    equaliser = cv2.createCLAHE(CLAHE_CLIP, (CLAHE_TILES, CLAHE_TILES))  # made here: one is not safe across threads
    lab[..., 0] = equaliser.apply(np.ascontiguousarray(lab[..., 0]))
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def mirror(chip: np.ndarray, yaw: float = 0.0) -> np.ndarray:
    """Fill the half of the face that is turned away with the mirror image of the half that is seen.

    A face that looks to the picture's right (yaw > 0) shows its left half in the picture, so the right half is
    filled, beyond `symmetry_line`. How much of the old half shows through falls evenly from all at 15 degrees to
    nothing at 45. The 2-D form of the soft symmetry of Hassner et al. 2015, "Effective face frontalization in
    unconstrained images", section 3.3.
    """
    amount = float(np.clip((abs(yaw) - MIRROR_FROM) / (MIRROR_FULL - MIRROR_FROM), 0, 1))
    if not amount > 0:  # False for a yaw that is no number too
        return chip.copy()
    side = chip.shape[1]
    columns = np.arange(side)
    line = symmetry_line(chip, yaw)
    across = (columns - line) / side * np.sign(yaw)  # > 0 on the half that is turned away
    weight = amount * _smooth((across + MIRROR_SEAM) / (2 * MIRROR_SEAM))[None, :, None]
    mirrored = chip[:, np.clip(round(2 * line) - columns, 0, side - 1)]
    return _pixels(chip * (1 - weight) + mirrored * weight)


def symmetry_line(chip: np.ndarray, yaw: float) -> float:
    """The column of the face's symmetry, in half pixels; the middle one where the chip shows no symmetry.

    On dlib's chips it is the middle; on facenet's, cut by the box alone, a turned head moves it to the side it looks
    to. So the column is searched whose two sides have the likest horizontal edges (brows, eyes, lips): those keep
    their rows when a head turns, while light does not stay the same.
    """
    side = chip.shape[0]
    grey = cv2.GaussianBlur(cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), max(side / 60, 0.5))
    edges = np.abs(cv2.Sobel(grey, cv2.CV_32F, 0, 1))[round(0.2 * side) : round(0.85 * side)]
    width = round(SYMMETRY_WINDOW * side)
    middle = (side - 1) / 2
    best, line = 0.0, middle
    for step in range(round(-2 * SYMMETRY_RANGE[0] * side), round(2 * SYMMETRY_RANGE[1] * side) + 1):
        candidate = middle + np.sign(yaw) * step / 2
        left, right = int(np.floor(candidate)) + 1, int(np.ceil(candidate))
        if width < 2 or left < width or right + width > side:
            continue
        a, b = edges[:, left - width : left], edges[:, right : right + width][:, ::-1]
        a, b = a - a.mean(), b - b.mean()
        likeness = float((a * b).sum() / (np.sqrt((a**2).sum() * (b**2).sum()) + 1e-9))
        if likeness > best:
            best, line = likeness, candidate
    return float(line)


def _flip(chip: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return chip[:, ::-1].copy()


def _darker(chip: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return _relight(chip, np.array(0.25))


def _brighter(chip: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return _relight(chip, np.array(2.5))


def _side_light(chip: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The light comes from one side: 2.5 there, falling to 0.04 on the other; the seed picks the side."""
    ramp = np.geomspace(2.5, 0.04, chip.shape[1])
    return _relight(chip, (ramp if draw.random() < 0.5 else ramp[::-1])[None, :, None])


def _scale(chip: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Down to a sixth and up again: as if the face had been that small in the picture."""
    side = chip.shape[0]
    small = cv2.resize(chip, (max(1, side // 6),) * 2, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR)


def _sunglasses(chip: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    side = chip.shape[0]
    return _painted(chip, (SUNGLASSES[0], SUNGLASSES[1]), (0.1, 0.9), np.full((side, side, 3), 12, np.uint8))


def _mask(chip: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    cloth = np.broadcast_to(np.array([150, 190, 215], np.uint8), chip.shape)  # a surgical mask's pale blue
    return _painted(chip, (MASK_FROM, 1.0), (0.0, 1.0), cloth)


def _patch(chip: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A square of noise, a third of the side, at a random place: random erasing (Zhong et al. 2020)."""
    top, left = draw.uniform(0.1, 0.9 - 1 / 3, 2)
    noise = draw.integers(0, 256, chip.shape, dtype=np.uint8)
    return _painted(chip, (top, top + 1 / 3), (left, left + 1 / 3), noise)


NORMALISATIONS: dict[str, Normalisation] = {
    "clahe": Normalisation(clahe, "Even light: local contrast of the lightness (CLAHE)"),
    "mirror": Normalisation(mirror, "Turned head: the far half filled with the mirrored near half"),
}

AUGMENTATIONS: dict[str, Augmentation] = {
    "flip": Augmentation(_flip, "Mirror image"),
    "darker": Augmentation(_darker, "A quarter of the light"),
    "brighter": Augmentation(_brighter, "Two and a half times the light"),
    "side-light": Augmentation(_side_light, "Light from one side"),
    "scale": Augmentation(_scale, "Low resolution: down to a sixth and up again"),
    "sunglasses": Augmentation(_sunglasses, "Eyes hidden by a dark bar"),
    "mask": Augmentation(_mask, "Mouth and chin hidden, as by a mask"),
    "patch": Augmentation(_patch, "A random square hidden by noise"),
}


def _relight(chip: np.ndarray, factor: np.ndarray) -> np.ndarray:
    # Light multiplies linear intensity; a picture's numbers are its power 1 / 2.2.
    return _pixels(255 * np.clip((chip / 255.0) ** 2.2 * factor, 0, 1) ** (1 / 2.2))


def _painted(
    chip: np.ndarray, rows: tuple[float, float], columns: tuple[float, float], paint: np.ndarray
) -> np.ndarray:  # fmt: skip
    """A copy with the paint in a rectangle given in sides of the chip."""
    height, width = chip.shape[:2]
    window = (
        slice(round(rows[0] * height), round(rows[1] * height)),
        slice(round(columns[0] * width), round(columns[1] * width)),
    )
    painted = chip.copy()
    painted[window] = paint[window]
    return painted


def _smooth(t: np.ndarray) -> np.ndarray:
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _check(chip: np.ndarray) -> None:
    if not (isinstance(chip, np.ndarray) and chip.dtype == np.uint8 and chip.ndim == 3 and chip.shape[2] == 3):
        raise ValueError("a chip is a (S, S, 3) uint8 RGB array")
    if not chip.shape[0] == chip.shape[1] > 0:
        raise ValueError("a chip is square")


def _unknown(kind: str, name: object, known: Sequence[str] | dict[str, Normalisation] | dict[str, Augmentation]) -> str:
    return f"There is no {kind} “{str(name)[:60]}”; choose from {', '.join(known)}."
