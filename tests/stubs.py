"""Stand-ins for loaded models, so that the page and the pipelines are tested without weights."""

from types import SimpleNamespace

import numpy as np

from pipelines.face.contract import Detections


class StubDetector:
    """Finds as many faces as it is told, in a row, each with plausible points."""

    def __init__(self, count=1):
        self.count = count

    def detect(self, image, options):
        if self.count == 0:
            return Detections.none()
        corners = np.arange(self.count, dtype=np.float32)[:, None] * 50
        boxes = np.concatenate([corners, corners * 0, corners + 40, corners * 0 + 48], axis=1).astype(np.float32)
        points = np.array([[12, 18], [28, 18], [20, 27], [13, 36], [27, 36]], np.float32)
        landmarks = points[None] + corners[:, :, None] * np.array([1, 0], np.float32)
        return Detections(boxes, np.full(self.count, 0.99, np.float32), landmarks)


class StubEmbedder:
    """The mean colour of a chip, as a direction: equal pictures are equal, others differ."""

    side, dimension = 150, 128

    def embed(self, chips, flip_average=False):
        vectors = np.zeros((len(chips), self.dimension), np.float32)
        pixels = np.asarray(chips, np.float32).reshape(len(chips), self.side * self.side, 3)
        vectors[:, :3] = pixels.mean(axis=1) + 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)


def stub_load(count=1):
    """A replacement for pipelines.face.local.load."""

    def load(entry, device="cpu"):
        return StubDetector(count) if entry.role == "detector" else StubEmbedder()

    return load


def visitor(language="en"):
    """What a handler sees of a gr.Request."""
    return SimpleNamespace(headers={"accept-language": language}, session_hash="test")


def no_progress(*_, **__):
    """What a handler sees of a gr.Progress."""


class StubText:
    """A language model that says `says`, a byte a token, behind any text that does not end as `says` begins, and then
    ends. Like the loaded models it keeps nothing of a text. fed: the tokens of every call, all texts together."""

    device, dtype = "cpu", "float32"

    def __init__(self, says, template=None, **config):
        from dataclasses import replace

        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        from pipelines.moe.config import PRESETS
        from pipelines.moe.tokenizer import TextTokenizer, byte_alphabet

        words = {"<|endoftext|>": 0} | {char: byte + 1 for char, byte in byte_alphabet().items()}
        made = Tokenizer(models.BPE(words, []))
        made.add_special_tokens(["<|endoftext|>"])
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        self.tokenizer = TextTokenizer(made, {"eos_token": "<|endoftext|>"}, {}, template)
        self.config = replace(PRESETS["tiny"], **config)
        self.says = [byte + 1 for byte in (says.encode() if isinstance(says, str) else says)]
        self.fed = []

    def after(self, tokens):
        """The token that comes next."""
        for count in range(min(len(self.says), len(tokens)), 0, -1):
            if list(tokens[-count:]) == self.says[:count]:
                return self.says[count] if count < len(self.says) else 0
        return self.says[0] if self.says else 0

    def open(self, room, change=None, trace=False):
        return StubStepper(self, room)

    def logits(self, tokens, change=None, trace=False):
        import torch

        found = torch.stack([self._row(tokens[: k + 1]) for k in range(len(tokens))])
        return found, self.trace(tokens) if trace else None

    def trace(self, tokens):
        """Every token's first expert is its id, the second the one behind it, of the tiny model's four."""
        first = np.tile(np.array(tokens, np.int64)[None, :, None], (self.config.layers, 1, 2))
        experts = (first + np.arange(2)) % self.config.experts
        logits = np.eye(self.config.experts, dtype=np.float32)[experts[..., 0]]
        return logits, experts, np.full(experts.shape, 0.5, np.float32)

    def _row(self, tokens):
        import torch

        row = torch.zeros(self.config.vocabulary)
        row[self.after(tokens)] = 20.0
        return row


class StubStepper:
    """One text of a StubText."""

    def __init__(self, text, room):
        self.text, self.room, self.tokens = text, room, []

    def feed(self, tokens):
        assert len(tokens) and len(self.tokens) + len(tokens) <= self.room
        self.tokens += tokens
        self.text.fed.append(tuple(tokens))
        return self.text._row(self.tokens)

    def trace(self):
        return self.text.trace(self.tokens)


class StubDiffusion:
    """A denoiser that means a flat picture: the colour of the prompt (`colour`), exact for epsilon and v alike.

    Pictures have 2 pixels a latent cell, whose first three channels are red, green and blue in [-1, 1]. Like the loaded
    models it keeps nothing of a picture. asked: (batch, timestep, guidance, precision) of every call, all pictures
    together.
    """

    device = "cpu"

    def __init__(self, **changes):
        from dataclasses import replace

        from pipelines.diffusion.config import PRESETS

        self.config = replace(PRESETS["tiny"], **changes)
        self.asked = []

    @staticmethod
    def colour(prompt):
        """Red, green and blue in [-1, 1] of what a prompt means: of its letters' sum; the empty one means black."""
        total = sum(prompt.encode())
        return [((total * factor) % 255) / 127.5 - 1 for factor in (1, 7, 31)]

    def tokens(self, text):
        from pipelines.diffusion.contract import PromptTokens

        pieces = tuple(text.split())
        return PromptTokens(pieces, min(len(pieces), 14)), tuple(range(16))

    def encode_text(self, prompts):
        import torch

        text = torch.zeros(len(prompts), 16, 32)
        text[:, 0, :3] = torch.tensor([self.colour(each) for each in prompts])
        return text

    def denoise(self, latents, timestep, text, guidance=None, record=None, precision="float32"):
        import torch

        from pipelines.diffusion.schedule import alphas_cumprod

        assert len(latents) == len(text) and latents.dtype == torch.float32
        self.asked.append((len(latents), timestep, guidance, precision))
        if record is not None:
            b, _, h, w = latents.shape
            record.cross_attention += [torch.full((b, h, w, 16), 1 / 16), torch.full((b, h // 2, w // 2, 16), 1 / 16)]
        square = float(alphas_cumprod(self.config.schedule)[round(timestep)])
        alpha, sigma = square**0.5, (1 - square) ** 0.5
        meant = torch.zeros_like(latents)
        meant[:, :3] = text[:, 0, :3, None, None]
        noise = (latents - alpha * meant) / sigma
        return noise if self.config.schedule.prediction_type == "epsilon" else alpha * noise - sigma * meant

    def encode(self, image):
        import torch

        cells = torch.from_numpy(image[::2, ::2].astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
        return torch.cat((cells, torch.zeros_like(cells[:1])))[None]

    def decode(self, latents):
        levels = ((latents[0, :3].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        return levels.repeat(2, axis=0).repeat(2, axis=1)

    def preview(self, latents):
        return self.decode(latents)
