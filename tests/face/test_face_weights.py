"""Published layouts load strictly, and a damaged file of dlib is refused in a sentence."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.common import catalogue, checkpoint
from pipelines.common.convert import ConversionError
from pipelines.common.errors import UserError
from pipelines.face import dlib_file, weights
from pipelines.face.config import PRESETS
from pipelines.face.dlib_resnet import DlibResnet
from pipelines.face.inception_resnet import InceptionResnetV1

KEYS = catalogue.WEIGHTS / "keys"


def published(name):
    shapes = json.loads((KEYS / f"{name}.json").read_text(encoding="utf-8"))
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def on_meta(config):
    with torch.device("meta"):
        return weights.build(config)


@pytest.mark.parametrize(("name", "preset"), [("facenet-vggface2", "vggface2"), ("facenet-casia", "casia-webface")])
def test_published_keys_load_at_real_size(name, preset):
    state, network = published(name), on_meta(PRESETS[preset])
    weights.assign(network, state, weights.keymap(PRESETS[preset]))
    assert len(state) == 716
    for key, tensor in network.state_dict(keep_vars=True).items():
        if not key.endswith("num_batches_tracked"):
            # The very tensor of the file: nothing was left at its random value.
            assert tensor.data.shape == state[key].shape and key in state


def test_key_lists_are_facenet_pytorchs():
    facenet_pytorch = pytest.importorskip("facenet_pytorch")
    for name, classes in (("facenet-vggface2", 8631), ("facenet-casia", 10575)):
        with torch.device("meta"):
            network = facenet_pytorch.InceptionResnetV1(classify=True, num_classes=classes)
        assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == {
            k: tuple(v.shape) for k, v in published(name).items()
        }


def test_head_may_be_left_out_and_nothing_else():
    config = replace(PRESETS["vggface2"], classes=None)
    network = on_meta(config)
    weights.assign(network, published("facenet-vggface2"), weights.keymap(config))
    with pytest.raises(ConversionError, match=r"not used: logits\.bias"):
        weights.assign(on_meta(config), published("facenet-vggface2"), weights.dlib_keys())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("repeat_2.9.conv2d.bias"), "missing: repeat_2.9.conv2d.bias"),
        (lambda s: s.update(extra=torch.empty(1)), "not used: extra"),
        (lambda s: s.update({"last_bn.bias": torch.empty(3)}), "shape: last_bn.bias"),
    ],
)
def test_every_key_must_fit(spoil, message):
    state = published("facenet-vggface2")
    spoil(state)
    with pytest.raises(ConversionError, match=message):
        weights.assign(on_meta(PRESETS["vggface2"]), state, weights.keymap(PRESETS["vggface2"]))


@pytest.mark.parametrize("counters", [True, False])
def test_a_torch_file_loads_with_and_without_the_counters_of_training(tmp_path, counters):
    torch.manual_seed(0)
    network = InceptionResnetV1(PRESETS["tiny"]).eval()
    network.last_bn.running_mean.fill_(0.25)
    state = {k: v for k, v in network.state_dict().items() if counters or not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "tiny.pt")
    found = weights.load("tiny", tmp_path / "tiny.pt")
    x = torch.rand(1, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(found.features(x), network.features(x))
    assert not found.training and not any(p.is_meta or p.requires_grad for p in found.parameters())
    assert not any(buffer.is_meta for buffer in found.buffers())


def test_another_network_is_refused(tmp_path):
    torch.save(InceptionResnetV1(PRESETS["tiny"]).state_dict(), tmp_path / "tiny.pt")
    with pytest.raises(UserError, match=r"tiny\.pt does not hold the network"):
        weights.load("vggface2", tmp_path / "tiny.pt")
    with pytest.raises(TypeError, match="no embedder"):
        weights.load("mtcnn", tmp_path / "tiny.pt")


# --- dlib's file -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dlib_path():
    return checkpoint.paths(catalogue.resolve("face", "dlib", "embedder"))["model"]


@pytest.fixture(scope="module")
def dlib_bytes(dlib_path):
    return dlib_path.read_bytes()


def test_dlib_file(dlib_bytes):
    parameters = dlib_file.parse(dlib_bytes)
    kinds = [key.split(".")[0] for key in parameters]
    assert {kind: kinds.count(kind) for kind in kinds} == {"con_4": 58, "affine_": 58, "fc_2": 1}
    assert parameters["con_4.0.weight"].shape == (32, 3, 7, 7)
    assert parameters["con_4.7.weight"].shape == (64, 32, 3, 3)
    assert parameters["fc_2.0.weight"].shape == (256, 128)
    assert sum(values.size for values in parameters.values()) == sum(
        p.numel() for p in DlibResnet(PRESETS["dlib"]).parameters()
    )
    assert all(values.dtype == np.float32 for values in parameters.values())
    # The first numbers behind the first tensor's header, read by hand.
    start = dlib_bytes.index(b"\x01\x05con_4") + 7 + 12
    by_hand = np.frombuffer(dlib_bytes, "<f4", 3, start - 1)
    assert np.array_equal(parameters["con_4.0.weight"].reshape(-1)[:3], by_hand)


def test_dlib_network_holds_the_files_numbers(dlib_path, dlib_bytes):
    network, parameters = weights.load("dlib", dlib_path), dlib_file.parse(dlib_bytes)
    assert np.array_equal(network.linear.weight.numpy(), parameters["fc_2.0.weight"].T)
    assert np.array_equal(network.blocks[13].conv2.weight.numpy(), parameters["con_4.28.weight"])
    assert np.array_equal(network.blocks[0].affine1.bias.numpy(), parameters["affine_.1.bias"])


@pytest.mark.parametrize("length", [0, 10, 335, 400, 19_296, 1_000_000, 22_334_905, 22_466_065])
def test_a_truncated_file_is_refused(dlib_bytes, tmp_path, length):
    (tmp_path / "cut.dat").write_bytes(dlib_bytes[:length])
    with pytest.raises(UserError, match=r"^cut\.dat is damaged"):
        weights.load("dlib", tmp_path / "cut.dat")


def altered(data, at, new):
    return data[:at] + new + data[at + len(new) :]


FIRST = 334 + 7  # behind the name of the first convolution


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (FIRST - 5, b"xon_4"),  # a name
        (FIRST, b"\x01\x03"),  # the version of a tensor
        (FIRST + 2, b"\x02\x81\x12"),  # a dimension
        (FIRST + 2, b"\x4f"),  # no integer
        (FIRST + 2, b"\x82"),  # a negative dimension
        (FIRST + 11, b"\x00\x00\xc0\x7f"),  # not a number
        (19_296, b"\x01\x21"),  # the number of filters
        (19_300, b"\x01\x05"),  # the kernel
        (22_334_905, b"\x01\x81"),  # fc_2: outputs
        (22_466_065, b"\x01"),  # the last byte
    ],
)
def test_an_altered_file_is_refused(dlib_bytes, at, new):
    assert dlib_bytes[at : at + len(new)] != new
    with pytest.raises(ValueError):
        dlib_file.parse(altered(dlib_bytes, at, new))


def test_a_longer_file_and_another_file_are_refused(dlib_bytes, tmp_path):
    with pytest.raises(ValueError, match="1 bytes too many"):
        dlib_file.parse(dlib_bytes + b"\x00")
    with zipfile.ZipFile(tmp_path / "other.dat", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(UserError, match="not dlib's face descriptor network"):
        dlib_file.read(tmp_path / "other.dat")
