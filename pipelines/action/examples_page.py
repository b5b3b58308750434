"""The example clips. Sources and licences: assets/examples/action/README.md."""

from __future__ import annotations

from pipelines.common.catalogue import ROOT

FOLDER = ROOT / "assets" / "examples" / "action"
CLIPS = [str(FOLDER / "jumping-jacks.webm"), str(FOLDER / "backflip.webm")]
