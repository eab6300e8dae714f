"""A gateway that others could reach is somebody's decision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_routable_address_is_refused_without_the_word(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "olol_tui", "--serve", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(
        [*command, "--state-dir", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "0.0.0.0 can be reached from other machines" in done.stderr
    assert "--insecure-no-keys" in done.stderr
    assert "Traceback" not in done.stderr
