"""The pipelines, in the order of their tabs. Importing this package imports no model library."""

PIPELINES: tuple[str, ...] = ("face", "detection", "action", "diffusion", "moe", "foundations")
