"""KeyMap accounts for every key, and its report names them all."""

import pytest
import torch

from pipelines.common.convert import ConversionError, KeyMap


def zeros(**shapes):
    return {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


def test_rename_fuse_split_transpose_ignore():
    published = {
        "net.0.q": torch.ones(2, 3),
        "net.0.k": torch.full((2, 3), 2.0),
        "net.0.v": torch.full((2, 3), 3.0),
        "gate_up": torch.arange(8.0).reshape(4, 2),
        "head.w": torch.arange(6.0).reshape(2, 3),
        "steps": torch.zeros(()),
    }
    keys = (
        KeyMap()
        .rename(r"^net\.(\d+)\.", r"layers.\1.")
        .fuse(("layers.*.q", "layers.*.k", "layers.*.v"), "layers.*.qkv")
        .split("gate_up", ("gate", "up"))
        .transpose(r"^head\.w$", 1, 0)
        .ignore(r"^steps$", "a counter of training")
    )
    state = keys.apply(published, zeros(layers__0__qkv=(6, 3), gate=(2, 2), up=(2, 2), head__w=(3, 2)))
    assert state["layers.0.qkv"][:, 0].tolist() == [1, 1, 2, 2, 3, 3]
    assert state["up"].tolist() == [[4, 5], [6, 7]]
    assert state["head.w"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_1x1_convolution_becomes_a_linear_map():
    published = {"to_q.weight": torch.arange(6.0).reshape(2, 3, 1, 1), "conv.weight": torch.zeros(2, 3, 1, 1)}
    expected = {"to_q.weight": torch.zeros(2, 3), "conv.weight": torch.zeros(2, 3, 1, 1)}
    state = KeyMap().squeeze(r"^to_q").apply(published, expected)
    assert state["to_q.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_numbered_matrices_are_stacked_in_their_order():
    published = {
        f"layers.{layer}.experts.{k}.{name}": torch.full((2, 3), float(100 * layer + 10 * k + place))
        for k in (10, 2, 1, 0, 3, 4, 5, 6, 7, 8, 9)
        for layer in (0, 1)
        for place, name in enumerate("abc")
    }
    keys = (
        KeyMap()
        .stack(("layers.*.experts.#.a", "layers.*.experts.#.b"), "layers.*.ab")
        .stack(("layers.*.experts.#.c",), "layers.*.c")
    )
    shapes = {"layers.0.ab": (11, 4, 3), "layers.1.ab": (11, 4, 3), "layers.0.c": (11, 2, 3), "layers.1.c": (11, 2, 3)}
    expected = {name: torch.zeros(shape) for name, shape in shapes.items()}
    state = keys.apply(published, expected)
    # 10 stands behind 9, not behind 1; a's rows stand before b's
    assert state["layers.1.ab"][:, :, 0].tolist() == [[100 + 10 * k] * 2 + [101 + 10 * k] * 2 for k in range(11)]
    assert state["layers.0.c"][:, 1, 2].tolist() == [10 * k + 2 for k in range(11)]
    on_meta = {name: value.to("meta") for name, value in published.items()}
    assert keys.apply(on_meta, expected)["layers.0.ab"].is_meta


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("experts.1.a"), r"missing: both \(3, 4, 2\)|shape: both is \(1, 4, 2\)"),
        (lambda s: s.pop("experts.2.b"), r"not used: experts\.2\.a"),
        (lambda s: s.update({"experts.1.b": torch.zeros(3, 2)}), r"not used: experts\.1\.b \(3, 2\)"),
        (lambda s: s.update({"experts.3.a": torch.zeros(2, 2)}), r"not used: experts\.3\.a"),
    ],
)
def test_a_stack_with_a_gap_is_reported(spoil, message):
    published = {f"experts.{k}.{name}": torch.zeros(2, 2) for k in range(3) for name in "ab"}
    keys = KeyMap().stack(("experts.#.a", "experts.#.b"), "both")
    assert keys.apply(published, {"both": torch.zeros(3, 4, 2)})["both"].shape == (3, 4, 2)
    spoil(published)
    with pytest.raises(ConversionError, match=message):
        keys.apply(published, {"both": torch.zeros(3, 4, 2)})


def test_the_report_lists_every_misfit():
    with pytest.raises(ConversionError) as caught:
        KeyMap().apply(zeros(a=(1,), b=(2,), extra=(3,)), zeros(a=(1,), b=(3,), absent=(4,)))
    text = str(caught.value)
    assert text.startswith("3 keys do not fit:")
    assert (
        "not used: extra (3,)" in text and "missing: absent (4,)" in text and "shape: b is (2,), expected (3,)" in text
    )


def test_two_keys_with_one_name_are_reported():
    with pytest.raises(ConversionError, match="twice: bb -> b"):
        KeyMap().rename(r"^bb$", "b").apply(zeros(b=(1,), bb=(1,)), zeros(b=(1,)))


def test_half_a_fusion_is_reported():
    keys = KeyMap().fuse(("q", "k"), "qk")
    with pytest.raises(ConversionError, match=r"not used: q"):
        keys.apply(zeros(q=(1,)), zeros(qk=(2,)))


def test_ignoring_needs_a_reason():
    with pytest.raises(ValueError, match="reason"):
        KeyMap().ignore("x", " ")
