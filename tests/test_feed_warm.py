"""Kernels are compiled at set-up: a process that starts afterwards compiles none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COUNT = """
from pathlib import Path
import sys
from numba.core import event
with event.install_recorder("numba:compile") as seen:
    import ring
    from feed import lane, main, warm
    warm.warm()
    mapped = ring.create(Path(sys.argv[1]), 64, 4, "test")
    ours = lane.make_lane(ring.attach(Path(sys.argv[1])))
    main.remember(ours)
    lane.set_symbol(ours, 1, "BTCUSDT", lane.HELD, 0)
    lane.flush(ours, 1)
print(sum(entry.is_start for _, entry in seen.buffer))
"""


def test_the_second_start_compiles_no_kernel(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "feed.warm"], cwd=ROOT, check=True)
    argv = [sys.executable, "-c", COUNT, str(tmp_path / "ring")]
    found = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "0"
