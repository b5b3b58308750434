"""The fast form of decoding against the readable decoder."""

from dataclasses import replace

import pytest
import torch

from pipelines.moe.cache import KeyValueCache
from pipelines.moe.config import PRESETS
from pipelines.moe.contract import RouterChange
from pipelines.moe.decode import FastDecoder, strongest
from pipelines.moe.decoder import Record
from pipelines.moe.router import Steered, route
from pipelines.moe.steer import steer
from tests.moe.tiny import lively

TOKENS = torch.randint(1, 320, (24,), generator=torch.Generator().manual_seed(5))
VARIANTS = {
    "mixtral": PRESETS["tiny"],
    "olmoe": PRESETS["tiny-olmoe"],
    "granite": PRESETS["tiny-granite"],
    "switch": PRESETS["tiny-switch"],
    "window": replace(PRESETS["tiny"], window=5),
    "one head a group": replace(PRESETS["tiny"], key_value_heads=4),
    "all heads one group": replace(PRESETS["tiny-granite"], key_value_heads=1),
    "all experts": replace(PRESETS["tiny-olmoe"], active=4),
}


def whole(decoder, tokens, **options):
    """(T, V): the readable decoder, no cache."""
    with torch.inference_mode():
        return decoder(tokens[None], **options)[0]


def stepped(fast, tokens, prompt, cache=None, **options):
    """(T - prompt + 1, V): the prompt at once, then one token a step."""
    cache = cache or fast.start(len(tokens))
    found = [fast.feed(tokens[:prompt], cache, **options)]
    found += [fast.feed(tokens[at : at + 1], cache, **options) for at in range(prompt, len(tokens))]
    return torch.stack(found)


@pytest.fixture(params=VARIANTS)
def decoder(request):
    return lively(VARIANTS[request.param])


def test_steps_are_the_readable_decoder(decoder):
    wanted = whole(decoder, TOKENS)
    assert wanted.std() > 0.1  # there is something to compare
    fast = FastDecoder(decoder)
    assert (stepped(fast, TOKENS, 8) - wanted[7:]).abs().max() < 1e-4
    assert (stepped(fast, TOKENS, 1) - wanted).abs().max() < 1e-4
    # The decoder itself goes on, on the matrices that it now shares.
    assert torch.equal(whole(decoder, TOKENS), wanted)


def test_logits_of_a_step_outlive_the_next():
    fast = FastDecoder(lively("tiny"))
    cache = fast.start(4)
    first = fast.feed(TOKENS[:1], cache)
    kept = first.clone()
    fast.feed(TOKENS[1:2], cache)
    assert torch.equal(first, kept) and first.shape == (320,) and first.dtype == torch.float32


def test_a_cut_cache_goes_on_where_it_was_cut(decoder):
    fast = FastDecoder(decoder)
    cache = fast.start(len(TOKENS))
    wanted = stepped(fast, TOKENS, 6, cache)
    cache.cut(10)
    fast.feed(TOKENS[:1], cache)  # another text for a while
    cache.cut(10)
    assert (stepped(fast, TOKENS[10:], 1, cache) - wanted[5:]).abs().max() < 1e-5


def test_several_tokens_behind_a_step(decoder):
    fast = FastDecoder(decoder)
    cache = fast.start(len(TOKENS))
    stepped(fast, TOKENS[:9], 8, cache)
    found = fast.feed(TOKENS[9:], cache)
    assert (found - whole(decoder, TOKENS)[-1]).abs().max() < 1e-4


def test_two_texts_do_not_mix():
    decoder = lively("tiny")
    fast = FastDecoder(decoder)
    other = TOKENS.flip(0)
    caches = fast.start(len(TOKENS)), fast.start(len(TOKENS))
    for at in range(len(TOKENS)):
        found = [fast.feed(text[at : at + 1], cache) for text, cache in zip((TOKENS, other), caches, strict=True)]
    for each, text in zip(found, (TOKENS, other), strict=True):
        assert (each - whole(decoder, text)[-1]).abs().max() < 1e-4


@pytest.mark.parametrize("preset", ["tiny", "tiny-olmoe", "tiny-granite"])
@pytest.mark.parametrize(
    "change",
    [
        RouterChange(banned=frozenset({(0, 1), (1, 2)})),
        RouterChange(active=1),
        RouterChange(active=3, temperature=3.0),
        RouterChange(control="hash", seed=3),
    ],
    ids=["banned", "one", "three", "hash"],
)
def test_steered_and_recorded_as_the_readable_decoder(preset, change):
    decoder = lively(preset)
    changed, plain_record, records = steer(change, decoder.config), Record(), []
    wanted = whole(decoder, TOKENS, steer=changed, record=plain_record)
    assert (wanted - whole(decoder, TOKENS)).abs().max() > 0.01
    fast = FastDecoder(decoder)
    cache = fast.start(len(TOKENS))
    found = fast.feed(TOKENS[:8], cache, changed)
    for at in range(8, len(TOKENS)):
        records.append(Record())
        found = fast.feed(TOKENS[at : at + 1], cache, changed, records[-1])
        assert (found - wanted[at]).abs().max() < 1e-4
    for layer, routing in enumerate(plain_record.routings):
        for name in ("logits", "experts", "weights"):
            joined = torch.cat([getattr(each.routings[layer], name) for each in records])
            assert joined.dtype == getattr(routing, name).dtype
            assert (joined - getattr(routing, name)[8:]).abs().max() < 1e-4


def test_a_steer_is_told_the_token_and_its_place():
    seen = []

    def note(layer, logits, tokens, positions):
        seen.append((layer, tokens.tolist(), positions.tolist(), tuple(logits.shape)))
        return Steered(logits, None, 2)

    fast = FastDecoder(lively("tiny"))
    cache = fast.start(8)
    fast.feed(TOKENS[:5], cache)
    fast.feed(TOKENS[5:6], cache, note)
    assert seen == [(layer, [int(TOKENS[5])], [5], (1, 4)) for layer in (0, 1)]


def test_a_full_cache_refuses_and_stays():
    fast = FastDecoder(lively("tiny"))
    cache = fast.start(3)
    fast.feed(TOKENS[:3], cache)
    with pytest.raises(ValueError, match="room for 3 positions, 4 are needed"):
        fast.feed(TOKENS[3:4], cache)
    assert cache.length == 3


def test_bfloat16_stays_as_near_as_the_readable_decoder():
    exact = lively("tiny-granite")
    wanted = whole(exact, TOKENS)[8:]
    decoder = lively("tiny-granite").to(torch.bfloat16)
    plain = (whole(decoder, TOKENS)[8:].float() - wanted).abs().mean()
    fast = FastDecoder(decoder)
    cache = fast.start(len(TOKENS))
    found = stepped(fast, TOKENS, 9, cache)
    assert cache.keys.dtype == torch.bfloat16 and found.dtype == torch.float32
    assert 0 < (found - wanted).abs().mean() < 1.2 * plain < 0.1 * wanted.std()


@pytest.mark.parametrize("normalise", [True, False])
def test_strongest_is_route(normalise):
    logits = torch.randn(50, 16, generator=torch.Generator().manual_seed(1)) * 3
    routing = route(logits, 4, normalise)
    for row, experts, weights in zip(logits.tolist(), routing.experts, routing.weights, strict=True):
        found = strongest(row, 4, normalise)
        assert [expert for expert, _ in found] == experts.tolist()
        assert [weight for _, weight in found] == pytest.approx(weights.tolist(), rel=1e-5)


def test_strongest_of_huge_logits():
    assert strongest([1e30, -1e30, 3e4], 1, False) == [(0, 1.0)]


def test_the_matrices_are_not_held_twice():
    decoder = lively("tiny")
    fast = FastDecoder(decoder)
    mine = {
        part.untyped_storage().data_ptr() for layer in fast._layers for part in (layer.mix, *layer.gate_up, *layer.down)
    }
    theirs = {value.untyped_storage().data_ptr() for value in decoder.state_dict().values()}
    assert mine <= theirs


def test_a_changed_weight_shows():
    """A planted fault."""
    decoder = lively("tiny")
    wanted = whole(decoder, TOKENS)
    fast = FastDecoder(decoder)
    with torch.no_grad():
        decoder.layers[1].moe.experts.down[:].mul_(1.05)
    assert (stepped(fast, TOKENS, 8) - wanted[7:]).abs().max() > 1e-3
    assert (stepped(fast, TOKENS, 8) - whole(decoder, TOKENS)[7:]).abs().max() < 1e-4


@pytest.mark.parametrize("last_only", [False, True])
def test_prompts_are_read_as_by_the_readable_decoder(decoder, last_only):
    """Two texts side by side, in two parts, as the readable one with its own cache."""
    texts = torch.stack([TOKENS, TOKENS.flip(0)])
    fast, caches = FastDecoder(decoder), [KeyValueCache(decoder.config, 24, batch=2) for _ in range(2)]
    for part in (texts[:, :15], texts[:, 15:]):
        with torch.inference_mode():
            wanted = decoder(part, caches[0], last_only=last_only)
        found = fast.read(part, caches[1], last_only)
        assert found.shape == wanted.shape and (found - wanted).abs().max() < 1e-4
    for mine, theirs in ((caches[1].keys, caches[0].keys), (caches[1].values, caches[0].values)):
        assert mine.shape[3] == 24 and (mine - theirs).abs().max() < 1e-4
    with pytest.raises(ValueError, match="room for 24 positions"):
        fast.read(texts[:, :2], caches[1])


def test_a_prompt_leaves_the_embedding_alone():
    decoder = lively("tiny")
    before = decoder.embedding.weight.clone()
    FastDecoder(decoder).read(TOKENS[None], KeyValueCache(decoder.config, 24))
    assert torch.equal(decoder.embedding.weight, before)
