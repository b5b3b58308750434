"""Networks for tests, with numbers in place of the zeros and ones of a new one: a part that did nothing would show."""

import torch
from safetensors.torch import load_file

from pipelines.action import weights
from pipelines.action.config import PRESETS
from pipelines.common.catalogue import ROOT

FIXTURE = ROOT / "tests" / "action" / "fixtures" / "oadtr_tiny.safetensors"


def lively(preset, seed=0):
    """A random network of a preset in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = weights.build(PRESETS[preset])
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if parameter.ndim == 1 or name in ("task_token", "positions", "queries"):
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    return network.eval().requires_grad_(False)


def stream(preset, length, seed=1):
    """(length, in_features) float32."""
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(length, PRESETS[preset].in_features, generator=drawn)


def authors():
    """The authors' tiny network as its file has it: (state under their names, inputs and outputs)."""
    content = load_file(FIXTURE)
    state = {name.removeprefix("state."): value for name, value in content.items() if name.startswith("state.")}
    return state, {name: value for name, value in content.items() if not name.startswith("state.")}
