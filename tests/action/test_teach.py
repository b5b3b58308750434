"""Taught actions: a head that tells repetitions from idling, its file, and what is no file of ours."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipelines.action import open_stream, teach
from pipelines.action.insight import encoded
from pipelines.action.pipeline import load
from pipelines.action.teach import Course, Lesson, Piece
from pipelines.common.bench import torch_threads
from pipelines.common.errors import UserError
from tests.action.small import small, standing


@pytest.fixture
def entry(tmp_path, monkeypatch):
    with torch_threads(1):
        yield small(tmp_path, monkeypatch)


def clouds(seed, far=4.0, width=8):
    """Five repetitions and two idlings whose codes lie apart in three of many directions."""
    rng = np.random.default_rng(seed)
    shift = np.zeros(width)
    shift[:3] = far
    return [rng.normal(shift, 1.0, (12, width)) for _ in range(5)], [rng.normal(0, 1.0, (30, width)) for _ in range(2)]


def test_a_head_tells_repetitions_from_idling():
    done, rest = clouds(0)
    lesson = teach.teach("jump", done, rest, "w")
    new, idle = clouds(1)
    assert np.mean([lesson.probability(each) > 0.5 for each in new]) > 0.75
    elsewhere = new[0] + np.concatenate([np.zeros(4), np.full(4, 8.0)])
    assert lesson.probability(elsewhere).max() < 0.1, "neither idling nor near a repetition"
    assert np.mean([lesson.probability(each) < 0.5 for each in idle]) > 0.95
    assert (lesson.repetitions, lesson.chunks, lesson.kept_out) == (5, 120, 1.0)
    same = teach.teach("nothing", *clouds(2, far=0.0), "w")
    fresh = np.concatenate([same.probability(each) for each in clouds(3, far=0.0)[1]])
    assert fresh.mean() < 0.6, "what is not there is not learnt"


def test_newtons_method_ends_at_the_least():
    rng = np.random.default_rng(0)
    codes, truth = rng.normal(size=(60, 5)), (rng.random(60) < 0.3).astype(float)

    def loss(weight, bias):
        share = np.where(truth > 0, 30 / truth.sum(), 30 / (60 - truth.sum()))
        logit = codes @ weight + bias
        fit = (share * (np.logaddexp(0, logit) - truth * logit)).sum()
        return fit + 0.5 * (teach.PULL * 5 / 16) * (weight**2).sum()

    weight, bias = teach.logistic(codes, truth)
    best = loss(weight, bias)
    for k in range(5):
        for step in (-0.01, 0.01):
            assert loss(weight + step * np.eye(5)[k], bias) > best
    assert loss(weight, bias + 0.01) > best and loss(weight, bias - 0.01) > best


def test_too_little_is_a_sentence():
    done, rest = clouds(0)
    with pytest.raises(UserError, match="at least 3 repetitions"):
        teach.teach("jump", done[:2], rest, "w")
    with pytest.raises(UserError, match="second or more of idling"):
        teach.teach("jump", done, [rest[0][:5]], "w")
    for name, sentence in (("", "a name first"), ("x" * 41, "at most 40"), ("Wave ", "called “Wave” already")):
        with pytest.raises(UserError, match=sentence):
            teach.name_of(name, ["wave"])
    assert teach.name_of("  star   jump ", ["wave"]) == "star jump"


def test_new_lessons_come_beside_the_known_ones():
    made = {name: teach.teach(name, *clouds(0), "w") for name in ("jump", "hop")}
    other = teach.teach("skip", *clouds(0), "other weights")
    assert teach.joined((made["jump"], other), (made["hop"],)) == (made["jump"], made["hop"])
    with pytest.raises(UserError, match="called “jump” already"):
        teach.joined((made["jump"],), (made["hop"], made["jump"]))
    many = [replace(made["jump"], name=f"jump {k}") for k in range(teach.MOST_LESSONS)]
    with pytest.raises(UserError, match="At most 12"):
        teach.joined(many, (made["hop"],))


def test_a_file_goes_round_and_others_are_refused():
    lesson = teach.teach("跳", *clouds(0), "w")
    data = teach.export([lesson])
    (again,) = teach.restore(data, {("w", "oadtr"): 8})
    code = clouds(1)[0][0]
    assert np.abs(again.probability(code) - lesson.probability(code)).max() < 1e-3 and again.name == "跳"
    with pytest.raises(UserError, match="other weights"):
        teach.restore(data, {("v", "oadtr"): 8})
    with pytest.raises(UserError, match="other weights"):
        teach.restore(data, {("w", "oadtr"): 9})
    document = json.loads(data)

    def changed(**fields):
        return json.dumps({"format": 1, "lessons": [{**document["lessons"][0], **fields}]}).encode()

    bad = [
        b"", b"\x80\x04.", b"[]", b"{}", b'{"format": 2, "lessons": []}', b"[" * 100_000,
        changed(weight=[1.0]), changed(bias=float("nan")), changed(scale=[0.0] * 8), changed(name=""),
        changed(prototypes=[[1.0]]), changed(prototypes=[]), changed(radius=0.0), changed(radius="x"),
        changed(mean=[[1.0] * 8]), changed(weight=["a"] * 8), changed(weight=[1e9] * 8), changed(name="x" * 99),
        changed(repetitions=float("inf")), changed(bias=10**400), changed(weight=[10**400] * 8),
    ]  # fmt: skip
    for each in bad:
        with pytest.raises(UserError, match="not a file of taught actions"):
            teach.restore(each, {("w", "oadtr"): 8})
    for twice in (changed(name="Wave"), teach.export([lesson, lesson])):
        with pytest.raises(UserError, match="already; choose another name"):
            teach.restore(twice, {("w", "oadtr"): 8})
    with pytest.raises(UserError, match="1 to 12"):
        teach.restore(b'{"format": 1, "lessons": []}', {})


def moving(features, lively):
    made = np.random.default_rng(3).normal(0, 0.02, features).astype(np.float32)
    made[lively] += np.random.default_rng(4).normal(0, 1.0, made[lively].shape).astype(np.float32)
    return made


def test_only_the_lively_part_of_a_repetition_is_learnt(entry):
    backend = load(entry, "local")
    features = moving((30, backend.config().in_features), slice(15, 22))
    found = teach.codes(backend, Piece(features, 10), "oadtr", True)
    assert len(found) == 7 * 3, "seven chunks, each with three lengths of past"
    window = features[8:16]  # the longest that this brain reads
    assert np.abs(found[0] - encoded(backend, window[None])[0]).max() < 1e-5
    assert len(teach.codes(backend, Piece(features, 10), "oadtr", False)) == 20 * 3


def test_what_the_encoder_says_is_what_the_head_gets(entry):
    backend = load(entry, "local")
    features = moving((8, backend.config().in_features), slice(0, 8))
    network = backend.network()
    code = encoded(backend, features[None])[0]
    logits = code @ network.head.weight.numpy().T + network.head.bias.numpy()
    wanted = backend.window(features).probabilities
    assert np.abs(np.exp(logits) / np.exp(logits).sum() - wanted).max() < 1e-5
    with pytest.raises(UserError, match="no attention"):
        encoded(backend, features[None], "gru")


def test_a_stream_names_what_it_was_taught(entry):
    backend = load(entry, "local")
    with open_stream(keep=40) as stream:
        for k in range(41):
            pose = standing()
            pose[15:17, 1] -= 0.3 * (k // 10 % 2)  # arms up and down, a second each
            stream.push_pose(pose, k / 10)
        features = np.stack([moment.features for moment in stream.past])
    course = Course(
        repetitions=[Piece(features[:20], 10)] * 3, idle=[Piece(features[:10], 0), Piece(features[:30], 20)]
    )
    lesson = teach.learn("arms up", course, backend, entry.id)
    assert isinstance(lesson, Lesson) and lesson.repetitions == 3
    with open_stream() as stream:
        stream.learn((lesson,))
        found = []
        for k in range(41):
            pose = standing()
            pose[15:17, 1] -= 0.3 * (k // 10 % 2)
            update = stream.push_pose(pose, k / 10)
            found += [] if update is None else [update]
        called = [update.action == "arms up" for update in found]
        assert sum(called[10:20]) >= 3 and sum(called[:9]) == 0
        assert set(found[0].taught) == {"arms up"} and found[0].probabilities.shape == (5,)
        with pytest.raises(UserError, match="taught with other weights"):
            stream.learn((Lesson(**{**vars(lesson), "weights": "other"}),))
        stream.learn(())
        assert stream.push_pose(standing(), 9.0).taught == {}
