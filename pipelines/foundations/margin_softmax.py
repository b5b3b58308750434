"""Softmax losses with a margin: what makes faces of one person lie closer together than the two nearest of two persons.

All of them are the cross-entropy of a softmax over the classes; they differ in what the logit of the right class is:

    softmax       W_y x + b_y                    DeepFace (Taigman et al. 2014), DeepID (Sun et al. 2014)
    L-Softmax     |W_y| |x| psi(t), eq. 4 to 6   Liu et al. 2016, "Large-margin softmax loss"
    A-Softmax     |x| psi(t),       eq. 7        SphereFace (Liu et al. 2017)
    AM-Softmax    s (cos t - m),    eq. 6        Wang, F. et al. 2018; CosFace (Wang, H. et al. 2018), eq. 4
    ArcFace       s cos(t + m),     eq. 3        Deng et al. 2019
    center loss   as softmax, plus lambda/2 |x - c_y|^2     Wen et al. 2016, eq. 2 to 5

t is the angle between the feature x and the class's weights W_y; psi(t) = (-1)^k cos(m t) - 2k for t in
[k pi/m, (k+1) pi/m]. The logits of the other classes j are the same with cos t_j alone: a right answer has to win
although its own logit is made smaller.

B samples, C classes, D feature dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EDGE = 1e-6  # the derivative of the arc cosine has no bound at cos t = 1


class MarginLoss(nn.Module):
    """What the losses share. As it stands it is the normalised softmax (NormFace, Wang et al. 2017): no margin.

    margin: m. scale: s, the length that features and weights together are given. weight: (C, D), in any length.
    """

    def __init__(self, classes: int, dimension: int, margin: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self.weight = nn.Parameter(torch.empty(classes, dimension))
        nn.init.xavier_normal_(self.weight)

    def psi(self, cosine: Tensor) -> Tensor:
        """What the right class has in place of cos t; the same shape, at most cos t."""
        return cosine

    def size(self, features: Tensor) -> Tensor:
        """(B, D) -> what the cosines are multiplied with, (B, 1), (B, C) or a number: here s."""
        return features.new_tensor(self.scale)

    def cosines(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, C): cos of the angle between each feature and the weights of each class."""
        return F.normalize(features) @ F.normalize(self.weight).t()

    def logits(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, D) -> (B, C). labels (B,) int64: the right classes, whose logits get the margin. Without, no class does:
        that is how a trained network decides."""
        cosine = self.cosines(features)
        if labels is not None:
            place = labels[:, None]
            cosine = cosine.scatter(1, place, self.psi(cosine.gather(1, place)))
        return self.size(features) * cosine

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """features (B, D), labels (B,) int64 -> the mean loss in nats."""
        return F.cross_entropy(self.logits(features, labels), labels)

    def after_step(self, features: Tensor, labels: Tensor) -> None:
        """What a loss learns by a rule of its own, once after each step of the optimiser."""


class SoftmaxLoss(MarginLoss):
    """Plain softmax with biases: features and weights keep their lengths. margin and scale are not used."""

    def __init__(self, classes: int, dimension: int, margin: float = 0.0, scale: float = 1.0) -> None:
        super().__init__(classes, dimension, margin, scale)
        self.bias = nn.Parameter(torch.zeros(classes))

    def logits(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        return F.linear(features, self.weight, self.bias)


class LargeMarginSoftmax(MarginLoss):
    """L-Softmax. margin: a whole number from 1; 1 is softmax without biases. scale is not used.

    blend: lambda of section 5.1; psi is mixed with cos t as (lambda cos t + psi) / (1 + lambda). Training begins with a
    large one, since psi's steep slope leads a random network nowhere.
    """

    def __init__(self, classes: int, dimension: int, margin: float = 4, scale: float = 1.0) -> None:
        super().__init__(classes, dimension, max(1, round(margin)), scale)
        self.blend = 0.0

    def psi(self, cosine: Tensor) -> Tensor:
        times = int(self.margin)
        turns = torch.zeros_like(cosine)  # k: how many of the angles pi/m, 2 pi/m, ... are below t
        for count in range(1, times):
            turns += (cosine <= math.cos(count * math.pi / times)).to(cosine.dtype)
        folded = (1 - 2 * (turns % 2)) * _cosine_of_multiple(cosine, times) - 2 * turns
        return (self.blend * cosine + folded) / (1 + self.blend)

    def size(self, features: Tensor) -> Tensor:
        return features.norm(dim=1, keepdim=True) * self.weight.norm(dim=1)


def _cosine_of_multiple(cosine: Tensor, times: int) -> Tensor:
    """cos(m t) from cos t by Chebyshev's recurrence: exact, and its slope is finite everywhere."""
    before, now = torch.ones_like(cosine), cosine
    for _ in range(times - 1):
        before, now = now, 2 * cosine * now - before
    return now


class AngularSoftmax(LargeMarginSoftmax):
    """A-Softmax, of SphereFace: L-Softmax with weights of length one."""

    def size(self, features: Tensor) -> Tensor:
        return features.norm(dim=1, keepdim=True)


class AdditiveMarginSoftmax(MarginLoss):
    """AM-Softmax, which is also CosFace: the margin is taken from the cosine.

    margin: from 0. Past 1 - cos(2 pi / C) in the plane, or C / (C - 1) with C <= D + 1, not even weights that stand as
    far apart as they can leave room for it (CosFace, section 3.4)."""

    def __init__(self, classes: int, dimension: int, margin: float = 0.35, scale: float = 30.0) -> None:
        super().__init__(classes, dimension, margin, scale)

    def psi(self, cosine: Tensor) -> Tensor:
        return cosine - self.margin


class ArcFace(MarginLoss):
    """The margin is added to the angle. margin: in radians, from 0 to pi/2.

    Past pi - m, where cos(t + m) would rise again, it is cos t - m sin m, which goes on falling, after a small step
    down: not in the paper, but in its authors' code (insightface). continued=False is the paper's formula alone.
    """

    def __init__(
        self, classes: int, dimension: int, margin: float = 0.5, scale: float = 64.0, continued: bool = True
    ) -> None:
        super().__init__(classes, dimension, margin, scale)
        self.continued = continued

    def psi(self, cosine: Tensor) -> Tensor:
        inner = cosine.clamp(-1 + EDGE, 1 - EDGE)
        sine = torch.sqrt(1 - inner.square())
        moved = inner * math.cos(self.margin) - sine * math.sin(self.margin)
        if not self.continued:
            return moved
        return torch.where(cosine > -math.cos(self.margin), moved, cosine - self.margin * math.sin(self.margin))


class CenterLoss(SoftmaxLoss):
    """Plain softmax, and a pull of each feature towards the centre of its class. margin: lambda, the pull's weight.

    centres (C, D) are no parameters: they follow the features by eq. 4, with the rate alpha of the paper's algorithm 1.
    """

    centres: Tensor

    def __init__(
        self, classes: int, dimension: int, margin: float = 0.003, scale: float = 1.0, rate: float = 0.5
    ) -> None:
        super().__init__(classes, dimension, margin, scale)
        self.rate = rate
        self.register_buffer("centres", torch.zeros(classes, dimension))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        pull = (features - self.centres[labels]).square().sum(dim=1).mean() / 2
        return super().forward(features, labels) + self.margin * pull

    @torch.no_grad()
    def after_step(self, features: Tensor, labels: Tensor) -> None:
        """Each centre goes alpha of the way: c += alpha sum(x_i - c) / (1 + n), over the n features of its class."""
        away = torch.zeros_like(self.centres).index_add_(0, labels, features - self.centres[labels])
        count = torch.bincount(labels, minlength=len(self.centres))[:, None]
        self.centres += self.rate * away / (1 + count)


LOSSES: dict[str, type[MarginLoss]] = {
    "softmax": SoftmaxLoss,
    "center": CenterLoss,
    "l-softmax": LargeMarginSoftmax,
    "a-softmax": AngularSoftmax,
    "am-softmax": AdditiveMarginSoftmax,
    "arcface": ArcFace,
}


def build(name: str, classes: int, dimension: int, margin: float, scale: float) -> MarginLoss:
    """The loss of that name, with random weights. KeyError: there is none."""
    return LOSSES[name](classes, dimension, margin, scale)
