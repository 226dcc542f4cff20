"""The funnel: every candidate is counted where it stopped, and silence has an answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from brain_bench import START_MS, announced, lively_market, table
from live_brain import Feed, start_brain, until
from test_brain_signals import TERMS, Trading

import ring as rings
import streams
from brain import desk as desks
from brain.funnel import NAMES_MAX, STAGES, Funnel
from brain.report import desk_report
from brain.rules import Candidate, No, as_rule, load_rules, rule
from brain.signals import Terms
from brain.view import CandleView
from maintenance import funnel
from maintenance.operate import way

ROOT = Path(__file__).resolve().parent.parent
KEYS = streams.Keys("sim")
MINUTE = 60_000


def test_stages_are_the_same_words_in_brain_and_maintenance() -> None:
    assert funnel.BRAIN_STAGES == STAGES


def test_what_comes_to_a_stage_is_what_the_one_before_let_pass() -> None:
    trading = Trading(3)
    trading.feed(table(lively_market(5, 3, 300)))
    told = funnel.fold({"a": desk_report(trading.desk)}, [], [])
    stages = [told["stages"][name] for name in STAGES]
    assert stages[0]["came"] > stages[1]["came"] > 0
    for before, after in pairwise(stages):
        assert before["came"] - before["refused"] == after["came"]
    assert stages[-1]["came"] - stages[-1]["refused"] == told["signals"]
    assert told["signals"] == trading.desk.signals > 10
    assert told["asked"] == told["silent"] + stages[0]["came"] + told["faults"]
    decisions = [d.fields for d in trading.of(desks.PutDecision)]
    of_stage = Counter(d["stage"] for d in decisions)
    for name, stage in zip(STAGES, stages, strict=True):
        assert of_stage[name] == stage["refused"]
    assert of_stage["structure"] and of_stage["trend"] and of_stage["checks"]
    assert told["waits"] == []


def test_each_decision_carries_the_numbers_of_its_way() -> None:
    trading = Trading(2, terms=Terms("world", "node", "proven", 15_000))
    trading.feed(table(lively_market(5, 2, 300)))
    seen = set()
    for fields in (d.fields for d in trading.of(desks.PutDecision)):
        rows = {row["name"]: row for row in json.loads(fields["verdicts"])}
        assert rows["structure"]["events"] != "none" and len(fields["signal"]) == 26
        seen.add(fields["stage"])
        if fields["stage"] == "trend":
            assert rows["trend"]["trend"] < rows["trend"]["trend_min"]
        if fields["stage"] == "confidence":
            assert rows["proven"]["confidence"] <= rows["proven"]["breakeven"]
            assert rows["trend"]["ok"] and rows["structure"]["ok"]
    assert {"trend", "confidence"} <= seen


def test_a_rule_in_shadow_stops_at_its_state_and_an_off_one_is_never_asked() -> None:
    shadow = Trading(2, load_rules(("sweep_reversal=shadow", "structure_break=off",
                                    "zone_retest=off")))  # fmt: skip
    shadow.feed(table(lively_market(5, 2, 300)))
    told = funnel.fold({"a": desk_report(shadow.desk)}, [], [])
    assert told["stages"]["state"]["most"]["by"] == "rule_state"
    assert told["signals"] == 0 and told["stages"]["state"]["came"] > 5
    assert any("no rule is on" in line for line in told["waits"])
    outcomes = shadow.of(desks.PutOutcome)
    assert outcomes and all(o.fields["shadow"] == "1" for o in outcomes)
    assert not [s for s in shadow.of(desks.PutSignal) if not s.shadow]


def test_a_users_refusal_is_counted_by_its_own_words_and_names_are_bounded() -> None:
    @rule("mine")
    def mine(view: CandleView, params: dict) -> Candidate | No | None:
        return No(1, "trend", f"reason {view.bar_ms}", {"x": 1.0})

    trading = Trading(1, [as_rule(mine)])
    trading.feed(table(lively_market(1, 1, 30)))
    assert trading.desk.funnel.total["trend"] == 29
    assert trading.desk.funnel.total[f"trend:reason {START_MS}"] == 1
    made = Funnel()
    for n in range(2 * NAMES_MAX):
        made.way(0, "trend", str(n))
    assert len(made.total) <= NAMES_MAX + 1
    assert made.total["trend"] == 2 * NAMES_MAX
    assert sum(v for k, v in made.total.items() if k.startswith("trend:")) == 2 * NAMES_MAX


@pytest.mark.parametrize("minute, counted", [(59, 1), (60, 0)])
def test_the_last_hour_is_sixty_minutes_of_market(minute: int, counted: int) -> None:
    made = Funnel()
    made.add(0, "asked")
    assert made.told(minute * MINUTE)["hour"] == ({"asked": 1} if counted else {})
    assert made.told(minute * MINUTE)["total"] == {"asked": 1}


def test_gate_and_orders_are_counted_from_their_streams() -> None:
    trading = Trading(1)
    trading.feed(table(lively_market(5, 1, 100)))
    report = desk_report(trading.desk)
    old, now = str(report["market_ms"] - 3_600_001), str(report["market_ms"])
    gate = [
        {"source": "risk", "refused_by": "cost", "ms": old},
        {"source": "risk", "refused_by": "cost", "ms": now},
        {"source": "risk", "refused_by": "", "ms": now},
        {"source": "brain", "refused_by": "trend", "ms": now},
    ]
    orders = [
        {"leg": "entry", "id": "a", "state": "sent", "ms": now},
        {"leg": "entry", "id": "a", "state": "filled", "executed_qty": "1", "ms": now},
        {"leg": "stop", "id": "s", "state": "rejected", "executed_qty": "0", "ms": now},
        {"leg": "entry", "id": "b", "state": "expired", "executed_qty": "0", "ms": now},
        {"leg": "entry", "id": "c", "state": "canceled", "executed_qty": "2", "ms": now},
    ]
    told = funnel.fold({"a": report}, gate, orders)["stages"]
    assert told["gate"]["came"] == 3 and told["gate"]["most"] == {"by": "cost", "count": 2}
    assert told["gate"]["hour"]["came"] == 2 and told["gate"]["hour"]["refused"] == 1
    assert told["order"]["came"] == 3 and told["order"]["most"] == {"by": "expired", "count": 1}
    text = "\n".join(funnel.render(funnel.fold({"a": report}, gate, orders)))
    assert "3 came, 2 refused (most by cost: 2); last hour 2 came, 1 refused" in text


def waits_of(trading: Trading) -> str:
    return " / ".join(funnel.fold({"a": desk_report(trading.desk)}, [], [])["waits"])


def test_silence_says_what_it_waits_for_in_the_order_of_need() -> None:
    assert "no brain reports" in funnel.fold({}, [], [])["waits"][0]
    trading = Trading(2, terms=TERMS)
    assert "no symbol is announced" in waits_of(trading)
    trading.feed(table(announced(0, healed=False) + announced(1)))
    assert "1 of 2 symbols are not whole" in waits_of(trading)
    assert "2 of 2 symbols have no quote" in waits_of(trading)
    assert "1m: 0 of 2 symbols have the 50 candles needed" in waits_of(trading)
    assert "no candle has closed with a structure event" in waits_of(trading)
    trading = Trading(2)
    trading.feed(table(lively_market(5, 2, 40)))
    text = waits_of(trading)
    asked = trading.desk.funnel.total["asked"]
    assert "not whole" not in text and "no quote" not in text and asked > 0
    assert f"rules were asked {asked} times after {trading.desk.structure_events}" in text
    none = Trading(1, load_rules(("sweep_reversal=off", "structure_break=off", "zone_retest=off")))
    assert "every rule is off" in waits_of(none)


def test_why_tells_the_way_on_one_line() -> None:
    trend = {"name": "trend", "ok": False, "trend": -0.7, "trend_min": -0.5}
    bad = json.dumps([{"name": "structure", "ok": True}, trend])
    refused = {"source": "brain", "stage": "trend", "verdicts": bad}
    assert way([("decisions", refused)]) == (
        "way: structure > trend REFUSED: trend: trend -0.7, trend_min -0.5"
    )
    passed = {"source": "brain", "stage": "signal", "verdicts": '[{"name": "x", "ok": true}]'}
    cost = '[{"name": "armed", "ok": true}, {"name": "cost", "ok": false, "cost_r": "0.6"}]'
    gate = {"source": "risk", "refused_by": "cost", "verdicts": cost}
    through = "way: structure > trend > checks > confidence > "
    assert way([("decisions", passed), ("decisions", gate)]) == (
        f"{through}gate REFUSED: cost: cost_r 0.6"
    )
    fine = {"source": "risk", "verdicts": '[{"name": "armed", "ok": true}]'}
    entry = {"leg": "entry", "state": "filled"}
    ended = {"result": "win", "net_r": "1.2"}
    stop = {"leg": "stop", "state": "acked"}
    rows: list[Any] = [("decisions", passed), ("decisions", fine), ("orders", entry)]
    rows += [("orders", stop), ("outcomes", ended)]
    assert way(rows) == f"{through}gate > entry filled > win 1.2 R"


def aegis(redis_url: str, state: Path, *words: str) -> str:
    env = {**os.environ, "REDIS_URL": redis_url, "AEGIS_STATE_DIR": str(state)}
    done = subprocess.run(
        [sys.executable, "-m", "maintenance.cli", *words], cwd=ROOT, env=env, check=True,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.stdout


def test_status_why_and_rule_list_see_a_running_brain(tmp_path: Path, redis_url: str) -> None:
    r: redis.Redis = streams.connect(redis_url)
    ring = rings.create(tmp_path / "lane.ring", 1 << 16, 4, "world")
    r.zadd(KEYS.nodes, {"n1:b": 1.0})
    r.hset(KEYS.node("n1", "b"), mapping={"lanes": "1"})
    feed, brain = Feed(ring), start_brain(ring, redis_url)
    recs = table(lively_market(3, 2, 160))
    begin = int(np.flatnonzero(recs["exch_ns"] > (START_MS + 20 * MINUTE) * 1_000_000)[0])
    feed.write(recs[:begin])
    key = KEYS.brain("n1", "brain")
    until(lambda: (text := r.get(key)) and json.loads(text)["symbols"] == 2, "a report")
    assert "waits: 1m: 0 of 2 symbols have the 50 candles needed" in aegis(
        redis_url, tmp_path, "status"
    )
    feed.write(recs[begin:])
    brain.send_signal(signal.SIGTERM)
    assert brain.wait(20) == 0
    told = json.loads(aegis(redis_url, tmp_path, "status", "--json"))["funnel"]
    assert told["signals"] > 5 and told["waits"] == [] and told["stages"]["trend"]["refused"] > 0
    listed = aegis(redis_url, tmp_path, "rule", "list")
    assert all(name in listed for name in ("structure_break", "sweep_reversal", "zone_retest"))
    refused = next(f for _, f in r.xrange(KEYS.decisions) if f["stage"] == "trend")
    text = aegis(redis_url, tmp_path, "why", refused["signal"])
    assert "way: structure > trend REFUSED: trend: " in text and "trend_min" in text
