"""Our networks' tensors under the names of the original one-file layout: the way back of single_file, for tests.

What diffusers makes of these files is compared with what we make of them, so that a mistake made both ways shows.
"""

import re

import torch

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
PLAIN = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip


def unet_name(name, cfg):
    for ours, theirs in PLAIN.items():
        if name.startswith(ours + "."):
            return resnet_name(name.replace(ours, theirs, 1)) if ".resnets." in name else name.replace(ours, theirs, 1)
    side, level, kind, layer, rest = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name).groups()
    level, layer, deep = int(level), int(layer), cfg.layers_per_block
    if side == "down":
        block = 1 + level * (deep + 1) + (deep if kind == "downsamplers" else layer)
        rest = rest.replace("conv.", "op.") if kind == "downsamplers" else rest
        return resnet_name(f"input_blocks.{block}.{int(kind == 'attentions')}.{rest}", kind == "resnets")
    block = level * (deep + 1) + (deep if kind == "upsamplers" else layer)
    crossed = cfg.up_block_types[level].startswith("Cross")
    place = {"resnets": 0, "attentions": 1, "upsamplers": 1 + crossed}[kind]
    return resnet_name(f"output_blocks.{block}.{place}.{rest}", kind == "resnets")


def resnet_name(name, within=True):
    head, _, tail = name.rpartition(".")
    front, _, layer = head.rpartition(".")
    return f"{front}.{RESNET[layer]}.{tail}" if within else name


def vae_name(name, cfg):
    last = len(cfg.block_out_channels) - 1
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.([01])", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out").replace("attentions.0.to_", "attn_1.")
    name = name.replace("mid_block.attn_1", "mid.attn_1").replace(
        "mid_block.attentions.0.group_norm", "mid.attn_1.norm"
    )
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def open_clip(state):
    out = {}
    for name, value in state.items():
        name = name.replace("encoder.layers.", "transformer.resblocks.").replace("layer_norm", "ln_")
        name = name.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj").replace("self_attn", "attn")
        name = name.replace("embeddings.position_embedding.weight", "positional_embedding")
        name = name.replace("embeddings.", "").replace("final_ln_", "ln_final")
        if match := re.fullmatch(r"(.*)\.q_proj\.(\w+)", name):
            rest = [state[f"encoder.layers.{match[1].split('.')[2]}.self_attn.{x}_proj.{match[2]}"] for x in "kv"]
            out[f"{match[1]}.in_proj_{match[2]}"] = torch.cat([value, *rest])
        elif not re.search(r"\.[kv]_proj\.", name):
            out[name] = value
    return out


def whole_file(parts, cfg, new_text_encoder):
    """One file: the parts, and what else the published files hold. parts: state dicts by name."""
    out = {f"model.diffusion_model.{unet_name(k, cfg.unet)}": v for k, v in parts["unet"].items()}
    for name, value in parts["vae"].items():
        square = ".attentions." in name and name.endswith("weight") and value.ndim == 2
        out[f"first_stage_model.{vae_name(name, cfg.vae)}"] = value[:, :, None, None] if square else value
    text = parts["text_encoder"]
    if new_text_encoder:
        tower = open_clip(text)
        last = cfg.text.num_hidden_layers - 1
        one_more = {
            k.replace(f"resblocks.{last}.", f"resblocks.{last + 1}."): v.clone()
            for k, v in tower.items()
            if f"resblocks.{last}." in k
        }
        width = cfg.text.hidden_size
        others = {"text_projection": torch.ones(width, width), "logit_scale": torch.ones(())}
        out |= {f"cond_stage_model.model.{k}": v for k, v in (tower | one_more | others).items()}
    else:
        out |= {f"cond_stage_model.transformer.text_model.{k}": v for k, v in text.items()}
        places = torch.arange(cfg.text.max_position_embeddings)[None]
        out["cond_stage_model.transformer.text_model.embeddings.position_ids"] = places
    out["model_ema.decay"] = torch.ones(())
    out["model_ema.diffusion_modelinput_blocks00weight"] = torch.ones(3)
    for name in ("betas", "alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_mean_coef2"):
        out[name] = torch.ones(1000)
    return out
