"""Limits from the environment, the device with its reason, seeds."""

import pytest
import torch

from pipelines.common import device
from pipelines.common.limits import Limits, from_environment


def test_limits_can_be_set_by_the_environment():
    assert from_environment({}) == Limits()
    assert from_environment({"GLASSHOUSE_FACES": "3"}) == Limits(faces=3)
    for bad in ("0", "-1", "many"):
        with pytest.raises(ValueError, match="GLASSHOUSE_FACES"):
            from_environment({"GLASSHOUSE_FACES": bad})


@pytest.mark.parametrize(
    ("flags", "gain", "plain", "integers", "says"),
    [
        ({"avx512_bf16"}, 1.9, "bfloat16", "bfloat16", "with native bfloat16"),
        ({"avx512_bf16"}, 0.5, "float32", "float32", "no faster than float32"),
        ({"avx512_bf16", "avx512_vnni"}, 0.5, "float32", "int8", "8-bit"),
        ({"avx_vnni"}, 0.5, "float32", "int8", "8-bit"),
        ({"avx512_bf16", "avx512_vnni", "amx_bf16"}, 0.5, "bfloat16", "bfloat16", "with native bfloat16"),
        (set(), 9.0, "float32", "float32", "without native bfloat16"),
    ],
)
def test_the_device_comes_with_a_reason(monkeypatch, flags, gain, plain, integers, says):
    monkeypatch.setattr(device, "processor_flags", lambda: flags)
    monkeypatch.setattr(device, "bfloat16_gain", lambda: gain)
    monkeypatch.setenv("GLASSHOUSE_DEVICE", "cpu")
    device.pick.cache_clear()
    assert device.pick() == device.Device("cpu", "float32", device.pick().reason)
    assert device.pick(integers=True).dtype == "float32" and "8-bit" not in device.pick(integers=True).reason
    assert device.pick(reduced=True).dtype == plain
    chosen = device.pick(reduced=True, integers=True)
    assert chosen.dtype == integers and says in chosen.reason
    device.pick.cache_clear()


def test_the_gain_of_bfloat16_is_a_ratio():
    assert 0.001 < device.bfloat16_gain() < 50  # without the instruction it is emulated: 0.015 was seen


def test_a_seed_means_the_same_numbers():
    draws = [torch.randn(4, generator=device.generator(7)) for _ in range(2)]
    assert torch.equal(*draws) and not torch.equal(draws[0], torch.randn(4, generator=device.generator(8)))
