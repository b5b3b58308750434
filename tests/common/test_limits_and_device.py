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


def test_the_device_comes_with_a_reason(monkeypatch):
    monkeypatch.setattr(device, "processor_flags", lambda: {"avx512_bf16"})
    monkeypatch.setenv("GLASSHOUSE_DEVICE", "cpu")
    device.pick.cache_clear()
    assert device.pick() == device.Device("cpu", "float32", device.pick().reason)
    assert device.pick(reduced=True).dtype == "bfloat16" and "bfloat16" in device.pick(reduced=True).reason
    monkeypatch.setattr(device, "processor_flags", set)
    device.pick.cache_clear()
    assert device.pick(reduced=True).dtype == "float32" and "without native" in device.pick(reduced=True).reason
    device.pick.cache_clear()


def test_a_seed_means_the_same_numbers():
    draws = [torch.randn(4, generator=device.generator(7)) for _ in range(2)]
    assert torch.equal(*draws) and not torch.equal(draws[0], torch.randn(4, generator=device.generator(8)))
