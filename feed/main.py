"""The feed process: exchange sockets in, one ring out.

    python -m feed.main --ring PATH

Starts once the brain has said ready, follows the node's symbol table, answers the brain's snapshot
requests and publishes market time every 100 ms: the newest exchange time seen on every /market
link, never extrapolated. Killed at any instruction, it goes on at the ring's head: symbols whose
last id is known are mended id by id, the others start anew.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

import config
import process
from clock import boot_ns
from feed import binance, decode, heal, lane
from feed.binance import NS_PER_MS
from feed.history import History, reset_records
from feed.lane import HELD, LAST_ID, LAST_NS, LIVE, STATUS, UNSURE
from feed.link import Link
from feed.rest import Rest, RestError
from records import CLOCK, DROP, NO_SYMBOL, RECORD, TRADE
from ring import (
    BRAIN_READY,
    CHANNELS,
    DRAINING,
    FEED_BEAT,
    FEED_BOOT,
    FEED_PID,
    GENERATION,
    HEAD,
    SNAPSHOT_DONE,
    SNAPSHOT_SEQ,
    SNAPSHOT_SYMBOL,
    TABLE_VERSION,
    WANTED,
    Ring,
    RingError,
    attach,
)

log = logging.getLogger("feed")

TICK_S: Final = 0.1  # CLOCK, heartbeat, table
WATCH_TICKS: Final = 10  # silence is looked for once a second
BRAIN_WAIT_S: Final = 30.0
TIME_BOUND_MS: Final = 60_000  # real ms that an exchange time may lie from the newest seen
UNSURE_NS: Final = 2_000_000_000  # after a reconnect a symbol has so long to show by itself
SILENT_NS: Final = 10_000_000_000
SILENT_QUOTE_NS: Final = 60_000_000_000  # a quiet symbol's best quote may stand still
_TRADE_AGE, _QUOTE_AGE, _MARK_AGE = (CHANNELS.index(c) for c in ("trade", "quote", "mark"))


class Feed:
    """One lane's feed. `run` returns when it was asked to stop."""

    def __init__(self, ring: Ring, settings: config.Config, rest: Rest) -> None:
        self._ring, self._settings, self._rest = ring, settings, rest
        self._lane = lane.make_lane(ring)
        self._restarted = int(ring.words[HEAD]) > 0
        self._history = History(
            self._lane, rest, settings.heal_trades_max, self._is_live, self._on_whole
        )
        self._rows: dict[int, str] = {}
        self._links: dict[tuple[int, str], Link] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._anchoring: asyncio.Task[None] | None = None
        self._to_warm: set[int] = set()  # announced, waiting for the ack of their streams
        self._live_since: dict[int, int] = {}  # row -> boot ns of the ack that made it live
        self._lost_before: dict[int, tuple[int, int]] = {}  # row -> market ms of trades lost
        self._version = -1
        self._snapshot_seq = int(ring.words[SNAPSHOT_DONE])
        self._snapshot_rows: set[int] = set()
        self._asked: dict[tuple[int, int], int] = {}  # (row, channel) -> boot ns of resubscribe
        self._clock = np.zeros(1, RECORD)
        self._clock["kind"], self._clock["symbol"] = CLOCK, NO_SYMBOL

    async def run(self) -> None:
        """Serve until SIGTERM."""
        words = self._ring.words
        words[FEED_BOOT], words[FEED_PID] = int(process.BOOT_ID, 16), os.getpid()
        self._begin_anchor()
        while not process.stop and self._anchoring is not None and not self._anchoring.done():
            self._beat(boot_ns())
            await asyncio.sleep(TICK_S)
        if self._restarted:
            self._lost_before = remember(self._lane)
        ticks = 0
        try:
            while not process.stop:
                self._tick(boot_ns())
                if ticks % WATCH_TICKS == 0:
                    self._watch(boot_ns())
                ticks += 1
                await asyncio.sleep(TICK_S)
        finally:
            tasks = [*self._tasks, *([self._anchoring] if self._anchoring else [])]
            for task in tasks:
                task.cancel()
            await self._history.close()
            await asyncio.gather(*tasks, return_exceptions=True)
            lane.flush(self._lane, boot_ns())

    async def _anchor(self) -> None:
        """Set the time that bounds every message: the exchange's own, asked for anew after each
        (re)connection, so that neither a jump of its clock nor a bad message can shut us out.
        """
        while True:
            try:
                server_ms, speed = binance.parse_time(await self._rest.get(binance.time_path()))
            except (RestError, binance.BadAnswer) as error:
                log.warning("no server time yet reason=%s", error)
                await asyncio.sleep(TICK_S)
                continue
            control = self._lane.control
            control[lane.NEWEST_MS] = server_ms
            control[lane.BOUND_MS] = int(TIME_BOUND_MS * max(1.0, speed))
            return

    def _begin_anchor(self) -> None:
        if self._anchoring is None or self._anchoring.done():
            self._anchoring = asyncio.get_running_loop().create_task(self._anchor())

    def _beat(self, now_ns: int) -> None:
        process.beat()
        self._ring.words[FEED_BEAT] = now_ns

    def _tick(self, now_ns: int) -> None:
        self._beat(now_ns)
        for task in self._tasks:
            if task.done():
                task.result()  # a link never ends by itself: our own mistake, die of it
        lane.flush(self._lane, now_ns)
        market_ms = self._market_ms()
        if market_ms > 0:
            self._clock["exch_ns"], self._clock["recv_ns"] = market_ms * NS_PER_MS, now_ns
            lane.emit(self._lane, self._clock, 0)  # without room the next one will do
            self._history.tick(market_ms)
        self._read_reports()
        version = int(self._ring.words[TABLE_VERSION])
        if version != self._version:
            self._version = version
            self._follow_table(now_ns)
        self._serve_snapshots(now_ns)

    def _market_ms(self) -> int:
        """Newest exchange time that every /market link has reached; 0 before the first."""
        times = [
            int(link.state[decode.NEWEST_HERE_MS])
            for (_, route), link in self._links.items()
            if route == binance.MARKET and link.wanted
        ]
        return min(times, default=0)

    def _read_reports(self) -> None:
        """Holes and losses that the kernel found since the last tick."""
        symbols = self._lane.symbols
        if self._lane.control[lane.REPORTS] == 0:
            return
        self._lane.control[lane.REPORTS] = 0
        for row in np.flatnonzero(symbols[:, lane.REPORT]).tolist():
            what = int(symbols[row, lane.REPORT])
            symbols[row, lane.REPORT] = 0
            if what & lane.LOST:
                from_ns, to_ns = symbols[row, [lane.LOST_FROM_NS, lane.LOST_TO_NS]].tolist()
                symbols[row, [lane.LOST_FROM_NS, lane.LOST_TO_NS]] = 0
                self._history.lost(row, from_ns // NS_PER_MS, to_ns // NS_PER_MS)
            if what & lane.HOLE and row not in self._to_warm:
                self._history.mend(row)

    # --- the symbol table ---

    def _follow_table(self, now_ns: int) -> None:
        """Announce what is wanted, drop what drains."""
        fresh: dict[int, str] = {}
        for row, entry in enumerate(self._ring.symbols):
            name = bytes(entry["name"]).rstrip(b"\0").decode()
            state = int(entry["state"])
            known = self._rows.get(row)
            if known is not None and (state != WANTED or known != name):
                self._drop(row, now_ns)
            elif state == DRAINING and known is None and not self._ring.dropped[row]:
                self._say_drop(row, now_ns)
            if state == WANTED and row not in self._rows:
                self._announce(row, name, now_ns)
                fresh[row] = name
        for block in sorted({row // binance.SYMBOLS_PER_CONNECTION for row in fresh}):
            rows = {r: n for r, n in fresh.items() if r // binance.SYMBOLS_PER_CONNECTION == block}
            for route in (binance.MARKET, binance.PUBLIC):
                self._link(block, route).subscribe(rows)

    def _announce(self, row: int, name: str, now_ns: int) -> None:
        """A symbol that is new, or one that the ring already knows from before a restart."""
        self._rows[row] = self._history.names[row] = name
        last_id = int(self._ring.last_ids[row])
        last_ns = int(self._lane.symbols[row, LAST_NS])
        self._ring.dropped[row] = 0
        if self._restarted and last_id > 0:
            lane.set_symbol(self._lane, row, name, UNSURE, last_id)
            self._lane.symbols[row, LAST_NS] = last_ns
            self._history.say(heal.gap(row, last_id + 1, 0, 0, 0, now_ns))
            if row in self._lost_before:
                self._history.lost(row, *self._lost_before[row])
            return
        self._begin(row, name, self._restarted, now_ns)

    def _begin(self, row: int, name: str, drop: bool, now_ns: int) -> None:
        """Start a symbol from nothing: SYMBOL now, its history once its streams are live."""
        lane.set_symbol(self._lane, row, name, HELD, 0)
        self._ring.last_ids[row] = 0
        self._history.say(reset_records(row, name, drop, now_ns))
        self._to_warm.add(row)

    def _drop(self, row: int, now_ns: int) -> None:
        del self._rows[row]
        for route in (binance.MARKET, binance.PUBLIC):
            self._link(row // binance.SYMBOLS_PER_CONNECTION, route).unsubscribe(row)
        self._history.forget(row)
        self._history.names.pop(row, None)
        self._to_warm.discard(row)
        self._live_since.pop(row, None)
        self._snapshot_rows.discard(row)
        lane.clear_symbol(self._lane, row)
        self._say_drop(row, now_ns)

    def _say_drop(self, row: int, now_ns: int) -> None:
        """DROP, at once: the node waits for its sequence. A full ring makes it wait for a tick."""
        if lane.emit(self._lane, heal.marker(DROP, row, now_ns), 0) == 0:
            self._version = -1
            return
        self._ring.last_ids[row] = 0
        self._ring.dropped[row] = int(self._lane.cursor[0])

    def _link(self, block: int, route: str) -> Link:
        key = (block, route)
        if key not in self._links:
            url = binance.stream_url(self._settings.ws_url, route)
            link = Link(url, route, self._lane, self._ring.feed_hist, self._on_down, self._on_acked)
            self._links[key] = link
            self._tasks.append(asyncio.get_running_loop().create_task(link.run()))
        return self._links[key]

    # --- told by links and history ---

    def _on_acked(self, link: Link, rows: tuple[int, ...]) -> None:
        """Streams were acked: from here on nothing that happens can be missed unseen."""
        if link.route != binance.MARKET:
            return
        self._begin_anchor()
        now_ns = boot_ns()
        for row in rows:
            self._live_since[row] = now_ns
            if row in self._to_warm:
                self._to_warm.discard(row)
                self._history.warm_up(row)
            elif row in self._rows and int(self._lane.symbols[row, STATUS]) == HELD:
                self._history.mend(row)

    def _on_down(self, link: Link) -> None:
        """A connection is gone: its symbols are unsure until the next trade or REST tells."""
        symbols = self._lane.symbols
        for row in link.wanted:
            self._live_since.pop(row, None)
            if link.route == binance.PUBLIC:
                symbols[row, lane.UPDATE_ID] = 0  # a restarted matching engine counts anew
            elif symbols[row, STATUS] == LIVE:
                symbols[row, STATUS] = UNSURE
                first = int(symbols[row, LAST_ID]) + 1
                self._history.say(heal.gap(row, first, 0, 0, 0, boot_ns()))

    def _is_live(self, row: int) -> bool:
        return row in self._live_since

    def _on_whole(self, row: int) -> None:
        self._snapshot_rows.discard(row)
        if not self._snapshot_rows:
            self._ring.words[SNAPSHOT_DONE] = self._snapshot_seq

    # --- once a tick, once a second ---

    def _serve_snapshots(self, now_ns: int) -> None:
        """The brain asks for one symbol, or all, from the beginning."""
        sequence = int(self._ring.words[SNAPSHOT_SEQ])
        if sequence == self._snapshot_seq:
            return
        self._snapshot_seq = sequence
        asked = int(self._ring.words[SNAPSHOT_SYMBOL])
        for row in [r for r in self._rows if asked in (-1, r)]:
            self._history.forget(row)
            self._begin(row, self._rows[row], True, now_ns)
            self._snapshot_rows.add(row)
            if row in self._live_since:
                self._to_warm.discard(row)
                self._history.warm_up(row)
        if not self._snapshot_rows:
            self._ring.words[SNAPSHOT_DONE] = sequence

    def _watch(self, now_ns: int) -> None:
        """Silence: of a link, of a symbol's channel, of a symbol that should have shown."""
        for (_, route), link in self._links.items():
            if link.silent(now_ns):
                link.reconnect("silent")
            elif link.up:
                self._watch_channels(link, route, now_ns)
        status = self._lane.symbols[:, STATUS]
        for row, since_ns in self._live_since.items():
            waited = now_ns - since_ns > UNSURE_NS
            if waited and status[row] == UNSURE and not self._history.busy(row):
                self._history.mend(row)

    def _watch_channels(self, link: Link, route: str, now_ns: int) -> None:
        """Subscribe a silent symbol again; reconnect when that did not help."""
        channel = _MARK_AGE if route == binance.MARKET else _QUOTE_AGE
        bound_ns = SILENT_NS if route == binance.MARKET else SILENT_QUOTE_NS
        again: dict[int, str] = {}
        for row, name in link.wanted.items():
            heard_ns = int(self._lane.ages[row, channel])
            heard_ns = max(heard_ns, self._live_since.get(row, now_ns))
            key = (row, channel)
            if now_ns - heard_ns <= bound_ns:
                self._asked.pop(key, None)
            elif key not in self._asked:
                self._asked[key] = now_ns
                again[row] = name
            elif now_ns - self._asked[key] > bound_ns and channel == _MARK_AGE:
                self._asked.pop(key)
                link.reconnect(f"{name} stays silent")
                return
        if again:
            link.resubscribe(again)


def remember(lane_: lane.Lane) -> dict[int, tuple[int, int]]:
    """What a restarted feed finds in the ring: each row's last trade time, and what was lost.

    Fills LAST_NS and gives the spans whose bars may still lack their correction. The oldest
    quarter is left out: a dead writer may have begun to write over it.
    """
    slots = len(lane_.slots)
    head = int(lane_.cursor[0])
    sequences = np.arange(max(0, head - slots * 3 // 4), head)
    found = lane_.slots[sequences & (slots - 1)]
    trades = found[found["kind"] == TRADE]
    lane_.symbols[trades["symbol"], LAST_NS] = trades["exch_ns"]
    return heal.lost_spans(found)


async def wait_for_brain(ring: Ring) -> bool:
    """Whether the brain said ready for this generation of the ring, within BRAIN_WAIT_S."""
    for _ in range(int(BRAIN_WAIT_S / TICK_S)):
        if process.stop or ring.words[BRAIN_READY] == ring.words[GENERATION]:
            return True
        process.beat()
        await asyncio.sleep(TICK_S)
    return False


async def serve(ring: Ring, settings: config.Config) -> None:
    """Everything between start and stop."""
    if not await wait_for_brain(ring):
        process.fail(f"The brain was not ready within {BRAIN_WAIT_S:.0f} s: see its log.")
    async with Rest(settings.rest_url, ring.feed_stats) as rest:
        await Feed(ring, settings, rest).run()


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit code 0 after SIGTERM."""
    parser = argparse.ArgumentParser(prog="feed.main", description="Exchange bytes to ring.")
    parser.add_argument("--ring", type=Path, required=True, help="ring file made by the node")
    options = parser.parse_args(argv)
    try:
        settings = config.load()
        ring = attach(options.ring)
    except (config.ConfigError, RingError) as error:
        process.fail(str(error), 2)
    process.setup_logging("feed", settings.log_level, settings.secrets)
    process.install_signals()
    uvloop.run(serve(ring, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
