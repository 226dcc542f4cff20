"""What `aegis up` shows while it runs, and how a run with `--for` ends.

A thread beside the supervisor: it reads the node's row and risk's portfolio from Redis, prints one
live line, and when the time is over pauses the market, waits until everything has come to rest,
collects the summary and asks for the drain. It never touches the children.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import redis

import streams
from clock import boot_ns
from maintenance import audit, launch, summary, universe
from maintenance.running import Client
from maintenance.supervisor import Supervisor

if TYPE_CHECKING:
    from maintenance.up import Plan

POLL_S: Final = 0.25
LIVE_LINE_S: Final = 1.0
PLAIN_LINE_S: Final = 10.0
FIRST_TICK_WAIT_S: Final = 180.0  # then a run with --for gives up
REST_WAIT_S: Final = 12.0  # for the ring to drain and orders to be answered
REST_LOOKS: Final = 3  # looks in a row without a change
FAULTS_TOLD_MAX: Final = 20  # sentences, here and in the summary


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the running system."""

    boot_s: float
    node: Mapping[str, str]
    portfolio: Mapping[str, str]

    def count(self, name: str) -> int:
        return int(float(self.node.get(name, 0)))

    @property
    def ticks(self) -> int:
        return self.count("brain.trades") + self.count("brain.quotes")


def line(now: Look, before: Look | None) -> str:
    """The live line."""
    rate = 0.0
    if before is not None and now.boot_s > before.boot_s:
        rate = max(now.ticks - before.ticks, 0) / (now.boot_s - before.boot_s)
    told = now.portfolio
    return (
        f"{rate:,.0f} ticks/s · {now.count('brain.signals')} signals · "
        f"{told.get('entries', '0')} entries · {told.get('fills', '0')} fills · "
        f"{told.get('positions', '0')} positions · equity {float(told.get('equity', 0)):,.2f} · "
        f"ring lag {now.count('lag')}"
    )


class Watcher:
    """Runs in its own thread; `finish` belongs to the main one."""

    def __init__(self, made: Plan, supervisor: Supervisor, started_ns: int) -> None:
        self.plan, self.supervisor, self.started_ns = made, supervisor, started_ns
        self._made_ns = boot_ns()
        self.finished = threading.Event()
        self.keys = streams.Keys(made.cfg.mode, made.cfg.account)
        self.result: dict[str, Any] | None = None
        self.faults: list[str] = []
        self.code = 0
        self._first_ns: int | None = None
        self._first_fill_s: float | None = None
        self._positions_max = 0
        self._r: Client = streams.connect(made.cfg.redis_url, 1)
        self._live = sys.stdout.isatty() and not made.summary

    def run(self) -> None:
        try:
            self._watch()
        except Exception as error:  # noqa: BLE001 (our bug: say so and end the run)
            self.faults.append(f"watching failed: {type(error).__name__}: {error}")
            self.code = 1
            self.supervisor.stop(1)

    def _watch(self) -> None:
        before: Look | None = None
        shown_s, period_s = 0.0, LIVE_LINE_S if self._live else PLAIN_LINE_S
        while not self.finished.wait(POLL_S):
            look = self._look()
            if look is None:
                self._give_up_if_late()
                continue
            self._note_firsts(look)
            if look.boot_s - shown_s >= period_s:
                self._show(line(look, before))
                shown_s, before = look.boot_s, look
            if self._is_over(look.boot_s):
                if self.plan.summary:
                    self._collect()
                self.supervisor.stop(self.code)
                return

    def _look(self) -> Look | None:
        """None while Redis or the node is not there."""

        try:
            portfolio = self._r.hgetall(self.keys.portfolio)
            members = self._r.zrange(self.keys.nodes, -1, -1)
            node: Any = {}
            if members:
                name, _, boot = members[0].rpartition(":")
                node = self._r.hgetall(self.keys.node(name, boot))
        except redis.RedisError:
            return None  # the supervisor sees to it; the next look comes at once
        return Look(boot_ns() / 1e9, node, portfolio) if node else None

    def _note_firsts(self, look: Look) -> None:
        if self._first_ns is None and look.node.get("first_tick_boot_ns"):
            self._first_ns = int(look.node["first_tick_boot_ns"])
            self._show(f"first tick after {(self._first_ns - self.started_ns) / 1e9:.2f} s")
        if self._first_fill_s is None and float(look.portfolio.get("fills", 0)) > 0:
            self._first_fill_s = (boot_ns() - self.started_ns) / 1e9
            self._show(f"first fill after {self._first_fill_s:.1f} s")
        self._positions_max = max(self._positions_max, int(look.portfolio.get("positions", 0)))

    def _is_over(self, boot_s: float) -> bool:
        if self.plan.seconds is None or self._first_ns is None:
            self._give_up_if_late()
            return False
        return boot_s >= self._first_ns / 1e9 + self.plan.seconds

    def _give_up_if_late(self) -> None:
        waited_s = (boot_ns() - self._made_ns) / 1e9  # compiling may have taken its time before
        late = self._first_ns is None and waited_s > FIRST_TICK_WAIT_S
        if late and self.plan.seconds is not None and not self.supervisor.draining():
            logs = self.plan.state_dir / "logs"
            self.faults.append(f"no tick in {FIRST_TICK_WAIT_S:.0f} s: see {logs}")
            self.code = 1
            self.supervisor.stop(1)

    def _show(self, text: str) -> None:
        stream = sys.stderr if self.plan.summary else sys.stdout
        if self._live:
            print(f"\r\x1b[K{text}", end="", flush=True, file=stream)
        else:
            print(text, flush=True, file=stream)

    # --- the end of a run --------------------------------------------------------------------

    def _collect(self) -> None:
        """Pause, come to rest, compare. Books are compared again while answers are under way."""
        cfg = self.plan.cfg
        seconds = (boot_ns() - (self._first_ns or 0)) / 1e9
        self._show("pausing the market and checking the books …")
        summary.post(f"{cfg.venue_url}/venue/v1/pause")
        look = self._come_to_rest()
        books, wrong = self._settled_books()
        status = universe.get_json(f"{cfg.venue_url}/venue/v1/status")
        sent = universe.get_json(f"{cfg.venue_url}/venue/v1/sent")
        brain_files = [launch.brain_path(ring) for ring in launch.ring_paths(cfg)]
        since_ms = None if "upstream" in status else int(status["t0_ms"])
        checked, unequal, tallies = summary.check_candles(
            cfg.venue_url, brain_files, cfg.symbols_max, since_ms
        )
        misplaced = summary.misplaced(tallies, self._r.hkeys(self.keys.symbols))
        self.faults += [*books.violations, *wrong, *unequal[: summary.EXAMPLES_MAX]]
        self.faults += misplaced[: summary.EXAMPLES_MAX]
        self.faults += [
            f"{t.symbol}: venue's last trade {t.venue_last_id}, brain's {t.newest_id}, "
            f"{t.declared} declared lost, {t.jumps} jumps"
            for t in tallies
            if summary.trades_lost(t)
        ][: summary.EXAMPLES_MAX]
        quotes = summary.quote_tally(sent["connections"], look.node)
        self.result = self._numbers(look, books, status, tallies, quotes) | {
            "seconds": round(seconds, 1),
            "candles_checked": checked,
            "candles_unequal": len(unequal),
            "lanes": cfg.lanes,
            "misplaced": len(misplaced),
            "books_equal": not wrong and not books.violations,
        }
        came_through = self.result["lost_ticks"] == 0 and not unequal and not misplaced
        whole = came_through and self.result["books_equal"]
        self.result["ok"] = whole
        self.result["faults"] = self.faults[:FAULTS_TOLD_MAX]
        self.code = 0 if whole else 1

    def _come_to_rest(self) -> Look:
        """Until the ring is drained and no counter moves any more."""
        before: tuple[Any, ...] = ()
        still, look = 0, None
        end_s = boot_ns() / 1e9 + REST_WAIT_S
        while still < REST_LOOKS and boot_ns() / 1e9 < end_s:
            look = self._look() or look
            if look is not None:
                ours = {k: v for k, v in look.node.items() if k.split(".")[0] in ("feed", "brain")}
                beat = look.node.get("heartbeat_ms")
                key = (look.ticks, look.count("feed.quotes"), look.count("lag"), len(ours))
                if before and beat != before[0]:
                    still = still + 1 if key == before[1] and look.count("lag") == 0 else 0
                    before = (beat, key)
                elif not before:
                    before = (beat, key)
            self.finished.wait(POLL_S)
        assert look is not None, "a run that had a first tick has a node row"
        return look

    def _settled_books(self) -> tuple[audit.Audit, list[str]]:
        end_s = boot_ns() / 1e9 + REST_WAIT_S
        while True:
            events = summary.fetch_ledger(self.plan.cfg.venue_url)
            books, wrong = summary.check_books(
                self._r, self.keys, events, self.plan.cfg.positions_max
            )
            if not wrong or boot_ns() / 1e9 > end_s or self.finished.wait(POLL_S):
                return books, wrong

    def _numbers(
        self,
        look: Look,
        books: audit.Audit,
        status: Mapping[str, Any],
        tallies: list[summary.TradeTally],
        quotes: summary.QuoteTally,
    ) -> dict[str, Any]:
        lost_quotes, in_flight, twice = summary.quotes_lost(quotes)
        lost_trades = sum(summary.trades_lost(tally) for tally in tallies)
        return {
            "ticks": look.ticks,
            "lost_ticks": lost_trades + lost_quotes,
            "lost_trades": lost_trades,
            "lost_quotes": lost_quotes,
            "conflated": quotes.conflated,
            "refused": summary.refusals(look.node),
            "in_flight": in_flight,
            "counted_twice": twice,
            "quotes": asdict(quotes),
            "skipped": sum(tally.skipped for tally in tallies),
            "signals": look.count("brain.signals"),
            "orders": books.orders,
            "entries": books.entries,
            "entries_doubled": books.doubled,
            "fills": len(books.fills),
            "stops_placed": books.stops_placed,
            "round_trips": books.round_trips,
            "positions": len(books.positions),
            "positions_max_seen": books.positions_max,
            "naked_ms_max": books.naked_ms_max,
            "equity": look.portfolio.get("equity"),
            "balance": str(books.balance),
            "first_tick_s": round(((self._first_ns or 0) - self.started_ns) / 1e9, 2),
            "first_fill_s": None if self._first_fill_s is None else round(self._first_fill_s, 1),
            "world": status["world"],
            "seed": status.get("seed"),  # of a made market
            "edge": status.get("edge"),
        }

    def finish(self, code: int) -> int:
        """After the drain, in the main thread: the last words and the exit code."""
        if self._live:
            print()
        for fault in self.faults[:FAULTS_TOLD_MAX]:
            print(fault, file=sys.stderr)
        if self.result is not None:
            edge = self.result["edge"]
            if edge is not None:
                told = f"the market's known edge was {float(edge):g}; 0 is a driftless walk"
                print(told, file=sys.stderr)
            print(summary.dumps(self.result), flush=True)
        self._r.close()
        return code or self.code
