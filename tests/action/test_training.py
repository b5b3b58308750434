"""Draws, windows, the split, a training that learns and goes on, the export, and the measuring of it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.action import score, train, train_files
from pipelines.action.config import CLASSES, PRESETS
from pipelines.action.export import export
from pipelines.action.features import WIDTH
from pipelines.action.skeletons import CLASS_OF, FIRST_KIND, KINDS, MOVEMENTS
from pipelines.action.train_data import UNCOUNTED, Draw, Recipe, Source, _limbs, picture, windows
from pipelines.action.weights import build, load
from pipelines.common.training import pick_machine
from tests.action.bodies import clips, filmed, people

SMALL = Recipe(streams=6, chunks=48, draws=10)
WAVE = CLASSES.index("wave")
WAVED = 3  # UTD-MHAD's number of it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder with made-up recordings."""
    out = tmp_path_factory.mktemp("run")
    people_in, clips_in = people((1, 3)), clips()
    arrays = {f"body{k:04d}": each.points for k, each in enumerate(people_in)}
    arrays["bodies"] = np.array([(b.label, b.action, b.subject, b.start, b.end) for b in people_in])
    arrays |= {f"film{k:04d}": each.joints for k, each in enumerate(clips_in)}
    arrays["labels"], arrays["names"] = np.array([c.label for c in clips_in]), np.array([c.name for c in clips_in])
    np.savez(out / "recordings.npz", **arrays)
    return out


@pytest.fixture
def small(monkeypatch):
    """A network that trains in a blink."""
    tiny = {
        "oadtr": replace(PRESETS["tiny"], in_features=WIDTH, classes=len(CLASSES), chunks=32, future=8),
        "gru": replace(PRESETS["tiny-gru"], in_features=WIDTH, classes=len(CLASSES), future=8),
        "none": replace(PRESETS["tiny-none"], in_features=WIDTH, classes=len(CLASSES), future=8),
    }
    monkeypatch.setattr(train_files, "preset", lambda name, brain: tiny[brain])
    return replace(train.OPTIONS, batch=16, check_every=10**6, log_every=5, warmup=2)


def test_nobody_and_no_video_is_on_both_sides(folder):
    (bodies_in, films_in), (bodies_out, films_out) = train_files.split(folder)
    assert {b.subject for b in bodies_in} == {1} and {b.subject for b in bodies_out} == {3}
    assert len(bodies_in) + len(bodies_out) == 54 and len(films_in) + len(films_out) == 60
    assert not {f.name for f in films_in} & {f.name for f in films_out}
    assert len(films_out) > 5


def test_recordings_come_back_as_they_were(folder):
    bodies, films = train_files.load(folder)
    first = people((1, 3))[0]
    np.testing.assert_array_equal(bodies[0].points, first.points)
    assert (bodies[0].label, bodies[0].start, bodies[0].end) == (first.label, 8, 34)
    assert films[0].name == clips()[0].name and films[0].label == WAVE


def test_a_draw_is_decided_by_its_seed():
    source = Source(people((1,)), clips(), SMALL)
    one, same, other = (source.draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.features, same.features)
    np.testing.assert_array_equal(one.labels, same.labels)
    assert not np.array_equal(one.features, other.features)
    assert one.features.shape == (6, 48, WIDTH) and np.isfinite(one.features).all()
    assert one.movements.min() == UNCOUNTED and one.movements.max() >= FIRST_KIND
    counted = one.movements != UNCOUNTED
    np.testing.assert_array_equal(one.labels[counted], CLASS_OF[one.movements[counted]])
    assert (one.labels[~counted] == UNCOUNTED).all()


def test_without_films_every_chunk_counts():
    draw = Source(people((1,)), [], SMALL).draw(np.random.default_rng(0))
    assert draw.features.shape == (6, 48, WIDTH) and draw.labels.min() == 0


def test_some_streams_are_of_somebody_who_only_reads():
    quiet = Source(people((1,)), [], replace(SMALL, idle=1.0)).draw(np.random.default_rng(0))
    busy = Source(people((1,)), [], replace(SMALL, idle=0.0)).draw(np.random.default_rng(0))
    assert not quiet.labels.any() and (busy.labels > 0).any(axis=1).sum() >= 4


def test_film_streams_have_the_films_label_where_somebody_is():
    camera = replace(SMALL.camera, lost=0.0, rates=False)
    recipe = replace(SMALL, camera=camera, films=1.0, targets=1.0, sure=1.0, noise=0.0)
    draw = Source([], [filmed("wave/a_wave_u_nm_np1_fr_med_0.avi", "wave")], recipe).draw(np.random.default_rng(0))
    there = (draw.features != 0).any(axis=-1)
    assert (draw.labels[~there] != WAVE).all()
    assert set(draw.movements[draw.labels == WAVE].tolist()) == {FIRST_KIND + KINDS.index("wave")}
    assert 0.4 < (draw.labels == WAVE).mean() < 0.9


def test_windows_end_where_they_say_and_start_hidden():
    features = np.arange(2 * 40, dtype=np.float32).reshape(2, 40, 1) + 1
    movements = np.tile(np.arange(40), (2, 1))
    movements[1] = UNCOUNTED
    seen, now, ahead, hidden = windows(np.random.default_rng(0), Draw(features, movements), 200, 12, 8, calm=0.5)
    assert seen.shape == (200, 12, 1) and ahead.shape == (200, 8)
    assert (seen[:, -1, 0] <= 40).all()  # only the first stream counts
    end = seen[:, -1, 0].astype(int) - 1
    assert now.shape == (200, 12)
    np.testing.assert_array_equal(now[:, -1], movements[0, end])
    np.testing.assert_array_equal(now == UNCOUNTED, hidden)
    np.testing.assert_array_equal(ahead[:, 7], CLASS_OF[movements[0, end + 8]])
    assert end.max() == 31  # eight chunks have to follow
    np.testing.assert_array_equal(hidden.sum(axis=1), np.maximum(11 - end, 0))
    np.testing.assert_array_equal(seen[..., 0][~hidden], (end[:, None] + np.arange(-10, 2))[~hidden])
    assert (seen[..., 0][hidden] == 0).all()


def test_background_is_taken_less_often():
    movements = np.tile([0, WAVED], (1, 100))
    draw = Draw(np.ones((1, 200, 1), np.float32), movements)
    share = (windows(np.random.default_rng(0), draw, 4000, 4, 8, calm=0.25)[1][:, -1] == 0).mean()
    assert share == pytest.approx(0.2, abs=0.03)


def test_a_picture_keeps_its_person():
    clip = filmed("wave/a_wave_u_nm_np1_fr_med_0.avi", "wave")
    lengths = set()
    for seed in range(8):
        pose = picture(np.random.default_rng(seed), clip.joints)
        lengths.add(len(pose))
        assert pose.shape[1:] == (13, 3) and np.isfinite(pose).all()
        assert (pose[:, 0, 1] < pose[:, 11, 1]).all()  # the head stays above the feet
    assert len(lengths) > 3


def test_other_limbs_are_the_same_limbs_in_every_frame():
    """A bone is longer and turned by as much in each frame, and trunk and head stay where they are."""
    place = np.random.default_rng(0).normal(size=(5, 13, 2))
    moved = _limbs(np.random.default_rng(1), place)
    np.testing.assert_array_equal(moved[:, [0, 1, 2, 7, 8]], place[:, [0, 1, 2, 7, 8]])
    changes = set()
    for joint, end in ((1, 3), (3, 5), (2, 4), (4, 6), (7, 9), (9, 11), (8, 10), (10, 12)):
        before, after = ((each[:, end] - each[:, joint]) @ (1, 1j) for each in (place, moved))
        change = after / before  # as a complex number: how much longer, and by what angle
        np.testing.assert_allclose(change, change[0], rtol=1e-9)
        assert 0.6 < abs(change[0]) < 1.6 and abs(np.angle(change[0])) < 0.6
        changes.add(complex(change[0]))
    assert len(changes) == 8


def test_brains_learn(folder, small):
    """The loss falls, and what is kept are the averaged weights of the last step."""
    recipe = replace(SMALL, draws=100)  # always the same streams, so that losses can be compared
    for brain in ("oadtr", "gru", "none"):
        train.train(folder, brain, replace(small, finish=12, log_every=3, learning_rate=0.01), False, recipe)
        lines = (folder / f"{brain}-0.csv").read_text().splitlines()
        losses = [float(line.split(",")[2]) for line in lines[1:]]
        assert len(losses) == 4 and losses[-1] < 0.93 * losses[0]
    network = build(train.configured("oadtr"))
    assert train_files.restore(folder / "oadtr-0-average.pt", network) == 12


def test_a_stopped_training_is_the_unbroken_one(folder, small, tmp_path):
    weights = []
    for name, stops in (("whole", (12,)), ("broken", (5, 12))):
        out = tmp_path / name
        out.mkdir()
        (out / "recordings.npz").symlink_to(folder / "recordings.npz")
        for stop in stops:
            _train_to(out, small, stop)
        network = build(train.configured("none"))
        train_files.restore(out / "none-0.pt", network)
        weights.append(torch.cat([value.flatten() for value in network.state_dict().values()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def _train_to(out, options, stop):
    """Trains with a schedule of 12 steps, and stops politely at `stop`."""
    machine = replace(pick_machine(), workers=1)
    torch.manual_seed(0)
    network = build(replace(train.configured("none"), dropout=0.0))
    source = Source(*train_files.split(out)[0], SMALL)
    options = replace(options, finish=12)
    taught = train.Taught(network)
    trainer = train.Trainer(out, "none-0", taught, options, machine, train.COLUMNS, adam=train._adam)
    objective = train.Objective(taught, "none", source, machine, 0)

    def counted(rng, count):
        trainer.stopped = trainer.step + 1 >= stop
        torch.manual_seed(trainer.step)
        return objective(rng, count)

    trainer.run(counted, lambda step: {})
    assert trainer.step == stop


def test_everything_goes_on_from_what_was_kept_out(folder, small):
    train.train(folder, "none", replace(small, finish=10, seed=1), False, SMALL)
    started = torch.load(folder / "none-1.pt", weights_only=True)["ema"]
    train.train(folder, "none", replace(small, finish=1, seed=1, learning_rate=0.0), True, SMALL)
    went_on = torch.load(folder / "none-1-everything-average.pt", weights_only=True)["model"]
    for name, value in started.items():
        torch.testing.assert_close(went_on[name.removeprefix("network.")], value)


def test_linear_attention_may_start_from_oadtr(folder, small, monkeypatch):
    tiny = replace(PRESETS["tiny"], in_features=WIDTH, classes=len(CLASSES), chunks=32, future=8)
    monkeypatch.setattr(
        train_files, "preset", lambda name, brain: replace(tiny, attention="linear" if brain == "linear" else "softmax")
    )
    train.train(folder, "oadtr", replace(small, finish=2, seed=3), False, SMALL)
    start = folder / "oadtr-3-average.pt"
    train.train(folder, "linear", replace(small, finish=1, seed=3, learning_rate=0.0), False, SMALL, start)
    began, ended = (
        torch.load(folder / f"{name}-3-average.pt", weights_only=True)["model"] for name in ("oadtr", "linear")
    )
    for name, value in began.items():
        torch.testing.assert_close(ended[name], value)


def test_the_export_loads_strictly_and_says_what_it_is(folder, small, tmp_path):
    train.train(folder, "oadtr", replace(small, finish=4, seed=2), False, SMALL)
    export(folder, tmp_path, 2)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["labels"] == list(CLASSES) and list(content["brains"]) == ["oadtr"]
    assert content["brains"]["oadtr"]["in_features"] == WIDTH == 235
    assert 0 < content["release"] < content["threshold"] < 1
    network = load(train.configured("oadtr"), tmp_path / "oadtr.safetensors")
    trained = build(train.configured("oadtr"))
    train_files.restore(folder / "oadtr-2-average.pt", trained)
    with torch.no_grad():
        trained.head.bias[0] += math.log(2.5)  # background was taken 0.4 times as often as it comes
        trained.head.bias[CLASSES.index("stand up")] -= 1.5  # nor do people at a desk stand up as often as in streams
    window = torch.randn(1, 32, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(window)[0], trained.eval()(window)[0], rtol=0.02, atol=0.02)
    assert (tmp_path / "oadtr.safetensors").stat().st_mode & 0o044 == 0o044


def test_an_export_of_nothing_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no training"):
        export(tmp_path, tmp_path / "weights", 0)


def test_clips_are_measured_from_their_own_chunks_alone(folder, small):
    """Clips are padded to one batch: what follows a clip must not reach it."""
    _, (bodies, films) = train_files.split(folder)
    measured = score.Measured(bodies, films, streams=1, chunks=20)
    torch.manual_seed(0)
    network = build(train.configured("oadtr")).eval()
    found = measured.on_films(network)
    assert [len(each) for each in found] == [10] * len(films)
    alone = score.probabilities(network, measured.films[0][None])[0]
    np.testing.assert_allclose(found[0], alone, atol=1e-6)
    assert set(measured.summary(network)) == set(score.SUMMARY)


def test_every_chunk_is_named_from_what_the_encoder_made_of_it(small):
    torch.manual_seed(0)
    taught = train.Taught(build(train.configured("oadtr"))).eval()
    window = torch.randn(2, 12, WIDTH)
    taught.network(window)
    memory = taught.network.encode(window)[:, :-1]
    classes, movements = taught.chunk_logits()
    torch.testing.assert_close(classes, taught.chunk_head(memory))
    torch.testing.assert_close(movements, taught.movement_head(memory))
    assert classes.shape == (2, 12, len(CLASSES)) and movements.shape == (2, 12, MOVEMENTS)
    assert taught.now_logits().shape == (2, MOVEMENTS)
    assert not hasattr(train.Taught(build(train.configured("gru"))), "chunk_head")
