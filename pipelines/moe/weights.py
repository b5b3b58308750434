"""Published files of the decoders -> networks, and back. Strict both ways: see `pipelines.common.convert`.

Three layouts: mistralai/Mixtral-8x7B and allenai/OLMoE-1B-7B, whose experts are a matrix each, and ibm-granite's
granite-3.1-1b-a400m, whose experts are stacked as ours are. transformers' `save_pretrained` writes these names today,
though its modules bear others; files in the modules' names (`save_original_format=False`) are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.common.checkpoint import read, read_json
from pipelines.common.convert import ConversionError, KeyMap
from pipelines.common.errors import UserError

from .config import Family, MoeConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .decoder import Decoder

# Published name -> ours, run in this order.
COMMON = (
    (r"^model\.embed_tokens\.", "embedding."),
    (r"^model\.", ""),
    (r"^lm_head\.", "head."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".moe_norm."),
    *((rf"\.self_attn\.{letter}_proj\.", f".attention.{ours}.") for letter, ours in zip(
        "qkvo", ("query", "key", "value", "out"), strict=True
    )),
    (r"\.self_attn\.q_norm\.", ".attention.query_norm."),
    (r"\.self_attn\.k_norm\.", ".attention.key_norm."),
    # Granite's, and those of the library's modules today.
    (r"\.(mlp|block_sparse_moe)\.gate\.", ".moe.router."),
    (r"\.block_sparse_moe\.router\.(layer\.)?", ".moe.router."),
    (r"\.block_sparse_moe\.input_linear\.weight$", ".moe.experts.gate_up"),
    (r"\.block_sparse_moe\.output_linear\.weight$", ".moe.experts.down"),
    (r"\.(mlp|block_sparse_moe)\.experts\.gate_up_proj$", ".moe.experts.gate_up"),
    (r"\.(mlp|block_sparse_moe)\.experts\.down_proj$", ".moe.experts.down"),
)  # fmt: skip
# Where the experts are a matrix each: the path to them, then gate, value ("up") and output.
EXPERTS: dict[Family, tuple[str, str, str, str]] = {
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    "olmoe": ("mlp", "gate_proj", "up_proj", "down_proj"),
}
TIED = "head.weight"  # which is the embedding where the two are tied


def keymap(config: MoeConfig) -> KeyMap:
    """The table from the published layout of a family to our names."""
    keys = KeyMap()
    if config.tied:
        keys.ignore(r"^lm_head\.weight$", "it is the embedding, written a second time")
    for pattern, replacement in COMMON:
        keys.rename(pattern, replacement)
    if config.family in EXPERTS:
        where, gate, value, out = EXPERTS[config.family]
        expert = f"layers.*.{where}.experts.#"
        keys.stack((f"{expert}.{gate}.weight", f"{expert}.{value}.weight"), "layers.*.moe.experts.gate_up")
        keys.stack((f"{expert}.{out}.weight",), "layers.*.moe.experts.down")
    return keys


def assign(network: Decoder, published: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Put published tensors into a network that may be on meta, in `dtype`, or in their own.

    Tensors of a file that is mapped into memory stay mapped where nothing has to be stacked or cast.
    ConversionError: the keys do not fit.
    """
    config = network.config
    expected = {name: value for name, value in network.state_dict().items() if not (config.tied and name == TIED)}
    state = keymap(config).apply(published, expected)
    for name in state:  # one at a time: what was stacked is let go as soon as it is cast
        state[name] = state[name].to(dtype)
    if config.tied:
        state[TIED] = state["embedding.weight"]
    network.load_state_dict(state, strict=True, assign=True)
    if config.tied:
        network.head.weight = network.embedding.weight


def load(config: MoeConfig, path: Path, device: str | torch.device = "cpu") -> Decoder:
    """A published checkpoint as a network in eval mode, in the precision of the file; see `precision`.

    path: model.safetensors, or model.safetensors.index.json with its shards beside it.
    UserError: a file is missing or damaged, or holds another network than `config`.
    """
    import torch

    from .decoder import Decoder

    published = tensors(path)
    with torch.device("meta"):  # no random initialisation, no second copy in memory
        network = Decoder(config)
    try:
        assign(network, published, precision(published, device))
    except ConversionError as error:
        count, first, *_ = str(error).splitlines()  # the whole list is in the cause
        raise UserError(
            f"{path.name} does not hold the network that its config.json describes: "
            f"{count.rstrip(':')}, the first is “{first}”."
        ) from error
    return network.to(device).eval().requires_grad_(False)


def tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file or of the shards of an index, by their published names, mapped into memory.

    UserError: a file is missing or damaged, or the index and its shards do not agree.
    """
    if not path.is_file():
        raise UserError(f"There is no {path.name} in the weights' folder: fetch these weights again.")
    if path.suffix != ".json":
        return dict(read(path))
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError(f"{path.name} is no index of weights: fetch it again.")
    found: dict[str, Tensor] = {}
    for name in sorted(set(listed.values())):
        shard = path.parent / name
        if Path(name).name != name or not shard.is_file():
            raise UserError(f"The shard {name} that {path.name} lists is missing: fetch these weights again.")
        found.update(read(shard))
    if found.keys() != listed.keys():
        count = len(found.keys() ^ listed.keys())
        raise UserError(f"{path.name} and its shards are of different weights ({count} names): fetch them again.")
    return found


def precision(published: Mapping[str, Tensor], device: str | torch.device) -> torch.dtype:
    """The precision to compute in: that of the file. float16 becomes float32 on a processor, which has no fast
    products of it; whatever is neither this nor bfloat16 becomes float32 as well."""
    import torch

    kinds = [value.dtype for value in published.values()]
    stored = max(set(kinds), key=kinds.count, default=torch.float32)
    fast = {torch.bfloat16} if torch.device(device).type == "cpu" else {torch.bfloat16, torch.float16}
    return stored if stored in fast else torch.float32


def to_mixtral(state: Mapping[str, Tensor], config: MoeConfig) -> dict[str, Tensor]:
    """Our state dict under the names of Mixtral's files: the way back of `keymap`. Views where nothing is changed."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == TIED:
            if not config.tied:
                out["lm_head.weight"] = value
        elif not name.startswith("layers."):
            out[f"model.{name.replace('embedding.', 'embed_tokens.')}"] = value
        else:
            _, number, rest = name.split(".", 2)
            out.update({f"model.layers.{number}.{theirs}": each for theirs, each in _layer(rest, value).items()})
    return out


def _layer(name: str, value: Tensor) -> dict[str, Tensor]:
    """One tensor of a layer under Mixtral's names."""
    experts = "block_sparse_moe.experts"
    if name == "moe.experts.gate_up":
        halves = (each.chunk(2) for each in value)
        return {
            f"{experts}.{k}.{ours}.weight": half
            for k, pair in enumerate(halves)
            for ours, half in zip(("w1", "w3"), pair, strict=True)
        }
    if name == "moe.experts.down":
        return {f"{experts}.{k}.w2.weight": each for k, each in enumerate(value)}
    names = {
        "attention_norm": "input_layernorm", "moe_norm": "post_attention_layernorm",
        "moe.router": "block_sparse_moe.gate",
        **{f"attention.{ours}": f"self_attn.{ours[0]}_proj" for ours in ("query", "key", "value", "out")},
    }  # fmt: skip
    return {f"{names[name.removesuffix('.weight')]}.weight": value}
