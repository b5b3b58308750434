"""The recipe's parts: hold-out, captions, tokenizer, schedule, optimiser, loop, export and score."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines.common import training
from pipelines.common.muon import Muon, orthogonalise, orthogonalise_wide
from pipelines.common.training import Machine, Trainer, TrainOptions, pick_machine
from pipelines.diffusion import captions, data, tokenizer, train_denoiser, weights
from pipelines.diffusion.clip_text import CLIPTextEncoder
from pipelines.diffusion.config import TINY
from pipelines.diffusion.evaluate import draw_latents, score
from pipelines.diffusion.schedule import alpha_sigma, alphas_cumprod
from pipelines.diffusion.tokenizer import CLIPTokenizer
from pipelines.diffusion.train_denoiser import Batches, Denoiser, fold_scale
from pipelines.diffusion.unet import UNet
from pipelines.diffusion.vae import AutoencoderKL

NAMES = ("red-apple", "grinning-face", "ice", "scissors", "t-shirt", "8-oclock")


@pytest.fixture(scope="module")
def emoji() -> data.EmojiData:
    """Six things of random pixels."""
    pictures = np.random.default_rng(0).integers(0, 256, (len(NAMES), 4, 16, 16, 3), dtype=np.uint8)
    return data.EmojiData(NAMES, tuple(("fruit", "mac", "school") for _ in NAMES), pictures)


@pytest.fixture(scope="module")
def tokens(emoji: data.EmojiData, tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.write(folder, *tokenizer.train(captions.corpus(emoji), 600), max_length=16)
    return CLIPTokenizer.read(folder)


def test_held_out_pairs_are_the_agreed_ones() -> None:
    """By the digest of "name/style", nothing else: pinned, since a change would leak the test set into the training."""
    assert data.held_out("airplane-arrival", "fluent-emoji-flat") and not data.held_out("airplane-arrival", "noto")
    held = [(n, s) for n in (f"thing-{i}" for i in range(300)) for s in data.STYLES if data.held_out(n, s)]
    assert len(held) == 38 and held[0] == ("thing-17", "fluent-emoji-flat")


def test_pairs_split_everything_once(emoji: data.EmojiData) -> None:
    both = np.concatenate([emoji.pairs(held=True), emoji.pairs(held=False)])
    assert len(np.unique(both, axis=0)) == len(both) == len(NAMES) * len(data.STYLES)


def test_svg_size_falls_back_from_icon_to_set() -> None:
    icons = {"width": 36, "height": 36, "icons": {"a": {"body": "<g/>"}, "b": {"body": "", "width": 40, "left": 2}}}
    assert 'viewBox="0 0 36 36"><g/>' in data.svg(icons, "a")
    assert 'viewBox="2 0 40 36"' in data.svg(icons, "b")


def test_pure_red_is_rendered_red_on_white() -> None:
    pytest.importorskip("resvg_py")
    icons = {
        "width": 8,
        "height": 8,
        "icons": {"dot": {"body": '<rect x="2" y="2" width="4" height="4" fill="#f00"/>'}},
    }
    picture = data.render(data.svg(icons, "dot"))
    assert picture.shape == (128, 128, 3)
    assert picture[64, 64].tolist() == [255, 0, 0] and picture[4, 4].tolist() == [255, 255, 255]


def test_captions_say_name_and_style() -> None:
    assert captions.plain("red-apple", "twemoji") == "a red apple, twemoji style"
    assert captions.plain("ice", "noto") == "an ice, noto style"
    assert captions.plain("scissors", "fluent-emoji") == "scissors, fluent-emoji style"
    rng = np.random.default_rng(0)
    drawn = [captions.draw("red-apple", ("fruit", "mac"), "twemoji", rng) for _ in range(1000)]
    assert len(set(drawn)) > 200
    assert 0.90 < np.mean(["red apple" in text for text in drawn]) < 0.98
    assert 0.85 < np.mean(["twemoji" in text or "twitter" in text for text in drawn]) < 0.97


@pytest.mark.parametrize(
    "text",
    [
        "a red apple, twemoji style",
        "",
        "Héllo WORLD 42's",
        "  it's   t-shirt!!!",
        "日本語 🍎 x²½①",
        "a" * 60,
        "'s'S don't",
    ],
)
def test_tokenizer_equals_transformers(text: str, tokens: CLIPTokenizer, emoji: data.EmojiData, tmp_path: Path) -> None:
    import transformers

    tokenizer.write(tmp_path, tokens.vocab, list(tokens._ranks), max_length=16)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert tokens.encode(text) == theirs(text, padding="max_length", truncation=True).input_ids


def test_marks_without_end_are_composed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by the standard where a language is written; of any text no more marks at once than are soon in order."""
    for text in ("é", "e\u0301", "a" + "\u0323\u0301" * 15, "각", "xe\u0301" * 100):
        assert tokenizer.composed(text) == unicodedata.normalize("NFC", text)
    parts: list[str] = []
    monkeypatch.setattr(unicodedata, "normalize", lambda form, part: parts.append(part) or part)
    text = "a" + "\u0301\u0323" * 200
    assert tokenizer.composed(text) == text == "".join(parts)
    assert max(map(len, parts)) == tokenizer.MARKS + 1


def test_tokens_show_the_whole_prompt(tokens: CLIPTokenizer) -> None:
    """Also past the encoder's limit, so that the page can strike the rest out."""
    shown = tokens.tokens("red apple " * 20)
    assert len(shown) > 16
    assert "".join(token.text + (" " if token.ends_word else "") for token in shown) == "red apple " * 20
    assert len(tokens.encode("red apple " * 20)) == 16


def test_schedule_equals_diffusers() -> None:
    import diffusers

    theirs = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.allclose(alphas_cumprod(TINY.schedule).float(), theirs.alphas_cumprod, atol=1e-6)
    alpha, sigma = alpha_sigma(TINY.schedule)
    assert torch.allclose(alpha.square() + sigma.square(), torch.ones(1000))


@pytest.mark.parametrize("shape", [(24, 24), (16, 100), (100, 16)])
def test_muon_steps_are_near_orthogonal(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert 0.6 < values[len(values) // 2] < 1.25 and values[0] < 1.25
    assert torch.allclose(orthogonalise(matrix), orthogonalise_wide(matrix), atol=1e-3)


@pytest.mark.parametrize("shape", [(24, 24), (16, 100), (100, 16), (8, 4, 3, 3)])
def test_muon_in_bfloat16_steps_as_in_float32(shape: tuple[int, ...]) -> None:
    """Long matrices too: the iteration on their Gram matrix would not bear it."""
    steps = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([weight], 0.1, dtype=dtype).step()
        steps.append(weight.detach())
    assert steps[1].dtype == torch.float32
    assert 0 < (steps[1] - steps[0]).norm() < 0.05 * steps[0].norm()


@pytest.mark.parametrize(("seconds", "autocast"), [((2.0, 1.0), True), ((1.0, 2.0), False), ((1.0, 0.9), False)])
def test_bfloat16_is_taken_where_it_is_faster(
    seconds: tuple[float, float], autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stands still but for a convolution, which takes what is planted for its numbers."""
    now, plain = [0.0], training.F.conv2d

    def conv2d(x: Tensor, *given: object, **options: object) -> Tensor:
        now[0] += seconds[x.dtype == torch.bfloat16]
        return plain(x, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(training.F, "conv2d", conv2d)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine = pick_machine(mixed=True)
    with machine.autocast():
        assert torch.is_autocast_enabled("cpu") == autocast
    assert machine.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert pick_machine().dtype == torch.float32


def test_folding_the_scale_is_exact() -> None:
    """(encode - mean) / std, and decode undoing it."""
    torch.manual_seed(0)
    plain, folded = AutoencoderKL(TINY.vae), AutoencoderKL(TINY.vae)
    folded.load_state_dict(plain.state_dict())
    mean, std = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor([2.0, 0.5, 3.0, 1.0])
    fold_scale(folded, mean, std)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        before, after = plain.encode(pixels), folded.encode(pixels)
        assert torch.allclose((before.mean - mean.view(1, 4, 1, 1)) / std.view(1, 4, 1, 1), after.mean, atol=1e-5)
        spread = (0.5 * before.logvar).exp() / std.view(1, 4, 1, 1)
        assert torch.allclose(spread, (0.5 * after.logvar).exp(), atol=1e-5)
        assert torch.allclose(plain.decode(before.mean), folded.decode(after.mean), atol=1e-5)


def test_batches_are_reproducible_and_stratified(emoji: data.EmojiData, tokens: CLIPTokenizer) -> None:
    batches = Batches(emoji, torch.randn(len(NAMES), 4, 4, 8, 8), tokens, TINY)
    first, second = (batches.draw(64, np.random.default_rng(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    steps = first[1]
    assert torch.equal(steps, steps.sort().values) and 0 < (steps < 500).sum() < 64


class Line(nn.Module):
    """One weight matrix to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)


def line_loss(model: Line) -> object:
    """Learn the identity."""

    def loss(rng: np.random.Generator, count: int) -> dict[str, Tensor]:
        x = torch.from_numpy(rng.standard_normal((count, 4), dtype=np.float32))
        return {"loss": (model.body(x) - x).square().mean()}

    return loss


def train_line(folder: Path, steps: list[int], workers: int = 2) -> dict[str, Tensor]:
    """Stopped and resumed at each of the given step counts."""
    machine = Machine(torch.device("cpu"), workers, pick_machine().autocast)
    for count in steps:
        torch.manual_seed(0)
        model = Line()
        options = TrainOptions(learning_rate=1e-2, batch=8, check_every=10, log_every=10)
        trainer = Trainer(folder, "line", model, options, machine, ("loss", "val"))
        trainer._remaining = lambda trainer=trainer, count=count: 1.0 if trainer.step < count else 0.0  # type: ignore[method-assign]
        trainer.run(line_loss(model), lambda step: {"val": float(step)})  # type: ignore[arg-type]
    return {
        **{key: value.clone() for key, value in model.state_dict().items()},
        **{f"ema {k}": v for k, v in trainer.ema.items()},
    }


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    unbroken, resumed = train_line(tmp_path / "a", [40]), train_line(tmp_path / "b", [13, 27, 40])
    assert all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)
    log = (tmp_path / "b" / "line.csv").read_text().splitlines()
    assert log[0] == "step,seconds,loss,val" and [row.split(",")[0] for row in log[1:]] == ["10", "20", "30", "40"]


def test_another_number_of_workers_can_go_on(tmp_path: Path) -> None:
    train_line(tmp_path, [10], workers=2)
    assert train_line(tmp_path, [20], workers=1)["body.weight"].isfinite().all()


def test_finishing_brings_the_rate_to_zero_and_stops(tmp_path: Path) -> None:
    model = Line()
    options = TrainOptions(learning_rate=1e-2, batch=8, finish=20, check_every=1000)
    trainer = Trainer(
        tmp_path, "line", model, options, Machine(torch.device("cpu"), 1, pick_machine().autocast), ("loss",)
    )
    trainer.run(line_loss(model), lambda step: {})  # type: ignore[arg-type]
    assert trainer.step == 20
    assert trainer.optimizers[0].param_groups[0]["lr"] < 1e-3


class Oracle(nn.Module):
    """A U-Net that knows the answer: the velocity towards one latent, wherever it is asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, x: Tensor, steps: Tensor, text: Tensor) -> Tensor:
        alpha, sigma = (each[steps].view(-1, 1, 1, 1) for each in alpha_sigma(TINY.schedule))
        return (alpha * x - self.answer) / sigma


def test_sampling_reaches_what_the_model_says(tokens: CLIPTokenizer) -> None:
    answer = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    cfg = replace(TINY, schedule=replace(TINY.schedule, prediction_type="v_prediction"))
    text_encoder = CLIPTextEncoder(replace(TINY.text, vocab_size=len(tokens.vocab)))
    drawn = draw_latents(text_encoder, Oracle(answer), tokens, ["red apple"] * 2, cfg, 10, 3.0, 0)  # type: ignore[arg-type]
    assert torch.allclose(drawn, answer.expand(2, -1, -1, -1), atol=1e-4)


def test_score_counts_what_it_says() -> None:
    """Four names in two styles; one drawing right, one of the other style, two of another name."""
    real = torch.eye(8).view(4, 2, 8)
    near = real[2, 0] + 0.5 * real[3, 1]  # of another name, what was asked for beside it
    far = torch.tensor([0.0, 0.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])  # all others are nearer
    result = score(torch.stack([real[0, 0], real[1, 1], near, far]), real, np.array([[0, 0], [1, 0], [3, 0], [0, 0]]))
    assert result == pytest.approx({"top1_name": 2 / 4, "top5_name": 3 / 4, "style": 3 / 4})


def test_written_folder_is_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = {"text_encoder": CLIPTextEncoder(TINY.text), "unet": UNet(TINY.unet), "vae": AutoencoderKL(TINY.vae)}
    weights.write_folder(tmp_path, TINY, parts)
    assert weights.read_config(tmp_path) == TINY
    unet = weights.load_unet(tmp_path, TINY.unet)
    assert all(torch.equal(value, parts["unet"].state_dict()[key]) for key, value in unet.state_dict().items())


def test_diffusers_draws_from_the_written_folder(emoji: data.EmojiData, tokens: CLIPTokenizer, tmp_path: Path) -> None:
    """The bundled model's promise: StableDiffusionPipeline loads the folder and a picture comes out."""
    import diffusers

    torch.manual_seed(0)
    cfg = replace(TINY, text=replace(TINY.text, vocab_size=len(tokens.vocab)))
    model = Denoiser(cfg)
    parts = {"text_encoder": model.text_encoder, "unet": model.unet, "vae": AutoencoderKL(cfg.vae)}
    weights.write_folder(tmp_path, cfg, parts, torch.float16, tokens.vocab[tokenizer.END])
    tokenizer.write(tmp_path / "tokenizer", tokens.vocab, list(tokens._ranks), max_length=16)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a red apple", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (16, 16, 3) and np.isfinite(picture).all()


def test_a_lost_run_goes_on_from_its_export(
    emoji: data.EmojiData, tokens: CLIPTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a session left behind is only the exported folder: latents, tokenizer and weights come out of it."""
    monkeypatch.setattr(train_denoiser, "EMOJI", TINY)
    torch.manual_seed(3)
    parts = {"text_encoder": CLIPTextEncoder(TINY.text), "unet": UNet(TINY.unet), "vae": AutoencoderKL(TINY.vae)}
    export, fresh = tmp_path / "export", tmp_path / "fresh"
    weights.write_folder(export, TINY, parts)
    tokenizer.write(export / "tokenizer", *tokenizer.train(captions.corpus(emoji), 600), max_length=16)
    fresh.mkdir()
    train_denoiser.prepare_latents(emoji, fresh, export)
    assert train_denoiser.load_latents(fresh).shape == (len(NAMES), 4, 4, 8, 8)
    options = TrainOptions(learning_rate=1e-3, batch=2, minutes=0.0)
    train_denoiser.run(emoji, fresh, options, export)
    began = torch.load(fresh / "denoiser.pt", weights_only=True)["model"]
    for part in ("text_encoder", "unet"):
        for name, value in parts[part].state_dict().items():
            assert torch.equal(began[f"{part}.{name}"], value), name
