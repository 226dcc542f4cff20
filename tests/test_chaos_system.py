"""Chaos against the real thing: a small fixed plan bites, and nothing is lost, doubled or naked."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from maintenance import chaos, chaos_plan
from maintenance.chaos_plan import Step

pytestmark = pytest.mark.system
POST = {"method": "POST", "path": "/fapi/v1/order"}
PLAN = [
    Step(1, "reply_lost", 0.5, 0.0, {"kind": "reply_lost", "match": POST, "times": 1}),
    Step(2, "kill_holder", 0.5, 0.0, {}),
    Step(3, "reply_swallowed", 0.5, 0.0, {"times": 1}),
    Step(4, "redis_kill", 0.5, 0.3, {}),
    Step(5, "cancel_stop", 0.5, 0.0, {}),
    Step(6, "liquidate", 0.5, 0.0, {}),
    Step(7, "leverage_by_hand", 0.2, 0.0, {"leverage": "9"}),
    Step(8, "foreign_order", 0.2, 2.0, {"client": "web", "side": "BUY"}),
    Step(9, "clock_skew", 0.2, 3.0, {"kind": "clock_skew", "ms": -1_500}),
    Step(10, "stall", 0.2, 4.0, {}),
    Step(11, "stop_holder", 0.5, 4.0, {"ms": 0}),
    Step(12, "crash:after_send_entry", 0.5, 0.0, {"passes": 1}),
]
LOSSES = [
    Step(1, "redis_rollback", 1.0, 0.3, {"seconds": 1.5, "kill": True}),
    Step(2, "redis_flush", 0.5, 0.0, {"kill": False}, after_intent_ms=10.0),
    Step(3, "partition_holder", 0.5, 4.0, {}, after_intent_ms=5.0),
]


def test_two_minutes_of_a_fresh_seed_violate_nothing(tmp_path: Path) -> None:
    """CHAOS_SEED=<printed> plans the same faults again."""
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(1 << 30)))
    print(f"CHAOS_SEED={seed}")
    steps = chaos_plan.plan(seed, chaos.TTL_S)
    told = chaos.run_chaos(tmp_path / "chaos", seed, steps, 120.0, tell=False)
    assert told["told"] == {} and told["violations"] == 0
    assert told["faults_bit"] >= 20 and told["fills"] > 50


def test_a_small_plan_bites_and_violates_nothing(tmp_path: Path) -> None:
    told = chaos.run_chaos(tmp_path / "chaos", 11, PLAN, 120.0, tell=False)
    assert told["told"] == {} and told["violations"] == 0
    assert told["faults_missed"] == {} and told["faults_bit"] == len(PLAN)
    assert told["fills"] > 0 and told["positions_equal"] and told["balance_equal"]
    assert told["takeovers"] >= 2 and 0 < told["takeover_ms_max"] <= 5_000
    assert told["naked_ms_max"] <= told["naked_ms_max_over_all"] <= 4_500
    assert told["crash_points"]["after_send_entry"] == 1 and told["signals_again"] > 0


def test_a_redis_that_loses_its_memory_or_its_holder_costs_no_money(tmp_path: Path) -> None:
    told = chaos.run_chaos(tmp_path / "chaos", 12, LOSSES, 120.0, tell=False)
    assert told["told"] == {} and told["violations"] == 0
    assert told["faults_missed"] == {} and told["faults_bit"] == len(LOSSES)
    assert told["fills"] > 0 and told["positions_equal"] and told["balance_equal"]


def test_without_its_guard_a_second_signal_is_a_second_entry_and_chaos_says_so(
    tmp_path: Path,
) -> None:
    quiet = [Step(1, "script_flush", 6.0, 0.0, {})]
    told = chaos.run_chaos(tmp_path / "chaos", 1, quiet, 60.0, tell=False, broken="dedupe")
    assert told["violations"] > 0
    assert {"one order per client id", "positions agree"} & set(told["told"])
