"""Going back inside a picture, the tree of forks, and its file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.common.errors import UserError
from pipelines.common.limits import Limits
from pipelines.diffusion import DiffusionRequest, fork, run, samplers, travel, tree_file
from pipelines.diffusion.contract import SAMPLERS
from pipelines.diffusion.generate import first_noise
from pipelines.diffusion.travel import Node, Tree

REQUEST = DiffusionRequest("a red apple", num_steps=6, guidance_scale=3.0, seed=3, history=True)
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
MASK = np.zeros((16, 16), bool)
MASK[:, :8] = True


def node_of(request=REQUEST):
    result = run(request)
    return Node(result.request, result.image, result.history)


# --- forks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_fork_without_a_change_is_the_same_picture(tiny_catalogue, name):
    node = node_of(replace(REQUEST, sampler=name, num_steps=4))
    for call in node.calls:
        result = run(fork(node, call))
        assert np.array_equal(result.image, node.image), call
        assert result.calls == len(node.calls) - call and len(result.history.timesteps) == result.calls
        assert np.array_equal(result.history.latents, node.history.latents[call:])


def test_a_fork_of_a_fork_and_of_a_given_picture(tiny_catalogue):
    node = node_of(replace(REQUEST, image=IMAGE, mask=MASK, strength=0.7))
    assert len(node.calls) == 4
    first = run(fork(node, 1, {"prompt": "a green apple"}))
    child = Node(first.request, first.image, first.history, 0, 1)
    assert child.calls == range(1, 4) and child.first == 1
    for call in child.calls:
        assert np.array_equal(run(fork(child, call)).image, first.image)
    assert (first.image[:, 8:] == IMAGE[:, 8:]).all() and not np.array_equal(first.image, node.image)
    with pytest.raises(UserError, match="calls 1 to 3"):
        fork(child, 0)


@pytest.mark.parametrize(
    "changes",
    [{"prompt": "a cat"}, {"negative_prompt": "cat"}, {"guidance_scale": 9.0}, {"sampler": "euler"}, {"seed": 4},
     {"num_steps": 9}, {"prompt": "a cat", "sampler": "ddim", "seed": 9, "num_steps": 12}],
)  # fmt: skip
def test_a_change_begins_where_the_run_was(tiny_catalogue, changes):
    node = node_of()
    request = fork(node, 3, changes)
    assert {name: getattr(request, name) for name in changes} == changes
    assert len(request.start.memory) == 0 and request.history  # what was remembered speaks of another picture
    result = run(request)
    assert not np.array_equal(result.image, node.image)
    if "seed" not in changes and not {"sampler", "num_steps"} & set(changes):
        assert np.array_equal(result.history.latents[0], node.history.latents[3]) and request.start.call == 3
    early, late = (np.abs(run(fork(node, call, {"prompt": "a cat"})).image - node.image.astype(int)) for call in (0, 5))
    assert early.mean() > late.mean()  # late, there is little left to change


def test_another_sampler_goes_on_at_the_nearest_noise(tiny_catalogue):
    node = node_of(replace(REQUEST, num_steps=20, sampler="ddim"))
    request = fork(node, 10, {"sampler": "euler", "num_steps": 40})
    config = travel.config_of(request)
    here, there = samplers.make("ddim", config.schedule, 20), samplers.make("euler", config.schedule, 40)
    assert there.levels[request.start.call] == pytest.approx(here.levels[10], rel=0.1)
    unit = samplers.scale_input(there, request.start.call, torch.from_numpy(request.start.latents))
    assert np.allclose(unit, node.history.latents[10], atol=0.2)


def test_other_noise_is_put_on_the_picture_that_was_foreseen(tiny_catalogue):
    node = node_of()
    request = fork(node, 4, {"seed": 99})
    plan = samplers.make("dpm++2m", travel.config_of(request).schedule, 6)
    level = plan.levels[4]
    alpha = (1 + level * level) ** -0.5
    noise = first_noise(99, (4, 8, 8)).numpy()
    assert np.allclose(request.start.latents, alpha * (node.history.clean[4] + level * noise), atol=1e-5)


def test_at_the_first_call_all_is_drawn_anew(tiny_catalogue):
    node = node_of()
    request = fork(node, 0, {"seed": 8, "sampler": "heun"})
    assert request.start is None
    assert np.array_equal(run(request).image, run(replace(REQUEST, seed=8, sampler="heun")).image)


@pytest.mark.parametrize(
    ("call", "changes", "said"),
    [
        (6, {}, "calls 0 to 5"), (-1, {}, "calls 0 to 5"), (1.5, {}, "calls 0 to 5"), (None, {}, "calls 0 to 5"),
        (2, {"width": 32}, "cannot change “width”"), (2, {"nothing": 1}, "cannot change"),
        (2, {"sampler": "x"}, "no sampler"), (2, {"num_steps": 0}, "number of steps"), (2, {"prompt": 5}, "text"),
        (2, {"sampler": "lcm", "num_steps": 51}, "at most 50"),
    ],
)  # fmt: skip
def test_forks_that_cannot_be_are_sentences(tiny_catalogue, call, changes, said):
    node = node_of()
    with pytest.raises(UserError, match=said):
        fork(node, call, changes)


# --- the tree --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tiny_catalogue):
    """A root, two forks of it, and one of the first fork."""
    grown = Tree().add(run(REQUEST))
    for parent, call, changes in ((0, 2, {"prompt": "a cat"}), (0, 4, {"seed": 5}), (1, 3, {"guidance_scale": 8.0})):
        grown = grown.add(run(fork(grown.nodes[parent], call, changes)), parent, call)
    return grown


def test_a_tree_knows_its_branches(tree):
    assert [tree.children(i) for i in range(4)] == [(1, 2), (3,), (), ()]
    assert tree.path(3) == (0, 1, 3) and tree.path(0) == (0,)
    assert tree.changes(3) == {"guidance_scale": (3.0, 8.0)} and tree.changes(0) == {}
    assert tree.changes(1) == {"prompt": ("a red apple", "a cat")}
    assert tree.size == sum(a.nbytes for node in tree.nodes for a in travel.arrays(node).values()) > 4 * 768


def test_a_tree_has_limits(tree, monkeypatch):
    result = run(REQUEST)
    for parent in (None, 4, -1):
        with pytest.raises(ValueError, match="no place"):
            tree.add(result, parent)
    with pytest.raises(ValueError, match="no call"):
        tree.add(result, 1, 1)  # the fork at 2 has no call 1
    with pytest.raises(UserError, match="history"):
        Tree().add(replace(result, history=None))
    monkeypatch.setattr(travel, "limits", lambda: Limits(tree_runs=4))
    with pytest.raises(UserError, match="4 runs already"):
        tree.add(result, 0, 1)
    monkeypatch.setattr(travel, "limits", lambda: Limits(history_mb=0))
    with pytest.raises(UserError, match="more than 0 MB"):
        tree.add(result, 0, 1)


# --- its file --------------------------------------------------------------------------------------------------------


def test_a_tree_comes_back_from_its_file_and_can_be_gone_on_with(tree):
    back = tree_file.read(tree_file.write(tree))
    assert len(back.nodes) == 4 and back.size == tree.size
    for ours, theirs in zip(tree.nodes, back.nodes, strict=True):
        assert (ours.parent, ours.call, ours.calls) == (theirs.parent, theirs.call, theirs.calls)
        assert record_of(ours) == record_of(theirs)
        for name, array in travel.arrays(ours).items():
            other = travel.arrays(theirs)[name]
            assert array.dtype == other.dtype and np.array_equal(array, other)
    for index, node in enumerate(back.nodes):
        assert np.array_equal(run(fork(node, node.calls[-1])).image, tree.nodes[index].image)


def test_a_tree_from_a_given_picture_comes_back(tiny_catalogue):
    tree = Tree().add(run(replace(REQUEST, image=IMAGE, mask=MASK, sampler="heun")))
    back = tree_file.read(tree_file.write(tree)).nodes[0]
    assert np.array_equal(back.request.image, IMAGE) and np.array_equal(back.request.mask, MASK)
    assert np.array_equal(run(fork(back, 2)).image, tree.nodes[0].image)


def record_of(node):
    return {**tree_file.fields_of(node.request), "start": node.request.start and node.request.start.call}


def changed(data, described=None, tensors=None, metadata=None):
    """A file with its description or arrays changed."""
    from safetensors.numpy import load, save

    length = int.from_bytes(data[:8], "little")
    said = json.loads(data[8 : 8 + length])["__metadata__"]
    runs, arrays = json.loads(said["runs"]), load(data)
    if described:
        described(runs)
    if tensors:
        tensors(arrays)
    return save(arrays, {**said, "runs": json.dumps(runs), **(metadata or {})})


def shifted(name, how):
    return lambda arrays: arrays.update({name: how(arrays[name])})


FORGED = [
    ({"metadata": {"format": "other"}}, "no file of runs"),
    ({"metadata": {"version": "2"}}, "of a version"),
    ({"metadata": {"runs": "["}}, "list of runs"),
    ({"metadata": {"runs": "[" * 5000}}, "list of runs"),
    ({"metadata": {"runs": "{}"}}, "no runs in it"),
    ({"metadata": {"runs": "[]"}}, "no runs in it"),
    ({"described": lambda r: r.extend(r[:1] * 70)}, "more than 64"),
    ({"described": lambda r: r[0].update(extra=1)}, "a run cannot be read"),
    ({"described": lambda r: r[1].update(parent="0")}, "a run cannot be read"),
    ({"described": lambda r: r[1].update(parent=None)}, "no root, or several"),
    ({"described": lambda r: r[0].update(parent=0)}, "forked from none"),
    ({"described": lambda r: r[1].update(parent=3)}, "forked from none"),
    ({"described": lambda r: r[3].update(call=1)}, "forked from none"),
    ({"described": lambda r: r[0]["request"].update(num_steps=7)}, "another size"),
    ({"described": lambda r: r[0]["request"].update(num_steps=0)}, "number of steps"),
    ({"described": lambda r: r[0]["request"].update(extra=0)}, "not the ones of a drawing"),
    ({"described": lambda r: r[0]["request"].update(width=18)}, "another size"),
    ({"described": lambda r: r[1]["request"].update(strength=0.5)}, "than the root"),
    ({"described": lambda r: r[0]["request"].update(sampler="ddim")}, "remembered"),
    ({"described": lambda r: r[1].update(start=None)}, "belong to no run"),
    ({"described": lambda r: r[0].update(start=1)}, "array is missing"),
    ({"described": lambda r: r[1].update(start=5)}, "another size"),
    ({"described": lambda r: r.pop()}, "belong to no run"),
    ({"tensors": lambda a: a.pop("2.clean")}, "array is missing"),
    ({"tensors": lambda a: a.update(extra=np.zeros(1))}, "belong to no run"),
    ({"tensors": shifted("0.latents", lambda a: a.astype(np.float64))}, "another kind"),
    ({"tensors": shifted("0.latents", lambda a: a[0])}, "another kind"),
    ({"tensors": shifted("0.latents", lambda a: a[1:])}, "another size"),
    ({"tensors": shifted("0.latents", lambda a: a * np.float32("inf"))}, "no number"),
    ({"tensors": shifted("0.clean", lambda a: a[..., :4])}, "another size"),
    ({"tensors": shifted("0.picture", lambda a: a[:8])}, "another size"),
    ({"tensors": shifted("0.timesteps", lambda a: a + 1)}, "another size"),
    ({"tensors": shifted("0.remembered", lambda a: a + 1)}, "remembered"),
    ({"tensors": shifted("0.remembered", lambda a: -a)}, "remembered"),
    ({"tensors": shifted("0.memory", lambda a: a[1:])}, "remembered"),
    ({"tensors": shifted("1.start", lambda a: a[:, :4])}, "another size"),
]


@pytest.mark.parametrize(("change", "said"), FORGED, ids=range(len(FORGED)))
def test_a_forged_tree_is_a_sentence(tree, change, said):
    with pytest.raises(UserError, match=said) as caught:
        tree_file.read(changed(tree_file.write(tree), **change))
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 300


def test_runs_of_two_sizes_make_no_tree(tree):
    """Each fits its own request; side by side they could not be compared."""
    wide = run(replace(REQUEST, width=32, history=True))
    forged = Tree((*tree.nodes, travel.Node(wide.request, wide.image, wide.history, 0, 0)))
    with pytest.raises(UserError, match="another size or other weights than the root"):
        tree_file.read(tree_file.write(forged))


def test_what_is_no_tree_is_a_sentence(tree, monkeypatch):
    data = tree_file.write(tree)
    for bad in (b"", b"PK\3\4" + b"\0" * 100, b"{}" * 50, data[:40], b"\xff" * 200, None, "a"):
        with pytest.raises(UserError, match="no file of runs"):
            tree_file.read(bad)
    with pytest.raises(UserError, match="do not fit together"):
        tree_file.read(data[:-10])
    with pytest.raises(UserError, match="no run to be saved"):
        tree_file.write(Tree())
    monkeypatch.setattr(tree_file, "limits", lambda: Limits(history_mb=0, prompt_characters=1))
    with pytest.raises(UserError, match="larger than a full tree"):
        tree_file.read(data + b"\0" * 400_000)
