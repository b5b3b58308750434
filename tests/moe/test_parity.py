"""Our decoders against transformers' on the files that transformers writes: logits, experts, greedy tokens."""

import pytest
import torch

from pipelines.common.checkpoint import read_json
from pipelines.moe import weights
from pipelines.moe.cache import KeyValueCache
from pipelines.moe.decoder import Record
from pipelines.moe.layout import config_from
from pipelines.moe.router import pooled_balance_loss
from tests.moe.tiny import library, lively, save_library, write_folder

FAMILIES = ["mixtral", "olmoe", "granitemoe"]
CLOSE = 1e-4


def ours(folder, file):
    return weights.load(config_from(read_json(folder / "config.json")), file)


def text(count=40, batch=2, seed=1):
    return torch.randint(0, 320, (batch, count), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """(the library's network, ours from its files)."""
    folder = tmp_path_factory.mktemp(request.param)
    network = library(request.param)
    return network, ours(folder, save_library(network, folder))


@torch.inference_mode()
def greedy(network, tokens, count, cached):
    """The likeliest tokens of one text by our network."""
    text, cache = tokens[0].tolist(), None
    if cached:
        cache = KeyValueCache(network.config, len(text) + count)
    given, out = text, []
    for _ in range(count):
        logits = network(torch.tensor([given]), cache, last_only=True)
        out.append(int(logits[0, -1].argmax()))
        given = [out[-1]] if cached else text + out
    return out


@torch.inference_mode()
def test_logits_and_experts_are_the_librarys(pair):
    theirs, network = pair
    tokens, record = text(), Record()
    expected = theirs(input_ids=tokens, output_router_logits=True)
    found = network(tokens, record=record)
    assert expected.logits.abs().max() > 1  # or closeness would say nothing
    assert (found - expected.logits).abs().max() < CLOSE
    assert len(record.routings) == len(expected.router_logits) == 2
    for routing, logits in zip(record.routings, expected.router_logits, strict=True):
        assert (routing.logits - logits).abs().max() < CLOSE
        assert torch.equal(routing.experts, logits.topk(2, dim=-1).indices)
        assert routing.experts.unique().tolist() == [0, 1, 2, 3]  # each of them works for some token


@torch.inference_mode()
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_tokens_are_the_librarys(pair, cached):
    theirs, network = pair
    tokens = text(12, batch=1)
    found = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=24, do_sample=False, use_cache=cached,
        eos_token_id=None,
    )  # fmt: skip
    assert found.shape == (1, 36)
    assert greedy(network, tokens, 24, cached) == found[0, 12:].tolist()


@torch.inference_mode()
def test_the_pooled_balance_loss_is_the_librarys(pair):
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    theirs, network = pair
    expected = theirs(input_ids=text(), output_router_logits=True)
    record = Record()
    network(text(), record=record)
    found = pooled_balance_loss([r.logits for r in record.routings], [r.experts for r in record.routings])
    by_function = load_balancing_loss_func(expected.router_logits, 4, 2)
    assert abs(float(found) - float(expected.aux_loss)) < 1e-5 and abs(float(found) - float(by_function)) < 1e-5
    assert float(found) > 2.0001  # 2, that is k, would be an even load


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_shards_hold_the_same_network(family, tmp_path):
    theirs = library(family, seed=3)
    index = save_library(theirs, tmp_path, shards=True)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 5 and not (tmp_path / "model.safetensors").exists()
    assert (ours(tmp_path, index)(text()) - theirs(input_ids=text()).logits).abs().max() < CLOSE


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_the_librarys_modules_are_read_too(family, tmp_path):
    theirs = library(family, seed=4)
    file = save_library(theirs, tmp_path, save_original_format=False)
    names = set(weights.tensors(file))
    assert any(name.endswith("experts.gate_up_proj") for name in names)
    assert (ours(tmp_path, file)(text()) - theirs(input_ids=text()).logits).abs().max() < CLOSE


@torch.inference_mode()
def test_a_sliding_window_is_the_librarys(tmp_path):
    """The window counts the token itself: at 7, one more or less shows."""
    theirs = library("mixtral", sliding_window=7)
    network = ours(tmp_path, save_library(theirs, tmp_path))
    assert network.config.window == 7
    expected = theirs(input_ids=text()).logits
    assert (network(text()) - expected).abs().max() < CLOSE
    for other in (6, 8, None):
        wrong = lively_copy(network, other)
        assert (wrong(text()) - expected)[:, 10:].abs().max() > 0.01
    tokens = text(12, batch=1)
    found = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=16, do_sample=False, eos_token_id=None
    )
    assert greedy(network, tokens, 16, True) == found[0, 12:].tolist()


def lively_copy(network, window):
    """The same weights behind another window."""
    from dataclasses import replace

    from pipelines.moe.decoder import Decoder

    copy = Decoder(replace(network.config, window=window)).eval()
    copy.load_state_dict(network.state_dict())
    return copy


@torch.inference_mode()
@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts_per_tok": 1}, {"num_experts_per_tok": 4}, {"num_key_value_heads": 1}, {"head_dim": 12},
        {"tie_word_embeddings": True}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rms_norm_eps": 0.05},
    ],
    ids=str,
)  # fmt: skip
def test_other_sizes_of_mixtral(changes, tmp_path):
    theirs = library("mixtral", seed=5, **changes)
    network = ours(tmp_path, save_library(theirs, tmp_path))
    assert (network(text()) - theirs(input_ids=text()).logits).abs().max() < CLOSE


@torch.inference_mode()
@pytest.mark.parametrize("changes", [{"norm_topk_prob": True}, {"clip_qkv": None}, {"num_key_value_heads": 2}], ids=str)
def test_other_sizes_of_olmoe(changes, tmp_path):
    theirs = library("olmoe", seed=6, **changes)
    network = ours(tmp_path, save_library(theirs, tmp_path))
    assert (network(text()) - theirs(input_ids=text()).logits).abs().max() < CLOSE


@torch.inference_mode()
def test_an_untied_granite(tmp_path):
    theirs = library("granitemoe", seed=7, tie_word_embeddings=False)
    network = ours(tmp_path, save_library(theirs, tmp_path))
    assert not torch.equal(network.head.weight, network.embedding.weight)
    assert (network(text()) - theirs(input_ids=text()).logits).abs().max() < CLOSE


@torch.inference_mode()
def test_our_folder_is_read_by_the_library(tmp_path):
    from dataclasses import replace

    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = write_folder(tmp_path / "ours", replace(lively("tiny").config, window=9, rope_base=777.0))
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert type(theirs).__name__ == "MixtralForCausalLM"
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert (network(text()) - theirs(input_ids=text()).logits).abs().max() < CLOSE
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 0)
    words = "Once upon a time there was a dog. 🙂"
    assert tokenizer.decode(tokenizer(words).input_ids) == words
    assert theirs.generation_config.eos_token_id == 0


@torch.inference_mode()
@pytest.mark.parametrize(
    "fault",
    [
        lambda n: n.layers[1].moe.experts.down.data[2].neg_(),
        lambda n: n.layers[0].moe.experts.gate_up.data.copy_(n.layers[0].moe.experts.gate_up.data.roll(24, dims=1)),
        lambda n: n.layers[0].moe.router.weight.data.copy_(n.layers[0].moe.router.weight.data.roll(1, dims=0)),
        lambda n: n.layers[1].attention.key.weight.data.copy_(n.layers[1].attention.value.weight.data),
        lambda n: n.layers[0].attention_norm.weight.data.copy_(n.layers[0].moe_norm.weight.data),
        lambda n: n.norm.weight.data.mul_(1.001),
    ],
    ids=["one expert", "gate and value", "router's rows", "key and value", "the two norms", "a last norm 0.1 % off"],
)
def test_planted_faults_show(fault, tmp_path):
    """Parity within 1e-4 would be worth little if these passed it."""
    theirs = library("mixtral", seed=8)
    network = ours(tmp_path, save_library(theirs, tmp_path))
    fault(network)
    assert (network(text()) - theirs(input_ids=text()).logits).abs().max() > 10 * CLOSE
