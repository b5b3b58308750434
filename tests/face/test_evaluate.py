"""Error rates by hand, LFW's pairs, and people followed through a clip."""

import numpy as np
import pytest

from pipelines.face import verification
from pipelines.face.verification import (
    best_threshold,
    equal_error_rate,
    rates,
    roc,
    ten_fold,
    threshold_for_far,
)

GENUINE = np.array([0.9, 0.8, 0.7, 0.4])
IMPOSTOR = np.array([0.1, 0.2, 0.5, 0.7, 0.3])


@pytest.mark.parametrize(
    ("threshold", "far", "frr"),
    [(0.0, 1.0, 0.0), (0.4, 0.4, 0.0), (0.41, 0.4, 0.25), (0.7, 0.2, 0.25), (0.71, 0.0, 0.5), (1.0, 0.0, 1.0)],
)
def test_rates_by_hand(threshold, far, frr):
    point = rates(GENUINE, IMPOSTOR, threshold)
    assert (point.far, point.frr, point.threshold) == (pytest.approx(far), pytest.approx(frr), threshold)


def test_roc_by_hand():
    curve = roc(GENUINE, IMPOSTOR)
    found = [(round(p.threshold, 6), round(p.far, 6), round(p.frr, 6)) for p in curve]
    assert found == [
        (0.1, 1.0, 0.0), (0.2, 0.8, 0.0), (0.3, 0.6, 0.0), (0.4, 0.4, 0.0), (0.5, 0.4, 0.25),
        (0.7, 0.2, 0.25), (0.8, 0.0, 0.5), (0.9, 0.0, 0.75), (0.9, 0.0, 1.0),
    ]  # fmt: skip
    for point in curve:
        again = rates(GENUINE, IMPOSTOR, point.threshold)
        assert (again.far, again.frr) == (pytest.approx(point.far), pytest.approx(point.frr))


def test_equal_error_rate_by_hand():
    assert equal_error_rate(GENUINE, IMPOSTOR) == (pytest.approx(0.225), pytest.approx(0.7))
    assert equal_error_rate(np.array([0.8, 0.9]), np.array([0.1, 0.2])) == (0.0, pytest.approx(0.8))
    assert equal_error_rate(np.array([0.1, 0.2]), np.array([0.8, 0.9]))[0] == pytest.approx(1.0)


def test_threshold_for_a_false_accept_rate():
    impostor = np.arange(100) / 100
    for far, wanted in ((0.0, 0.99), (0.01, 0.98), (0.1, 0.89), (0.105, 0.89)):
        threshold = threshold_for_far(impostor, far)
        assert threshold == pytest.approx(wanted) and (impostor >= threshold).mean() <= far
        assert (impostor >= threshold - 0.011).mean() > far
    assert threshold_for_far(np.full(10, 0.5), 0.3) > 0.5, "ties fall together"
    assert threshold_for_far(impostor, 1.0) == -np.inf


def test_best_threshold_by_hand():
    assert best_threshold(np.array([0.1, 0.9, 0.4, 0.6]), np.array([False, True, False, True])) == pytest.approx(0.5)
    assert best_threshold(np.array([0.1, 0.9]), np.array([True, True])) == pytest.approx(0.1)
    assert best_threshold(np.array([0.1, 0.9]), np.array([False, False])) > 0.9
    # A tie can't be cut: 0.5 holds one of each, so six of seven is the best.
    similarity = np.array([0.1, 0.2, 0.5, 0.5, 0.7, 0.8, 0.9])
    same = np.array([False, False, False, True, True, True, True])
    threshold = best_threshold(similarity, same)
    assert ((similarity >= threshold) == same).sum() == 6


def test_ten_fold_judges_each_part_by_the_others():
    # Two folds that would each be perfect with a threshold of their own, and are wrong with the other's.
    similarity = np.array([0.1, 0.3, 0.6, 0.8])
    same = np.array([False, True, False, True])
    result = ten_fold(similarity, same, folds=2)
    assert (result.accuracy, result.std, result.threshold) == (0.5, 0.0, pytest.approx(0.45))
    clear = ten_fold(np.tile([0.2, 0.9], 30), np.tile([False, True], 30))
    assert (clear.accuracy, clear.std, clear.threshold) == (1.0, 0.0, pytest.approx(0.55))


@pytest.mark.parametrize("scores", [[], [np.nan], [[0.1, 0.2]]])
def test_empty_and_broken_lists_are_refused(scores):
    with pytest.raises(ValueError, match="at least one similarity"):
        verification.rates(GENUINE, np.array(scores), 0.5)


# --- pairs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluate():
    from pipelines.face import evaluate

    return evaluate


def test_lfw_pairs(evaluate):
    text = "10\t300\nAbel_Pacheco\t1\t4\nAbdel Madi Shabneh\t1\tDean Barker\t12\n"
    assert evaluate.lfw_pairs(text) == [
        ("Abel_Pacheco/Abel_Pacheco_0001.jpg", "Abel_Pacheco/Abel_Pacheco_0004.jpg", True),
        ("Abdel Madi Shabneh/Abdel Madi Shabneh_0001.jpg", "Dean Barker/Dean Barker_0012.jpg", False),
    ]


def look(evaluate, frame, *boxes):
    empty = np.zeros((2, 2, 3), np.uint8)
    return [evaluate.Found(f"clip#{i}", frame, np.array(box, float), empty) for i, box in enumerate(boxes)]


def test_people_are_followed_by_overlap(evaluate):
    left, right = (0, 0, 10, 10), (40, 0, 50, 10)
    looks = [
        look(evaluate, 0, left, right),
        look(evaluate, 5, (41, 0, 51, 10), (1, 0, 11, 10)),  # the order of a detector means nothing
        look(evaluate, 10, (2, 0, 12, 10)),
        look(evaluate, 15, (3, 0, 13, 10), (41, 0, 51, 10)),  # the second comes back: someone new, to be safe
    ]
    found = sorted(evaluate.tracks(looks), key=len)
    assert [[face.frame for face in track] for track in found] == [[15], [0, 5], [0, 5, 10, 15]]
    assert all(track[0].box[0] < 5 for track in found if len(track) == 4)
    pairs = evaluate.genuine_pairs(found)
    assert [(a.frame, b.frame) for a, b in pairs] == [(0, 15)]


def test_impostor_pairs_within_and_across(evaluate):
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)
    names = ["a#0", "a#1", "b#0", "c#0"]
    similarity, indices = evaluate.impostor_similarities(vectors, names, set(), within=True)
    assert similarity == pytest.approx([0.8]) and indices.tolist() == [[0, 1]]
    similarity, indices = evaluate.impostor_similarities(vectors, names, set(), within=False)
    assert similarity == pytest.approx([0.96, 0.8, 0.6, 0.6, 0.0])
    assert indices[0].tolist() == [1, 3]
    for listed, left in (({"c#0", "a#1"}, 4), ({"c#0"}, 2), ({"zz#0"}, 5)):
        excluded = {frozenset(listed)}
        assert len(evaluate.impostor_similarities(vectors, names, excluded, within=False)[0]) == left


def test_report_states_counts_and_rates(evaluate):
    text = evaluate.report(np.full(50, 0.97), np.linspace(0.5, 0.955, 100))
    assert "50 genuine and 100 impostor pairs; EER 0.00%" in text
    assert "similarity 0.96:   FAR 0.000%, FRR 0.000%" in text and "similarity 0.98:   FAR 0.000%, FRR 100.000%" in text


class Stub:
    """Finds one face in every picture, as large as its red value says, and describes it by its colour."""

    def faces(self, image, name, frame=0):
        return [] if image[0, 0, 0] == 0 else [self.found(name, image)]

    def found(self, name, image):
        from pipelines.face.evaluate import Found

        return Found(f"{name}#0", 0, np.array([0, 0, 4, 4.0]), image[:2, :2])

    def embed(self, faces, flip):
        vectors = np.array([face.chip.mean(axis=(0, 1)) for face in faces], np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_lfw_from_a_folder(evaluate, tmp_path):
    import cv2

    colours = {"A/A_0001": (200, 10, 0), "A/A_0002": (200, 12, 0), "B/B_0001": (40, 0, 220), "B/B_0002": (0, 0, 0)}
    for name, colour in colours.items():
        path = tmp_path / "lfw" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((16, 16, 3), colour[::-1], np.uint8))
    (tmp_path / "pairs.txt").write_text("1\t2\nA\t1\t2\nB\t1\t2\nA\t1\tB\t1\nA\t2\tB\t2\n")
    similarity, same, lost = evaluate.evaluate_lfw(Stub(), tmp_path, False)
    assert same.tolist() == [True, True, False, False] and lost == 1
    assert similarity[0] > 0.99 and similarity[1] == similarity[3] == -1.0 and similarity[2] < 0.5
