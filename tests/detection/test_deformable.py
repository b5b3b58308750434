from dataclasses import replace

import pytest
import torch

from pipelines.detection.config import PRESETS
from pipelines.detection.contract import Ablation
from pipelines.detection.deformable import DeformableDetr, inverse_sigmoid
from pipelines.detection.deformable_sampling import sample, spread
from pipelines.detection.mobilenet import ConvNorm
from pipelines.detection.norm import FrozenBatchNorm2d, folded
from pipelines.detection.output import Record
from tests.detection.lively import enliven

CONFIG = PRESETS["tiny-deformable"]


@pytest.fixture(autouse=True)
def seeded_without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return enliven(DeformableDetr(CONFIG).eval())  # a fresh network says the same everywhere


def bilinear(level, x, y):
    """The value at a place in cells, zero outside, written as the definition reads."""
    h, w = level.shape[:2]
    total = torch.zeros(level.shape[2])
    for i in range(h):
        for j in range(w):
            total += level[i, j] * max(0.0, 1 - abs(x - j)) * max(0.0, 1 - abs(y - i))
    return total


def test_sampling_by_its_definition():
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 5), (2, 3)]
    values = torch.randn(2, 26, 3, 4, generator=generator)
    places = torch.rand(2, 5, 3, 2, 2, 2, generator=generator) * 1.4 - 0.2  # some outside
    weights = torch.rand(2, 5, 3, 2, 2, generator=generator)
    out = sample(values, shapes, places, weights).view(2, 5, 3, 4)
    for b, q, head in ((0, 0, 0), (1, 4, 2), (1, 2, 1)):
        expected = torch.zeros(4)
        for v, (h, w) in enumerate(shapes):
            level = values[b, (0, 20)[v] : (20, 26)[v], head].view(h, w, 4)
            for p in range(2):
                x, y = places[b, q, head, v, p].tolist()
                expected += weights[b, q, head, v, p] * bilinear(level, x * w - 0.5, y * h - 0.5)
        assert torch.allclose(out[b, q, head], expected, atol=1e-5)


def test_spread_puts_each_weight_where_the_sample_fell():
    places = torch.tensor([[0.5 / 4, 0.5 / 3], [1.0 / 4, 0.5 / 3], [5.0, 5.0]]).view(1, 1, 1, 1, 3, 2)
    weights = torch.tensor([0.5, 0.3, 0.2]).view(1, 1, 1, 1, 3)
    found = spread([(3, 4)], places, weights)[0, 0, 0]
    expected = torch.zeros(3, 4)
    expected[0, 0], expected[0, 1] = 0.5 + 0.15, 0.15  # the second lies between two cells, the third outside
    assert torch.allclose(found, expected, atol=1e-6)


def test_shapes_and_ranges(network):
    with torch.inference_mode():
        output = network(torch.randn(2, 3, 64, 96))
    assert output.logits.shape == (2, 2, 7, 5) and output.boxes.shape == (2, 2, 7, 4) and output.masks is None
    assert float(output.boxes.min()) > 0 and float(output.boxes.max()) < 1


def test_a_batch_of_two_sizes_is_near_one_at_a_time(network):
    pictures = [torch.randn(3, 80, 96), torch.randn(3, 72, 80)]
    pixels, padding = torch.zeros(2, 3, 80, 96), torch.ones(2, 80, 96, dtype=torch.bool)
    for b, picture in enumerate(pictures):
        _, h, w = picture.shape
        pixels[b, :, :h, :w], padding[b, :h, :w] = picture, False
    together, unmasked = network(pixels, padding), network(pixels)
    whole, small = (network(picture[None]) for picture in pictures)
    assert torch.allclose(together.logits[:, :1], whole.logits, atol=1e-4)
    assert torch.allclose(together.boxes[:, :1], whole.boxes, atol=1e-5)
    # Group norm and the last convolution see the padding of the smaller one, as in the paper's code: near, not equal.
    near = (together.boxes[:, 1:] - small.boxes).abs().mean()
    far = (unmasked.boxes[:, 1:] - small.boxes).abs().mean()
    # test_parity holds a padded batch to the library's number by number.
    assert float(near) < 0.8 * float(far)


def test_recording_changes_nothing(network):
    record, pixels = Record(), torch.randn(1, 3, 64, 96)
    recorded = network(pixels, record=record)
    assert torch.allclose(recorded.logits, network(pixels).logits, atol=1e-5)
    assert len(record.self_attention) == len(record.cross_attention) == 2
    assert record.self_attention[0].shape == (1, 4, 7, 7)
    assert torch.allclose(record.self_attention[1].sum(-1), torch.ones(1, 4, 7))
    assert record.cross_attention[0].shape == (1, 4, 7, 4, 6)
    assert float(record.cross_attention[0].sum((-1, -2)).max()) <= 1 + 1e-5


@pytest.mark.parametrize(
    "ablation",
    [
        Ablation(self_attention=False),
        Ablation(positions=False),
        Ablation(encoder=False),
        Ablation(heads=frozenset({(0, 1)})),
        Ablation(queries=frozenset({2})),
    ],
    ids=["self-attention", "positions", "encoder", "head", "query"],
)
def test_every_ablation_changes_something(network, ablation):
    pixels = torch.randn(1, 3, 64, 96)
    plain, cut = network(pixels), network(pixels, ablation=ablation)
    assert not torch.allclose(plain.boxes, cut.boxes, atol=1e-6)


def test_a_dropped_query_says_nothing(network):
    cut = network(torch.randn(1, 3, 64, 96), ablation=Ablation(queries=frozenset({2, 5})))
    silent = (cut.logits.sigmoid() == 0).all(-1)[:, 0]
    assert silent[:, [2, 5]].all() and int(silent.sum()) == 4


def test_with_every_query_dropped_the_boxes_are_still_numbers(network):
    cut = network(torch.randn(1, 3, 64, 96), ablation=Ablation(queries=frozenset(range(CONFIG.queries))))
    assert bool(cut.boxes.isfinite().all()) and float(cut.logits.sigmoid().max()) == 0


def test_groups_do_not_see_each_other():
    torch.manual_seed(1)
    grouped = DeformableDetr(CONFIG, groups=3).eval()
    memory = grouped.encode(grouped.backbone(torch.randn(2, 3, 64, 96)))
    alone, three = grouped.decode(memory), grouped.decode(memory, groups=3)
    assert three.logits.shape == (2, 2, 21, 5)
    assert torch.allclose(three.logits[:, :, :7], alone.logits, atol=1e-5)
    with torch.no_grad():
        grouped.queries[7:] += 1.0
    assert torch.allclose(grouped.decode(memory, groups=3).logits[:, :, :7], alone.logits, atol=1e-5)


def test_a_folded_convolution_computes_the_same():
    torch.manual_seed(2)
    layer = ConvNorm(6, 8, 1)
    for name, buffer in layer.norm.named_buffers():
        buffer.copy_(torch.rand_like(buffer) + (0.5 if name == "running_var" else -0.5))
    x = torch.randn(2, 6, 5, 7)
    expected = layer(x)
    assert isinstance(layer.norm, FrozenBatchNorm2d)
    layer.conv, layer.norm = folded(layer.conv, layer.norm), torch.nn.Identity()
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_it_is_built_on_meta_at_full_size():
    with torch.device("meta"):
        network = DeformableDetr(PRESETS["voc"])
    assert sum(p.numel() for p in network.parameters()) < 10_000_000  # 20 MB in float16


def test_inverse_sigmoid():
    x = torch.tensor([0.0, 0.1, 0.5, 1.0])
    assert torch.allclose(inverse_sigmoid(x).sigmoid(), x, atol=2e-5) and bool(inverse_sigmoid(x).isfinite().all())


def test_levels_beyond_the_backbone_are_made():
    config = replace(CONFIG, levels=4)
    memory = DeformableDetr(config).encode([torch.randn(1, 16, 8, 12), torch.randn(1, 24, 4, 6)])
    assert memory.shapes == [(8, 12), (4, 6), (2, 3), (1, 2)] and memory.cells.shape == (1, 128, 32)
