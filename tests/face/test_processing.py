"""The two families on chips whose right answer is known, and their effect on a pair."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.face.processing import AUGMENTATIONS, NORMALISATIONS, augment, effects, normalise, symmetry_line

S = 150
RED = np.zeros((S, S, 3), np.uint8)
RED[..., 0] = 255


def noise(seed: int = 0, side: int = S) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def drawn(middle: float, tint: int = 0) -> np.ndarray:
    """A grey face symmetric about a column: brows, eyes, mouth; `tint` is added to blue on its right half."""
    chip = np.full((S, S, 3), 160, np.uint8)
    columns = np.abs(np.arange(S) - middle)
    for top, bottom, inner, outer in ((40, 44, 12, 36), (52, 60, 16, 32), (100, 108, 0, 24)):
        chip[top:bottom, (columns >= inner) & (columns <= outer)] = 40
    chip[:, np.arange(S) > middle, 2] += np.uint8(tint)
    return chip


@pytest.mark.parametrize("side", [1, 2, 7, 112, 150, 160])
def test_shape_and_type_are_kept_and_the_chip_is_left_alone(side):
    for chip in (noise(side=side), np.zeros((side, side, 3), np.uint8)):
        before = chip.copy()
        results = [normalise(chip, [name], yaw) for name in NORMALISATIONS for yaw in (-60, 0, 60)]
        results += [augment(chip, name, seed) for name in AUGMENTATIONS for seed in (0, 1)]
        for result in results:
            assert result.shape == (side, side, 3) and result.dtype == np.uint8
            assert not np.shares_memory(result, chip)
        assert np.array_equal(chip, before)


def test_the_registries_and_their_labels():
    assert list(NORMALISATIONS) == ["clahe", "mirror"]
    assert list(AUGMENTATIONS) == [
        "flip", "darker", "brighter", "side-light", "scale", "sunglasses", "mask", "patch",
    ]  # fmt: skip
    labels = [switch.label for switch in (*NORMALISATIONS.values(), *AUGMENTATIONS.values())]
    assert len(set(labels)) == 10 and all(5 < len(label) < 80 and "\n" not in label for label in labels)


def test_unknown_names_give_a_sentence():
    with pytest.raises(UserError, match="no normalisation “flip”; choose from clahe, mirror"):
        normalise(noise(), ["clahe", "flip"])
    with pytest.raises(UserError, match="no augmentation “clahe”; choose from flip, darker"):
        augment(noise(), "clahe")
    with pytest.raises(UserError, match="no switch “wig”"):
        effects(noise(), noise(), lambda chips: chips, ["wig"])


@pytest.mark.parametrize(
    "chip",
    [np.zeros((5, 5, 3)), np.zeros((5, 5), np.uint8), np.zeros((5, 6, 3), np.uint8), np.zeros((0, 0, 3), np.uint8)],
)
def test_what_is_no_chip_is_refused(chip):
    with pytest.raises(ValueError, match="chip"):
        normalise(chip, [])
    with pytest.raises(ValueError, match="chip"):
        augment(chip, "flip")


def test_no_names_change_nothing():
    chip = noise()
    assert np.array_equal(normalise(chip, [], 60), chip)


def test_names_are_applied_in_order():
    chip = drawn(74.5, tint=60)
    both = normalise(chip, ["mirror", "clahe"], 60)
    assert np.array_equal(both, normalise(normalise(chip, ["mirror"], 60), ["clahe"], 60))
    assert not np.array_equal(both, normalise(chip, ["clahe", "mirror"], 60))


def test_clahe_spreads_flat_lightness_and_leaves_colour():
    rng = np.random.default_rng(0)
    dull = (100 + rng.integers(0, 12, (S, S, 1)) + np.array([30, 0, 0])).astype(np.uint8)  # reddish, nearly flat
    even = normalise(dull, ["clahe"])
    assert dull[..., 1].std() < 4 < 2 * dull[..., 1].std() < even[..., 1].std()
    assert (even[..., 0].astype(int) - even[..., 1]).mean() == pytest.approx(30, abs=6)
    assert (even[..., 1].astype(int) - even[..., 2]).mean() == pytest.approx(0, abs=3)


def test_clahe_evens_out_a_shadow():
    chip = noise().astype(float) * 0.3 + 150
    chip[:, : S // 2] *= 0.3
    chip = chip.astype(np.uint8)
    even = normalise(chip, ["clahe"]).astype(float)
    before = chip[:, S // 2 :].mean() / chip[:, : S // 2].mean()
    assert before == pytest.approx(3.3, abs=0.1)
    assert even[:, S // 2 :].mean() / even[:, : S // 2].mean() < before - 0.3


def test_red_stays_red():
    # CLAHE lifts the lightness of a flat chip somewhat, which red can only follow by becoming paler.
    red, green, blue = normalise(RED, ["clahe"]).reshape(-1, 3).mean(axis=0)
    assert red > 250 and green < 50 and blue < 50
    assert np.array_equal(normalise(RED, ["mirror"], 60), RED)
    for name in ("flip", "scale"):
        assert np.array_equal(augment(RED, name), RED)


@pytest.mark.parametrize("yaw", [0.0, 14.9, -15.0, float("nan")])
def test_a_face_that_looks_ahead_is_not_mirrored(yaw):
    chip = noise()
    assert np.array_equal(normalise(chip, ["mirror"], yaw), chip)


def test_the_half_that_is_turned_away_is_replaced():
    chip = drawn(74.5, tint=60)  # blue is 160 on the left half, 220 on the right
    right = normalise(chip, ["mirror"], 60)  # it looks to the picture's right: the left half is seen
    assert (chip[5, 10, 2], chip[5, 140, 2]) == (160, 220)
    assert set(right[5, :63, 2]) | set(right[5, 87:, 2]) == {160}  # the seam is 24 pixels wide
    assert np.array_equal(right[:, 87:], chip[:, :63][:, ::-1])
    left = normalise(chip, ["mirror"], -60)
    assert set(left[5, :63, 2]) | set(left[5, 87:, 2]) == {220}
    assert np.array_equal(right[:, :60], chip[:, :60])  # the seen half is not touched
    assert np.array_equal(left[:, 90:], chip[:, 90:])


def test_the_strength_of_the_mirror_grows_with_yaw():
    chip = drawn(74.5, tint=60)
    blue = [int(normalise(chip, ["mirror"], yaw)[5, 140, 2]) for yaw in (15, 21, 30, 39, 45, 90)]
    assert blue == [220, 208, 190, 172, 160, 160]
    assert blue == [int(normalise(chip[:, ::-1] - 0, ["mirror"], -yaw)[5, 9, 2]) for yaw in (15, 21, 30, 39, 45, 90)]


@pytest.mark.parametrize(("middle", "yaw"), [(74.5, 30), (60, -30), (56.5, -40), (90, 30), (72, 30)])
def test_the_line_of_symmetry_is_found_where_the_face_turned_to(middle, yaw):
    assert symmetry_line(drawn(middle), yaw) == middle
    result = normalise(drawn(middle), ["mirror"], 2 * yaw)
    assert np.abs(result.astype(int) - drawn(middle)).max() == 0  # a symmetric face is its own mirror image


def test_a_chip_without_symmetry_is_mirrored_about_its_middle():
    assert symmetry_line(np.zeros((S, S, 3), np.uint8), 40) == 74.5
    assert symmetry_line(noise(side=2), 40) == 0.5


def test_flip_is_the_mirror_image():
    chip = noise()
    assert np.array_equal(augment(chip, "flip"), chip[:, ::-1])


def test_light_is_multiplied_in_linear_light():
    grey = np.full((S, S, 3), 128, np.uint8)
    assert set(augment(grey, "darker").flat) == {round(128 * 0.25 ** (1 / 2.2))} == {68}
    assert set(augment(grey, "brighter").flat) == {round(128 * 2.5 ** (1 / 2.2))} == {194}
    assert set(augment(grey + 127, "brighter").flat) == {255}
    assert not augment(grey * 0, "brighter").any()


def test_side_light_comes_from_the_side_that_the_seed_picks():
    grey = np.full((S, S, 3), 128, np.uint8)
    ends = {(int(lit[7, 0, 1]), int(lit[7, -1, 1])) for lit in (augment(grey, "side-light", s) for s in range(12))}
    assert ends == {(194, 30), (30, 194)}
    row = augment(grey, "side-light", 0)[3, :, 0].astype(int)
    assert (np.diff(row) <= 0).all() or (np.diff(row) >= 0).all()


def test_scale_loses_detail_and_keeps_the_mean():
    chip = noise()
    small = augment(chip, "scale")
    assert small.std() < chip.std() / 4
    assert small.mean() == pytest.approx(chip.mean(), abs=1)
    half = np.zeros((S, S, 3), np.uint8)
    half[:, 75:] = 255
    result = augment(half, "scale")
    assert (result[:, :60].max(), result[:, 90:].min()) == (0, 255)


@pytest.mark.parametrize(
    ("name", "rows", "columns", "colour"),
    [("sunglasses", (30, 66), (15, 135), [12, 12, 12]), ("mask", (84, 150), (0, 150), [150, 190, 215])],
)
def test_what_a_bar_and_a_mask_hide(name, rows, columns, colour):
    chip = noise()
    hidden = augment(chip, name)
    window = (slice(*rows), slice(*columns))
    assert (hidden[window] == colour).all()
    inside = np.zeros((S, S), bool)
    inside[window] = True
    assert np.array_equal(hidden[~inside], chip[~inside])


def test_the_patch_is_a_third_of_the_side_and_its_place_comes_from_the_seed():
    chip = np.full((S, S, 3), 128, np.uint8)
    places = set()
    for seed in range(8):
        rows, columns = np.nonzero((augment(chip, "patch", seed) != 128).any(axis=2))
        assert 48 <= np.ptp(rows) + 1 <= 51 and 48 <= np.ptp(columns) + 1 <= 51
        places.add((int(rows.min()), int(columns.min())))
        assert np.array_equal(augment(chip, "patch", seed), augment(chip, "patch", seed))
    assert len(places) == 8


class Embedder:
    """Mean colour as a unit vector; remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, chips: np.ndarray) -> np.ndarray:
        assert chips.dtype == np.uint8
        self.batches.append(chips.shape)
        means = chips.reshape(len(chips), -1, 3).mean(axis=1) + 1e-9
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def test_effects_of_every_switch_in_one_batch():
    embed = Embedder()
    found = effects(noise(0), noise(1), embed)
    assert embed.batches == [(2 + 2 * 2 + 8, S, S, 3)]
    assert [effect.name for effect in found] == [*NORMALISATIONS, *AUGMENTATIONS]
    assert [effect.family for effect in found] == ["normalisation"] * 2 + ["augmentation"] * 8
    for effect in found:
        assert effect.delta == effect.similarity_after - effect.similarity_before
        assert effect.label == {**NORMALISATIONS, **AUGMENTATIONS}[effect.name].label


def test_effects_measure_the_right_pair():
    chip_a = np.full((S, S, 3), [200, 0, 0], np.uint8)
    chip_b = np.full((S, S, 3), [0, 0, 200], np.uint8)
    mask, flip, mirror = effects(chip_a, chip_b, Embedder(), ["mask", "flip", "mirror"], yaw_a=60, yaw_b=60)
    for effect in (mask, flip, mirror):
        assert effect.similarity_before == pytest.approx(0, abs=1e-6)
    # 44 % of the first chip becomes the mask's blue; the second stays as it is.
    mixed = 0.56 * np.array([200, 0, 0]) + 0.44 * np.array([150, 190, 215])
    assert mask.similarity_after == pytest.approx(mixed[2] / np.linalg.norm(mixed), abs=1e-4)
    assert mask.delta == pytest.approx(mask.similarity_after)
    assert np.array_equal(mask.chip, augment(chip_a, "mask"))
    assert (flip.delta, mirror.delta) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6))


def test_a_normalisation_is_applied_to_both_with_each_ones_own_yaw():
    chip = drawn(74.5, tint=60)
    plain, both = (
        effects(chip, chip, Embedder(), ["mirror"], yaw_a=60, yaw_b=yaw)[0] for yaw in (0, 60)
    )  # fmt: skip
    assert plain.similarity_before == both.similarity_before == pytest.approx(1, abs=1e-6)
    assert both.similarity_after == pytest.approx(1, abs=1e-6)
    assert plain.similarity_after < 0.999


def test_effects_are_the_same_for_the_same_seed():
    a, b, c = (effects(noise(0), noise(1), Embedder(), ["patch"], seed=seed)[0].chip for seed in (3, 3, 4))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_no_switch_no_effect():
    assert effects(noise(0), noise(1), Embedder(), []) == []
