"""The config.json files of the published folders, as their authors wrote them (without paths and dates), and the names
and shapes that the libraries' own classes give such models."""

import torch

CROSS_DOWN, DOWN, CROSS_UP, UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"

UNET_1 = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN], "downsample_padding": 1, "flip_sin_to_cos": True,
    "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05,
    "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": [UP, CROSS_UP, CROSS_UP, CROSS_UP],
}  # fmt: skip
VAE_1 = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
    "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
TEXT_1 = {
    "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
    "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768,
    "torch_dtype": "float32", "vocab_size": 49408,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
NEWER_UNET = {  # what later versions of the library write besides
    "addition_embed_type": None, "addition_embed_type_num_heads": 64, "addition_time_embed_dim": None,
    "attention_type": "default", "class_embed_type": None, "class_embeddings_concat": False, "conv_in_kernel": 3,
    "conv_out_kernel": 3, "cross_attention_norm": None, "dropout": 0.0, "dual_cross_attention": False,
    "encoder_hid_dim": None, "encoder_hid_dim_type": None, "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None, "num_class_embeds": None,
    "only_cross_attention": False, "projection_class_embeddings_input_dim": None, "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False, "resnet_time_scale_shift": "default", "reverse_transformer_layers_per_block": None,
    "time_embedding_act_fn": None, "time_embedding_dim": None, "time_embedding_type": "positional",
    "timestep_post_act": None, "transformer_layers_per_block": 1, "upcast_attention": None,
    "use_linear_projection": False,
}  # fmt: skip

MODELS = {
    "stable-diffusion-v1-5": {"unet": UNET_1, "vae": VAE_1, "text_encoder": TEXT_1, "scheduler": SCHEDULER},
    "stable-diffusion-2-1-base": {
        "unet": UNET_1 | {
            "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "dual_cross_attention": False,
            "num_class_embeds": None, "only_cross_attention": False, "use_linear_projection": True,
        },
        "vae": VAE_1 | {"sample_size": 768},
        "text_encoder": TEXT_1 | {
            "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
            "num_hidden_layers": 23, "projection_dim": 512,
        },
        "scheduler": SCHEDULER | {"prediction_type": "epsilon"},
    },
    "bk-sdm-tiny": {
        "unet": UNET_1 | {
            "block_out_channels": [320, 640, 1280], "down_block_types": [CROSS_DOWN] * 3, "layers_per_block": 1,
            "mid_block_type": None, "up_block_types": [CROSS_UP] * 3,
        },
        "vae": VAE_1 | {"scaling_factor": 0.18215},
        "text_encoder": TEXT_1,
        "scheduler": SCHEDULER | {"prediction_type": "epsilon"},
    },
    "lcm-dreamshaper-v7": {
        "unet": UNET_1 | NEWER_UNET | {"time_cond_proj_dim": 256},
        "vae": VAE_1 | {
            "force_upcast": True, "latents_mean": None, "latents_std": None, "sample_size": 768,
            "scaling_factor": 0.18215,
        },
        "text_encoder": TEXT_1,
        "scheduler": SCHEDULER | {
            "_class_name": "LCMScheduler", "original_inference_steps": 50, "prediction_type": "epsilon",
            "rescale_betas_zero_snr": False, "timestep_scaling": 10.0, "timestep_spacing": "leading",
        },
    },
}  # fmt: skip
TAESD = {
    "_class_name": "AutoencoderTiny", "_diffusers_version": "0.20.0.dev0", "act_fn": "relu",
    "decoder_block_out_channels": [64, 64, 64, 64], "encoder_block_out_channels": [64, 64, 64, 64],
    "force_upcast": False, "in_channels": 3, "latent_channels": 4, "latent_magnitude": 3, "latent_shift": 0.5,
    "num_decoder_blocks": [3, 3, 3, 1], "num_encoder_blocks": [1, 3, 3, 3], "out_channels": 3, "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}  # fmt: skip
# Files from 2022 still have these names of the library's attention.
OLD_VAE = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
OLD = ("stable-diffusion-v1-5", "stable-diffusion-2-1-base")


def library_keys(name):
    """{part: {name: shape}} of a published model, from the libraries' classes on meta."""
    import diffusers
    import transformers

    config = MODELS[name]
    with torch.device("meta"):
        parts = {
            "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**config["text_encoder"])),
            "unet": diffusers.UNet2DConditionModel.from_config(config["unet"]),
            "vae": diffusers.AutoencoderKL.from_config(config["vae"]),
        }
    keys = {part: {k: list(v.shape) for k, v in module.state_dict().items()} for part, module in parts.items()}
    text = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in keys["text_encoder"].items()}
    keys["text_encoder"] = text | {"text_model.embeddings.position_ids": [1, 77]}  # the files hold this buffer
    if name in OLD:
        for new, old in OLD_VAE.items():
            keys["vae"] = {k.replace(f".{new}.", f".{old}."): v for k, v in keys["vae"].items()}
    return {part: dict(sorted(shapes.items())) for part, shapes in keys.items()}


def library_taesd_keys():
    import diffusers

    with torch.device("meta"):
        return {k: list(v.shape) for k, v in sorted(diffusers.AutoencoderTiny.from_config(TAESD).state_dict().items())}
