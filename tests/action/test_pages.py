"""What the pages call, without a browser: the player's calls, looking back, brains and their control, swap, teach."""

import base64
import io
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image

from pipelines.action import brains_page, player_page, recording, ribbon_page, source_page, swap_page, teach_page, view
from pipelines.action import examples_page as examples
from pipelines.action.contract import Update
from pipelines.action.pipeline import Moment, open_stream
from pipelines.action.recording import Recording, foretold
from pipelines.action.watch_page import meant, suited
from pipelines.common.bench import torch_threads
from pipelines.common.errors import UserError
from pipelines.ui.i18n import say
from tests.action.small import LABELS, small, standing
from tests.stubs import no_progress, visitor

SPEAK = partial(say, visitor())


@pytest.fixture
def entry(tmp_path, monkeypatch):
    kept = player_page.Live()
    monkeypatch.setattr(player_page, "live", lambda: kept)
    with torch_threads(1):
        yield small(tmp_path, monkeypatch, threshold=0.3)


@pytest.fixture
def recorded(entry):
    with open_stream(attention=True, keep=50) as stream:
        for k in range(31):
            pose = standing()
            pose[15:17, 1] -= 0.03 * k
            stream.push_pose(pose, k / 10)
        return Recording(stream.labels, list(stream.past), entry.id)


def coded():
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 90, 90)).save(stream, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def test_the_players_calls(entry):
    opened = player_page.open({"weights": "auto", "backend": "local", "threshold": 0.5, "lessons": None})
    assert opened["known"] == list(LABELS) and opened["future"] == 3 and opened["poses"]
    replies = [player_page.look([opened["ticket"], k / 10, coded(), 0.4]) for k in range(3)]
    assert replies[0]["update"] is None and replies[0]["served"] and replies[0]["pose"] is None
    update = replies[1]["update"]
    assert sum(update["p"]) == pytest.approx(1, abs=0.01) and len(update["f"]) == 3 and update["time"] == 0.1
    spent = replies[1]
    parts = spent["waited"] + spent["pose_seconds"] + spent["model_seconds"]
    assert parts == pytest.approx(spent["seconds"], rel=0.05)
    assert player_page.finish(opened["ticket"])["update"]["chunk"] == 2
    assert player_page.finish(opened["ticket"]) == {"update": None}
    assert "over; start it again" in player_page.look([opened["ticket"], 1.0, coded(), 0.4])["error"]


@pytest.mark.parametrize(
    ("call", "given"),
    [("open", None), ("open", {"weights": "none"}), ("open", {"threshold": 7}), ("open", {"backend": "x"}),
     ("look", None), ("look", ["x", 0.0, "", 0.5]), ("look", [1]), ("example", 7), ("example", "../x"),
     ("example", 0.0)],
)  # fmt: skip
def test_calls_put_together_by_hand_get_a_sentence(entry, call, given):
    found = getattr(player_page, call)(given)
    assert set(found) == {"error"} and found["error"].endswith(".") and "wrong inside" not in found["error"]


def test_the_example_is_sent_whole():
    address = player_page.example(0)["address"]
    with open(examples.CLIPS[0], "rb") as file:
        assert base64.b64decode(address.partition(",")[2]) == file.read()


def test_settings_reach_the_script_in_the_visitors_language(entry):
    text = player_page.setup("auto", "local", 0.6, None, visitor("zh-CN"))
    assert "使用摄像头" in text and "挥手" in text and "&quot;threshold&quot;: 0.6" in text


def test_an_implementation_brings_its_weights(entry, monkeypatch):
    assert meant("auto", "local") == 0.3 and meant("none", "local") == 0.5
    assert suited("auto", "local") == "auto" and suited("small", "local") == "small"
    assert suited("small", "reference") == "small", "there is nothing of its own here"
    monkeypatch.undo()
    assert suited("auto", "reference") == "videomae-kinetics" and suited("videomae-kinetics", "local") == "auto"


def test_the_ribbon_shows_what_was_looked_at(recorded):
    slider, ribbon, heads, outcome, scores = ribbon_page.shown(recorded, SPEAK)
    assert slider["maximum"] == 29
    ribbon, heads, outcome = ribbon_page.moment(recorded, 20, SPEAK)
    assert ribbon.count('class="gh-look"') == 8 and "At 2.1 s" in ribbon
    assert heads.count("layer ") >= 4 and outcome.count("<tr>") == 4 and scores.count("<tr>") == 4
    assert ribbon_page.moment(recorded, 29, SPEAK)[2].count("…") == 3, "nothing has come yet"


def test_forecasts_are_scored_against_what_came():
    labels = ("background", "a")

    def moment(chunk, now, ahead):
        one = np.eye(2, dtype=np.float32)
        return Moment(Update(labels, one[now], one[ahead], 0.1, chunk), np.zeros(4, np.float32))

    came = [0, 0, 1, 1, 0]
    ahead = [[0, 1], [1, 1], [0, 0], [0, 0], [0, 0]]
    moments = [moment(k, n, a) for k, (n, a) in enumerate(zip(came, ahead, strict=True))]
    found = foretold(Recording(labels, moments))
    assert found.hits.tolist() == pytest.approx([0.75, 1.0 * 2 / 3 + 1 / 3])
    assert found.stayed.tolist() == pytest.approx([0.5, 0.0])
    assert found.changed.tolist() == pytest.approx([1.0, 1.0])
    gap = Recording(labels, moments[:2] + moments[3:])  # no frame came in the third chunk
    assert gap.later(1, 1) is None and gap.later(1, 2) == 2 and gap.later(3, 1) is None


def test_brains_are_compared_and_the_control_fails(recorded, monkeypatch):
    runs, once = [], brains_page.run
    monkeypatch.setattr(brains_page, "run", lambda *given: runs.append(given[2:]) or once(*given))
    bands, causal = brains_page.shown(recorded, 8, False, SPEAK)
    assert bands.count("<h4>") == 4 and bands.count("0.000") == 4
    assert runs == [("oadtr",), ("gru",), ("linear",), ("none",)], "what is not changed is read once"
    assert causal.count("holds") == 4 and causal.count("the past changed") == 1
    cut, _ = brains_page.shown(recorded, 1, True, SPEAK)
    assert cut != bands


def test_a_video_becomes_a_recording(entry):
    steps = list(recording.of_video(examples.CLIPS[0]))
    assert [done is None for _, done in steps] == [True] * 32 + [False]
    made = steps[-1][1]
    assert len(made) == 32 and made.features.shape[0] == 32
    with pytest.raises(UserError, match="Nothing was watched yet"):
        source_page.taken("none")
    with pytest.raises(UserError, match="first"):
        source_page.held(None)


def test_swap_tells_what_is_missing(entry):
    told, data = swap_page.swap(examples.CLIPS[0], "auto", visitor(), no_progress)
    assert "not on this machine" in told and "Another model than ours" in told
    assert len(data) == 32 and {row["backend"] for row in data} == {"local"}
    with pytest.raises(UserError, match="Choose or record"):
        swap_page.swap(None, "auto", visitor(), no_progress)


def test_one_recording_at_a_time(entry):
    with teach_page.alone("mine"):
        with teach_page.alone("another's"):
            pass
        with pytest.raises(UserError, match="A recording goes on"):
            teach_page.repeat("mine", None, visitor(), no_progress)
    with pytest.raises(UserError, match="Start the camera or a clip"):  # it is over
        teach_page.repeat("mine", None, visitor(), no_progress)


def test_skeletons_have_the_pictures_shape():
    pose = np.full((33, 4), 0.5, np.float32)
    pose[11:29, 0], pose[11:29, 1] = np.linspace(0.4, 0.6, 18), np.linspace(0.2, 0.8, 18)

    def wide(aspect):
        points = re.findall(r"[ML](\d+) (\d+)", view.skeleton(pose, "", aspect))
        x, y = np.array(points, float).T
        return np.ptp(x) / np.ptp(y)

    assert wide(2.0) == pytest.approx(2 * wide(1.0), rel=0.05)


def test_teach_needs_a_stream_and_a_name(entry):
    with pytest.raises(UserError, match="Start the camera or a clip"):
        teach_page.repeat("none", None, visitor(), no_progress)
    with pytest.raises(UserError, match="name first"):
        teach_page.learn("", None, " ", visitor())
    with pytest.raises(UserError, match="already"):
        teach_page.learn("", None, "Wave", visitor())
    with pytest.raises(UserError, match="Record some repetitions"):
        teach_page.learn("", None, "star", visitor())
    with pytest.raises(UserError, match="Nothing was taught"):
        teach_page.export(None)
