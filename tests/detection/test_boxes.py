import torch

from pipelines.detection.boxes import area, giou, overlaps, to_corners

UNIT = torch.tensor([0.0, 0.0, 2.0, 2.0])


def test_centres_to_corners():
    assert to_corners(torch.tensor([[2.5, 5.0, 3.0, 6.0]])).tolist() == [[1.0, 2.0, 4.0, 8.0]]


def test_giou_of_cases_worked_out_by_hand():
    others = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
    # the same; half beside; two apart: hull 12, union 8; a quarter within
    assert torch.allclose(giou(UNIT, others), torch.tensor([1.0, 1 / 3, -1 / 3, 0.25]))
    assert torch.allclose(overlaps(UNIT, others)[0], torch.tensor([1.0, 1 / 3, 0.0, 0.25]))


def test_boxes_without_area_give_numbers():
    point = torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert float(giou(UNIT, point)) == 0.0  # no overlap, the hull is the square
    assert float(giou(point, point)) == 0.0
    assert float(area(torch.tensor([3.0, 0.0, 1.0, 1.0]))) == 0.0
