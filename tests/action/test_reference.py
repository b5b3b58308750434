"""VideoMAE behind the contract: a tiny random model that the library saved, read through our loader."""

import numpy as np
import pytest
import torch

from pipelines.action import open_stream, reference
from pipelines.common.catalogue import Entry, File
from pipelines.common.errors import UserError
from tests.alone import alone

SIDE, FRAMES = 32, 4


@pytest.fixture
def entry(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    sizes = transformers.VideoMAEConfig(
        image_size=SIDE, patch_size=16, num_frames=FRAMES, tubelet_size=2, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=24, use_mean_pooling=True,
        id2label={0: "juggling", 1: "yoga", 2: "squat"}, label2id={"juggling": 0, "yoga": 1, "squat": 2},
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.VideoMAEForVideoClassification(sizes).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    network.save_pretrained(tmp_path)
    monkeypatch.setattr("pipelines.common.checkpoint.WEIGHTS", tmp_path)
    files = (File("config", "config.json"), File("model", "model.safetensors"))
    made = Entry("mae", "action", "brain", "VideoMAE", "videomae", "videomae", "bundled", "transformers", "-", files)
    return alone(made, monkeypatch), network


def film(count, height=48, width=64):
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (count, height, width, 3), dtype=np.uint8)


def test_the_answer_is_the_librarys(entry):
    made, network = entry
    backend = reference.load(made)
    clip = film(FRAMES, SIDE, SIDE)
    answer = backend.answer(clip)
    pixels = (clip / 255.0 - np.array(reference.MEAN)) / np.array(reference.DEVIATION)
    with torch.no_grad():
        given = torch.from_numpy(pixels).float().permute(0, 3, 1, 2)[None]
        wanted = network(pixel_values=given).logits[0].softmax(-1).numpy()
    assert np.abs(answer.probabilities[1:] - wanted).max() < 1e-5 and answer.probabilities[0] == 0
    assert np.ptp(wanted) > 0.01 and answer.anticipated.shape == (0, 4)
    assert backend.labels == ("background", "juggling", "yoga", "squat")


def test_a_stream_answers_every_second(entry):
    frames = film(70)
    with open_stream(backend="reference", threshold=0.05) as stream:
        found = [stream.push(frame, k / 30) for k, frame in enumerate(frames)]
        assert [k for k, update in enumerate(found) if update is not None] == [30, 60]
        update = found[30]
        assert update.backend == "reference" and update.action in update.labels[1:] and update.attention is None
        last = stream.finish()
        assert last is not None and float(last.probabilities.sum()) == pytest.approx(1, abs=1e-5)
        with pytest.raises(UserError, match="looks at pictures and not at poses"):
            stream.push_pose(np.zeros((33, 4)), 100.0)


def test_the_window_has_pictures_at_its_own_rate(entry):
    window = reference.load(entry[0]).open()
    clips = [window.push(np.full((40, 60, 3), k, np.uint8), k / 30) for k in range(31)]
    (clip,) = [clip for clip in clips if clip is not None]
    assert clip.shape == (FRAMES, SIDE, SIDE, 3)
    steps = np.diff(clip[:, 0, 0, 0].astype(int))
    assert set(steps) <= {4, 5} and clip[-1, 0, 0, 0] >= 26


def test_weights_that_do_not_fit_are_refused(entry, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    state.pop("classifier.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="1 keys do not fit"):
        reference.load(entry[0])
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot load"):
        reference.load(entry[0])
