"""The benchmark says what it should, on a tiny model and by hand."""

from dataclasses import replace

import pytest
import torch

from pipelines.common import bench as common
from pipelines.moe import bench
from pipelines.moe.config import PRESETS


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return bench.random_pair("tiny", tmp_path_factory.mktemp("library"))


@pytest.fixture
def small(monkeypatch):
    for name, value in (("STEPS", 6), ("PREFILL", (2, 12)), ("ATTENTION", ("sdpa",))):
        monkeypatch.setattr(bench, name, value)


def test_bytes_of_a_token_by_hand():
    # Head 320 x 32 and one row of the embedding; twice attention 3072, norms 64, router 128, two experts 4608; a norm.
    assert bench.bytes_read(PRESETS["tiny"], 4) == 4 * (320 * 32 + 32 + 2 * (3072 + 64 + 128 + 4608) + 32)
    tied = replace(PRESETS["tiny"], tied=True)
    assert bench.bytes_read(tied, 2) == 2 * (320 * 32 + 2 * (3072 + 64 + 128 + 4608) + 32)
    assert bench.bytes_read(PRESETS["bench"], 4) == 4 * (
        4096 * 384 + 2 * 384 + 6 * (589_824 + 768 + 3072 + 2 * 1_179_648)
    )


def test_differences_by_hand():
    wanted = torch.tensor([[0.0, 1.0], [3.0, 2.0]])
    assert bench.differences(wanted, wanted) == {"logits": 0.0, "same tokens": 1.0}
    found = bench.differences(wanted + torch.tensor([[0.0, -1.5], [0.0, 0.0]]), wanted)
    assert found == {"logits": 1.5, "same tokens": 0.5}


def test_all_rows_of_a_tiny_pair(pair, small):
    decoding = bench.decoding_row(pair, 1, gigabytes=20.0)
    assert decoding.checks["logits"] < 1e-4 and decoding.checks["same tokens"] == 1.0
    assert decoding.checks["tokens/s"] == round(6 / decoding.local.median)
    assert decoding.checks["theirs"] == round(6 / decoding.reference.median)
    speed = bench.bytes_read(PRESETS["tiny"], 4) * 6 / decoding.local.median / 1e9
    assert decoding.checks["GB/s"] == pytest.approx(speed) and decoding.checks["the machine reads"] == 20.0
    whole = bench.generate_row(pair, 1)
    assert whole.checks["same tokens"] == 1.0
    for last_only in (False, True):
        row = bench.prefill_row(pair, 1, last_only)
        assert row.checks["logits"] < 1e-4 and row.checks["tokens/s"] == round(24 / row.local.median)
        assert row.checks["library"].split("+")[0] in bench.FOR_PROMPTS
    assert "transformers" in decoding.setup["versions"]
    assert "tiny, 6 tokens decoded, float32" in common.table([decoding, whole])


def test_a_fault_shows_in_the_row(tmp_path, small):
    wrong = bench.random_pair("tiny", tmp_path)
    with torch.no_grad():
        wrong.decoder.layers[0].moe.experts.down.mul_(1.5)
    assert bench.decoding_row(wrong, 1, 1.0).checks["logits"] > 0.01


def test_steps_can_be_taken_again(pair, small):
    """What one round leaves in a cache must not reach the next."""
    for decoding in (bench.OurDecoding(pair), bench.TheirDecoding(pair)):
        first = decoding.steps(6)
        assert torch.equal(decoding.steps(6), first)
        assert torch.equal(decoding.steps(3), first[:3])


def test_the_fastest_setting_is_left_in_place(pair, monkeypatch):
    clock = iter(range(1000))
    seconds = {"grouped_mm": 5, "batched_mm": 2, "eager": 9}
    monkeypatch.setattr(bench, "ATTENTION", ("sdpa",))
    network, now = pair.network, [0.0]

    def run():
        next(clock)
        now[0] += seconds[network.config._experts_implementation]

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    assert bench.fastest(network, run) == "batched_mm+sdpa"
    assert network.config._experts_implementation == "batched_mm" and next(clock) == 3 * 4


def test_speeds_of_the_memory_are_positive():
    assert 0.01 < bench.read_speed(4 << 20, seconds=0.01) < 1e4
    assert 0.01 < bench.copy_speed(4 << 20) < 1e4
