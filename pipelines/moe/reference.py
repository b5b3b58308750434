"""transformers' decoders behind the contract: `load` is what the pipeline calls for backend "reference".

The library runs its own network over the same files as ours, in the same precision; the tokens are ours. It is imported
when something of it is loaded, so that the demo runs without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.catalogue import Entry
from pipelines.common.checkpoint import paths, read_json
from pipelines.common.errors import UserError
from pipelines.common.quiet import quiet

from .config import Family, MoeConfig
from .contract import RouterChange

if TYPE_CHECKING:
    import torch

NOTHING = RouterChange()
CLASSES: dict[Family, str] = {
    "mixtral": "MixtralForCausalLM", "olmoe": "OlmoeForCausalLM", "granitemoe": "GraniteMoeForCausalLM",
}  # fmt: skip


def load(entry: Entry, device: str | torch.device = "cpu") -> ReferenceText:
    """Backend over one checkpoint of the catalogue; its files as `local.load` reads them.

    UserError: the library is not installed or cannot read them; a file is missing, damaged or of another network.
    """
    from . import weights
    from .layout import config_from
    from .tokenizer import TextTokenizer

    library, found = _library(), paths(entry)
    config = config_from(read_json(found["config"]))
    dtype = weights.precision(weights.tensors(found["model"]), device)
    network = _network(getattr(library, CLASSES[config.family]), found["config"].parent, dtype)
    tokenizer = TextTokenizer.read(found["tokenizer"], found.get("tokenizer_config"), found.get("generation"))
    return ReferenceText(network.to(device).eval(), config, tokenizer, device)


def _library() -> Any:
    """The module transformers, whose types are not looked into. UserError: it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UserError("transformers is not installed here; choose local.") from error
    return transformers


def _network(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The library's network with every tensor of the folder in it. UserError: they do not fit."""
    try:
        with quiet(_library().utils.logging):
            network, report = kind.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        raise UserError("transformers cannot load these weights; choose local.") from error
    wrong = sum(len(report[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if wrong:  # it would go on with random numbers in their place
        raise UserError(f"The files do not hold the network that is asked for: {wrong} keys do not fit.")
    return network


class ReferenceText:
    """The library's network and our tokenizer. Keeps nothing of a text: see `open`.

    device and dtype: as torch names them.
    """

    def __init__(self, network: Any, config: MoeConfig, tokenizer: Any, device: str | torch.device = "cpu") -> None:
        self.network, self.config, self.tokenizer = network, config, tokenizer
        self.device = str(device)
        self.dtype = str(network.dtype).removeprefix("torch.")

    def open(self, room: int, change: RouterChange = NOTHING, trace: bool = False) -> ReferenceStepper:
        """A new text. room: not needed here, the library's cache grows. UserError: a change or a trace is asked for."""
        _refuse(change, trace)
        return ReferenceStepper(self.network, self.device)

    def logits(
        self, tokens: Sequence[int], change: RouterChange = NOTHING, trace: bool = False
    ) -> tuple[torch.Tensor, None]:
        """A whole text of N tokens in one pass: logits (N, V) float32 after each. UserError: as `open`."""
        import torch

        _refuse(change, trace)
        with torch.inference_mode():
            given = torch.tensor([list(tokens)], dtype=torch.int64, device=self.device)
            return self.network(input_ids=given, use_cache=False).logits[0].float(), None


class ReferenceStepper:
    """One text on its way, in the library's growing cache. Belongs to one visitor's call."""

    def __init__(self, network: Any, device: str) -> None:
        from transformers import DynamicCache

        self._network, self._device = network, device
        self._cache = DynamicCache(config=network.config)
        self.length = 0  # tokens fed so far

    def feed(self, tokens: Sequence[int]) -> torch.Tensor:
        """(V,) float32 logits after the last of these tokens, which stand behind all that were fed before.

        ValueError: no tokens.
        """
        import torch

        if not tokens:
            raise ValueError("nothing was fed")
        with torch.inference_mode():
            given = torch.tensor([list(tokens)], dtype=torch.int64, device=self._device)
            found = self._network(input_ids=given, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self.length += len(tokens)
        return found.logits[0, -1].float()

    def trace(self) -> Any:
        """UserError: only our own networks are open to look inside."""
        raise UserError("Only our own networks can be looked into; choose local.")


def _refuse(change: RouterChange, trace: bool) -> None:
    if not change.nothing:
        raise UserError("The routers can be changed in our own networks only; choose local.")
    if trace:
        raise UserError("Only our own networks can be looked into; choose local.")
