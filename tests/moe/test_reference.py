"""Our decoder and the library's behind one interface: the same files, the same answers, nothing kept between texts."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.common.errors import UserError
from pipelines.moe import local, reference
from pipelines.moe.contract import RouterChange
from tests.moe.tiny import entry_of, library, lively, save_library, write_folder

CLOSE = 1e-4
TOKENS = [5, 300, 17, 17, 42, 255, 3, 8]


@pytest.fixture(scope="module", params=["mixtral", "olmoe", "granitemoe", "window"])
def both(request, tmp_path_factory):
    """(local, reference) over one folder that the library saved."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "window":
        save_library(library("mixtral", sliding_window=6), folder)
    else:
        save_library(library(request.param), folder)
    entry = entry_of(folder)
    return local.load(entry, "cpu"), reference.load(entry, "cpu")


def greedy(backend, count=20, prompt=TOKENS):
    stepper = backend.open(len(prompt) + count)
    logits, out = stepper.feed(prompt), []
    for _ in range(count):
        out.append(int(logits.argmax()))
        logits = stepper.feed(out[-1:])
    assert stepper.length == len(prompt) + count
    return out, logits


def test_both_say_what_they_are(both):
    for backend in both:
        assert (backend.device, backend.dtype) == ("cpu", "float32")
        assert backend.config.layers == 2 and backend.config == both[0].config
        assert backend.tokenizer.decode(backend.tokenizer.encode("a little dog")) == "a little dog"
        assert backend.tokenizer.begin == both[0].tokenizer.begin


def test_both_read_a_text_alike(both):
    (ours, nothing), (theirs, neither) = (backend.logits(TOKENS) for backend in both)
    assert nothing is None and neither is None
    assert ours.shape == theirs.shape == (8, 320) and ours.dtype == theirs.dtype == torch.float32
    assert theirs.abs().max() > 1 and (ours - theirs).abs().max() < CLOSE


def test_both_write_alike(both):
    (ours, last), (theirs, their_last) = (greedy(backend) for backend in both)
    assert len(set(ours)) >= 3 and ours == theirs
    assert last.shape == (320,) and (last - their_last).abs().max() < CLOSE


def test_steps_are_the_whole(both):
    for backend in both:
        whole, _ = backend.logits(TOKENS)
        stepper = backend.open(8)
        for part, end in (([5, 300, 17], 3), ([17, 42, 255], 6), ([3], 7), ([8], 8)):
            assert (stepper.feed(part) - whole[end - 1]).abs().max() < CLOSE
            assert stepper.length == end


def test_two_texts_at_once_do_not_meet(both):
    for backend in both:
        alone, _ = greedy(backend)
        first, second = backend.open(40), backend.open(40)
        a, b = first.feed(TOKENS), second.feed([9, 9, 1])
        for expected in alone:
            assert int(a.argmax()) == expected
            a, b = first.feed([expected]), second.feed([int(b.argmax())])


def test_nothing_to_feed(both):
    for backend in both:
        with pytest.raises(ValueError, match="nothing was fed"):
            backend.open(4).feed([])
    with pytest.raises(ValueError, match="room for 4 positions, 5 are needed"):
        both[0].open(4).feed([1, 2, 3, 4, 5])


# --- traces ----------------------------------------------------------------------------------------------------------


def test_a_trace_is_of_all_tokens_fed(both):
    backend = both[0]
    _, whole = backend.logits(TOKENS, trace=True)
    stepper = backend.open(8, trace=True)
    for part in (TOKENS[:5], TOKENS[5:6], TOKENS[6:7], TOKENS[7:]):
        stepper.feed(part)
    logits, experts, weights = stepper.trace()
    assert (logits.shape, experts.shape, weights.shape) == ((2, 8, 4), (2, 8, 2), (2, 8, 2))
    assert (logits.dtype, experts.dtype, weights.dtype) == (np.float32, np.int64, np.float32)
    assert np.abs(logits - whole[0]).max() < CLOSE and np.abs(weights - whole[2]).max() < CLOSE
    assert (experts == whole[1]).all()
    assert (experts == np.argsort(-logits, axis=-1)[..., :2]).all()


def test_a_trace_is_the_librarys(both):
    ours, theirs = both
    _, (logits, _, _) = ours.logits(TOKENS, trace=True)
    with torch.no_grad():
        found = theirs.network(input_ids=torch.tensor([TOKENS]), output_router_logits=True).router_logits
    assert np.abs(logits - torch.stack(found).numpy()).max() < CLOSE


def test_an_empty_trace_and_none(both):
    logits, experts, weights = both[0].open(3, trace=True).trace()
    assert (logits.shape, experts.shape, weights.shape) == ((2, 0, 4), (2, 0, 2), (2, 0, 2))
    assert (logits.dtype, experts.dtype, weights.dtype) == (np.float32, np.int64, np.float32)
    with pytest.raises(ValueError, match="without a trace"):
        both[0].open(3).trace()


def test_a_change_of_the_routers_reaches_every_token(both):
    backend = both[0]
    change = RouterChange(banned=frozenset({(0, 1), (1, 3)}), active=1)
    plain, _ = backend.logits(TOKENS)
    changed, (_, experts, _) = backend.logits(TOKENS, change, trace=True)
    assert experts.shape == (2, 8, 1) and 1 not in experts[0] and 3 not in experts[1]
    assert (changed - plain).abs().max() > 0.01
    stepper = backend.open(8, change, trace=True)
    stepper.feed(TOKENS[:7])
    assert (stepper.feed(TOKENS[7:]) - changed[-1]).abs().max() < CLOSE
    assert (stepper.trace()[1] == experts).all()
    assert (backend.logits(TOKENS)[0] - plain).abs().max() < 1e-6  # and is gone with its call


# --- what the reference will not do ----------------------------------------------------------------------------------


def test_the_reference_says_what_it_cannot(both):
    theirs = both[1]
    for call in (theirs.open, theirs.logits):
        given = (10,) if call == theirs.open else (TOKENS,)
        with pytest.raises(UserError, match=r"routers can be changed in our own networks only; choose local\.$"):
            call(*given, RouterChange(active=1))
        with pytest.raises(UserError, match=r"can be looked into; choose local\.$"):
            call(*given, trace=True)
    with pytest.raises(UserError, match="choose local"):
        theirs.open(10).trace()
    theirs.open(10, RouterChange(seed=3))  # which changes nothing


def test_without_the_library(tiny_entry, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="transformers is not installed here; choose local"):
        reference.load(tiny_entry)
    assert greedy(local.load(tiny_entry))[0]


def test_a_file_with_a_gap_is_refused_by_both(tmp_path):
    """The library fills a gap with random numbers and only warns."""
    write_folder(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.1.self_attn.v_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="do not hold the network that is asked for: 1 keys"):
        reference.load(entry_of(tmp_path))
    with pytest.raises(UserError, match="does not hold the network"):
        local.load(entry_of(tmp_path))


def test_half_precision_is_computed_alike(tmp_path):
    """float16 on a processor runs in float32, bfloat16 as it is, in both."""
    write_folder(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for dtype, name, close in ((torch.float16, "float32", CLOSE), (torch.bfloat16, "bfloat16", 0.5)):
        folder = tmp_path / name
        write_folder(folder)
        half = {key: value.to(dtype) for key, value in state.items()}
        save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
        ours, theirs = local.load(entry_of(folder)), reference.load(entry_of(folder))
        assert ours.dtype == theirs.dtype == name
        difference = ours.logits(TOKENS)[0] - theirs.logits(TOKENS)[0]
        assert difference.dtype == torch.float32 and difference.abs().mean() < close / 5


def test_shards_and_another_folder(tmp_path):
    save_library(library("olmoe"), tmp_path, shards=True)
    entry = entry_of(tmp_path)
    index = replace(entry.files[0], name="model", path=str(tmp_path / "model.safetensors.index.json"))
    entry = replace(entry, files=(index, *entry.files))
    ours, theirs = local.load(entry), reference.load(entry)
    assert greedy(ours)[0] == greedy(theirs)[0]
    sorted(tmp_path.glob("model-*.safetensors"))[0].unlink()
    for module in (local, reference):
        with pytest.raises(UserError, match="The shard model-00001-of"):
            module.load(entry)


def test_the_tiny_catalogue_is_served(tiny_catalogue):
    from pipelines.common import backends, catalogue

    entry = catalogue.resolve("moe", "auto")
    found = backends.implementation("pipelines.moe", entry, "local")
    assert found is backends.implementation("pipelines.moe", entry, "local")
    assert type(found).__name__ == "LocalText" and found.config == lively("tiny").config


def test_what_another_program_fetched_is_found(tmp_path, monkeypatch):
    """The hub's own cache: a snapshot of links to files whose names are hashes, an index and its shards among them."""
    import huggingface_hub

    from pipelines.common.catalogue import Entry, File
    from pipelines.common.checkpoint import locate

    home = tmp_path / "hub" / "models--someone--tiny"
    snapshot, blobs, made = home / "snapshots" / "0123abc", home / "blobs", tmp_path / "made"
    save_library(library("olmoe"), made, shards=True)
    for folder in (snapshot, blobs, home / "refs"):
        folder.mkdir(parents=True)
    (home / "refs" / "main").write_text("0123abc")
    names = sorted(path.name for path in made.iterdir())
    for number, name in enumerate(names):
        (made / name).rename(blobs / f"{number:040x}")
        (snapshot / name).symlink_to(blobs / f"{number:040x}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    roles = {"model.safetensors.index.json": "model", "config.json": "config", "tokenizer.json": "tokenizer"}
    files = tuple(File(roles.get(name, name), name) for name in names)
    entry = Entry("x", "moe", "decoder", "x", "olmoe", "tiny", "hub", "olmoe", "", files, origin="someone/tiny")
    assert len(files) > 10
    assert greedy(local.load(entry))[0] == greedy(reference.load(entry))[0]
    (snapshot / names[names.index("config.json") + 2]).unlink()  # one shard, as while a download runs
    assert locate(entry) is None
