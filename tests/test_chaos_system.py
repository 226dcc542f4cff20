"""Chaos against the real thing: a small fixed plan bites, and nothing is lost, doubled or naked."""

from __future__ import annotations

from pathlib import Path

import pytest

from maintenance import chaos
from maintenance.chaos_plan import Step

pytestmark = pytest.mark.system
POST = {"method": "POST", "path": "/fapi/v1/order"}
PLAN = [
    Step(1, "reply_lost", 0.5, 0.0, {"kind": "reply_lost", "match": POST, "times": 1}),
    Step(2, "kill_holder", 0.5, 0.0, {}),
    Step(3, "reply_swallowed", 0.5, 0.0, {"times": 1}),
    Step(4, "redis_kill", 0.5, 0.3, {}),
    Step(5, "cancel_stop", 0.5, 0.0, {}),
    Step(6, "crash:after_send_entry", 0.5, 0.0, {"passes": 1}),
]


def test_a_small_plan_bites_and_violates_nothing(tmp_path: Path) -> None:
    told = chaos.run_chaos(tmp_path / "chaos", 11, PLAN, 120.0, tell=False)
    assert told["told"] == {} and told["violations"] == 0
    assert told["faults_missed"] == {} and told["faults_bit"] == len(PLAN)
    assert told["fills"] > 0 and told["positions_equal"] and told["balance_equal"]
    assert told["takeover_ms_max"] > 0
    assert told["crash_points"]["after_send_entry"] == 1 and told["signals_again"] > 0


def test_without_its_guard_a_second_signal_is_a_second_entry_and_chaos_says_so(
    tmp_path: Path,
) -> None:
    quiet = [Step(1, "script_flush", 6.0, 0.0, {})]
    told = chaos.run_chaos(tmp_path / "chaos", 1, quiet, 60.0, tell=False, broken="dedupe")
    assert told["violations"] > 0
    assert {"one order per client id", "positions agree"} & set(told["told"])
