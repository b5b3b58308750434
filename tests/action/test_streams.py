"""Skeletons, composed streams and the virtual camera."""

from itertools import pairwise

import numpy as np
import pytest

from pipelines.action.camera import STUDIO, Camera, _as_found, film, track
from pipelines.action.config import CLASSES
from pipelines.action.features import metre
from pipelines.action.skeletons import (
    ACTIONS,
    ANKLES,
    CLASS_OF,
    FILMED,
    FIRST_KIND,
    HIPS,
    KINDS,
    KNEES,
    MOVEMENTS,
    fold,
    mirror,
    rotation,
    view,
)
from pipelines.action.streams import PLAIN, SIT, STAND, Composer, Script, _repeat, _seat, _warp, vary
from tests.action.bodies import SITTING, STANDING, body, people

LEFT, RIGHT, WAVE, CLOCKWISE, COUNTER = 1, 2, 3, 9, 10  # UTD-MHAD's numbers


def runs(movements: np.ndarray) -> list[int]:
    """The classes of a stream's actions in their order."""
    labels = CLASS_OF[movements]
    edges = np.flatnonzero(np.diff(labels, prepend=0) != 0)
    return [int(labels[at]) for at in edges if labels[at]]


def test_every_movement_has_the_class_that_the_tables_give_it():
    named = {action: CLASSES[CLASS_OF[action]] for action in range(1, FIRST_KIND) if CLASS_OF[action]}
    assert named == ACTIONS and CLASSES[CLASS_OF[0]] == "background"
    filmed = {kind: CLASSES[CLASS_OF[FIRST_KIND + k]] for k, kind in enumerate(KINDS) if CLASS_OF[FIRST_KIND + k]}
    assert filmed == FILMED and len(CLASS_OF) == MOVEMENTS == 49


def still(count: int = 2, frames: int = 30) -> np.ndarray:
    return np.repeat(np.repeat(STANDING[None, None], frames, axis=1), count, axis=0).copy()


def test_the_camera_sees_the_subjects_right_on_its_left():
    """An unmirrored picture: u = -x / z, v = -y / z, as the data's description has it."""
    zero = np.zeros(1)
    place = view(still(1, 1), rotation(zero, zero, zero), np.array([2.0]))[0, 0]
    assert place[2, 0] < 0 < place[1, 0]  # the right shoulder has +x and is on the left of the picture
    assert place[0, 1] < place[11, 1]  # the head is above the feet, y down
    middle = STANDING[list(HIPS)].mean(axis=0)
    np.testing.assert_allclose(place, -(STANDING[:, :2] - middle[:2]) / 2.0, atol=1e-6)


def test_half_a_turn_swaps_the_sides():
    zero = np.zeros(1)
    ahead = view(still(1, 1), rotation(zero, zero, zero), np.array([50.0]))
    behind = view(still(1, 1), rotation(zero + np.pi, zero, zero), np.array([50.0]))
    np.testing.assert_allclose(behind[..., 0], -ahead[..., 0], atol=1e-4)
    np.testing.assert_allclose(behind[..., 1], ahead[..., 1], atol=1e-4)


def test_a_quarter_turn_makes_shoulders_narrow_and_pitch_shortens():
    zero = np.zeros(1)
    side = view(still(1, 1), rotation(zero + np.pi / 2, zero, zero), np.array([3.0]))[0, 0]
    assert abs(side[1, 0] - side[2, 0]) < 1e-5
    above = view(still(1, 1), rotation(zero, zero + np.pi / 3, zero), np.array([3.0]))[0, 0]
    assert np.ptp(above[:, 1]) < 0.75 * np.ptp(side[:, 1])


def test_a_mirror_swaps_sides_swipes_and_ways_round_only():
    joints = np.random.default_rng(0).normal(size=(7, 13, 3)).astype(np.float32)
    labels = np.array([LEFT, RIGHT, WAVE, CLOCKWISE, COUNTER, 0, -1])
    flipped, swapped = mirror(joints, labels)
    np.testing.assert_array_equal(swapped, [RIGHT, LEFT, WAVE, COUNTER, CLOCKWISE, 0, -1])
    np.testing.assert_array_equal(labels, [LEFT, RIGHT, WAVE, CLOCKWISE, COUNTER, 0, -1])
    np.testing.assert_array_equal(flipped[:, 5], joints[:, 6] * (-1, 1, 1))
    again, back = mirror(flipped, swapped)
    np.testing.assert_array_equal(again, joints)
    np.testing.assert_array_equal(back, labels)


def test_clips_of_one_video_are_in_one_fold():
    names = [f"clap/Budam_-_Clap_Hands_clap_u_{m}m_np1_fr_med_{k}.avi" for m in "nc" for k in range(4)]
    assert len({fold(name, 1000) for name in names}) == 1
    assert len({fold(f"wave/Film{k}_wave_u_nm_np1_fr_med_0.avi", 4) for k in range(40)}) == 4
    # Written down, so that another machine or version keeps the same clips out.
    assert fold("wave/Hitch_Part_2_wave_h_nm_np1_fr_goo_12.avi", 4) == 1


@pytest.mark.parametrize("script", [PLAIN, Script()])
def test_a_stream_has_its_length_and_its_actions(script):
    points, labels = Composer(people((1,)), script).compose(np.random.default_rng(3), 1800)
    assert points.shape == (1800, 13, 3) and labels.shape == (1800,)
    assert np.isfinite(points).all()
    assert 0.2 < (CLASS_OF[labels] == 0).mean() < 0.95 and len(runs(labels)) >= 8
    # Nobody jumps: between two frames no hip moves by more than 12 cm.
    assert np.abs(np.diff(points[:, HIPS], axis=0)).max() < 0.12


def test_who_sat_down_stands_up_before_sitting_down_again():
    composer = Composer(people((1,)), Script(untargeted=0.2))
    turns = []
    for seed in range(12):
        labels = composer.compose(np.random.default_rng(seed), 1800)[1]
        turns += [[label for label in runs(labels) if label in (SIT, STAND)]]
    assert sum(map(len, turns)) > 20
    for turn in turns:
        assert all(a != b for a, b in pairwise(turn))


def test_idle_streams_have_no_action_and_sit():
    points, labels = Composer(people((1,)), Script(idle=True)).compose(np.random.default_rng(0), 1500)
    assert not labels.any()
    thigh = points[:, HIPS[0], 1] - points[:, KNEES[0], 1]
    assert thigh.max() < 0.2  # 0.42 m when standing
    assert np.ptp(points[:, 6, 1]) > 0.1  # and the hands do something


def test_one_person_a_stream():
    tall = [type(b)(b.points * 1.5, b.label, b.action, 2, b.start, b.end) for b in people((1,))]
    composer = Composer([*people((1,)), *tall], PLAIN)
    torsos = set()
    for seed in range(8):
        points = composer.compose(np.random.default_rng(seed), 600)[0]
        torso = points[:, 1:3, 1].mean(axis=1) - points[:, list(HIPS), 1].mean(axis=1)
        assert np.ptp(torso) < 0.02
        torsos.add(round(float(torso.mean()), 1))
    assert torsos == {0.5, 0.8}


def test_the_same_seed_is_the_same_stream():
    composer = Composer(people(), Script())
    one, other = (composer.compose(np.random.default_rng(5), 300) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])
    assert not np.array_equal(one[0], composer.compose(np.random.default_rng(6), 300)[0])


def test_warping_changes_the_length_and_keeps_the_ends():
    wave = body(3, 1)
    labels = np.zeros(45, int)
    labels[8:34] = WAVE
    points, warped = _warp(np.random.default_rng(0), wave.points, labels, 1.5)
    assert len(points) == len(warped) == 30
    np.testing.assert_allclose(points[[0, -1]], wave.points[[0, -1]], atol=1e-5)
    assert abs((warped == WAVE).sum() - 26 / 1.5) <= 3


def test_a_repeated_action_goes_on_without_a_jump():
    wave = body(3, 1)
    labels = np.zeros(45, int)
    labels[8:34] = WAVE
    for times in (2, 3):
        points, longer = _repeat(wave.points, labels, slice(8, 34), times)
        assert len(points) > 45 + times * 10 and runs(longer) == [CLASSES.index("wave")]
        assert np.abs(np.diff(points, axis=0)).max() <= np.abs(np.diff(wave.points, axis=0)).max() * 1.01 + 1e-6


def test_seated_people_keep_their_legs_and_use_their_arms():
    wave = body(3, 1)
    seated = _seat(wave.points, SITTING)
    np.testing.assert_array_equal(seated[:, 7:], np.repeat(SITTING[None, 7:], 45, axis=0))
    hand, hips = wave.points[:, 6], wave.points[:, list(HIPS)].mean(axis=1)
    np.testing.assert_allclose(seated[:, 6] - SITTING[list(HIPS)].mean(axis=0), hand - hips, atol=1e-6)


def test_varied_clips_keep_their_class_and_are_finite():
    for action in (3, 4, 9, 22):
        clip = body(action, 1)
        labels = np.zeros(45, int)
        labels[8:34] = clip.label
        for seed in range(10):
            points, kept = vary(np.random.default_rng(seed), clip, labels)
            assert points.shape[1:] == (13, 3) and len(points) == len(kept) and np.isfinite(points).all()
            assert set(kept.tolist()) == {0, clip.label}


def test_studio_pictures_have_everything_in_them():
    joints, labels = film(np.random.default_rng(0), still(4, 60), np.ones((4, 60), int), STUDIO)
    assert joints.shape == (4, 60, 13, 3) and np.isfinite(joints).all() and (joints[..., 2] == 1).all()
    assert (labels == 1).all()  # never mirrored
    np.testing.assert_allclose(metre(joints), 1.0, atol=0.25)


def test_jitter_has_the_size_it_is_said_to_have():
    rng = np.random.default_rng(0)
    camera = Camera(mirrored=0.0, lost=0.0, rates=False)
    joints = np.ones((200, 60, 13, 3), np.float32)
    seen, _ = track(rng, joints.copy(), np.zeros((200, 60), int), camera)
    spread = np.median(seen[..., 0].std(axis=1), axis=0)
    assert 0.005 < spread[1] < 0.02  # a shoulder
    assert 1.6 < spread[5] / spread[1] < 4.5  # a wrist strays more


def test_hidden_legs_are_not_trusted_and_arms_are():
    camera = Camera(hidden=1.0, flat=0.0, lost=0.0, rates=False, yaw=0.0, turned=0.0, jitter=0.0, mirrored=0.0)
    joints, _ = film(np.random.default_rng(0), still(40), np.zeros((40, 30), int), camera)
    assert (joints[:, :, ANKLES, 2] <= 0.6).all() and np.median(joints[:, :, ANKLES, 2]) < 0.15
    assert np.median(joints[:, :, 5, 2]) > 0.6


def test_slow_cameras_leave_frames_out():
    camera = Camera(lost=0.0, jitter=0.5)
    joints, _ = film(np.random.default_rng(0), still(60, 90), np.zeros((60, 90), int), camera)
    taken = np.isfinite(joints[..., 0]).all(axis=-1).mean(axis=1)
    assert taken.min() > 0.25 and taken.min() < 0.4 and taken.max() > 0.9
    # Every chunk of three frames has one at ten a second, but for a dropped frame now and then.
    assert np.isfinite(joints[..., 0]).all(axis=-1).reshape(60, 30, 3).any(axis=-1).mean() > 0.96


def test_mirrored_streams_have_their_swipes_swapped():
    camera = Camera(mirrored=1.0, lost=0.0, rates=False)
    _, labels = film(np.random.default_rng(0), still(), np.full((2, 30), LEFT), camera)
    assert (labels == RIGHT).all()


def test_blazepose_finds_hips_lower_and_ears_nearer():
    moved = _as_found(still(2, 1), np.array([0.0, 1.0], np.float32)[:, None, None, None])[:, 0]
    np.testing.assert_array_equal(moved[0], STANDING)
    np.testing.assert_allclose(moved[1, 7], STANDING[7] + (0, -0.2 * 0.42, 0), atol=1e-6)
    np.testing.assert_allclose(moved[1, 0], STANDING[0] + (0, -0.25 * 0.2, 0), atol=1e-6)
    np.testing.assert_array_equal(moved[1, 1:7], STANDING[1:7])
