"""Scale: a random stack of Transformer layers under the recipes for its weights, measured as the sliders move; and two
trainings side by side, with and without the division by sqrt(d)."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from pipelines.ui import blocks
from pipelines.ui.charts import Series, line_chart
from pipelines.ui.guard import guarded
from pipelines.ui.i18n import label, say
from pipelines.ui.turns import Turns

from .config import LIVE, NORMS, RATE, RATES, ScaleRecipe, StackOptions, within

if TYPE_CHECKING:
    from .initialisation import Measured
    from .scale_training import Way

SCHEMES = {
    "one": "1: nothing is done",
    "lecun": "LeCun: 1 / n",
    "xavier": "Xavier: 2 / (n + out)",
    "he": "He: 2 / n",
    "ntk": "NTK: 1, and the sum divided by √n",
    "t5": "T5: 1 / n, the query's 1 / (n d)",
}
NAMES = {"none": "no norm", "pre": "pre-norm", "post": "post-norm", "deepnorm": "DeepNorm"}
DEPTH, WIDTH = 32, 128  # at most: five stacks are measured within about a second on one core
EVERY = 0.35  # seconds between two pictures of a training, at least
turns = Turns()


def look(
    scheme: str, norm: str, divide: bool, depth: float, width: float, seed: float, request: gr.Request
) -> tuple[str, str]:
    """Build random stacks and run them once, forwards and backwards: what was chosen, and its neighbours."""
    from . import one_core
    from .initialisation import measure

    for value, low, high, name in ((depth, 1, DEPTH, "number of layers"), (width, 16, WIDTH, "width"),
                                   (seed, 0, 2**31 - 1, "seed")):  # fmt: skip
        within(value, low, high, name)
    chosen = StackOptions(scheme, norm, bool(divide), int(depth), int(width)).checked()
    speak = partial(say, request)
    others = [replace(chosen, norm=each) for each in NORMS if each != norm]
    if scheme != "t5":  # which never divides there
        others.insert(0, replace(chosen, divide=not divide))
    runs = []
    for options in (chosen, *others):
        with one_core.step():
            runs.append((_name(options, chosen, speak), measure(options, int(seed))))
    return _told(runs[0][1], speak), _charts(runs, speak)


def _name(options: StackOptions, chosen: StackOptions, speak: Callable[..., str]) -> str:
    name = speak(NAMES[options.norm])
    if options.divide == chosen.divide:
        return name + (speak(" (chosen)") if options == chosen else "")
    root = speak("divided by √d") if options.divide else speak("not divided by √d")
    return f"{name}, {root}"


def _number(value: float) -> str:
    """Three digits: 0.0123, 17.2, 558,000."""
    if not math.isfinite(value):
        return "∞"
    return f"{float(f'{value:.3g}'):,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.3g}"


def _told(found: Measured, speak: Callable[..., str]) -> str:
    """One line on the stack that was chosen."""
    first, last = found.gradient[0], found.gradient[-1]
    text = speak(
        "Behind the last layer the variance is {variance}; attention in the first layer has {entropy} of the entropy "
        "that an even look has; the gradient before the first layer is {times} times that before the last.",
        variance=_number(found.variance[-1]), entropy=f"{found.entropy[0]:.0%}" if found.entropy[0] >= 0 else "–",
        times=_number(first / last) if last > 0 else "∞",
    )  # fmt: skip
    return f'<p class="gh-verdict">{html.escape(text)}</p>'


def _charts(runs: Sequence[tuple[str, Measured]], speak: Callable[..., str]) -> str:
    places = list(range(1, len(runs[0][1].variance) + 1))
    charts = []
    for kind, name, log in (
        ("variance", speak("variance of the stream behind the layer"), True),
        ("entropy", speak("entropy of attention, as a share of the most"), False),
        ("gradient", speak("length of the gradient before the layer"), True),
    ):
        lines = [Series(who, places, getattr(found, kind), marks=len(places) < 2) for who, found in runs]
        limits = None if log else (0.0, 1.0)
        ticks = places[:: -(-len(places) // 8)]
        charts.append(line_chart(lines, speak("layer"), name, log_y=log, y_range=limits, x_ticks=ticks, height=190))
    return _beside(charts)


def _beside(charts: Sequence[str]) -> str:
    cells = "".join(f'<div style="flex:1 1 300px;min-width:0">{chart}</div>' for chart in charts)
    return f'<div style="display:flex;flex-wrap:wrap;gap:0 1rem">{cells}</div>'


# --- the two trainings -----------------------------------------------------------------------------------------------


def train(norm: str, rate: float, steps: float, seed: float, request: gr.Request) -> Iterator[tuple[str, str]]:
    """Train two small Transformers to say a row backwards, one with attention divided by sqrt(d) and one without; each
    report is a sentence and a chart, as HTML."""
    for value, low, high, name in ((rate, RATES[0], RATES[-1], "learning rate"), (steps, 1, 1000, "number of steps"),
                                   (seed, 0, 2**31 - 1, "seed")):  # fmt: skip
        within(value, low, high, name)
    recipe = ScaleRecipe(norm, float(rate), int(steps), int(seed)).checked()
    from .scale_training import train as trained

    speak, shown, latest = partial(say, request), 0.0, None
    with turns.take(request.session_hash) as turn, closing(trained(recipe)) as reports:  # type: ignore[type-var]
        for latest in reports:
            if turn.halted:
                break
            if latest[0] < recipe.steps and time.perf_counter() - shown >= EVERY:
                shown = time.perf_counter()
                yield _ways(*latest, recipe, False, speak)
        if turn.replaced or latest is None:
            yield gr.skip(), gr.skip()
            return
        stopped = turn.halted
    yield _ways(*latest, recipe, stopped, speak)


def _ways(
    done: int, ways: Sequence[Way], recipe: ScaleRecipe, stopped: bool, speak: Callable[..., str]
) -> tuple[str, str]:
    """How far the two have come, in words and as curves."""
    from .scale_training import GUESS

    text = speak("Stopped.") + " " if stopped else ""
    text += speak(
        "Step {step} of {steps}. With the division: {first}. Without it: {second}. A guess costs {guess} nats a "
        "symbol.",
        step=done, steps=recipe.steps, first=_state(ways[0], speak), second=_state(ways[1], speak),
        guess=f"{GUESS:.2f}",
    )  # fmt: skip
    names = (speak("divided by √d"), speak("not divided by √d"))
    losses = [
        Series(name, range(1, len(way.losses) + 1), [min(each, 1e6) for each in way.losses])
        for name, way in zip(names, ways, strict=True)
    ]
    looks = [
        Series(name, range(1, len(way.entropies) + 1), way.entropies) for name, way in zip(names, ways, strict=True)
    ]  # fmt: skip
    charts = (
        line_chart(
            losses, speak("step"), speak("loss, nats a symbol"), log_y=True, at_y=[(GUESS, speak("a guess"))],
            height=190,
        ),
        line_chart(
            looks, speak("step"), speak("entropy of the first layer's attention, as a share of the most"),
            y_range=(0.0, 1.0), height=190,
        ),
    )  # fmt: skip
    return f'<p class="gh-verdict">{html.escape(text)}</p>', _beside(charts)


def _state(way: Way, speak: Callable[..., str]) -> str:
    if way.lost is not None:
        return speak("diverged at step {step}", step=way.lost)
    recent = way.losses[-10:]
    return speak("{loss} nats a symbol", loss=f"{sum(recent) / len(recent):.2f}")


def halt(request: gr.Request) -> None:
    """End the trainings after the step that they are at."""
    turns.halt(request.session_hash)


# --- widgets ---------------------------------------------------------------------------------------------------------


def build(page: gr.Blocks, tab: gr.Tab) -> None:
    gr.Markdown(
        label(
            "Why divide by √d, and how large should random weights be? Take the weights of variance 1 and no norm, and "
            "watch the variance explode; switch the division off with LeCun's weights, and attention clings to one "
            "place. Everything is measured on a real random stack, before any training."
        )
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            scheme = gr.Dropdown(
                [(label(name), key) for key, name in SCHEMES.items()], value="lecun",
                label=label("Variance of the weights, n inputs"), elem_id="foundations-scale-scheme",
            )  # fmt: skip
            norm = gr.Radio(
                [(label(name), key) for key, name in NAMES.items()], value="pre", label=label("Norm"),
                elem_id="foundations-scale-norm",
            )  # fmt: skip
            divide = gr.Checkbox(
                True, label=label("Attention divides by √d"), container=False, elem_id="foundations-scale-divide"
            )
            depth = gr.Slider(1, DEPTH, 12, step=1, label=label("Layers"), elem_id="foundations-scale-depth")
            width = gr.Slider(
                16, WIDTH, 64, step=16, label=label("Width, in two heads"), elem_id="foundations-scale-width"
            )
            seed = gr.Number(0, precision=0, minimum=0, label=label("Seed"), elem_id="foundations-scale-seed")
        with gr.Column(scale=5, min_width=320):
            told = gr.HTML(elem_id="foundations-scale-told")
            charts = gr.HTML(elem_id="foundations-scale-charts")
            gr.Markdown(label(
                "LeCun et al. 1998, Glorot and Bengio 2010, He et al. 2015, Jacot et al. 2018 (NTK), Raffel et al. "
                "2020 (T5); pre- and post-norm after Xiong et al. 2020, DeepNorm after Wang et al. 2022. The other "
                "lines are the same stack with the division or the norm changed; another seed shows what is luck."
            ))  # fmt: skip
    inputs, outputs = [scheme, norm, divide, depth, width, seed], [told, charts]
    quick: dict[str, Any] = {"show_progress": "minimal", "trigger_mode": "always_last", **blocks.LIGHT}
    tab.select(guarded(look), inputs, outputs, api_name="foundations_scale", **quick)
    moved = [scheme.input, norm.input, divide.input, depth.release, width.release, seed.submit]
    gr.on(moved, guarded(look), inputs, outputs, api_visibility="private", **quick)
    _training()


def _training() -> None:
    """The widgets of the two trainings, and what they do."""
    gr.Markdown(
        label(
            "### The same, trained\nTwo Transformers of four layers learn to say twelve symbols backwards: the same "
            "first weights, the same rows, and one of them without the division. With no norm it diverges within a few "
            "dozen steps from most first weights; with pre-norm and a rate of 0.03 it survives, but learns far more "
            "slowly."
        )
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            norm = gr.Radio(
                [(label(name), key) for key, name in NAMES.items()], value="none", label=label("Norm"),
                elem_id="foundations-scale-train-norm",
            )  # fmt: skip
            rate = gr.Dropdown(
                [(f"{each:g}", each) for each in RATES], value=RATE, label=label("Learning rate"),
                elem_id="foundations-scale-rate",
            )  # fmt: skip
            steps = gr.Slider(20, 1000, 300, step=20, label=label("Steps"), elem_id="foundations-scale-steps")
            seed = gr.Number(0, precision=0, minimum=0, label=label("Seed"), elem_id="foundations-scale-train-seed")
            with gr.Row():
                start = gr.Button(label("Train both"), variant="primary", min_width=90, elem_id="foundations-scale-run")
                stop = gr.Button(label("Stop"), min_width=70, elem_id="foundations-scale-stop")
        with gr.Column(scale=5, min_width=320):
            told = gr.HTML(elem_id="foundations-scale-train-told")
            chart = gr.HTML(elem_id="foundations-scale-train-chart")
    start.click(
        guarded(train), [norm, rate, steps, seed], [told, chart], api_name="foundations_scale_train",
        show_progress_on=told, trigger_mode="multiple", **LIVE,  # a second click takes the place of the first
    )  # fmt: skip
    stop.click(guarded(halt), None, None, api_visibility="private", show_progress="hidden", **blocks.LIGHT)
