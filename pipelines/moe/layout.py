"""config.json of the published checkpoints -> MoeConfig, and back. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

from pipelines.common.errors import UserError

from .config import Family, MoeConfig

# What the library takes where a file of the family says nothing.
ROPE_BASE: dict[Family, float] = {"mixtral": 1e6, "olmoe": 1e4, "granitemoe": 1e4}
EPSILON: dict[Family, float] = {"mixtral": 1e-5, "olmoe": 1e-5, "granitemoe": 1e-6}


def config_from(published: Mapping[str, Any]) -> MoeConfig:
    """The content of a published config.json, as of old or as transformers 5 writes it.

    UserError: another architecture, or a variant of this one that the decoder does not have.
    """
    kind = published.get("model_type")
    if kind not in get_args(Family):
        known = ", ".join(get_args(Family))
        raise UserError(f"These weights are of the architecture “{str(kind)[:60]}”; the Text tab runs {known}.")
    family = cast(Family, kind)
    _refuse_variants(published)
    try:
        return _read(family, published)
    except KeyError as error:
        raise UserError(f"config.json lacks {error.args[0]}: fetch these weights again.") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"config.json describes no network: {error}.") from error


def _read(family: Family, published: Mapping[str, Any]) -> MoeConfig:
    width, heads = _count(published, "hidden_size"), _count(published, "num_attention_heads")
    base = _rope(published).get("rope_theta") or published.get("rope_theta") or ROPE_BASE[family]
    config: dict[str, Any] = {
        "family": family,
        "vocabulary": _count(published, "vocab_size"),
        "width": width,
        "layers": _count(published, "num_hidden_layers"),
        "heads": heads,
        "key_value_heads": _count(published, "num_key_value_heads", heads),
        "head_width": _count(published, "head_dim", width // heads),
        "expert_width": _count(published, "intermediate_size"),
        "experts": _count(published, "num_experts" if family == "olmoe" else "num_local_experts"),
        "active": _count(published, "num_experts_per_tok"),
        "context": _count(published, "max_position_embeddings"),
        "rope_base": float(base),
        "norm_epsilon": float(published.get("rms_norm_eps", EPSILON[family])),
        "tied": bool(published.get("tie_word_embeddings", False)),
        "balance_coefficient": float(published.get("router_aux_loss_coef", 0.01)),
    }
    return MoeConfig(**config, **_own(family, published))


def _own(family: Family, published: Mapping[str, Any]) -> dict[str, Any]:
    """What only one family has."""
    if family == "mixtral":
        given = published.get("sliding_window") is not None
        return {"window": _count(published, "sliding_window") if given else None}
    if family == "olmoe":
        clip = published.get("clip_qkv")
        return {
            "query_key_norm": True,
            "normalise_weights": bool(published.get("norm_topk_prob", False)),
            "clip": None if clip is None else float(clip),
        }
    return {
        "embedding_multiplier": float(published.get("embedding_multiplier", 1.0)),
        "residual_multiplier": float(published.get("residual_multiplier", 1.0)),
        "attention_multiplier": float(published.get("attention_multiplier", 1.0)),
        "logits_divisor": float(published.get("logits_scaling", 1.0)),
    }


def _count(published: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A size. KeyError: it is missing and has no default. ValueError: it is no positive whole number."""
    value = published[name] if default is None else published.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {str(value)[:40]}")
    return value


def _rope(published: Mapping[str, Any]) -> Mapping[str, Any]:
    """transformers 5's `rope_parameters`, `rope_scaling` of old, or nothing."""
    found = published.get("rope_parameters") or published.get("rope_scaling") or {}
    return found if isinstance(found, Mapping) else {}


def _refuse_variants(published: Mapping[str, Any]) -> None:
    """UserError: something is switched on that would be left out in silence."""
    rope = _rope(published)
    kind = rope.get("rope_type", rope.get("type", "default"))
    wrong = {
        "hidden_act": published.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(published.get("attention_bias", False)),
        "rope_scaling": kind != "default",
        "quantization_config": published.get("quantization_config") is not None,
    }
    asked = [name for name, is_wrong in wrong.items() if is_wrong]
    if asked:
        raise UserError(f"config.json asks for {' and '.join(asked)} that this decoder does not have.")


def config_to(config: MoeConfig) -> dict[str, Any]:
    """config.json of transformers' MixtralForCausalLM for a network in Mixtral's layout, with its ids of begin and end
    left out. ValueError: Mixtral has no such network."""
    other = [
        name
        for name, value in (
            ("normalise_weights", True), ("query_key_norm", False), ("clip", None), ("embedding_multiplier", 1.0),
            ("residual_multiplier", 1.0), ("attention_multiplier", None), ("logits_divisor", 1.0),
        )
        if getattr(config, name) != value
    ]  # fmt: skip
    if config.family != "mixtral" or other:
        raise ValueError(f"Mixtral's layout cannot say this: {config.family} {other}")
    return {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu",
        "vocab_size": config.vocabulary, "hidden_size": config.width, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width, "intermediate_size": config.expert_width,
        "num_local_experts": config.experts, "num_experts_per_tok": config.active,
        "max_position_embeddings": config.context, "sliding_window": config.window,
        # Both the older versions' name and today's.
        "rope_theta": config.rope_base, "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "rms_norm_eps": config.norm_epsilon, "tie_word_embeddings": config.tied,
        "router_aux_loss_coef": config.balance_coefficient, "use_cache": True,
    }  # fmt: skip
