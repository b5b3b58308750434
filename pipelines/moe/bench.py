"""python -m pipelines.moe.bench: ours against transformers, same weights and tokens, in turn.

The library runs in the fastest of its settings, which a trial finds before each row; what `generate` adds is a row of
its own. Nothing is compiled on either side.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pipelines.common import bench, catalogue, checkpoint

from . import local, reference, weights
from .cache import KeyValueCache
from .config import PRESETS, MoeConfig
from .decode import FastDecoder
from .decoder import Decoder

PROMPT, STEPS = 64, 32  # tokens before the decoding that is timed, and tokens of it
PREFILL = (4, 512)  # texts, tokens of each
EXPERTS = ("grouped_mm", "eager", "batched_mm")  # the library's ways to run experts on a processor
FOR_PROMPTS = EXPERTS[:2]  # the last one copies two experts' matrices for every token: 13 GB for PREFILL
ATTENTION = ("sdpa", "eager")
TEXT = "Once upon a time there was a little girl who had a red ball. "


@dataclass(frozen=True)
class Pair:
    """One model twice. network: the library's, over the same weights as `decoder`. prompt: (PROMPT,) int64."""

    name: str
    decoder: Decoder
    network: Any
    prompt: Tensor

    def in_bfloat16(self) -> Pair:
        """Both in 16 bits, in place."""
        return Pair(self.name, self.decoder.bfloat16(), self.network.to(torch.bfloat16), self.prompt)

    @property
    def kind(self) -> str:
        return str(self.network.dtype).removeprefix("torch.")


def random_pair(preset: str, folder: Path) -> Pair:
    """Random weights, saved by the library in `folder` and read by our loader."""
    from transformers import MixtralConfig, MixtralForCausalLM

    ours = PRESETS[preset]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = MixtralForCausalLM(
            MixtralConfig(
                vocab_size=ours.vocabulary, hidden_size=ours.width, intermediate_size=ours.expert_width,
                num_hidden_layers=ours.layers, num_attention_heads=ours.heads, head_dim=ours.head_width,
                num_key_value_heads=ours.key_value_heads, num_local_experts=ours.experts,
                num_experts_per_tok=ours.active, max_position_embeddings=ours.context, sliding_window=ours.window,
                rope_parameters={"rope_type": "default", "rope_theta": ours.rope_base}, rms_norm_eps=ours.norm_epsilon,
                bos_token_id=0, eos_token_id=0, pad_token_id=0,
            )
        )  # fmt: skip
        for parameter in network.parameters():  # the library's own would make all logits alike
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
        prompt = torch.randint(1, ours.vocabulary, (PROMPT,))
    network.save_pretrained(folder)
    return Pair(preset, weights.load(ours, folder / "model.safetensors"), network.eval(), prompt)


def bundled_pair() -> Pair | None:
    """The model that ships here, as both backends load it; None where its files are not there."""
    entry = catalogue.manifest().get("stories")
    if entry is None or checkpoint.locate(entry) is None:
        return None
    ours = local.load(entry)
    tokens = [*ours.tokenizer.begin, *ours.tokenizer.encode(TEXT * PROMPT)][:PROMPT]
    return Pair("bundled", ours.decoder, reference.load(entry).network, torch.tensor(tokens))


class OurDecoding:
    """Greedy steps behind a prompt, again and again."""

    def __init__(self, pair: Pair) -> None:
        self.fast, self.prompt = FastDecoder(pair.decoder), pair.prompt
        self.cache = self.fast.start(PROMPT + STEPS)
        self.first = self.fast.feed(pair.prompt, self.cache)

    def steps(self, count: int) -> Tensor:
        """(count, V) logits."""
        self.cache.cut(PROMPT)
        return self._go_on(self.cache, self.first, count)

    def whole(self) -> Tensor:
        """The prompt and STEPS new tokens, from nothing: (STEPS - 1, V), as the last one is not fed."""
        cache = self.fast.start(PROMPT + STEPS)
        return self._go_on(cache, self.fast.feed(self.prompt, cache), STEPS - 1)

    def _go_on(self, cache: Any, logits: Tensor, count: int) -> Tensor:
        found = []
        for _ in range(count):
            logits = self.fast.feed(logits.argmax(0, keepdim=True), cache)
            found.append(logits)
        return torch.stack(found)


class TheirDecoding:
    """The same by the library: its network called in a bare loop, its own cache, logits of the last token only."""

    def __init__(self, pair: Pair) -> None:
        from transformers import DynamicCache

        self.network, self.prompt = pair.network, pair.prompt
        self.cache = DynamicCache(config=pair.network.config)
        self.first = self._feed(pair.prompt)

    def steps(self, count: int) -> Tensor:
        """(count, V) logits."""
        logits, found = self.first, []
        with torch.inference_mode():
            for _ in range(count):
                logits = self._feed(logits.argmax(0, keepdim=True))
                found.append(logits)
            self.cache.crop(-count)
        return torch.stack(found)

    def whole(self) -> Tensor:
        """`generate`: the prompt and STEPS new tokens, from nothing; their ids."""
        with torch.inference_mode():
            options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
            ids: Tensor = self.network.generate(self.prompt[None], **options)
        return ids[0, PROMPT:]

    def _feed(self, tokens: Tensor) -> Tensor:
        with torch.inference_mode():
            call = {"past_key_values": self.cache, "use_cache": True, "logits_to_keep": 1}
            logits: Tensor = self.network(input_ids=tokens[None], **call).logits
        return logits[0, -1].float()


def fastest(network: Any, run: Callable[[], Any], experts: Sequence[str] = EXPERTS, rounds: int = 3) -> str:
    """Leaves the library in the setting in which `run` takes least, and names it. experts: its ways to try."""
    seconds: dict[tuple[str, str], float] = {}
    for setting in itertools.product(experts, ATTENTION):
        _set(network, *setting)
        run()
        taken = []
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        seconds[setting] = median(taken)
    best = min(seconds, key=seconds.__getitem__)
    _set(network, *best)
    return "+".join(best)


def _set(network: Any, experts: str, attention: str) -> None:
    network.set_experts_implementation(experts)
    network.set_attn_implementation(attention)


def decoding_row(pair: Pair, rounds: int, gigabytes: float) -> bench.Row:
    """STEPS tokens, one at a time, behind a prompt. gigabytes: a second, that the machine reads."""
    ours, theirs = OurDecoding(pair), TheirDecoding(pair)
    setting = fastest(pair.network, partial(theirs.steps, 8))
    checks = differences(ours.steps(STEPS), theirs.steps(STEPS))
    times = bench.interleave(partial(ours.steps, STEPS), partial(theirs.steps, STEPS), rounds)
    rates = [STEPS / each.median for each in times]
    reads = bytes_read(pair.decoder.config, pair.decoder.embedding.weight.element_size())
    checks |= {
        "tokens/s": round(rates[0]), "theirs": round(rates[1]), "GB/s": rates[0] * reads / 1e9,
        "the machine reads": gigabytes, "library": setting,
    }  # fmt: skip
    return _row(f"{pair.name}, {STEPS} tokens decoded, {pair.kind}", times, checks)


def generate_row(pair: Pair, rounds: int) -> bench.Row:
    """From the prompt to the last of STEPS new tokens, the library through `generate`."""
    ours, theirs = OurDecoding(pair), TheirDecoding(pair)
    setting = fastest(pair.network, theirs.whole, FOR_PROMPTS, rounds=1)
    same = (ours.whole().argmax(-1) == theirs.whole()[1:]).float().mean()
    times = bench.interleave(ours.whole, theirs.whole, rounds)
    rates = [STEPS / each.median for each in times]
    checks = {
        "same tokens": float(same), "tokens/s": round(rates[0]), "theirs": round(rates[1]), "library": setting
    }  # fmt: skip
    return _row(f"{pair.name}, {PROMPT} + {STEPS} tokens, generate, {pair.kind}", times, checks)


def prefill_row(pair: Pair, rounds: int, last_only: bool) -> bench.Row:
    """PREFILL through the network into a cache; logits of all tokens, or of each text's last."""
    texts, length = PREFILL
    drawn = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, pair.decoder.config.vocabulary, PREFILL, generator=drawn)
    ours = partial(our_prefill, FastDecoder(pair.decoder), tokens, last_only)
    theirs = partial(their_prefill, pair.network, tokens, last_only)
    setting = fastest(pair.network, theirs, FOR_PROMPTS, rounds=1)
    checks = differences(ours().flatten(0, 1), theirs().flatten(0, 1))
    times = bench.interleave(ours, theirs, rounds, warmup=1)
    checks |= {"tokens/s": round(texts * length / times[0].median), "library": setting}
    which = "last logits" if last_only else "all logits"
    return _row(f"{pair.name}, prefill {texts}x{length}, {which}, {pair.kind}", times, checks)


def our_prefill(fast: FastDecoder, tokens: Tensor, last_only: bool) -> Tensor:
    """(B, T, V), or (B, 1, V) with `last_only`."""
    cache = KeyValueCache(fast.config, tokens.shape[1], len(tokens), dtype=fast.decoder.embedding.weight.dtype)
    return fast.read(tokens, cache, last_only)


def their_prefill(network: Any, tokens: Tensor, last_only: bool) -> Tensor:
    """As `our_prefill`."""
    with torch.inference_mode():
        logits: Tensor = network(input_ids=tokens, use_cache=True, logits_to_keep=int(last_only)).logits
    return logits


def differences(found: Tensor, wanted: Tensor) -> dict[str, Any]:
    """Of logits (N, V): the largest difference, and the share of places where both take the same token."""
    same = (found.argmax(-1) == wanted.argmax(-1)).float().mean()
    return {"logits": float((found.float() - wanted.float()).abs().max()), "same tokens": float(same)}


def bytes_read(config: MoeConfig, width: int) -> int:
    """Bytes of weights that decoding one token has to read, at `width` bytes a number: all that works for it, and of
    an embedding that is not the head as well nothing but a row."""
    numbers = config.parameters[1]
    if not config.tied:
        numbers -= (config.vocabulary - 1) * config.width
    return numbers * width


def read_speed(total: int, part: int = 1 << 20, seconds: float = 1.0) -> float:
    """GB a second at which this machine reads `total` bytes of float32 again and again, as products with a vector, in
    matrices of `part` bytes."""
    count = max(1, total // part)
    matrices = torch.ones(count, part // 1024, 256).unbind()
    x, out = torch.ones(256), torch.empty(part // 1024)
    taken: list[float] = []
    with torch.inference_mode():
        while sum(taken) < seconds or len(taken) < 3:
            start = time.perf_counter()
            for matrix in matrices:
                torch.mv(matrix, x, out=out)
            taken.append(time.perf_counter() - start)
    return count * part / median(taken) / 1e9


def copy_speed(total: int) -> float:
    """GB a second read and written, in copies of `total` bytes."""
    source = torch.ones(total // 4)
    target = torch.empty_like(source)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        taken.append(time.perf_counter() - start)
    return 2 * total / median(taken) / 1e9


def rows(pair: Pair, rounds: int) -> list[bench.Row]:
    """All comparisons of one model in float32."""
    config = pair.decoder.config
    held = config.parameters[0] * 4  # a text's tokens take all experts in turn: what is in the caches is chance
    speed = read_speed(held)
    print(
        f"{pair.name}: {config.parameters[0] / 1e6:.0f} M parameters, {bytes_read(config, 4) / 1e6:.0f} MB read for a "
        f"token; this machine reads {held / 1e6:.0f} MB at {speed:.1f} GB/s, "
        f"{bytes_read(config, 4) / 1e6:.0f} MB at {read_speed(bytes_read(config, 4)):.1f}, 4 MB at "
        f"{read_speed(4_000_000):.1f}, 1 GB at {read_speed(10**9):.1f}, copies 1 GB at {copy_speed(10**9):.1f}",
        flush=True,
    )
    found = [decoding_row(pair, rounds, speed), generate_row(pair, max(3, rounds // 3))]
    found += [prefill_row(pair, max(3, rounds // 3), last_only) for last_only in (False, True)]
    return found


def _row(task: str, times: tuple[bench.Timing, bench.Timing], checks: dict[str, Any]) -> bench.Row:
    return bench.Row(task, *times, checks, bench.peak_mb(), bench.setup("transformers"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["bench", "bundled"])
    arguments = parser.parse_args()
    found: list[bench.Row] = []
    with bench.torch_threads(arguments.threads), tempfile.TemporaryDirectory() as folder:
        if arguments.only != "bundled":
            pair = random_pair("bench", Path(folder, "bench"))
            found += rows(pair, arguments.rounds)
            found.append(decoding_row(pair.in_bfloat16(), max(3, arguments.rounds // 3), read_speed(10**8)))
        if arguments.only != "bench":
            pair = bundled_pair() or random_pair("stories", Path(folder, "stories"))
            found += rows(pair, arguments.rounds)
    print(bench.table(found))
    for row in found:
        print(row.json())


if __name__ == "__main__":
    main()
