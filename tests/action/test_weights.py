"""The authors' layout loads strictly at real size, on meta; every tensor goes to its place; wrong files are refused in
a sentence."""

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

from pipelines.action import local, weights
from pipelines.action.config import PRESETS, THUMOS14_CLASSES
from pipelines.common import catalogue
from pipelines.common.catalogue import Entry, File
from pipelines.common.convert import ConversionError
from pipelines.common.errors import UserError
from tests.action.brains import authors, lively, stream

KEYS = catalogue.WEIGHTS / "keys" / "oadtr-thumos14.json"


def published():
    shapes = json.loads(KEYS.read_text(encoding="utf-8"))
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def on_meta(preset):
    with torch.device("meta"):
        return weights.build(PRESETS[preset])


def test_thumos14_loads_at_real_size():
    state, network = published(), on_meta("thumos14")
    assert len(state) == 179 and weights.layout_of(state) == "authors"
    weights.assign(network, state)
    assert len(network.state_dict()) == 176 and all(t.is_meta for t in network.state_dict().values())
    assert len(THUMOS14_CLASSES) == len(network.head.weight) == 22


@pytest.mark.parametrize(
    "fault",
    [
        lambda s: s.pop("mlp_head.bias"),
        lambda s: s.pop("decoder.layers.4.cross_attention.key_projection.weight"),
        lambda s: s.update({"decoder.layers.5.norm1.weight": torch.empty(1024, device="meta")}),
        lambda s: s.update({"classifier.weight": torch.empty(23, 1024, device="meta")}),
        lambda s: s.update({"decoder.layers.0.conv1.weight": torch.empty(1024, 1024, 3, device="meta")}),
        lambda s: s.update({"extra": torch.empty(1, device="meta")}),
    ],
)
def test_a_planted_fault_is_refused(fault):
    state = published()
    fault(state)
    with pytest.raises(ConversionError, match="1 keys do not fit"):
        weights.assign(on_meta("thumos14"), state)


def test_what_is_stored_but_never_used_is_ignored_with_its_reason():
    reasons = {pattern.pattern: reason for pattern, reason in weights.authors_keys()._ignored}
    assert len(reasons) == 2
    assert "never adds it" in reasons[r"^decoder_position_encoding\."]


def test_the_table_takes_each_tensor_to_its_place():
    """Names by hand, a few of each part: shapes alone would not tell a query from a key, or norm1 from norm2."""
    by_hand = {
        "linear_encoding.weight": "encoding.weight",
        "cls_token": "task_token",
        "decoder_cls_token": "queries",
        "position_encoding.pe.weight": "positions",
        "encoder.net.2.fn.norm.weight": "encoder.1.norm1.weight",
        "encoder.net.3.fn.norm.bias": "encoder.1.norm2.bias",
        "encoder.net.2.fn.fn.qkv.weight": "encoder.1.qkv.weight",
        "encoder.net.0.fn.fn.proj.bias": "encoder.0.out.bias",
        "encoder.net.1.fn.fn.net.0.weight": "encoder.0.linear1.weight",
        "encoder.net.3.fn.fn.net.3.weight": "encoder.1.linear2.weight",
        "pre_head_ln.bias": "norm.bias",
        "decoder.layers.1.self_attention.key_projection.weight": "decoder.1.self_attention.key.weight",
        "decoder.layers.0.cross_attention.query_projection.bias": "decoder.0.cross_attention.query.bias",
        "decoder.layers.1.conv2.weight": "decoder.1.linear2.weight",
        "decoder.layers.1.norm3.weight": "decoder.1.norm3.weight",
        "decoder.norm.weight": "decoder_norm.weight",
        "mlp_head.weight": "head.weight",
        "classifier.bias": "future_head.bias",
    }
    state, _ = authors()
    network = weights.build(PRESETS["tiny-authors"])
    weights.assign(network, state)
    found = network.state_dict()
    for theirs, ours in by_hand.items():
        assert torch.equal(found[ours], state[theirs].view(found[ours].shape)), (theirs, ours)


def test_a_file_of_the_authors_is_read(tmp_path):
    state, values = authors()
    wrapped = {"model": {f"module.{name}": value for name, value in state.items()}}  # as DataParallel saves
    torch.save(wrapped, tmp_path / "checkpoint.pth")
    network = weights.load(PRESETS["tiny-authors"], tmp_path / "checkpoint.pth")
    now, _ = network(torch.cat((values["rgb"], values["flow"]), 2))
    assert float((now - values["logits"]).abs().max()) < 1e-5
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_files_that_are_refused(tmp_path):
    state, _ = authors()
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": state, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(UserError, match="holds Python objects besides tensors"):
        weights.load(PRESETS["tiny-authors"], path)
    torch.save({"model": state}, path)
    with pytest.raises(UserError, match=r"does not hold the network that is asked for: \d+ keys do not fit"):
        weights.load(PRESETS["tiny"], path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="does not hold tensors by name"):
        weights.load(PRESETS["tiny"], path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="damaged"):
        weights.load(PRESETS["tiny"], path)


# --- the backend -----------------------------------------------------------------------------------------------------


def entry(tmp_path, monkeypatch, *brains):
    monkeypatch.setattr("pipelines.common.checkpoint.WEIGHTS", tmp_path)
    for brain in brains:
        network = lively("tiny" if brain == "oadtr" else f"tiny-{brain}")
        save_file({k: v.half() for k, v in network.state_dict().items()}, tmp_path / f"{brain}.safetensors")
    files = tuple(File(brain, f"{brain}.safetensors") for brain in brains)
    return Entry("tiny", "action", "brain", "Tiny", "oadtr", "tiny", "bundled", "own", "-", files, facts={
        "labels": ["background", "a", "b", "c", "d"]
    })  # fmt: skip


def test_our_own_files_make_a_backend(tmp_path, monkeypatch):
    backend = local.load(entry(tmp_path, monkeypatch, "none", "oadtr", "gru", "linear"), "cpu")
    assert backend.brains == ("oadtr", "gru", "linear", "none") and backend.device == "cpu"
    assert backend.labels == ("background", "a", "b", "c", "d")
    assert backend.network().encoding.weight.dtype == torch.float32
    chunk = stream("tiny", 1)[0].numpy()
    for brain in backend.brains:
        found = backend.open(brain).push(chunk)
        assert found.probabilities.shape == (5,) and found.anticipated.shape == (3, 5)
        assert float(found.probabilities.sum()) == pytest.approx(1, abs=1e-6)


def test_a_brain_that_is_not_there(tmp_path, monkeypatch):
    backend = local.load(entry(tmp_path, monkeypatch, "oadtr"), "cpu")
    with pytest.raises(UserError, match="no brain called “gru”: oadtr"):
        backend.open("gru")
    with pytest.raises(UserError, match="1 to 8 chunks, not 9"):
        backend.open("oadtr", memory=9)
    with pytest.raises(UserError, match="1 to 8 chunks, not 0"):
        backend.open("oadtr", memory=0)
    with pytest.raises(ValueError, match="2 labels for networks of"):
        local.LocalAction(backend.networks, ["background", "a"])
    with pytest.raises(ValueError, match="no brain"):
        local.LocalAction({})


def test_a_missing_file(tmp_path, monkeypatch):
    wanted = entry(tmp_path, monkeypatch, "oadtr")
    (tmp_path / "oadtr.safetensors").unlink()
    with pytest.raises(UserError, match="not on this machine"):
        local.load(wanted, "cpu")
