"""What guidance adds, where tokens look, what a word was good for, and the race of samplers."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.common.errors import UserError
from pipelines.diffusion import (
    DiffusionRequest,
    attention,
    deletions,
    fork,
    insight,
    pipeline,
    read_png,
    record,
    run,
    samplers,
    write_png,
    xray,
)
from pipelines.diffusion.config import PRESETS
from pipelines.diffusion.contract import SAMPLERS, Deletion, DiffusionEvent
from pipelines.diffusion.race import race, steps_for
from pipelines.diffusion.travel import Node
from pipelines.diffusion.unet import Record
from tests.stubs import StubDiffusion

REQUEST = DiffusionRequest("a red apple", num_steps=5, guidance_scale=3.0, seed=3, history=True, sampler="euler")


@pytest.fixture
def stub(monkeypatch):
    """The weights' place is taken by a stub; returns it."""
    model = StubDiffusion()
    entry = SimpleNamespace(id="stub", title="stub", files=(), source="bundled")
    monkeypatch.setattr(pipeline, "entry", lambda weights="auto": entry)
    monkeypatch.setattr(pipeline, "load", lambda entry, backend: model)
    return model


def node_of(request=REQUEST):
    result = run(request)
    return Node(result.request, result.image, result.history)


# --- guidance --------------------------------------------------------------------------------------------------------


def test_an_x_ray_takes_guidance_apart(stub):
    node = node_of(replace(REQUEST, prompt="b", negative_prompt="a"))
    seen = xray(node, 1, scales=(0.0, 1.0, 2.0))
    a, b = (np.array(StubDiffusion.colour(each)) for each in "ab")
    assert np.allclose(seen.difference[:3].mean(axis=(1, 2)), b - a, atol=0.01) and seen.difference.shape == (4, 8, 8)
    assert np.allclose(seen.where, np.linalg.norm(b - a), atol=0.02) and seen.where.shape == (8, 8)
    pixel = np.round((b + 1) * 127.5)
    assert np.abs(seen.given - pixel).max() <= 1 and np.abs(seen.without - np.round((a + 1) * 127.5)).max() <= 1
    assert [scale for scale, _ in seen.ends] == [0, 1, 2] and seen.timestep == node.history.timesteps[1]
    assert np.array_equal(seen.ends[1][1], seen.given) and np.array_equal(seen.ends[0][1], seen.without)
    past = np.round((np.clip(a + 2 * (b - a), -1, 1) + 1) * 127.5)
    assert np.abs(seen.ends[2][1] - past).max() <= 2
    assert stub.asked[-1][0] == 2 and len(stub.asked) == 6  # one more call, of both


def test_the_same_prompt_twice_leaves_nothing(tiny_catalogue):
    node = node_of(replace(REQUEST, negative_prompt=REQUEST.prompt))
    assert np.abs(xray(node, 2).difference).max() < 1e-4
    other = xray(node_of(replace(REQUEST, negative_prompt="cat")), 2)
    assert np.abs(other.difference).max() > 0.01 and len(other.ends) == 6


def test_an_x_ray_at_the_runs_own_scale_is_the_runs_own_prediction(tiny_catalogue):
    node = node_of()
    backend = pipeline.load(pipeline.entry(), "local")
    for call in node.calls:
        end = xray(node, call, scales=(3.0,)).ends[0][1]
        own = backend.preview(torch.from_numpy(node.history.clean[call])[None])
        assert np.abs(end.astype(int) - own).max() <= 1
    child = run(fork(node, 2, {"prompt": "a cat"}))
    child = Node(child.request, child.image, child.history, 0, 2)
    assert xray(child, 3).timestep == node.history.timesteps[3]
    with pytest.raises(UserError, match="calls 2 to"):
        xray(child, 1)


@pytest.mark.parametrize(
    ("call", "scales", "said"),
    [(9, (1.0,), "choose one of these"), (-1, (1.0,), "choose one"), (1.5, (1.0,), "choose one"), (1, (), "1 to 12"),
     (1, (1.0,) * 13, "1 to 12"), (1, (101.0,), "between -100"), (1, (float("nan"),), "between"), (1, ("a",), "bet")],
)  # fmt: skip
def test_x_rays_that_cannot_be_are_sentences(stub, call, scales, said):
    node = node_of()
    with pytest.raises(UserError, match=said):
        xray(node, call, scales)


def test_weights_that_follow_guidance_inside_cannot_be_taken_apart(stub):
    stub.config = replace(stub.config, unet=replace(stub.config.unet, time_cond_proj_dim=8))
    node = node_of()
    with pytest.raises(insight.FollowedInside, match="follow the guidance inside"):
        xray(node, 1)


def test_a_moment_is_shown_without_asking_the_denoiser(stub):
    node = node_of(replace(REQUEST, prompt="b", guidance_scale=1.0))
    asked = len(stub.asked)
    noisy, foreseen = insight.moment(node, 0)
    pixel = np.round((np.array(StubDiffusion.colour("b")) + 1) * 127.5)
    assert noisy.std() > 30 and np.abs(foreseen - pixel).max() <= 3 and len(stub.asked) == asked
    assert np.array_equal(noisy, xray(node, 0).before)
    with pytest.raises(UserError, match="calls 0 to 4"):
        insight.moment(node, 5)


def test_no_memory_for_the_maps_is_a_sentence(stub, monkeypatch):
    node = node_of()

    def full(*args, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(stub, "denoise", full)
    with pytest.raises(UserError, match="not enough memory"):
        attention(node, 1)


# --- attention -------------------------------------------------------------------------------------------------------


def test_attention_shares_are_of_every_token(tiny_catalogue):
    node = node_of()
    seen = attention(node, 2)
    pieces = pipeline.load(pipeline.entry(), "local").tokens(REQUEST.prompt)[0].pieces
    assert seen.labels == ("start", *pieces, "end", "padding")
    assert seen.kinds == ("start", *["word"] * len(pieces), "end", "padding")
    assert seen.mean.shape == (len(seen.labels), 8, 8) and seen.mean.dtype == np.float32
    # of the tiny network: one on the way down at the full size, one in the middle at half, two on the way up
    assert [layer.shape[1:] for layer in seen.layers] == [(8, 8), (4, 4), (8, 8), (8, 8)]
    for shares in (*seen.layers, seen.mean):
        assert np.allclose(shares.sum(axis=0), 1, atol=1e-5) and (shares >= 0).all()
    assert seen.mean.std(axis=(1, 2)).max() > 1e-4  # it is a picture, and no constant


def test_attention_is_the_networks_own(tiny_catalogue):
    node = node_of()
    backend = pipeline.load(pipeline.entry(), "local")
    plan, record = samplers.make("euler", backend.config.schedule, 5), Record()
    x = samplers.scale_input(plan, 2, torch.from_numpy(node.history.latents[2])[None])
    backend.denoise(x, plan.timesteps[2], backend.encode_text([REQUEST.prompt]), record=record)
    seen = attention(node, 2)
    for layer, raw in zip(seen.layers, record.cross_attention, strict=True):
        raw = raw[0].numpy().transpose(2, 0, 1)
        used = len(seen.labels) - 1
        assert np.allclose(layer[:used], raw[:used], atol=1e-6)
        assert np.allclose(layer[used], raw[used:].sum(axis=0), atol=1e-5)
    first = np.mean([seen.layers[0], np.kron(seen.layers[1], np.ones((1, 2, 2))), *seen.layers[2:]], axis=0)
    assert np.allclose(seen.mean, first, atol=1e-6)


def test_a_prompt_that_fills_the_encoder_has_no_padding(tiny_catalogue):
    seen = attention(node_of(replace(REQUEST, prompt="a red apple and the green house with a cat " * 5)), 0)
    assert seen.kinds == ("start", *["word"] * 14, "end") and len(seen.mean) == 16
    assert np.allclose(seen.mean.sum(axis=0), 1, atol=1e-5)
    nothing = attention(node_of(replace(REQUEST, prompt="")), 0)
    assert nothing.labels == ("start", "end", "padding")


def test_the_library_cannot_be_looked_into(stub):
    node = node_of(replace(REQUEST, backend="reference"))
    with pytest.raises(UserError, match="choose local"):
        attention(node, 1)


def test_recording_changes_nothing(tiny_catalogue):
    backend = pipeline.load(pipeline.entry(), "local")
    x, text = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), backend.encode_text(["a cat"])
    assert torch.equal(backend.denoise(x, 500.0, text), backend.denoise(x, 500.0, text, record=Record()))


# --- a word less -----------------------------------------------------------------------------------------------------


def test_words_are_cut_out():
    assert insight.words(" a  red\napple, 🙂 ") == ("a", "red", "apple,", "🙂")
    assert [insight.without("a red apple", k) for k in range(3)] == ["red apple", "a apple", "a red"]
    assert insight.without("one", 0) == "" and insight.without("a  red\n b", 1) == "a\n b"
    assert insight.without("a b" + " " * 20_000, 1) == "a" + " " * 20_000  # not tried from each blank on
    for bad in (3, -1, 1.0, None, True):
        with pytest.raises(UserError, match="has 3 words"):
            insight.without("a red apple", bad)


def test_deletions_measure_each_word_from_the_same_noise(stub):
    found = list(deletions(replace(REQUEST, prompt="x \x00 y", guidance_scale=1.0, num_steps=3)))
    cut = [each for each in found if isinstance(each, Deletion)]
    whole = next(each.result for each in found if isinstance(each, DiffusionEvent) and each.result)
    assert [(each.word, each.text) for each in cut] == [(0, "x"), (1, "\x00"), (2, "y"), (None, "")]
    assert [each.result.request.prompt for each in cut] == ["\x00 y", "x y", "x \x00", "x \x00 y"]
    assert [each.result.request.seed for each in cut] == [3, 3, 3, 2]
    for each in cut:
        expected = np.abs(each.result.image.astype(float) - whole.image).mean()
        assert each.apart == pytest.approx(expected, abs=1e-4) and each.where.shape == (16, 16)
        assert each.where.mean() == pytest.approx(each.apart, abs=1e-3)
    assert cut[0].apart > 5 and cut[3].apart < 1  # the stub's picture hangs on the prompt alone
    only = [each for each in deletions(REQUEST, [2]) if isinstance(each, Deletion)]
    assert [each.word for each in only] == [2, None]


def test_deletions_stop_when_they_are_left(stub):
    going = deletions(REQUEST)
    for _ in range(8):
        next(going)
    asked = len(stub.asked)
    going.close()
    assert len(stub.asked) == asked == 6


@pytest.mark.parametrize(
    ("prompt", "chosen", "said"), [("", None, "1 to 12"), ("a b", [2], "has 2 words"), ("a", [0] * 13, "1 to 12")]
)
def test_words_that_are_not_there_are_sentences(stub, prompt, chosen, said):
    with pytest.raises(UserError, match=said):
        deletions(replace(REQUEST, prompt=prompt), chosen)
    assert not stub.asked


# --- the race --------------------------------------------------------------------------------------------------------


def test_a_race_is_in_lock_step_with_every_call_counted(tiny_catalogue):
    events = list(race(replace(REQUEST, num_steps=6), SAMPLERS, reference_steps=20))
    assert [event.reference for event in events[:21]] == list(range(21)) and len(events) == 21 + 6
    assert events[19].reference_image is None and events[20].reference_image.shape == (16, 16, 3)
    lanes = {lane.sampler: lane for lane in events[-1].lanes}
    assert tuple(lanes) == SAMPLERS and all(lane.done for lane in lanes.values())
    assert {name: lane.of for name, lane in lanes.items()} == dict.fromkeys(SAMPLERS, 6) | {"heun": 5}
    for before, after in pairwise(events[20:]):
        for one, two in zip(before.lanes, after.lanes, strict=True):
            assert two.calls == min(one.calls + 1, two.of) and two.errors[: one.calls] == one.errors
            assert len(two.errors) == two.calls and two.preview.shape == (16, 16, 3)
    for name in ("ddim", "heun", "pndm", "lcm"):
        lane = lanes[name]
        alone = run(replace(REQUEST, num_steps=lane.steps, sampler=name))
        assert np.array_equal(lane.preview, alone.image) and alone.calls == lane.of
        assert lane.errors[-1] > 0.01


def test_errors_are_distances_to_the_long_run(tiny_catalogue):
    long = run(replace(REQUEST, sampler="dpm++2m", num_steps=20)).history.latents[-1]
    *_, last = race(replace(REQUEST, num_steps=4), ["ddim"], reference_steps=20)
    mine = run(replace(REQUEST, sampler="ddim", num_steps=4)).history
    ends = [*mine.clean[:-1], mine.latents[-1]]  # foreseen ends, then the end
    expected = [float(np.sqrt(np.square(each - long).mean())) for each in ends]
    assert last.lanes[0].errors == pytest.approx(expected, rel=1e-4)
    *_, same = race(replace(REQUEST, num_steps=20), ["dpm++2m"], reference_steps=20)
    assert same.lanes[0].errors[-1] == 0.0


def test_steps_for_a_number_of_calls():
    schedule = PRESETS["tiny"].schedule
    for name in SAMPLERS:
        for calls in (1, 2, 3, 7, 20):
            made = len(samplers.make(name, schedule, steps_for(name, calls)).timesteps)
            assert made <= calls
            assert made >= calls - (name == "heun") - (name == "pndm" and calls == 2)


def test_a_race_stops_when_it_is_left(stub):
    racing = race(replace(REQUEST, num_steps=4), ["ddim", "heun"], reference_steps=3)
    for _ in range(5):
        next(racing)
    assert len(stub.asked) == 3 + 2
    racing.close()
    assert len(stub.asked) == 5


@pytest.mark.parametrize(
    ("changes", "names", "steps", "said"),
    [({}, [], 10, "each once"), ({}, ["ddim", "ddim"], 10, "each once"), ({}, ["x"], 10, "each once"),
     ({}, ["ddim"], 0, "long run"), ({}, ["ddim"], 201, "long run"), ({"num_steps": 0}, ["ddim"], 10, "steps"),
     ({"guidance_scale": 1e9}, ["ddim"], 10, "guidance"), ({"prompt": None}, ["ddim"], 10, "text")],
)  # fmt: skip
def test_races_that_cannot_be_are_sentences(stub, changes, names, steps, said):
    with pytest.raises(UserError, match=said):
        race(replace(REQUEST, **changes), names, steps)
    with pytest.raises(UserError, match="DiffusionRequest"):
        race("a red apple", ["ddim"])
    assert not stub.asked


# --- the bundled weights ---------------------------------------------------------------------------------------------


def test_the_bundled_model_draws_and_is_looked_into():
    """20 steps with guidance: what a page does first."""
    result = run(DiffusionRequest("a red apple, twemoji style", weights="emoji", num_steps=20, history=True, seed=1))
    assert result.image.shape == (128, 128, 3) and result.calls == 20 and result.image.std() > 20
    red, _, blue = result.image.mean(axis=(0, 1))
    assert red > blue + 20 and result.seconds["denoise"] > 0
    again = read_png(write_png(result))
    assert np.array_equal(run(again).image, result.image) and record.notes(result.record) == ()
    node = Node(result.request, result.image, result.history)
    seen = attention(node, 10)
    assert seen.labels[0] == "start" and "apple" in "".join(seen.labels) and seen.mean.shape[1:] == (16, 16)
    assert xray(node, 10).where.max() > 0.01
