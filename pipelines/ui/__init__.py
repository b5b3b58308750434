"""Widgets that the tabs share. Knows pipelines.common and gradio, no pipeline."""
