"""Last stage of training: a checkpoint of the decoder as a folder in Mixtral's layout, which transformers loads as it
is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from . import weights
from .config import MoeConfig
from .decoder import Decoder
from .layout import config_to

END = "<|endoftext|>"  # begins and ends every story; token 0
END_ID = 0


def export(checkpoint: Path, config: MoeConfig, folder: Path) -> Path:
    """Writes config.json, model.safetensors (float16), generation_config.json and tokenizer_config.json to `folder`.

    checkpoint: a torch file with a Decoder's state dict under "model". Returns the folder, to which tokenizer.json is
    still to be added. SystemExit: the checkpoint is of another network. ValueError: Mixtral has no such network.
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        expected = Decoder(config).state_dict()
    state = saved["model"]
    wrong = {name for name in state.keys() | expected.keys() if _shape(state, name) != _shape(expected, name)}
    if wrong:
        raise SystemExit(f"the checkpoint is of another network: {sorted(wrong)[:5]}")
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: value.half().contiguous() for name, value in weights.to_mixtral(state, config).items()}
    broken = [name for name, value in half.items() if not value.isfinite().all()]
    if broken:
        raise SystemExit(f"these weights do not fit into float16: {broken[:5]}")
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner only
    ids = {"bos_token_id": END_ID, "eos_token_id": END_ID}
    write(folder / "config.json", config_to(config) | ids | {"dtype": "float16"})
    write(folder / "generation_config.json", ids)
    write(folder / "tokenizer_config.json", tokenizer_config(config))
    print(f"step {saved.get('step')}: {config.parameters[0] / 1e6:.1f} M parameters -> {folder}")
    return folder


def tokenizer_config(config: MoeConfig) -> dict[str, Any]:
    """tokenizer_config.json for transformers' AutoTokenizer, which reads the tokens themselves from tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END,
        "model_max_length": config.context, "clean_up_tokenization_spaces": False,
    }  # fmt: skip


def write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
