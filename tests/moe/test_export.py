"""A checkpoint of a training becomes a folder in Mixtral's layout; what the catalogue lists."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pipelines.common import catalogue, checkpoint
from pipelines.common.checkpoint import read_json
from pipelines.moe import export, layout, weights
from pipelines.moe.config import PRESETS, MoeConfig
from tests.moe.tiny import lively


def test_a_checkpoint_becomes_a_folder(tmp_path):
    network = lively("tiny")
    torch.save({"model": network.state_dict(), "step": 7}, tmp_path / "best.pt")
    folder = export.export(tmp_path / "best.pt", network.config, tmp_path / "out" / "stories")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json",
    ]  # fmt: skip
    stored = load_file(folder / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    config = read_json(folder / "config.json")
    assert (config["model_type"], config["eos_token_id"], config["bos_token_id"]) == ("mixtral", 0, 0)
    assert read_json(folder / "generation_config.json") == {"bos_token_id": 0, "eos_token_id": 0}
    found = weights.load(layout.config_from(config), folder / "model.safetensors")
    assert found.config == network.config
    for name, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], value.half().float()), name


def test_what_cannot_be_exported(tmp_path):
    network = lively("tiny")
    state = network.state_dict()
    torch.save({"model": state}, tmp_path / "best.pt")
    with pytest.raises(SystemExit, match="of another network"):
        export.export(tmp_path / "best.pt", replace(network.config, experts=5), tmp_path / "out")
    state["norm.weight"] = state["norm.weight"] * 1e6  # past float16
    torch.save({"model": state}, tmp_path / "large.pt")
    with pytest.raises(SystemExit, match=r"do not fit into float16: \['model.norm.weight'\]"):
        export.export(tmp_path / "large.pt", network.config, tmp_path / "out")


# --- the catalogue ---------------------------------------------------------------------------------------------------


def test_the_catalogue_lists_every_shard():
    entries = {entry.id: entry for entry in catalogue.entries("moe", "decoder")}
    assert list(entries) == ["granite-3.1-1b-a400m", "stories", "olmoe-1b-7b", "mixtral-8x7b"]
    for name, count in (("olmoe-1b-7b", 3), ("mixtral-8x7b", 19)):
        files = {file.name: file.path for file in entries[name].files}
        assert files["model"] == "model.safetensors.index.json" and len(files) == count + 4
        assert files[f"shard-{count:02d}"] == f"model-{count:05d}-of-{count:05d}.safetensors"
    for entry in entries.values():
        config = PRESETS[entry.preset]
        assert entry.architecture == config.family
        assert {"model", "config", "tokenizer", "tokenizer_config"} <= {file.name for file in entry.files}
        if entry.source == "hub":  # two bytes a parameter
            assert entry.facts["megabytes"] == pytest.approx(config.parameters[0] * 2 / 1e6, rel=0.01)


def test_the_bundled_model_is_small_and_is_what_the_preset_says():
    entry = catalogue.manifest()["stories"]
    found = checkpoint.paths(entry)
    assert entry.size < 45_000_000 and all(found[f.name].stat().st_size == f.size for f in entry.files)
    untrained = {"balance_coefficient": 0.0, "z_coefficient": 0.0}  # which say nothing of the network
    config = layout.config_from(read_json(found["config"]))
    assert replace(config, **untrained) == replace(PRESETS["stories"], **untrained)
    network = weights.load(PRESETS["stories"], found["model"])
    assert isinstance(network.config, MoeConfig) and network.embedding.weight.dtype == torch.float32
