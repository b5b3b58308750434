"""Glasshouse: look inside five landmark models in a browser. Flags and environment, the page, the queue, the launch."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
from collections.abc import Sequence
from typing import Any

# Before gradio is imported: it would otherwise call home, on machines that may have no network at all.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from pipelines import PIPELINES
from pipelines.common.limits import limits
from pipelines.ui import i18n, theme

CACHE_SECONDS = 3600  # uploads and drawn pictures of visitors are deleted at most half as much later than this


def build(names: Sequence[str] = PIPELINES) -> gr.Blocks:
    """The whole page, one tab a pipeline. Loads no model library; may be called more than once."""
    with gr.Blocks(
        title="Glasshouse", analytics_enabled=False, delete_cache=(CACHE_SECONDS // 2, CACHE_SECONDS)
    ) as page:
        with gr.Column(elem_classes="gh-head"):
            gr.Markdown(i18n.label("# Glasshouse"))
            gr.Markdown(i18n.label("See inside the model: rebuilt from the papers, beside the library it is held to."))
        with gr.Tabs():
            for name in names:
                module = importlib.import_module(f"pipelines.{name}.tab")
                with gr.Tab(i18n.label(module.TITLE), id=name) as tab:
                    module.build(page, tab)
    return page


def launch_options() -> dict[str, Any]:
    """What `launch` gets besides address and port; the tests launch with the same."""
    return {
        "theme": theme.theme(),
        "css": theme.CSS,
        "i18n": i18n.catalogue(),
        "max_file_size": limits().upload_bytes,
        "show_error": False,  # what is not a sentence of ours may name files of the server
        "state_session_capacity": limits().sessions,
        "ssr_mode": False,
        "run_history": False,  # it would keep visitors' pictures in the browser
        "enable_monitoring": False,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME"), help="address to listen on")
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
    parser.add_argument("--open", action="store_true", help="open the page in the default browser")
    flags = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    page = build()
    page.queue(max_size=limits().queue, default_concurrency_limit=2)
    page.launch(server_name=flags.host, server_port=flags.port, inbrowser=flags.open, **launch_options())


if __name__ == "__main__":
    main()
