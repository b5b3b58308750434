"""The page's script by itself, in Node with a page and a server made of stubs; tests/browser has it in Chromium."""

import subprocess
from pathlib import Path

import playwright
import pytest

NODE = Path(playwright.__file__).parent / "driver" / "node"  # which drives tests/browser too


@pytest.mark.parametrize("case", ["plays", "late_example", "late_camera", "server_gone", "another_model"])
def test_the_player(case):
    done = subprocess.run(
        [NODE, Path(__file__).with_name("player.cjs"), case], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
