"""The tracker with the shipped networks: held to recorded values of MediaPipe, and what streams really bring."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.action import pose_detector, pose_landmarks, pose_network
from pipelines.action.pose_network import Networks
from pipelines.action.pose_region import Region
from pipelines.action.pose_tracker import Tracker
from pipelines.common.errors import UserError
from pipelines.common.video import Video

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "assets" / "examples" / "action" / "jumping-jacks.webm"
RECORDED = np.load(Path(__file__).parent / "fixtures" / "pose_mediapipe.npz")
GREY = 90


@pytest.fixture(scope="module")
def frames():
    with Video(CLIP) as video:
        return [frame.pixels for frame in video.every()]


@pytest.fixture(scope="module")
def networks():
    return pose_network.shared("blazepose")


class Counted:
    """A network that counts its runs."""

    def __init__(self, network):
        self.network, self.runs = network, 0

    def __call__(self, pixels, wanted):
        self.runs += 1
        return self.network(pixels, wanted)


@pytest.fixture
def counted(networks):
    return Networks(Counted(networks.detector), Counted(networks.landmarks))


def follow(frames, tracker=None, rate=30.0):
    tracker = tracker or Tracker()
    return [tracker.track(frame, (k + 1) / rate) for k, frame in enumerate(frames)]


def distance(landmarks, recorded):
    """Mean distance in shoulder widths, and the largest difference of a visibility."""
    size = np.array([640.0, 480.0])
    shoulders = np.linalg.norm((recorded[11, :2] - recorded[12, :2]) * size)
    away = np.linalg.norm((landmarks[:, :2] - recorded[:, :2]) * size, axis=1)
    return away.mean() / shoulders, np.abs(landmarks[:, 3] - recorded[:, 3]).max()


def on_grey(height, width, *tiles):
    """A grey picture with frames pasted in, each (frame, x, y, width); what sticks out is cut off."""
    picture = np.full((height, width, 3), GREY, np.uint8)
    for frame, x, y, across in tiles:
        small = cv2.resize(frame, (across, across * frame.shape[0] // frame.shape[1]), interpolation=cv2.INTER_AREA)
        left, top = max(0, -x), max(0, -y)
        part = small[top : height - y, left : max(left, width - x)]
        picture[y + top : y + top + part.shape[0], x + left : x + left + part.shape[1]] = part
    return picture


def middle(pose, height, width):
    """Mid-shoulder in pixels."""
    return pose.landmarks[11:13, :2].mean(axis=0) * (width, height)


def test_the_detector_finds_whom_mediapipe_found(networks, frames):
    (found,) = pose_detector.detect(networks.detector, frames[0])
    score, x, y, side, angle = RECORDED["detection"]
    assert found.score == pytest.approx(score, abs=1e-4)
    assert (found.region.x, found.region.y, found.region.side) == pytest.approx((x, y, side), abs=0.02)
    assert found.region.angle == pytest.approx(angle, abs=1e-4)


def test_landmarks_are_those_of_mediapipe(frames):
    """0.6 % of the shoulder width on average here. Landmarks feed the next crop, so that rounding grows with time."""
    poses = follow(frames)
    assert all(pose is not None for pose in poses) and [pose.found for pose in poses] == [True] + [False] * 95
    away = [distance(poses[k].landmarks, RECORDED["landmarks"][i]) for i, k in enumerate(RECORDED["frames"])]
    assert np.mean(away, axis=0)[0] < 0.01 and max(seen for _, seen in away) < 0.02
    assert away[0][0] < 0.001 and max(first for first, _ in away[:4]) < 0.002


def test_unsmoothed_landmarks_are_those_of_mediapipe(frames):
    poses = follow(frames[:6], Tracker(smooth=False))
    for k, recorded in zip(RECORDED["raw_frames"], RECORDED["raw"], strict=True):
        assert distance(poses[k].landmarks, recorded)[0] < 0.004
        depth = np.abs(poses[k].landmarks[:, 2] - recorded[:, 2]).mean() * 640
        assert depth < 3.0  # pixels, of a shoulder width of 65


def test_the_next_crop_is_that_of_mediapipe(networks, frames):
    tracker = Tracker(networks)
    follow(frames[:2], tracker)
    region = tracker._pose.region
    assert (region.x, region.y, region.side) == pytest.approx(RECORDED["following"][:3], abs=0.05)
    assert region.angle == pytest.approx(RECORDED["following"][3], abs=1e-3)


@pytest.mark.parametrize("fault", ["window", "sampling", "margin", "swapped"])
def test_planted_faults_are_caught(monkeypatch, networks, frames, fault):
    """Each moves the first frame's landmarks by more than the test above allows."""
    picture = frames[0]
    if fault == "window":
        monkeypatch.setattr(pose_landmarks, "KERNEL", 7)
    elif fault == "sampling":
        monkeypatch.setattr(
            Region, "crop", lambda self, picture, pixels, outside: cv2.warpAffine(
                picture, self.matrix(pixels) + np.array([[0, 0, 0.5]] * 2), (pixels, pixels),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=outside,
            ),
        )  # fmt: skip
    elif fault == "margin":
        between = pose_detector.between
        monkeypatch.setattr(pose_detector, "between", lambda *points: between(*points, margin=1.5))
    else:
        picture = np.ascontiguousarray(picture[..., ::-1])
    pose = Tracker(networks).track(picture, 0.0)
    assert distance(pose.landmarks, RECORDED["landmarks"][0])[0] > 0.002


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((480, 640, 3), np.uint8),
        np.full((480, 640, 3), 255, np.uint8),
        np.zeros((1, 1, 3), np.uint8),
        np.full((8, 3, 3), 200, np.uint8),
        np.zeros((1, 3000, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8),
    ],
    ids=["black", "white", "one pixel", "tiny", "line", "noise"],
)
def test_nobody_is_none(picture):
    assert follow([picture] * 3) == [None] * 3


@pytest.mark.parametrize(
    "frame",
    [
        None,
        np.zeros((48, 64), np.uint8),
        np.zeros((48, 64, 4), np.uint8),
        np.zeros((48, 64, 3)),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_no_frame_is_a_sentence(frame):
    with pytest.raises(UserError, match="picture"):
        Tracker().track(frame, 0.0)


@pytest.mark.parametrize("timestamp", [float("nan"), float("inf"), "1", None, True])
def test_no_time_is_a_sentence(timestamp):
    with pytest.raises(UserError, match="time of a frame"):
        Tracker().track(np.zeros((4, 4, 3), np.uint8), timestamp)


def test_a_4k_frame_gives_the_same_places(frames):
    large = cv2.resize(frames[0], (3840, 2880), interpolation=cv2.INTER_CUBIC)
    small, wide = Tracker().track(frames[0], 0.0), Tracker().track(large, 0.0)
    assert distance(wide.landmarks, small.landmarks)[0] < 0.15
    assert wide.region.side == pytest.approx(6 * small.region.side, rel=0.03)


def test_another_size_is_another_picture(counted, frames):
    tracker = Tracker(counted)
    sizes = [(640, 480)] * 3 + [(320, 240)] * 3 + [(240, 320)]
    poses = follow([cv2.resize(frames[0], size) for size in sizes], tracker)
    assert all(pose is not None for pose in poses)
    assert [pose.found for pose in poses] == [True, False, False, True, False, False, True]
    assert counted.detector.runs == 3 and counted.landmarks.runs == 7


def test_the_detector_rests_while_somebody_is_followed(counted, frames):
    follow(frames[:10], Tracker(counted))
    assert counted.detector.runs == 1 and counted.landmarks.runs == 10


def cut(frame):
    """The man alone; a picture with several people is made of such."""
    return np.ascontiguousarray(frame[20:470, 210:430])


def test_of_five_people_the_largest_is_followed_and_stays_followed(networks, frames):
    man = [cut(frame) for frame in frames[:12]]
    places = [(0, 0), (620, 0), (0, 380), (620, 380)]
    shown = []
    for k in range(12):
        others = [(man[0], x, y, 180) for x, y in places]
        if k >= 4:
            others[0] = (man[0], -60, -40, 300)  # and now somebody is larger
        shown.append(on_grey(760, 800, *others, (man[k], 275 + 3 * k, 120, 250)))
    assert len(pose_detector.detect(networks.detector, shown[0])) >= 2
    for k, pose in enumerate(follow(shown)):
        assert pose is not None and pose.found == (k == 0)
        assert middle(pose, 760, 800) == pytest.approx((402 + 3 * k, 250), abs=45)


def test_somebody_leaves_and_comes_back(frames):
    here, nobody = on_grey(480, 640, (frames[0], 0, 0, 640)), on_grey(480, 640)
    leaving = [on_grey(480, 640, (frames[0], 60 * k, 0, 640)) for k in range(12)]
    poses = follow([here] * 2 + leaving + [nobody] * 4 + [here] * 3)
    assert all(pose is not None for pose in poses[:6])
    assert poses[13:18] == [None] * 5
    assert all(pose is not None for pose in poses[18:]) and poses[18].found
    # Nothing of the filters is left: the landmarks are those of the first time.
    assert np.allclose(poses[18].landmarks, poses[0].landmarks, atol=1e-6)


def test_who_was_lost_for_a_moment_is_found_again_beside_a_larger_person(frames):
    man = cut(frames[0])
    first, nobody = on_grey(600, 800, (man, 500, 100, 200)), on_grey(600, 800)
    both = on_grey(600, 800, (man, 500, 100, 200), (man, 60, 20, 280))
    soon = follow([first, first, nobody, both])
    assert soon[2] is None and middle(soon[3], 600, 800)[0] == pytest.approx(602, abs=25)
    late = Tracker()
    assert late.track(first, 0.0) is not None and late.track(nobody, 0.1) is None and late.track(nobody, 3.0) is None
    assert middle(late.track(both, 3.1), 600, 800)[0] == pytest.approx(202, abs=25)


def test_a_time_that_repeats_or_goes_back_is_not_looked_at(counted, frames):
    tracker = Tracker(counted)
    first = tracker.track(frames[0], 5.0)
    second = tracker.track(frames[6], 5.1)
    assert tracker.track(frames[30], 5.1) is second
    assert tracker.track(frames[30], 4.5) is second
    assert counted.landmarks.runs == 2
    plain = Tracker()
    plain.track(frames[0], 5.0), plain.track(frames[6], 5.1)
    assert np.array_equal(tracker.track(frames[8], 5.2).landmarks, plain.track(frames[8], 5.2).landmarks)
    again = tracker.track(frames[0], 0.0)  # played again from the start
    assert again.found and np.array_equal(again.landmarks, first.landmarks)


def test_after_a_pause_the_person_is_looked_for_anew(counted, frames):
    tracker = Tracker(counted)
    tracker.track(frames[0], 0.0)
    assert not tracker.track(frames[1], 0.9).found and tracker.track(frames[2], 2.0).found
    assert counted.detector.runs == 2


def test_streams_share_nothing_but_the_networks(frames):
    one, other = frames[20:26], [np.ascontiguousarray(frame[:, ::-1]) for frame in frames[60:66]]
    alone = follow(one), follow(other)
    trackers = Tracker(), Tracker()
    for k in range(6):
        for tracker, shown, expected in zip(trackers, (one, other), alone, strict=True):
            pose = tracker.track(shown[k], (k + 1) / 30)
            assert np.array_equal(pose.landmarks, expected[k].landmarks)


def test_streams_in_threads_do_not_disturb_each_other(frames):
    from concurrent.futures import ThreadPoolExecutor

    parts = [frames[k : k + 5] for k in (0, 20, 40, 60)]
    alone = [follow(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(follow, parts))
    for ours, expected in zip(together, alone, strict=True):
        assert all(np.array_equal(a.landmarks, b.landmarks) for a, b in zip(ours, expected, strict=True))


def test_reset_forgets(frames):
    tracker = Tracker()
    first = follow(frames[:4], tracker)[0]
    tracker.reset()
    again = tracker.track(frames[0], 1 / 30)
    assert again.found and np.array_equal(again.landmarks, first.landmarks)
