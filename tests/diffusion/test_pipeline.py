"""Requests and results: with a stub for what is shown and refused, with a tiny network for what is computed."""

import gc
import random
import weakref
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import pipelines.diffusion as public
from pipelines.common import backends
from pipelines.common.errors import UserError
from pipelines.common.limits import limits
from pipelines.diffusion import DiffusionRequest, Start, canvas, run, samplers, steps, tokenizer
from pipelines.diffusion import pipeline as module
from pipelines.diffusion.config import PRESETS
from pipelines.diffusion.contract import SAMPLERS
from pipelines.diffusion.generate import first_noise
from tests.stubs import StubDiffusion

RED = np.zeros((16, 16, 3), np.uint8)
RED[..., 0] = 255
LEFT = np.zeros((16, 16), bool)
LEFT[:, :8] = True


def flat(prompt):
    """The stub's picture of a prompt, a pixel of it."""
    return np.array([round((level + 1) * 127.5) for level in StubDiffusion.colour(prompt)])


# --- drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_a_picture_comes_call_by_call(stubs, backend):
    model = stubs()
    events = list(steps(DiffusionRequest("red", num_steps=6, guidance_scale=1, backend=backend, history=True)))
    assert [(event.step, event.steps) for event in events] == [(k, 6) for k in range(7)]
    assert events[0].preview is None and all(event.preview.shape == (16, 16, 3) for event in events[1:])
    assert [event.result is None for event in events] == [True] * 6 + [False]
    result = events[-1].result
    assert result.image is events[-1].preview and result.image.dtype == np.uint8 and result.image.shape == (16, 16, 3)
    assert np.abs(result.image - flat("red")).max() <= 1 and np.abs(events[1].preview - flat("red")).max() <= 1
    assert (result.request.weights, result.request.width, result.request.height) == ("stub", 16, 16)
    assert result.calls == len(model.asked) == 6
    assert set(result.seconds) == {"load", "text", "denoise", "decode", "first_preview"}
    assert all(value >= 0 for value in result.seconds.values())
    assert result.tokens[0].pieces == ("red",) and result.tokens[1].pieces == ()
    history = result.history
    assert history.latents.shape == (7, 4, 8, 8) and history.clean.shape == (6, 4, 8, 8)
    assert history.latents.dtype == history.clean.dtype == np.float32 and len(history.memory) == 6
    assert [len(each) for each in history.memory] == [0, 1, 1, 1, 1, 1]
    assert history.timesteps.tolist() == [asked[1] for asked in model.asked]
    assert np.array_equal(history.latents[0], first_noise(0, (4, 8, 8)).numpy())


def test_without_previews_and_history_there_are_none(stubs):
    stubs()
    events = list(steps(DiffusionRequest("a", num_steps=3, previews=False)))
    assert [event.preview is None for event in events] == [True, True, True, False]
    result = events[-1].result
    assert result.history is None and result.seconds["first_preview"] > 0
    assert run(DiffusionRequest("a", num_steps=3)).image.tolist() == result.image.tolist()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_sampler_draws(stubs, name, count):
    model = stubs()
    result = run(DiffusionRequest("red", num_steps=count, sampler=name, guidance_scale=1.0))
    expected = {"heun": 2 * count - 1, "pndm": count + (count > 1)}.get(name, count)
    assert result.calls == len(model.asked) == expected
    if count > 1 or name not in ("ddim", "pndm"):  # whose single step is the cleanest one
        assert np.abs(result.image.mean(axis=(0, 1)) - flat("red")).max() < 20


STRANGE = [
    "", " ", "🙂👩‍👩‍👧", "\x00\x1b[2J\u202e\x7f\r\n", "שלום עולם", "a\ufeff\ufffd", "<|endoftext|>", "zxqv " * 10_000,
    "a" * 100_000, "狗" * 5_000,
]  # fmt: skip


@pytest.mark.parametrize("prompt", STRANGE, ids=range(len(STRANGE)))
def test_any_prompt_is_answered(tiny_catalogue, prompt):
    result = run(DiffusionRequest(prompt, negative_prompt=prompt[:100], num_steps=1))
    tokens = result.tokens[0]
    assert result.image.shape == (16, 16, 3) and result.request.prompt == prompt
    assert tokens.used == min(len(tokens.pieces), 14)
    if prompt.startswith("zxqv"):
        assert len(tokens.pieces) >= 10_000  # all of them shown, not cut in silence


def test_pieces_are_joined_as_by_definition():
    """Byte-pair encoding, looking through all pairs for each join, against the queue that a long word needs."""
    draw = random.Random(1)
    for _ in range(200):
        parts, ranks = list("abc"), {}
        for _ in range(12):
            pair = draw.choice(parts), draw.choice(parts)
            if pair not in ranks:
                ranks[pair] = len(ranks)
                parts.append(pair[0] + pair[1])
        spelled = draw.choices("abc", k=draw.randint(1, 40))
        pieces = list(spelled)
        while found := [(ranks[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in ranks]:
            at = min(found)[1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        assert tokenizer.merge(spelled, ranks) == tuple(pieces)


def test_a_prompt_without_a_wish_is_the_same_at_any_guidance(tiny_catalogue):
    """With nothing wanted and nothing unwanted, the two halves of guidance are one."""
    pictures = [run(DiffusionRequest("", num_steps=2, guidance_scale=scale)).image for scale in (1.0, 4.0, 100.0)]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1
    assert np.abs(pictures[0].astype(int) - pictures[2]).max() <= 2
    wish = run(DiffusionRequest("a red apple", num_steps=2, guidance_scale=4.0)).image
    assert np.abs(wish.astype(int) - pictures[1]).max() > 10


@pytest.mark.parametrize("scale", [-5, 0, 100, -100.0])
def test_strange_guidance_is_answered(tiny_catalogue, scale):
    assert run(DiffusionRequest("a cat", num_steps=2, guidance_scale=scale)).image.shape == (16, 16, 3)


@pytest.mark.parametrize(("width", "height"), [(2, 2), (2, 16), (18, 10), (None, 26), (64, 32)])
def test_sizes(tiny_catalogue, width, height):
    result = run(DiffusionRequest("a cat", num_steps=2, width=width, height=height))
    assert result.image.shape == (height, width or 16, 3) and result.request.width == (width or 16)


def test_a_seed_is_a_picture_and_another_one_another(tiny_catalogue):
    request = DiffusionRequest("a red apple", num_steps=3, seed=5)
    first, again, other = (run(each).image for each in (request, request, replace(request, seed=6)))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_picture_is_that_of_its_parts(tiny_catalogue):
    """The whole pipeline by hand, over the same networks."""
    result = run(DiffusionRequest("a red apple", "cat", num_steps=4, guidance_scale=3.0, sampler="ddim", seed=2))
    backend = module.load(module.entry(), "local")
    plan = samplers.make("ddim", backend.config.schedule, 4)
    prompt, negative = backend.encode_text(["a red apple"]), backend.encode_text(["cat"])

    def apart(scale):
        x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(2))
        for i, timestep in enumerate(plan.timesteps):
            given, without = backend.denoise(x, timestep, prompt), backend.denoise(x, timestep, negative)
            x, _ = samplers.step(plan, i, x, without + scale * (given - without))
        return np.abs(result.image.astype(int) - backend.decode(x)).max()

    assert apart(3.0) <= 1 < apart(-3.0)


def test_both_implementations_draw_the_same_picture(tiny_catalogue):
    pytest.importorskip("diffusers")
    request = DiffusionRequest("a red apple", num_steps=3, guidance_scale=3.0)
    ours, theirs = (run(replace(request, backend=backend)) for backend in backends.BACKENDS)
    assert np.abs(ours.image.astype(int) - theirs.image).max() <= 1
    assert ours.tokens == theirs.tokens and theirs.request.backend == "reference"


# --- from a picture --------------------------------------------------------------------------------------------------


def test_image_to_image_keeps_more_the_weaker_it_is(stubs):
    class Lazy(StubDiffusion):
        """Means what it is given, so that nothing but the noising shows."""

        def denoise(self, latents, *given, **options):
            super().denoise(latents, *given, **options)
            return torch.zeros_like(latents)

    def error(strength):
        model.asked.clear()
        image = run(DiffusionRequest("a", num_steps=10, image=RED, strength=strength, sampler="ddim")).image
        return np.abs(image.astype(int) - RED).mean(), len(model.asked)

    model = stubs(Lazy())
    (weak, few), (strong, many) = error(0.2), error(1.0)
    assert (few, many) == (2, 10) and weak < strong


def test_a_pure_red_picture_stays_pure_red(stubs):
    """One door for pixels: a mask over one corner draws there, and the rest is red to the last bit."""
    stubs()
    corner = np.zeros((16, 16), bool)
    corner[:4, :4] = True
    image = run(DiffusionRequest("green", num_steps=4, image=RED, mask=corner, guidance_scale=1.0)).image
    assert (image[4:, 4:] == [255, 0, 0]).all() and (image[~corner] == [255, 0, 0]).all()
    assert np.abs(image[:4, :4] - flat("green")).max() <= 1
    meant = StubDiffusion().encode(RED)
    assert meant[0, :, 0, 0].tolist() == [1, -1, -1, 0]


def test_masks(stubs):
    stubs()
    request = DiffusionRequest("green", num_steps=4, image=RED, strength=1.0, guidance_scale=1.0)
    white = run(replace(request, mask=np.ones((16, 16), bool)))
    assert np.array_equal(white.image, run(request).image)  # all of it drawn anew: the mask changes nothing
    half = run(replace(request, mask=LEFT)).image
    assert (half[:, 8:] == [255, 0, 0]).all() and np.abs(half[:, :8] - flat("green")).max() <= 1


def test_pictures_of_other_sizes_cover_the_canvas(stubs):
    stubs()
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = [0, 0, 255]  # what is left when it is cut to a square
    mask = np.zeros((40, 100), bool)
    mask[:20] = True
    result = run(DiffusionRequest("green", num_steps=3, image=wide, mask=mask, guidance_scale=1.0))
    assert result.request.image.shape == (16, 16, 3) and result.request.mask.shape == (16, 16)
    assert result.request.mask[:8].all() and not result.request.mask[8:].any()
    assert (result.image[10:] == [0, 0, 255]).all()
    outside = np.zeros((40, 100), bool)
    outside[:, :10] = True
    with pytest.raises(UserError, match="outside the picture's new size"):
        run(DiffusionRequest("green", image=wide, mask=outside))


def test_a_canvas_that_fits_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    assert np.array_equal(canvas.cover(image, 24, 16), image) and np.array_equal(canvas.cover_mask(LEFT, 16, 16), LEFT)
    tiny = np.zeros((512, 512), bool)
    tiny[100, 300] = True
    assert canvas.cover_mask(tiny, 16, 16).sum() == 1  # however small, it is not lost
    cells = canvas.cells(canvas.cover_mask(tiny, 16, 16), 2)
    assert cells.shape == (8, 8) and cells.sum() == 1 and cells[1, 4]
    assert canvas.fingerprint(image) != canvas.fingerprint(image.reshape(24, 16, 3))


# --- stopping, turns, memory -----------------------------------------------------------------------------------------


def test_a_visitor_who_leaves_stops_the_work_and_frees_the_memory(stubs):
    class Watched(StubDiffusion):
        refs = ()

        def denoise(self, latents, *given, **options):
            said = super().denoise(latents, *given, **options)
            self.refs = (*self.refs, weakref.ref(said))
            return said

    model = stubs(Watched())
    drawing = steps(DiffusionRequest("a", num_steps=9, history=True))
    assert [next(drawing).step for _ in range(4)] == [0, 1, 2, 3]
    drawing.close()
    gc.collect()
    assert len(model.asked) == 3 and [ref() for ref in model.refs] == [None] * 3


def test_no_memory_is_a_sentence(stubs):
    class Full(StubDiffusion):
        error = MemoryError()

        def decode(self, latents):
            raise self.error

    model = stubs(Full())
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")):
        model.error = error
        with pytest.raises(UserError, match="not enough memory"):
            run(DiffusionRequest("a", num_steps=1))
    model.error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes"):
        run(DiffusionRequest("a", num_steps=1))


# --- what is refused -------------------------------------------------------------------------------------------------

NAN, INFINITE = float("nan"), float("inf")
ZEROS = np.zeros((4, 8, 8), np.float32)
NONE = np.zeros((0, 4, 8, 8), np.float32)
REFUSED = [
    *(({"prompt": bad}, "The prompt must be text") for bad in (None, b"a", 5, ["a"])),
    ({"negative_prompt": None}, "The negative prompt must be text"),
    ({"prompt": "a" * 100_001}, "has 100,001 characters; shorten it to 100,000"),
    ({"prompt": "a\ud83d"}, "Character 2 of the prompt is only half"),
    ({"weights": None}, "must be named"),
    ({"weights": "dall-e"}, "no weights called"),
    *(({"backend": bad}, "local or reference") for bad in ("cloud", ["local"], None)),
    *(({"sampler": bad}, "no sampler called") for bad in ("dpm", None, ["ddim"], 3)),
    *(({"num_steps": bad}, "whole number between 1 and 200") for bad in (0, -1, 1000, 2.0, "5", None, True)),
    *(({"guidance_scale": bad}, "between -100 and 100") for bad in (-100.1, 101, NAN, INFINITE, "4", None, True, 1j)),
    *(({"seed": bad}, "seed must be") for bad in (-1, 2**63, 0.5, None, "1")),
    *(({"strength": bad}, "above 0 and be at most 1") for bad in (0, -0.1, 1.1, NAN, None)),
    *(({"width": bad}, "width must be a whole number of pixels, at most 1,024") for bad in (0, -8, 1026, 16.0, "16")),
    ({"height": 10**12}, "height must be a whole number of pixels, at most 1,024"),
    ({"width": 17}, "width must be a multiple of 2; take 16 or 18"),
    ({"height": 1}, r"height must be a multiple of 2; take 2\."),
    ({"height": 1023}, "take 1022 or 1024"),
    *(({"image": bad}, "must be an array") for bad in ("a.png", RED.astype(float), RED[..., 0], RED[..., :2], [1])),
    ({"image": RED[:0]}, "has no pixels"),
    ({"mask": LEFT}, "give the picture, too"),
    *(({"image": RED, "mask": bad}, "type bool") for bad in (LEFT.astype(np.uint8), LEFT[None], "white")),
    ({"image": RED, "mask": LEFT[:8]}, "of one size, and are 16×8 and 16×16 pixels"),
    ({"image": RED, "mask": ~LEFT & LEFT}, "mask is empty"),
    *(({"precision": bad}, "float32 or reduced") for bad in ("float16", None)),
    ({"precision": "reduced", "backend": "reference"}, "choose local"),
    ({"previews": 1}, "true or false"),
    ({"history": None}, "true or false"),
    ({"history": True, "num_steps": 200, "width": 1024, "height": 1024}, "history of this run would take 2,521 MB"),
    ({"sampler": "lcm", "num_steps": 51}, r"lcm takes at most 50 steps; choose fewer"),
    ({"sampler": "lcm", "num_steps": 20, "image": RED, "strength": 0.3}, "at most 15 steps at strength 0.3"),
    ({"sampler": "lcm", "num_steps": 1, "image": RED, "strength": 0.01}, "greater strength"),
    *(({"start": bad}, "must be a Start") for bad in (3, Start(ZEROS, -1, NONE), Start(ZEROS, 1.5, NONE))),
    ({"start": Start(ZEROS.astype(float), 1, NONE)}, "float32"),
    ({"start": Start(ZEROS, 1, ZEROS)}, "one axis more"),
    ({"start": Start(ZEROS + np.float32(NAN), 1, NONE)}, "no number"),
    ({"start": Start(ZEROS, 1, np.zeros((2, 4, 8, 8), np.float32))}, "not one of the sampler"),
    ({"start": Start(ZEROS, 20, NONE)}, "has 20 calls, counted from 0"),
    ({"start": Start(ZEROS[:, :4], 1, NONE)}, "of another size"),
    ({"start": Start(ZEROS, 1, NONE[..., :4])}, "of another size"),
]


@pytest.mark.parametrize(("values", "said"), REFUSED)
def test_a_request_that_cannot_be_served_is_a_sentence(stubs, values, said):
    model = stubs()
    with pytest.raises(UserError, match=said) as caught:
        run(DiffusionRequest(**{"prompt": "a", **values}))
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 300 and not model.asked


@pytest.mark.parametrize("request_", [None, "a red apple", {"prompt": "a"}])
def test_what_is_no_request_is_a_sentence(request_):
    with pytest.raises(UserError, match="must be a DiffusionRequest"):
        steps(request_)


def test_values_are_checked_before_anything_is_loaded():
    with pytest.raises(UserError, match="steps"):
        steps(DiffusionRequest("a", num_steps=0))  # at once, and not with the first event


def test_other_types_of_numbers_are_taken(tiny_catalogue):
    plain = DiffusionRequest("a cat", num_steps=3, seed=4, guidance_scale=4.0, width=16)
    other = replace(
        plain, num_steps=np.int64(3), seed=np.uint8(4), guidance_scale=np.float32(4), width=np.int32(16)
    )  # fmt: skip
    assert np.array_equal(run(plain).image, run(other).image)
    assert type(run(other).request.num_steps) is int and type(run(other).request.guidance_scale) is float


def test_the_public_names_are_there():
    assert {"DiffusionRequest", "run", "steps", "read_png", "write_png", "fork", "xray"} <= set(public.__all__)
    assert all(getattr(public, name) is not None for name in public.__all__)
    with pytest.raises(AttributeError, match="no attribute"):
        public.nothing  # noqa: B018
    assert limits().steps == 200 and PRESETS["tiny"].vae.factor == 2
