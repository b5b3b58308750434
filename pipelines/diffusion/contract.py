"""What goes in and what comes out. numpy and Python types only, the same for every implementation.

Letters: S calls of the U-Net, L latent channels, h and w the latent's sides, T text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pipelines.common.backends import Backend

SamplerName = Literal["ddpm", "ddim", "euler", "euler_a", "heun", "dpm++2m", "dpm++2m_karras", "pndm", "lcm"]
SAMPLERS: tuple[SamplerName, ...] = (
    "dpm++2m", "dpm++2m_karras", "ddim", "euler", "euler_a", "heun", "pndm", "ddpm", "lcm",
)  # fmt: skip
SAMPLER_TITLES: dict[SamplerName, str] = {
    "dpm++2m": "DPM-Solver++ 2M", "dpm++2m_karras": "DPM-Solver++ 2M, Karras", "ddim": "DDIM", "euler": "Euler",
    "euler_a": "Euler ancestral", "heun": "Heun", "pndm": "PNDM", "ddpm": "DDPM", "lcm": "LCM",
}  # fmt: skip
Precision = Literal["float32", "reduced"]


@dataclass(frozen=True)
class Start:
    """Where a run begins if not in noise: the middle of another one.

    latents (L, h, w) float32: scaled, as they stood before the call `call` of the run that is forked. call: index of
    the U-Net call to go on with. memory: what the sampler remembered then, as `samplers` keeps it, (n, L, h, w)
    float32; empty where the new sampler shall start afresh.
    """

    latents: np.ndarray
    call: int
    memory: np.ndarray


@dataclass(frozen=True)
class DiffusionRequest:
    """One picture to be drawn.

    prompt, negative_prompt: what shall and shall not be seen. num_steps: of the sampler. guidance_scale: how far the
    prediction is pushed from the negative prompt's to the prompt's (Ho and Salimans 2022); 1 asks the network for the
    prompt alone, and the negative prompt is not read. sampler: one of SAMPLERS. seed: of the noise. width, height: in
    pixels, multiples of the autoencoder's factor; None takes the weights' own. image: (H, W, 3) uint8 RGB to start
    from, scaled so that it covers the size that is drawn; what hangs over is cut off evenly. strength: the share of the
    noise schedule that is run over `image`, in (0, 1]. mask: (H, W) bool, True where `image` is drawn anew; the rest is
    kept. previews: whether each event shows the predicted end picture. history: whether the result keeps the latents of
    every call, for time travel. start: fork another run instead of beginning in noise. weights: a name in the
    catalogue, or "auto", the best that is on this machine. backend: whose networks, ours or the library's. precision:
    of our denoiser's numbers, "reduced" for smaller ones where these are faster.
    """

    prompt: str
    negative_prompt: str = ""
    num_steps: int = 20
    guidance_scale: float = 4.0
    sampler: SamplerName = "dpm++2m"
    seed: int = 0
    width: int | None = None
    height: int | None = None
    image: np.ndarray | None = None
    strength: float = 0.8
    mask: np.ndarray | None = None
    weights: str = "auto"
    backend: Backend = "local"
    precision: Precision = "float32"
    previews: bool = True
    history: bool = False
    start: Start | None = None


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as the text encoder gets it. pieces: of the words, in order. used: how many of them fit; the rest is not
    read by the model, and a page must show that."""

    pieces: tuple[str, ...]
    used: int


@dataclass(frozen=True)
class History:
    """A run, call by call.

    latents (S + 1, L, h, w) float32: before each U-Net call, and at the end. clean (S, L, h, w): the end that each call
    predicted. memory: before each call, what the sampler remembered, (n, L, h, w) each. timesteps (S,) float64: of the
    training schedule, at each call.
    """

    latents: np.ndarray
    clean: np.ndarray
    memory: tuple[np.ndarray, ...]
    timesteps: np.ndarray


@dataclass(frozen=True)
class DiffusionResult:
    """A drawn picture.

    image (height, width, 3) uint8 RGB. request: what was asked, with "auto" and None filled in, and a given picture and
    its mask as they were brought to the size that was drawn. tokens: of the prompt and the negative prompt. seconds:
    "load", "text" (with a given picture's encoding), "denoise", "decode", "first_preview" (from the end of "load").
    calls: of the U-Net, a pair for guidance counting once. record: what a PNG carries to replay the run, JSON types
    only.
    """

    image: np.ndarray
    request: DiffusionRequest
    tokens: tuple[PromptTokens, PromptTokens]
    seconds: Mapping[str, float]
    calls: int
    record: Mapping[str, Any] = field(default_factory=dict)
    history: History | None = None


@dataclass(frozen=True)
class DiffusionEvent:
    """Progress of one picture. step: U-Net calls done, of `steps`. preview (height, width, 3) uint8: the end picture as
    predicted now, or None. result: set in the last event only."""

    step: int
    steps: int
    preview: np.ndarray | None = None
    result: DiffusionResult | None = None


@dataclass(frozen=True)
class Attention:
    """Where the cross-attentions looked at one call: the share of a cell's attention that each token gets.

    labels: of the tokens: the start mark, the prompt's pieces as far as they fit, the end mark, and all padding as one.
    kinds: "start", "word", "end", "padding". layers: (labels, rows, columns) float32 each, in the order in which they
    run. mean: (labels, h, w) float32, over the layers, each brought to the latent's size. A cell's shares sum to 1.
    """

    labels: tuple[str, ...]
    kinds: tuple[str, ...]
    layers: tuple[np.ndarray, ...]
    mean: np.ndarray


@dataclass(frozen=True)
class XRay:
    """What guidance does at one call of a run.

    timestep: of the training schedule. before, given, without (height, width, 3) uint8: the latents as they are, and
    the end picture that the prompt alone predicts, and the negative prompt alone. difference (L, h, w) float32: the
    first end picture's latents less the second's. where (h, w) float32: its length in each cell. ends: the end picture
    predicted at each guidance scale.
    """

    timestep: float
    before: np.ndarray
    given: np.ndarray
    without: np.ndarray
    difference: np.ndarray
    where: np.ndarray
    ends: tuple[tuple[float, np.ndarray], ...]


@dataclass(frozen=True)
class Deletion:
    """A run without one word, from the same noise. word: its index, or None for the control: the whole prompt from
    other noise. apart: mean absolute difference to the whole prompt's picture, in levels of 255; where (height, width)
    float32: the same for each pixel."""

    word: int | None
    text: str
    result: DiffusionResult
    apart: float
    where: np.ndarray


@dataclass(frozen=True)
class Lane:
    """One sampler in a race. calls: of the U-Net done, of `of`. errors (calls): after each, the distance of the
    end picture that it predicts from the reference's end, as root mean square over the latents. preview (height, width,
    3) uint8: that end picture; the drawn one when all is done."""

    sampler: SamplerName
    steps: int
    of: int
    calls: int = 0
    errors: tuple[float, ...] = ()
    preview: np.ndarray | None = None

    @property
    def done(self) -> bool:
        return self.calls == self.of


@dataclass(frozen=True)
class RaceEvent:
    """A race after one more call of each sampler.

    reference: calls of the long run done, of `reference_calls`; the lanes set out when it has ended. reference_image
    (height, width, 3) uint8: what it drew."""

    lanes: tuple[Lane, ...]
    reference: int
    reference_calls: int
    reference_image: np.ndarray | None = None
