"""A real worker or beat that knows one probe job, with times short enough for a test.

    python tests/celery_world.py worker|beat REDIS_URL VISIBILITY_S

Everything is maintenance/tasks.py; only the table of jobs is another. The probe writes `began`,
waits while the list `hold` had something for it, and writes `ended`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import config
from maintenance import jobs, tasks
from maintenance.schedule import Job

PROBE = Job("probe", 4, 1.5)
HOLD_S = 60.0


def probe(desk: jobs.Desk) -> None:
    row = f"{desk.slot}:{os.getpid()}"
    held = desk.r.lpop("hold")
    desk.r.rpush("began", row)
    end = time.monotonic() + HOLD_S
    while held and not desk.r.exists("free") and time.monotonic() < end:
        time.sleep(0.02)
    desk.r.rpush("ended", row)


def main() -> None:
    what, url, visibility_s = sys.argv[1:]
    tasks.JOBS = (PROBE,)
    jobs.BODIES["probe"] = probe
    tasks.VISIBILITY_S = int(visibility_s)
    cfg = config.load({"REDIS_URL": url})
    app = tasks.make_app(cfg.broker_url)
    # the transport looks for what was not acknowledged every 100 s; no test waits so long
    app.conf.broker_transport_options |= {
        "unacked_restore_interval": 0.5,
        "unacked_restore_throttle": 1,
    }
    raise SystemExit(tasks.run_beat(app) if what == "beat" else tasks.run_worker(app, cfg))


if __name__ == "__main__":
    main()
