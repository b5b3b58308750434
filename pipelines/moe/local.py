"""Our decoder behind the contract: `load` is what the pipeline calls for backend "local"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.common.catalogue import Entry
from pipelines.common.checkpoint import paths, read_json

from .config import MoeConfig
from .contract import RouterChange

if TYPE_CHECKING:
    import torch

    from .decode import FastDecoder
    from .decoder import Decoder, Record
    from .router import Steer

NOTHING = RouterChange()
# Router logits (L, N, E) float32, experts (L, N, k) int64, weights (L, N, k) float32.
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def load(entry: Entry, device: str | torch.device = "cpu") -> LocalText:
    """Backend over one checkpoint of the catalogue: its files "config", "model" (or the index of its shards),
    "tokenizer" and, where it has them, "tokenizer_config" and "generation".

    UserError: a file is missing, damaged or of another network.
    """
    from . import weights
    from .layout import config_from
    from .tokenizer import TextTokenizer

    found = paths(entry)
    config = config_from(read_json(found["config"]))
    tokenizer = TextTokenizer.read(found["tokenizer"], found.get("tokenizer_config"), found.get("generation"))
    return LocalText(weights.load(config, found["model"], device), tokenizer, device)


class LocalText:
    """One decoder and its tokenizer. Keeps nothing of a text: see `open`.

    device and dtype: as torch names them.
    """

    def __init__(self, decoder: Decoder, tokenizer: Any, device: str | torch.device = "cpu") -> None:
        from .decode import FastDecoder

        self.decoder, self.tokenizer = decoder, tokenizer
        self._fast = FastDecoder(decoder)
        self.config: MoeConfig = decoder.config
        self.device = str(device)
        self.dtype = str(decoder.embedding.weight.dtype).removeprefix("torch.")

    def open(self, room: int, change: RouterChange = NOTHING, trace: bool = False) -> Stepper:
        """A new text of at most `room` tokens. change: of the routers. trace: keep what they decide."""
        return Stepper(self._fast, room, self._steer(change), trace)

    def logits(
        self, tokens: Sequence[int], change: RouterChange = NOTHING, trace: bool = False
    ) -> tuple[torch.Tensor, Arrays | None]:
        """A whole text of N tokens in one pass: logits (N, V) float32 after each, and with `trace` the routers'."""
        import torch

        from .decoder import Record

        record = Record() if trace else None
        with torch.inference_mode():
            given = torch.tensor([list(tokens)], dtype=torch.int64, device=self.device)
            found = self.decoder(given, steer=self._steer(change), record=record)[0].float()
        return found, None if record is None else arrays([record], self.config)

    def _steer(self, change: RouterChange) -> Steer | None:
        if change.nothing:
            return None
        from .steer import steer

        return steer(change, self.config)


class Stepper:
    """One text on its way: the key-value cache, and the trace if it is kept. Belongs to one visitor's call."""

    def __init__(self, decoder: FastDecoder, room: int, steer: Steer | None, trace: bool) -> None:
        self._decoder, self._steer = decoder, steer
        self._cache = decoder.start(room)
        self._records: list[Record] | None = [] if trace else None

    @property
    def length(self) -> int:
        """Tokens fed so far."""
        return self._cache.length

    def feed(self, tokens: Sequence[int]) -> torch.Tensor:
        """(V,) float32 logits after the last of these tokens, which stand behind all that were fed before.

        ValueError: no tokens, or more than there is room for.
        """
        import torch

        from .decoder import Record

        if not tokens:
            raise ValueError("nothing was fed")
        record = None if self._records is None else Record()
        given = torch.tensor(list(tokens), dtype=torch.int64, device=self._cache.keys.device)
        logits = self._decoder.feed(given, self._cache, self._steer, record)
        if record is not None and self._records is not None:
            self._records.append(record)
        return logits

    def trace(self) -> Arrays:
        """What the routers decided for all tokens fed so far. ValueError: it was not asked for."""
        if self._records is None:
            raise ValueError("this text was opened without a trace")
        return arrays(self._records, self._decoder.config)


def arrays(records: Sequence[Record], config: MoeConfig) -> Arrays:
    """The records of a text's passes, one after the other, as arrays."""
    layers, count = config.layers, config.experts
    if not records:
        nothing = np.zeros((layers, 0, config.active))
        return np.zeros((layers, 0, count), np.float32), nothing.astype(np.int64), nothing.astype(np.float32)

    def joined(name: str, dtype: type) -> np.ndarray:
        passes = [
            np.stack([getattr(routing, name).float().cpu().numpy().astype(dtype) for routing in record.routings])
            for record in records
        ]
        return np.concatenate(passes, axis=1)

    return joined("logits", np.float32), joined("experts", np.int64), joined("weights", np.float32)
