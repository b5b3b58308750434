"""The recipe of the story model: its data, what it minimises, and that it learns."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.common.training import Machine, Trainer, TrainOptions, standing
from pipelines.moe import train
from pipelines.moe.config import PRESETS
from pipelines.moe.decoder import Decoder
from pipelines.moe.train_data import MARK, Stories, documents, held_out, prepare

NAMES = ("Tim", "Lily", "Ben", "Anna", "Tom", "Sue")
THINGS = ("a red ball", "an old tree", "a big dog", "the sea", "a kite", "some cake")


def story(number):
    name, other = NAMES[number % 6], NAMES[(number // 6) % 6]
    return f"{name} saw {THINGS[(number // 36) % 6]}. {other} came too, at {number} o'clock.\nThey were happy."


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Stories, prepared."""
    folder = tmp_path_factory.mktemp("moe")
    (folder / "tinystories.txt").write_text(f"\n{MARK}\n".join(story(k) for k in range(400)))
    (folder / "tales.txt").write_text(f"\n{MARK}\n".join("Long ago. " * 30 + story(k) for k in range(400, 500)))
    prepare(folder, folder, PRESETS["tiny"].vocabulary)
    return folder


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(train, "LENGTH", 48)
    return Machine(torch.device("cpu"), 1, nullcontext)


def test_documents_are_split_and_none_is_lost(run_folder):
    stories = Stories(run_folder, 0.5)
    texts = documents(run_folder / "tinystories.txt")
    assert len(texts) == 400
    kept = [text for text in texts if held_out(text)]
    assert len(stories.parts["tinystories_validation"]) == len(kept) > 0
    assert len(stories.parts["tinystories_train"]) == 400 - len(kept)
    assert documents(run_folder / "validation-tinystories.txt") == kept
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(run_folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 320 and tokenizer.token_to_id(MARK) == 0
    part = stories.parts["tinystories_validation"]
    for number, text in enumerate(kept):
        tokens = part.document(number)
        assert tokens[0] == 0 and 0 not in tokens[1:] and tokenizer.decode(tokens[1:].tolist()) == text
        assert part.bytes[number] == len(text.encode())
    assert tokenizer.decode(tokenizer.encode("naïve 🦊").ids) == "naïve 🦊"  # bytes that no story holds


def test_an_epoch_holds_every_story_once_and_rows_overlap_by_one_token(run_folder):
    stories = Stories(run_folder, 0.5)
    rows = stories.epoch(0, 48, 7)
    assert (rows[1:, 0] == rows[:-1, -1]).all()
    stream = np.concatenate([rows[:, :-1].ravel(), rows[-1:, -1]])
    starts = int((stream == 0).sum())
    tiny = len(stories.parts["tinystories_train"])
    assert tiny - 6 <= starts  # up to a row is lost at each end
    tokens = len(stories.parts["tinystories_train"].tokens) + 0.5 * len(stories.parts["tales_train"].tokens)
    assert tokens - 2 * 48 - 100 <= len(stream) <= tokens + 100
    assert not np.array_equal(rows, stories.epoch(1, 48, 7)[: len(rows)])
    again = stories.rows(len(rows) - 3, 6, 48, 7)
    assert np.array_equal(again[:2], rows[-3:-1]) and np.array_equal(again[2:], stories.epoch(1, 48, 7)[:4])


def test_workers_draw_the_rows_of_their_step(run_folder, short):
    model = Decoder(PRESETS["tiny"])
    model.initialise(torch.Generator().manual_seed(0))
    stories = Stories(run_folder, 0.5)
    asked = []
    stories.rows = lambda first, count, *rest: asked.append((first, count)) or np.ones((count, 49), np.int64)
    objective = train.Objective(model, stories, short, 0, 8)
    for worker in (0, 1):
        objective(np.random.default_rng((0, 5, worker)), 4)
    assert asked == [(40, 4), (44, 4)]
    assert standing(np.random.default_rng((3, 5, 1))) == (5, 1)


def test_an_even_guess_costs_the_logarithm_of_the_vocabulary(run_folder, short):
    model = Decoder(PRESETS["tiny"])
    torch.nn.init.zeros_(model.head.weight)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    stories = Stories(run_folder, 0.5)
    terms = train.Objective(model, stories, short, 0, 4)(np.random.default_rng((0, 0, 0)), 4)
    assert float(terms["entropy"].detach()) == pytest.approx(np.log(320), abs=1e-4)
    assert float(terms["z"].detach()) == pytest.approx(np.log(4) ** 2, abs=1e-4)
    part = stories.parts["tinystories_validation"]
    found = train.bits_per_byte(model, part, short)
    tokens = len(part.tokens) - len(part)  # the mark before a story is given, not foretold
    assert found["bits"] == pytest.approx(tokens * np.log2(320) / part.bytes.sum(), rel=1e-4)
    assert found["most"] == 2.0 and found["least"] == 0.0  # ties: the same two of four experts always


def test_it_learns_and_goes_on_where_it_stood(run_folder, short, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "pick_machine", lambda: short)
    for name in ("tokens.npz", "tokenizer.json"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    options = TrainOptions(
        learning_rate=1e-2, batch=8, warmup=5, ema_decay=0.8, check_every=30, log_every=10, finish=30
    )
    train.train(tmp_path, PRESETS["tiny"], options)
    first = json.loads((tmp_path / "best.json").read_text())
    assert first["step"] == 30 and first["bits"] < 1.9  # an even guess costs above 5
    train.train(tmp_path, PRESETS["tiny"], replace(options, finish=60))
    log = (tmp_path / "model.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "10", "20", "30", "40", "50", "60"]
    assert json.loads((tmp_path / "best.json").read_text())["bits"] < first["bits"]


def test_muon_takes_a_stack_as_its_matrices():
    from pipelines.common.muon import Muon

    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(3, 6, 4))
    singles = [torch.nn.Parameter(each.clone()) for each in stack.detach()]
    gradient = torch.randn(3, 6, 4)
    stack.grad = gradient
    for each, grad in zip(singles, gradient, strict=True):
        each.grad = grad
    Muon([stack], 0.1, weight_decay=0.1).step()
    Muon(singles, 0.1, weight_decay=0.1).step()
    assert torch.allclose(stack, torch.stack(list(singles)), atol=1e-6)


def test_the_averaged_weights_are_what_is_kept(run_folder, short, monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr(train, "pick_machine", lambda: short)
    (tmp_path / "tokens.npz").write_bytes((run_folder / "tokens.npz").read_bytes())
    plain = Trainer.averaged
    monkeypatch.setattr(Trainer, "averaged", lambda self: kept.append(self.ema["norm.weight"].clone()) or plain(self))
    options = TrainOptions(learning_rate=1e-2, batch=4, warmup=1, ema_decay=0.9, check_every=4, log_every=4, finish=4)
    train.train(tmp_path, PRESETS["tiny"], options)
    saved = torch.load(tmp_path / "best.pt", weights_only=True)["model"]["norm.weight"]
    assert torch.equal(saved, kept[-1])


def test_a_blend_is_equal_parts_of_two_averages(run_folder, short, tmp_path):
    for name in ("tokenizer.json", "tokens.npz"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    model = Decoder(PRESETS["tiny"])
    model.initialise(torch.Generator().manual_seed(0))
    state = model.state_dict()
    for name, factor in (("model.pt", 1.0), ("other.pt", 3.0)):
        scaled = {key: value * factor for key, value in state.items()}
        torch.save({"model": state, "ema": scaled, "step": 7}, tmp_path / name)
    found = train.blend(tmp_path, tmp_path / "other.pt", PRESETS["tiny"])
    saved = torch.load(tmp_path / "best.pt", weights_only=True)
    assert saved["step"] == 7 and all(torch.allclose(saved["model"][key], 2 * value) for key, value in state.items())
    assert json.loads((tmp_path / "best.json").read_text())["bits"] == pytest.approx(found["bits"])
