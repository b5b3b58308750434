"""How well an embedder tells people apart: python -m pipelines.face.evaluate --lfw DIR | --voc DIR --clips DIR

With LFW (a folder Name/Name_0001.jpg and pairs.txt) it prints the published protocol's numbers. Without it, two looser
sets that need no names:
    impostor pairs  two faces of one photo are two people; so are faces of two photos, save for people who were
                    photographed twice. --sheet draws the most similar pairs so that posters, mirrors and such
                    repeats can be seen and listed in --exclude.
    genuine pairs   one person followed through a short clip, frames far apart: same clothes, light and camera, so
                    the false-reject rate is lower than between two days.

Everything runs as in the app: our detector, the embedder's own alignment, cosine of unit embeddings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipelines.common import catalogue
from pipelines.common.images import open_picture

from .align import chips as align
from .cascade import overlap_union
from .config import CascadeOptions
from .contract import Detections
from .embedders import LocalEmbedder
from .local import LocalDetector
from .verification import equal_error_rate, rates, ten_fold, threshold_for_far

FRAME_STEP = 5  # frames between two looks at a clip
FAR_APART = 15  # frames between the two faces of a genuine pair
SAME_TRACK = 0.3  # overlap of boxes FRAME_STEP frames apart that makes them one person
FAR_TARGETS = (0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True)
class Found:
    """One face. name: photo and number of the face in it, "000012.jpg#1"; chip: (S, S, 3) uint8 RGB."""

    name: str
    frame: int
    box: np.ndarray
    chip: np.ndarray


class Examiner:
    """Our detector and one embedder, used as the app does."""

    def __init__(self, weights: str, min_face: int, score: float) -> None:
        self.detector = LocalDetector.load(catalogue.resolve("face", "mtcnn", "detector"))
        self.embedder = LocalEmbedder.load(catalogue.resolve("face", weights, "embedder"))
        self.options = CascadeOptions(min_face=max(min_face * 3 // 4, 12))
        self.min_face, self.score = min_face, score

    def faces(self, image: np.ndarray, name: str, frame: int = 0) -> list[Found]:
        """The faces of a picture that are sure and large enough."""
        found = self.detector.detect(image, self.options)
        sides = (found.boxes[:, 2:] - found.boxes[:, :2]).max(axis=1) if len(found) else np.zeros(0)
        keep = (found.scores >= self.score) & (sides >= self.min_face)
        found = Detections(found.boxes[keep], found.scores[keep], found.landmarks[keep])
        cut = align(self.embedder.entry.architecture, image, found.boxes, found.landmarks)
        return [Found(f"{name}#{i}", frame, found.boxes[i], cut[i]) for i in range(len(found))]

    def embed(self, faces: Sequence[Found], flip_average: bool) -> np.ndarray:
        """(number of faces, d) float32."""
        return self.embedder.embed([face.chip for face in faces], flip_average)


# --- pairs without names ---------------------------------------------------------------------------------------------


def photo_faces(examiner: Examiner, folder: Path) -> list[Found]:
    """Faces of the photos of a folder (searched deeply), by file name."""
    found: list[Found] = []
    for path in sorted(folder.rglob("*.jpg")):
        found += examiner.faces(open_picture(path).pixels, path.name)
    return found


def tracks(looks: Sequence[Sequence[Found]]) -> list[list[Found]]:
    """Faces of one clip, look by look, joined into people: the best overlap with a person seen at the look before."""
    done: list[list[Found]] = []
    alive: list[list[Found]] = []
    for look in looks:
        boxes = np.stack([face.box for face in look]) if look else np.zeros((0, 4), np.float32)
        shares = [overlap_union(track[-1].box, boxes) for track in alive]
        pairs = sorted(((share, t, f) for t, row in enumerate(shares) for f, share in enumerate(row)), reverse=True)
        used_tracks: set[int] = set()
        used_faces: set[int] = set()
        for share, t, f in pairs:
            if share >= SAME_TRACK and t not in used_tracks and f not in used_faces:
                alive[t].append(look[f])
                used_tracks.add(t)
                used_faces.add(f)
        done += [track for t, track in enumerate(alive) if t not in used_tracks]
        alive = [track for t, track in enumerate(alive) if t in used_tracks]
        alive += [[face] for f, face in enumerate(look) if f not in used_faces]
    return done + alive


def clip_tracks(examiner: Examiner, folder: Path) -> list[list[Found]]:
    """People followed through the clips (*.avi) of a folder (searched deeply)."""
    people: list[list[Found]] = []
    for path in sorted(folder.rglob("*.avi")):
        looks = [examiner.faces(image, path.name, number) for number, image in frames(path)]
        people += [track for track in tracks(looks) if track[-1].frame - track[0].frame >= FAR_APART]
    return people


def frames(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """(number, RGB uint8) of every FRAME_STEP-th frame of a video."""
    video = cv2.VideoCapture(str(path))
    try:
        number = 0
        while True:
            there, image = video.read()
            if not there:
                return
            if number % FRAME_STEP == 0:
                yield number, np.ascontiguousarray(image[:, :, ::-1])
            number += 1
    finally:
        video.release()


def genuine_pairs(people: Sequence[Sequence[Found]]) -> list[tuple[Found, Found]]:
    """Every two faces of a person that are at least FAR_APART frames apart."""
    return [(a, b) for person in people for a in person for b in person if b.frame - a.frame >= FAR_APART]


def impostor_similarities(
    vectors: np.ndarray, names: Sequence[str], excluded: set[frozenset[str]], within: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities (M,) of pairs of faces and their indices (M, 2), most similar first.

    within: both faces are of one photo, else of two. A name that `excluded` holds alone is in no pair.
    """
    photos = np.array([name.split("#")[0] for name in names])
    first, second = np.triu_indices(len(names), 1)
    keep = (photos[first] == photos[second]) == within
    first, second = first[keep], second[keep]
    number = {name: i for i, name in enumerate(names)}
    listed = [[number[name] for name in entry] for entry in excluded if entry <= number.keys()]
    singles = [entry[0] for entry in listed if len(entry) == 1]
    alone = np.isin(first, singles) | np.isin(second, singles)
    paired = np.isin(first * len(names) + second, [min(e) * len(names) + max(e) for e in listed if len(e) == 2])
    first, second = first[~alone & ~paired], second[~alone & ~paired]
    similarity = np.einsum("md,md->m", vectors[first], vectors[second])
    order = np.argsort(-similarity)
    return similarity[order], np.column_stack([first, second])[order]


# --- LFW -------------------------------------------------------------------------------------------------------------


def lfw_pairs(text: str) -> list[tuple[str, str, bool]]:
    """pairs.txt: (file, file, same person) in the order of the folds."""

    def file(name: str, number: str) -> str:
        return f"{name}/{name}_{int(number):04d}.jpg"

    pairs = []
    for line in text.splitlines():
        parts = line.split("\t") if "\t" in line else line.split()
        if len(parts) == 3:
            pairs.append((file(parts[0], parts[1]), file(parts[0], parts[2]), True))
        elif len(parts) == 4:
            pairs.append((file(parts[0], parts[1]), file(parts[2], parts[3]), False))
    return pairs


def evaluate_lfw(examiner: Examiner, folder: Path, flip_average: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Similarities (N,), same (N,) and how many pictures had no face found: their pairs count as similarity -1.

    The person meant is the one nearest the centre, as LFW's authors cut the pictures.
    """
    pairs = lfw_pairs((folder / "pairs.txt").read_text(encoding="utf-8"))
    files = sorted({name for pair in pairs for name in pair[:2]})
    root = folder / "lfw" if (folder / "lfw").is_dir() else folder
    central: dict[str, Found] = {}
    for name in files:
        image = open_picture(root / name).pixels
        centre = np.array([image.shape[1], image.shape[0], image.shape[1], image.shape[0]]) / 2
        found = examiner.faces(image, name)
        if found:
            central[name] = min(found, key=lambda face: float(np.abs((face.box - centre).reshape(2, 2).sum(0)).sum()))
    vectors = dict(zip(central, examiner.embed(list(central.values()), flip_average), strict=True))
    similarity = np.array([vectors[a] @ vectors[b] if a in vectors and b in vectors else -1.0 for a, b, _ in pairs])
    return similarity, np.array([same for *_, same in pairs]), len(files) - len(central)


# --- command line ----------------------------------------------------------------------------------------------------


def report(genuine: np.ndarray, impostor: np.ndarray) -> str:
    """EER, and FRR at some false-accept rates, as lines of text."""
    eer, at = equal_error_rate(genuine, impostor)
    lines = [f"  {len(genuine)} genuine and {len(impostor)} impostor pairs; EER {eer:.2%} at similarity {at:.4f}"]
    quantiles = np.percentile(genuine, (1, 5, 50)), np.percentile(impostor, (50, 95, 99))
    lines.append("  genuine 1/5/50 %: {:.3f} {:.3f} {:.3f}".format(*quantiles[0]))
    lines.append("  impostor 50/95/99 %: {:.3f} {:.3f} {:.3f}".format(*quantiles[1]))
    for target in FAR_TARGETS:
        point = rates(genuine, impostor, threshold_for_far(impostor, target))
        lines.append(f"  similarity {point.threshold:.4f}: FAR {point.far:.3%}, FRR {point.frr:.3%}")
    for threshold in np.arange(0.88, 0.985, 0.01):
        point = rates(genuine, impostor, threshold)
        lines.append(f"  similarity {threshold:.2f}:   FAR {point.far:.3%}, FRR {point.frr:.3%}")
    return "\n".join(lines)


def contact_sheet(faces: Sequence[Found], pairs: np.ndarray, similarity: np.ndarray, path: Path) -> None:
    """The given pairs side by side, eight a row, with similarity and names, to be looked at."""
    tiles = []
    for (i, j), value in zip(pairs, similarity, strict=True):
        tile = np.full((135, 204, 3), 255, np.uint8)
        tile[:100, :100], tile[:100, 102:202] = (cv2.resize(faces[k].chip, (100, 100)) for k in (i, j))
        for row, text in enumerate((f"{value:.3f}", faces[i].name, faces[j].name)):
            cv2.putText(tile, text, (2, 110 + 11 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 0), 1)
        tiles.append(tile)
    tiles += [np.full((135, 204, 3), 255, np.uint8)] * (-len(tiles) % 8)
    rows = [np.hstack(tiles[i : i + 8]) for i in range(0, len(tiles), 8)]
    cv2.imwrite(str(path), np.vstack(rows)[:, :, ::-1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="dlib", help="embedder of the catalogue")
    parser.add_argument("--lfw", type=Path, help="folder with pairs.txt and Name/Name_0001.jpg")
    parser.add_argument("--voc", type=Path, help="folder of photos for impostor pairs")
    parser.add_argument("--clips", type=Path, help="folder of short clips for genuine pairs")
    parser.add_argument("--min-face", type=int, default=36, help="least side of a face's box, pixels")
    parser.add_argument("--score", type=float, default=0.95, help="least score of a face")
    parser.add_argument("--exclude", type=Path, help='JSON list of pairs ["a.jpg#0", "b.jpg#1"] or faces ["a.jpg#0"]')
    parser.add_argument("--sheet", type=Path, help="folder for pictures of the most similar impostor pairs")
    args = parser.parse_args(arguments)
    examiner = Examiner(args.weights, args.min_face, args.score)
    if args.lfw:
        for flip in (False, True):
            similarity, same, lost = evaluate_lfw(examiner, args.lfw, flip)
            result = ten_fold(similarity, same)
            print(f"{args.weights}, LFW, flip averaging {flip}: {lost} pictures without a face")
            print(f"  accuracy {result.accuracy:.4f} ± {result.std:.4f} at similarity {result.threshold:.4f}")
            print(report(similarity[same], similarity[~same]))
    if args.voc and args.clips:
        _without_names(examiner, args)


def _without_names(examiner: Examiner, args: argparse.Namespace) -> None:
    excluded = {frozenset(pair) for pair in json.loads(args.exclude.read_text())} if args.exclude else set()
    faces, people = photo_faces(examiner, args.voc), clip_tracks(examiner, args.clips)
    pairs = genuine_pairs(people)
    print(f"{len(faces)} faces in photos; {len(people)} people followed through clips")
    for flip in (False, True):
        left, right = (examiner.embed([pair[k] for pair in pairs], flip) for k in (0, 1))
        genuine = np.einsum("gd,gd->g", left, right)
        vectors = examiner.embed(faces, flip)
        for within in (True, False):
            impostor, indices = impostor_similarities(vectors, [f.name for f in faces], excluded, within)
            where = "of one photo" if within else "of two photos"
            print(f"{args.weights}, flip averaging {flip}, impostors {where}, faces of {args.min_face} px and more")
            print(report(genuine, impostor))
            if args.sheet:
                name = f"{'within' if within else 'across'}{'-flip' if flip else ''}.png"
                contact_sheet(faces, indices[:64], impostor[:64], args.sheet / name)


if __name__ == "__main__":
    main()
