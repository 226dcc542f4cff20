"""The soak in short: cuts inside frames and minutes, holes healed and lost, every candle equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = (
    "--seconds", "14", "--rate", "3000", "--symbols", "6", "--speed", "20", "--cut-every", "4",
    "--replace-every", "3", "--seed", "4", "--json",
)  # fmt: skip


@pytest.mark.system
@pytest.mark.timeout(600)  # kernels may have to be compiled first
def test_every_candle_is_right_after_cuts_inside_frames_and_minutes(tmp_path: Path) -> None:
    env = {**os.environ, "AEGIS_HEAL_TRADES_MAX": "40"}  # some holes are healed, some are lost
    done = subprocess.run(
        [sys.executable, "tests/soak.py", *OPTIONS, "--keep", str(tmp_path)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode in (0, 1) and done.stdout, done.stderr[-4000:]
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["candles_unequal"] == 0 and made["candles_checked"] > 0, made
    assert made["lost_ticks"] == 0 and made["holes_min_per_symbol"] > 0, made
    assert made["disconnects"] >= 2 and made["healed_trades"] > 0, made
    assert made["lost_trades"] > 0 and made["corrections"] > 0, made
    assert done.returncode == 0, made
