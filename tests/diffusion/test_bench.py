"""The benchmark says what it should, on tiny models and by hand."""

import json

import numpy as np
import pytest
import torch

from pipelines.common import bench as common
from pipelines.common.device import Device
from pipelines.diffusion import bench, fast, forms
from pipelines.diffusion.config import TINY

SMALL = bench.Size("tiny", 2, 8)


@pytest.fixture
def picked(monkeypatch):
    """What reduced precision means here."""
    return lambda dtype: monkeypatch.setattr(forms, "pick", lambda reduced: Device("cpu", dtype, "a stub says so"))


def test_differences_by_hand():
    wanted = torch.tensor([3.0, 4.0])
    assert bench.differences(wanted, wanted) == {"largest difference": 0.0, "relative": 0.0}
    assert bench.differences(torch.tensor([3.0, 6.0]), wanted) == pytest.approx(
        {"largest difference": 2.0, "relative": 0.4}
    )


def test_random_weights_are_the_same_again_and_keep_the_variance():
    one, two = (bench.random_network("unet", TINY.unet) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    with torch.inference_mode():
        assert 0.1 < one(*SMALL.inputs()).std() < 10
    assert (one.conv_norm_out.weight == 1).all() and (one.conv_in.bias == 0).all()


def test_rows_of_the_denoiser(picked):
    picked("bfloat16")
    full, small = bench.unet_rows(SMALL, 1, memory=False)
    assert full.task == "U-Net tiny, 2 x 8 x 8, float32" and full.checks.keys() == {"largest difference", "relative"}
    assert full.checks["relative"] < 1e-5 and 1e-4 < small.checks["relative"] < 0.1
    assert "bfloat16 against float32" in small.task and small.checks["library's own seconds"] > 0
    assert "diffusers" in full.setup["versions"] and json.loads(full.json())["local"]["rounds"] == 1
    assert small.task in common.table([full, small])


def test_where_nothing_smaller_is_faster_one_row_says_so(picked):
    picked("float32")
    (row,) = bench.unet_rows(SMALL, 1, memory=False)
    assert row.checks["reduced"] == "float32: a stub says so"
    assert len(bench.unet_rows(SMALL, 1, "bfloat16", memory=False)) == 2


def test_a_fault_shows_in_the_row(picked, monkeypatch):
    picked("float32")

    def wrong(network):  # a tensor of its own: the library has the others, too
        network.conv_out.bias = torch.nn.Parameter(network.conv_out.bias + 0.5, requires_grad=False)
        return fast.fuse(network)

    monkeypatch.setattr(bench, "fuse", wrong)
    (row,) = bench.unet_rows(SMALL, 1, memory=False)
    assert row.checks["largest difference"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("part", ["vae", "taesd"])
def test_rows_of_the_decoders(part):
    row = bench.decoder_row(bench.Size("tiny", 2, 4), 1, part)
    assert row.checks["relative"] < 1e-5 and row.task.endswith("decode 4 x 4")


def test_the_row_of_a_whole_picture(tiny_catalogue, picked, monkeypatch):
    monkeypatch.setattr(bench, "STEPS", 3)
    picked("float32")
    row = bench.bundled_row(1, "tiny")
    assert row.checks["largest difference"] <= 1 and row.checks["reduced, largest"] == 0
    assert 0 < row.checks["first preview s"] < 2 * row.local.median and row.checks["theirs"] > 0
    assert row.task == "bundled model, 3 steps with guidance"


def test_the_first_preview_is_counted_from_the_request(monkeypatch):
    image, now = np.zeros((2, 2, 3), np.uint8), [0.0]

    class Event:
        preview, result = None, None

    def stub(request):
        assert (request.backend, request.precision, request.prompt) == ("reference", "reduced", "a cat")
        for seconds, preview in ((1.0, None), (2.0, image), (4.0, image)):
            now[0] += seconds
            event = Event()
            event.preview = preview
            yield event
        event = Event()
        event.result = type("Result", (), {"image": image})()
        yield event

    monkeypatch.setattr(bench, "steps", stub)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    assert bench.draw(bench.DiffusionRequest("a cat"), "reference", "reduced") == (image, 3.0)


def test_memory_is_asked_of_processes_of_their_own(monkeypatch):
    asked = []

    def run(command, **options):
        asked.append(command)
        assert options["check"] and options["cwd"] == bench.catalogue.ROOT
        return type("Done", (), {"stdout": "a warning\n" + ("100.4" if "local" in command else "200.6") + "\n"})()

    monkeypatch.setattr(bench.subprocess, "run", run)
    assert bench._memory(SMALL) == {"peak MB": 100, "theirs": 201}
    assert [each[each.index("--alone") + 1] for each in asked] == ["local", "reference"]
    assert all(each[each.index("--side") + 1] == "8" and each[1:3] == ["-m", bench.__spec__.name] for each in asked)


@pytest.mark.parametrize("who", ["local", "reference", "bfloat16"])
def test_alone_runs_one_of_them(who, monkeypatch):
    called = []
    monkeypatch.setattr(bench, "_library_call", lambda *_: called.append("reference"))
    monkeypatch.setattr(bench, "fuse", lambda network: lambda x, *_: called.append(x.dtype))
    assert bench.alone(who, SMALL) > 10
    assert called == [{"local": torch.float32, "bfloat16": torch.bfloat16}.get(who, who)] * 2
