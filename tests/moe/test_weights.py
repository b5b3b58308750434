"""Published layouts load strictly at real size, on meta; configurations, shards, precision; sentences for bad files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.common import catalogue
from pipelines.common.checkpoint import read_json
from pipelines.common.convert import ConversionError
from pipelines.common.errors import UserError
from pipelines.moe import layout, weights
from pipelines.moe.config import PRESETS
from pipelines.moe.decoder import Decoder
from tests.moe.tiny import library, lively, save_library

KEYS = catalogue.WEIGHTS / "keys"
REAL = [  # preset, published keys, tensors of ours
    ("mixtral-8x7b", 995, 32 * 9 + 3),
    ("olmoe-1b-7b", 3219, 16 * 11 + 3),
    ("granite-3.1-1b-a400m", 218, 24 * 9 + 3),
]
# config.json as it was published, of the fields that say something.
PUBLISHED = {
    "mixtral-8x7b": {
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 32000,
    },
    "olmoe-1b-7b": {
        "architectures": ["OlmoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "clip_qkv": None,
        "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 1024, "max_position_embeddings": 4096, "model_type": "olmoe", "norm_topk_prob": False,
        "num_attention_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16,
        "num_key_value_heads": 16, "output_router_logits": False, "pad_token_id": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": None, "rope_theta": 10000.0, "router_aux_loss_coef": 0.01, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 50304,
    },
    "granite-3.1-1b-a400m": {
        "architectures": ["GraniteMoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "attention_multiplier": 0.015625, "bos_token_id": 0, "embedding_multiplier": 12.0, "eos_token_id": 0,
        "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 512,
        "logits_scaling": 6.0, "max_position_embeddings": 131072, "model_type": "granitemoe",
        "num_attention_heads": 16, "num_experts_per_tok": 8, "num_hidden_layers": 24, "num_key_value_heads": 8,
        "num_local_experts": 32, "output_router_logits": False, "pad_token_id": 0, "residual_multiplier": 0.22,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1500000.0, "router_aux_loss_coef": 0.0,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 49155,
    },
}  # fmt: skip


def published(name):
    shapes = json.loads((KEYS / f"{name}.json").read_text(encoding="utf-8"))
    return {key: torch.empty(shape, device="meta", dtype=torch.bfloat16) for key, shape in shapes.items()}


def on_meta(preset):
    with torch.device("meta"):
        return Decoder(PRESETS[preset])


# --- key lists -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count", "tensors"), REAL)
def test_published_keys_load_at_real_size(name, count, tensors):
    state, network = published(name), on_meta(name)
    assert len(state) == count and sum(value.numel() for value in state.values()) == PRESETS[name].parameters[0]
    weights.assign(network, state)
    loaded = network.state_dict()
    assert len(loaded) == tensors and {(t.is_meta, t.dtype) for t in loaded.values()} == {(True, torch.bfloat16)}
    assert (network.head.weight is network.embedding.weight) == (name == "granite-3.1-1b-a400m")


@pytest.mark.parametrize(("name", "count", "tensors"), REAL)
def test_the_library_has_the_same_tensors(name, count, tensors):
    """The library's own network at real size, its modules' names read by our table: shapes and sizes agree."""
    import transformers

    kinds = {"mixtral": "Mixtral", "olmoe": "Olmoe", "granitemoe": "GraniteMoe"}
    kind = kinds[PRESETS[name].family]
    sizes = getattr(transformers, f"{kind}Config")(**PUBLISHED[name])
    with torch.device("meta"):
        theirs = getattr(transformers, f"{kind}ForCausalLM")(sizes)
    weights.assign(on_meta(name), theirs.state_dict())


def test_the_tables_take_each_tensor_to_its_place():
    """Names by hand: shapes alone would not tell a key from a value, or one norm from the other."""
    by_hand = {
        "tiny": {
            "model.embed_tokens.weight": "embedding.weight",
            "model.norm.weight": "norm.weight",
            "lm_head.weight": "head.weight",
            "model.layers.11.input_layernorm.weight": "layers.11.attention_norm.weight",
            "model.layers.11.post_attention_layernorm.weight": "layers.11.moe_norm.weight",
            "model.layers.1.self_attn.q_proj.weight": "layers.1.attention.query.weight",
            "model.layers.1.self_attn.k_proj.weight": "layers.1.attention.key.weight",
            "model.layers.1.self_attn.v_proj.weight": "layers.1.attention.value.weight",
            "model.layers.1.self_attn.o_proj.weight": "layers.1.attention.out.weight",
            "model.layers.1.block_sparse_moe.gate.weight": "layers.1.moe.router.weight",
        },
        "tiny-olmoe": {
            "model.layers.3.self_attn.q_norm.weight": "layers.3.attention.query_norm.weight",
            "model.layers.3.self_attn.k_norm.weight": "layers.3.attention.key_norm.weight",
            "model.layers.3.mlp.gate.weight": "layers.3.moe.router.weight",
        },
        "tiny-granite": {
            "model.layers.0.block_sparse_moe.router.layer.weight": "layers.0.moe.router.weight",
            "model.layers.0.block_sparse_moe.input_linear.weight": "layers.0.moe.experts.gate_up",
            "model.layers.0.block_sparse_moe.output_linear.weight": "layers.0.moe.experts.down",
        },
    }
    for preset, names in by_hand.items():
        state = {theirs: torch.tensor(float(i)) for i, theirs in enumerate(names)}
        found = weights.keymap(PRESETS[preset]).apply(state, {ours: torch.empty(()) for ours in names.values()})
        assert {ours: float(value) for ours, value in found.items()} == {
            ours: float(i) for i, ours in enumerate(names.values())
        }


@pytest.mark.parametrize(
    ("preset", "where", "gate", "value", "out"),
    [("tiny", "block_sparse_moe", "w1", "w3", "w2"), ("tiny-olmoe", "mlp", "gate_proj", "up_proj", "down_proj")],
)
def test_the_gate_stands_before_the_value(preset, where, gate, value, out):
    expert = f"model.layers.0.{where}.experts."
    state = {}
    for k in range(4):
        state[f"{expert}{k}.{gate}.weight"] = torch.full((24, 32), float(k))
        state[f"{expert}{k}.{value}.weight"] = torch.full((24, 32), 10.0 + k)
        state[f"{expert}{k}.{out}.weight"] = torch.full((32, 24), 20.0 + k)
    both, down = "layers.0.moe.experts.gate_up", "layers.0.moe.experts.down"
    expected = {both: torch.empty(4, 48, 32), down: torch.empty(4, 32, 24)}
    found = weights.keymap(PRESETS[preset]).apply(state, expected)
    assert found[both][:, ::24, 0].tolist() == [[0, 10], [1, 11], [2, 12], [3, 13]]
    assert found[down][:, 0, 0].tolist() == [20, 21, 22, 23]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("model.layers.3.self_attn.k_proj.weight"), r"missing: layers\.3\.attention\.key\.weight"),
        (lambda s: s.pop("model.layers.3.block_sparse_moe.experts.7.w2.weight"), r"experts\.down is \(7,"),
        (
            lambda s: s.pop("model.layers.3.block_sparse_moe.experts.0.w1.weight"),
            r"missing: layers\.3\.moe\.experts\.g",
        ),
        (lambda s: s.update(extra=torch.empty(1)), "not used: extra"),
        (lambda s: s.update({"model.norm.weight": torch.empty(3)}), r"shape: norm\.weight is \(3,\)"),
        (lambda s: s.update({"model.layers.0.mlp.gate.weight": torch.empty(3)}), "twice"),
        (lambda s: s.update({"model.layers.0.block_sparse_moe.experts.8.w1.weight": torch.empty(3)}), "not used"),
    ],
)
def test_every_key_must_fit(spoil, message):
    state = published("mixtral-8x7b")
    spoil(state)
    with pytest.raises(ConversionError, match=message):
        weights.assign(on_meta("mixtral-8x7b"), state)


def test_mixtrals_names_go_out_and_come_back():
    network = lively("tiny")
    out = weights.to_mixtral(network.state_dict(), network.config)
    assert len(out) == 2 * (4 * 3 + 1 + 4 + 2) + 3
    fresh = Decoder(network.config)
    weights.assign(fresh, out)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in network.state_dict().items())
    tied = lively(replace(network.config, tied=True))
    assert "lm_head.weight" not in weights.to_mixtral(tied.state_dict(), tied.config)


def test_a_tied_file_may_hold_its_head_twice():
    network = lively("tiny-granite")
    theirs = library("granitemoe").state_dict()
    weights.assign(network, {**theirs, "lm_head.weight": theirs["model.embed_tokens.weight"]})
    assert network.head.weight is network.embedding.weight
    assert torch.equal(network.embedding.weight, theirs["model.embed_tokens.weight"])


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name):
    coefficient = PUBLISHED[name]["router_aux_loss_coef"]
    assert layout.config_from(PUBLISHED[name]) == replace(PRESETS[name], balance_coefficient=coefficient)


@pytest.mark.parametrize("name", PUBLISHED)
def test_configurations_as_the_library_saves_them_today(name, tmp_path):
    import transformers

    kinds = {"mixtral": "MixtralConfig", "olmoe": "OlmoeConfig", "granitemoe": "GraniteMoeConfig"}
    getattr(transformers, kinds[PRESETS[name].family])(**PUBLISHED[name]).save_pretrained(tmp_path)
    saved = read_json(tmp_path / "config.json")
    assert "rope_theta" not in saved and saved["rope_parameters"]["rope_theta"] == PUBLISHED[name]["rope_theta"]
    assert layout.config_from(saved) == layout.config_from(PUBLISHED[name])


@pytest.mark.parametrize("config", [PRESETS["stories"], PRESETS["tiny"], replace(PRESETS["tiny"], window=7, tied=True)])
def test_our_configuration_goes_out_and_comes_back(config):
    assert layout.config_from(layout.config_to(config)) == config
    old = {key: value for key, value in layout.config_to(config).items() if key != "rope_parameters"}
    assert layout.config_from(old) == config


@pytest.mark.parametrize("preset", ["tiny-olmoe", "tiny-granite", "tiny-switch"])
def test_what_mixtral_cannot_say_is_not_written(preset):
    with pytest.raises(ValueError, match="Mixtral's layout cannot say this"):
        layout.config_to(PRESETS[preset])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"model_type": "llama"},
            "These weights are of the architecture “llama”; the Text tab runs mixtral, olmoe, gra",
        ),
        ({"model_type": None}, "of the architecture “None”"),
        ({"hidden_act": "gelu"}, "config.json asks for hidden_act that this decoder does not have"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "asks for rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "asks for rope_scaling"),
        ({"attention_bias": True}, "asks for attention_bias"),
        ({"quantization_config": {"bits": 4}}, "asks for quantization_config"),
        ({"num_experts_per_tok": 9}, "describes no network: 9 of 8 experts cannot work"),
        ({"hidden_size": "wide"}, "describes no network"),
        ({"num_attention_heads": 0}, "describes no network: num_attention_heads is 0"),
        ({"sliding_window": -4}, "describes no network: sliding_window is -4"),
        ({"num_hidden_layers": True}, "describes no network: num_hidden_layers is True"),
        ({"head_dim": 9}, "head_width must be even"),
        ({"rms_norm_eps": None}, "describes no network"),
    ],
)
def test_other_architectures_are_refused_in_a_sentence(change, sentence):
    with pytest.raises(UserError, match=sentence.replace(".", r"\.")):
        layout.config_from(PUBLISHED["mixtral-8x7b"] | change)


def test_a_missing_field_is_named():
    for field in ("vocab_size", "num_local_experts", "intermediate_size"):
        rest = {key: value for key, value in PUBLISHED["mixtral-8x7b"].items() if key != field}
        with pytest.raises(UserError, match=f"config.json lacks {field}: fetch"):
            layout.config_from(rest)


# --- files -----------------------------------------------------------------------------------------------------------


def saved(tmp_path, shards=False):
    """A tiny Mixtral by the library: its configuration as ours, and the file to load."""
    file = save_library(library("mixtral"), tmp_path, shards)
    return layout.config_from(read_json(tmp_path / "config.json")), file


def test_a_file_is_mapped_and_stacked_in_its_own_precision(tmp_path):
    config, file = saved(tmp_path)
    for dtype, computed in ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16),
                            (torch.float16, torch.float32), (torch.float64, torch.float32)):  # fmt: skip
        state = {name: value.to(dtype) for name, value in load_file(file).items()}
        path = tmp_path / f"{str(dtype)[6:]}.safetensors"
        save_file(state, path)
        network = weights.load(config, path)
        assert {p.dtype for p in network.parameters()} == {computed} and not network.training
        assert not any(p.requires_grad or p.is_meta for p in network.parameters())
        stacked = state["model.layers.1.block_sparse_moe.experts.3.w2.weight"].to(computed)
        assert torch.equal(network.layers[1].moe.experts.down[3], stacked)
        mapped = str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
        assert mapped == (computed == dtype)  # what was cast needs the file no longer


def test_float16_is_kept_where_it_is_fast():
    state = {"a": torch.ones(1, dtype=torch.float16)}
    assert weights.precision(state, "cpu") == torch.float32 and weights.precision(state, "cuda") == torch.float16
    assert weights.precision({"a": torch.ones(1, dtype=torch.bfloat16)}, "cpu") == torch.bfloat16
    assert weights.precision({}, "cpu") == torch.float32


def test_bfloat16_runs(tmp_path):
    config, file = saved(tmp_path)
    path = tmp_path / "half.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, path)
    tokens = torch.arange(20)[None] % 320
    exact, rough = weights.load(config, file)(tokens), weights.load(config, path)(tokens)
    assert rough.dtype == torch.bfloat16 and (exact - rough.float()).abs().mean() < 0.1 * exact.abs().mean()


def test_a_missing_shard_is_named(tmp_path):
    config, index = saved(tmp_path, shards=True)
    weights.load(config, index)
    gone = sorted(tmp_path.glob("model-*.safetensors"))[2]
    gone.unlink()
    with pytest.raises(
        UserError, match=f"^The shard {gone.name} that model.safetensors.index.json lists is missing: f"
    ):
        weights.load(config, index)


def test_an_index_and_its_shards_must_agree(tmp_path):
    config, index = saved(tmp_path, shards=True)
    content = json.loads(index.read_text())
    content["weight_map"].pop("model.norm.weight")
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"and its shards are of different weights \(1 names\)"):
        weights.load(config, index)
    for bad, words in (
        ({"weight_map": {"a": "../model.safetensors"}}, "The shard"), ({"weight_map": {"a": 3}}, "is no index"),
        ({}, "is no index"), ([], "is damaged"),
    ):  # fmt: skip
        index.write_text(json.dumps(bad))
        with pytest.raises(UserError, match=words):
            weights.load(config, index)
    index.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        weights.load(config, index)


def test_a_wrong_shape_is_named(tmp_path):
    config, file = saved(tmp_path)
    state = load_file(file)
    state["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(16, 31)
    save_file(state, file)
    with pytest.raises(UserError) as caught:
        weights.load(config, file)
    assert str(caught.value) == (
        "model.safetensors does not hold the network that its config.json describes: 1 keys do not fit, the first is "
        "“shape: layers.0.attention.key.weight is (16, 31), expected (16, 32)”."
    )


def test_other_weights_are_refused(tmp_path):
    config, file = saved(tmp_path)
    for other in (replace(config, layers=3), replace(config, experts=5), replace(config, tied=True, width=16),
                  PRESETS["tiny-olmoe"], PRESETS["tiny-granite"]):  # fmt: skip
        with pytest.raises(UserError, match="does not hold the network that its config"):
            weights.load(other, file)


@pytest.mark.parametrize("length", [0, 5, 1000, -1])
def test_a_damaged_file_is_refused(tmp_path, length):
    config, file = saved(tmp_path)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        weights.load(config, file)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"There is no model\.safetensors in the weights' folder"):
        weights.load(PRESETS["tiny"], tmp_path / "model.safetensors")
