import itertools
import math

import pytest
import torch

from pipelines.detection.config import LossWeights
from pipelines.detection.criterion import Pairs, Target, cross_entropy, focal, match, set_loss
from pipelines.detection.matcher import assign, costs
from pipelines.detection.output import Output

LEFT, RIGHT = [0.25, 0.5, 0.4, 0.4], [0.75, 0.5, 0.4, 0.4]
WEIGHTS = LossWeights()


def target(*rows):
    classes, boxes = zip(*rows, strict=True) if rows else ((), ())
    return Target(torch.tensor(classes, dtype=torch.int64), torch.tensor(boxes).reshape(-1, 4))


def test_the_costs_of_a_pair_by_hand():
    logits = torch.tensor([[0.0, math.log(2.0), 0.0]])  # softmax: 1/4, 1/2, 1/4
    found = costs(logits, torch.tensor([LEFT]), torch.tensor([1]), torch.tensor([RIGHT]), WEIGHTS, "softmax")
    assert float(found.classification) == pytest.approx(-0.5)
    assert float(found.l1) == pytest.approx(0.5)
    assert float(found.giou) == pytest.approx(0.1 / 0.9)  # hull 0.9 x 0.4, of which 0.1 x 0.4 is in neither
    assert float(found.total) == pytest.approx(-0.5 + 5 * 0.5 + 2 * 0.1 / 0.9)


def test_sigmoid_cost_is_the_difference_of_focal_losses():
    found = costs(torch.zeros(1, 2), torch.tensor([LEFT]), torch.tensor([0]), torch.tensor([LEFT]), WEIGHTS, "sigmoid")
    assert float(found.classification) == pytest.approx((0.25 - 0.75) * 0.25 * math.log(2), abs=1e-5)


def test_assignment_is_the_cheapest_of_all():
    table = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    rows, columns = assign(table)
    best = min(sum(table[q, i].item() for i, q in enumerate(p)) for p in itertools.permutations(range(6), 4))
    assert float(table[rows, columns].sum()) == pytest.approx(best)
    greedy = torch.tensor([[0.0, 0.1], [0.2, 9.0]])  # taking the zero first would cost 9
    assert [t.tolist() for t in assign(greedy)] == [[0, 1], [1, 0]]


def test_more_objects_than_queries_and_none_at_all_and_no_numbers():
    assert len(assign(torch.rand(2, 5))[0]) == 2
    assert len(assign(torch.rand(4, 0))[0]) == 0
    rows, columns = assign(torch.tensor([[math.nan, 1.0], [0.0, math.inf]]))
    assert rows.tolist() == [0, 1] and columns.tolist() == [1, 0]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_pictures_of_a_batch_do_not_see_each_other(scoring):
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(3, 5, 4, generator=generator), torch.rand(3, 5, 4, generator=generator)
    targets = [target((0, LEFT), (2, RIGHT)), target(), target((1, RIGHT))]
    together = match(logits, boxes, targets, WEIGHTS, scoring)
    for b in range(3):
        alone = match(logits[b : b + 1], boxes[b : b + 1], targets[b : b + 1], WEIGHTS, scoring)
        mine = together.picture == b
        assert torch.equal(together.query[mine], alone.query)
        assert torch.equal(together.boxes[mine], alone.boxes)
    assert len(together.query) == 3


def test_no_object_counts_a_tenth():
    logits = torch.zeros(1, 3, 3)  # every class 1/3
    logits[0, 0, 0] = math.log(2.0)  # the matched query: 1/2
    pairs = Pairs(*(torch.tensor([v]) for v in (0, 0, 0)), boxes=torch.tensor([LEFT]))
    expected = (math.log(2) + 2 * 0.1 * math.log(3)) / 1.2
    assert float(cross_entropy(logits, pairs, 0.1)) == pytest.approx(expected, abs=1e-6)


def test_focal_loss_by_hand():
    logits = torch.zeros(1, 2, 2)
    pairs = Pairs(*(torch.tensor([v]) for v in (0, 1, 0)), boxes=torch.tensor([LEFT]))
    # one positive of weight 1, three negatives of weight 0.75 / 4
    assert float(focal(logits, pairs, torch.tensor([1.0]), 1.0)) == pytest.approx(math.log(2) * (1 + 3 * 0.1875))


def test_a_perfect_answer_costs_next_to_nothing_and_a_wrong_one_more():
    logits = torch.full((2, 1, 3, 3), -12.0)  # two decoder layers, one picture, "no object" is class 2
    logits[..., 2] = 12.0
    logits[:, 0, 1] = torch.tensor([12.0, -12.0, -12.0])
    boxes = torch.tensor([0.5, 0.5, 0.1, 0.1]).expand(2, 1, 3, 4).clone()
    boxes[:, 0, 1] = torch.tensor(LEFT)
    good = set_loss(Output(logits, boxes), [target((0, LEFT))], WEIGHTS, "softmax")
    assert all(float(part) < 1e-5 for part in good.values())
    boxes[0, 0, 1] = torch.tensor(RIGHT)  # only the first layer is wrong: auxiliary losses must see it
    bad = set_loss(Output(logits, boxes), [target((0, LEFT))], WEIGHTS, "softmax")
    assert float(bad["l1"]) == pytest.approx(5 * 0.5) and float(bad["giou"]) == pytest.approx(2 * (1 + 0.1 / 0.9))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_a_batch_without_objects_still_teaches_silence(scoring):
    logits = torch.zeros(1, 2, 4, 3, requires_grad=True)
    boxes = torch.rand(1, 2, 4, 4, requires_grad=True)
    parts = set_loss(Output(logits, boxes), [target(), target()], WEIGHTS, scoring)
    values = {name: float(part.detach()) for name, part in parts.items()}
    assert values["classification"] > 0 and values["l1"] == 0 and values["giou"] == 0
    torch.stack(list(parts.values())).sum().backward()
    assert float(logits.grad.abs().sum()) > 0


def test_wrong_length_is_caught():
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        match(torch.zeros(1, 2, 3), torch.rand(1, 3, 4), [target((0, LEFT))], WEIGHTS, "softmax")
