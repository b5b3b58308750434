"""Tiny decoders with random weights, ours and the library's, and folders of them in the published layouts."""

import json

import torch
from safetensors.torch import save_file

from pipelines.common import catalogue
from pipelines.moe import export, weights
from pipelines.moe.config import PRESETS
from pipelines.moe.decoder import Decoder
from pipelines.moe.layout import config_to

SENTENCES = [
    "Once upon a time there was a little girl named Lily who loved to play with her red ball.",
    "The dog ran to the park. He saw a big bird and said, \"Hello!\" The bird was happy.",
    "“Schön!” said the old man; 你好 and 🙂 are words too.",
]  # fmt: skip
ROLES = (
    ("model", "model.safetensors"), ("config", "config.json"), ("tokenizer", "tokenizer.json"),
    ("tokenizer_config", "tokenizer_config.json"), ("generation", "generation_config.json"),
)  # fmt: skip


def lively(preset, seed=0):
    """A decoder whose experts, heads and layers all differ: norms that are not one, logits that are not tiny."""
    config = PRESETS[preset] if isinstance(preset, str) else preset
    return _enlivened(Decoder(config), seed)


def _enlivened(network, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 2.0 * parameter.shape[-1] ** -0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return network.eval().requires_grad_(False)


def train_tokenizer(path, size):
    """A byte-level BPE of `size` tokens at most, `<|endoftext|>` first, as the bundled model's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[export.END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(SENTENCES, trainer)
    made.save(str(path))


def write_folder(folder, preset="tiny", seed=0):
    """A float32 folder in Mixtral's layout, as `export` writes it in float16."""
    network = lively(preset, seed)
    config = network.config
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in weights.to_mixtral(network.state_dict(), config).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    export.write(folder / "config.json", config_to(config) | ids | {"dtype": "float32"})
    export.write(folder / "generation_config.json", ids)
    export.write(folder / "tokenizer_config.json", export.tokenizer_config(config))
    train_tokenizer(folder / "tokenizer.json", config.vocabulary)
    return network


def entry_of(folder, name="stories"):
    """A catalogue entry over a folder: an absolute path stays as it is below weights/."""
    files = tuple(catalogue.File(role, str(folder / file)) for role, file in ROLES if (folder / file).exists())
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    return catalogue.Entry(name, "moe", "decoder", name, kind, "tiny", "bundled", kind, "", files)


SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 256, "pad_token_id": 0,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def library(family, seed=0, **changes):
    """The library's own decoder with random weights in which nothing is at its initial value."""
    import transformers

    kinds = {
        "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM, {"num_local_experts": 4}),
        "olmoe": (
            transformers.OlmoeConfig, transformers.OlmoeForCausalLM,
            {"num_experts": 4, "clip_qkv": 1.5, "num_key_value_heads": 4},
        ),
        "granitemoe": (
            transformers.GraniteMoeConfig, transformers.GraniteMoeForCausalLM,
            {
                "num_local_experts": 4, "tie_word_embeddings": True, "attention_multiplier": 0.2,
                "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4,
            },
        ),
    }  # fmt: skip
    sizes, kind, own = kinds[family]
    return _enlivened(kind(sizes(**{**SIZES, **own, **changes})), seed)


def save_library(network, folder, shards=False, **options):
    """The library's own `save_pretrained`, with a tokenizer beside it. Returns the file to load: the weights, or the
    index of their shards."""
    options = {"max_shard_size": "20KB"} | options if shards else options
    network.save_pretrained(folder, **options)
    train_tokenizer(folder / "tokenizer.json", network.config.vocab_size)
    export.write(folder / "tokenizer_config.json", {"bos_token": export.END, "eos_token": export.END})
    return folder / ("model.safetensors.index.json" if shards else "model.safetensors")
