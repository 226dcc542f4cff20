"""The feed process: exchange sockets in, one ring out.

    python -m feed.main --ring PATH

Starts once the brain has said ready, follows the node's symbol table, answers the brain's snapshot
requests and publishes market time every 100 ms: what every /market link that is up has reached,
never extrapolated; symbols of one that is down are degraded, no bar of theirs closes by it.
Killed at any instruction, it goes on at the ring's head: symbols whose last id is known are mended
id by id, the others start anew.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

import config
import process
from clock import boot_ns
from feed import binance, heal, lane, silence
from feed.address import Address
from feed.binance import NS_PER_MS
from feed.history import History, reset_records
from feed.lane import HELD, LAST_ID, LAST_NS, LIVE, STATUS, UNSURE
from feed.link import Link
from feed.rest import Rest, RestError
from feed.session import Pace
from records import CLOCK, DROP, NO_SYMBOL, RECORD, TRADE
from ring import (
    BRAIN_READY,
    CHANNELS,
    DRAINING,
    FEED,
    FEED_BEAT,
    FEED_BOOT,
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
ANCHOR_S, ANCHOR_S_MAX = 0.1, 5.0  # between questions for the server's time, doubled


class Feed:
    """One lane's feed. `run` returns when it was asked to stop."""

    def __init__(
        self,
        ring: Ring,
        settings: config.Config,
        rest: Rest,
        address: Address,
        pace: Pace | None = None,
    ) -> None:
        self._ring, self._settings, self._rest, self._address = ring, settings, rest, address
        self._pace = pace or Pace(replace_s=settings.replace_s)
        self._lane = lane.make_lane(ring)
        self._restarted = int(ring.words[HEAD]) > 0
        self._generation = int(ring.words[GENERATION])  # of the node that we belong to
        self._history = History(
            self._lane, rest, settings.heal_trades_max, self._is_live, self._on_whole
        )
        self._rows: dict[int, str] = {}
        self._links: dict[tuple[int, str], Link] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._anchoring: asyncio.Task[None] | None = None
        self._to_warm: set[int] = set()  # announced, waiting for the ack of their streams
        self._silence = silence.Silence()
        self._looks: set[asyncio.Task[None]] = set()
        self._clock_ms = 0  # market time never goes back, whichever link tells it
        self._version = -1
        self._snapshot_seq = int(ring.words[SNAPSHOT_DONE])
        self._snapshot_rows: set[int] = set()
        self._clock = np.zeros(1, RECORD)
        self._clock["kind"], self._clock["symbol"] = CLOCK, NO_SYMBOL

    async def run(self) -> None:
        """Serve until SIGTERM."""
        words = self._ring.words
        words[FEED_BOOT] = int(process.BOOT_ID, 16)
        self._begin_anchor()
        while not process.stop and self._anchoring is not None and not self._anchoring.done():
            self._beat(boot_ns())
            await asyncio.sleep(TICK_S)
        if self._restarted:
            remember(self._lane)
        ticks = 0
        try:
            while not process.stop and words[GENERATION] == self._generation:
                self._tick(boot_ns())
                if ticks % WATCH_TICKS == 0:
                    self._watch(boot_ns())
                ticks += 1
                await asyncio.sleep(TICK_S)
        finally:
            tasks = [*self._tasks, *self._looks, *([self._anchoring] if self._anchoring else [])]
            for task in tasks:
                task.cancel()
            await self._history.close()
            await asyncio.gather(*tasks, return_exceptions=True)
            lane.flush(self._lane, boot_ns())

    async def _anchor(self) -> None:
        """Set the time that bounds every message: the exchange's own, asked for anew after each
        (re)connection, so that neither a jump of its clock nor a bad message can shut us out.
        """
        wait_s = ANCHOR_S
        while True:
            try:
                server_ms, speed = binance.parse_time(await self._rest.get(binance.time_path()))
            except (RestError, binance.BadAnswer) as error:
                log.warning("no server time yet reason=%s", error)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, ANCHOR_S_MAX)
                continue
            control = self._lane.control
            control[lane.NEWEST_MS] = server_ms
            control[lane.BOUND_MS] = int(TIME_BOUND_MS * max(1.0, speed))
            self._address.speed = speed
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
        told = lane.flush(self._lane, now_ns)
        self._read_reports()
        self._address.market_ms = int(self._lane.control[lane.NEWEST_MS])
        self._clock_ms = max(self._clock_ms, self._market_ms())
        if self._clock_ms > 0 and told:  # time overtakes no GAP
            self._clock["exch_ns"], self._clock["recv_ns"] = self._clock_ms * NS_PER_MS, now_ns
            lane.emit(self._lane, self._clock, 0)  # without room the next one will do
        self._history.tick(self._clock_ms)
        version = int(self._ring.words[TABLE_VERSION])
        if version != self._version:
            self._version = version
            self._follow_table(now_ns)
        self._serve_snapshots(now_ns)

    def _market_ms(self) -> int:
        """Newest exchange time that every /market link that is up has reached; 0 without one."""
        times = [
            link.newest_ms
            for (_, route), link in self._links.items()
            if route == binance.MARKET and link.wanted and link.newest_ms > 0
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
                self._history.lost(row, *lane.take_loss(self._lane, row))
                log.warning(
                    "hole lost symbol=%s last=%d reason=no room",
                    self._rows.get(row), int(symbols[row, LAST_ID]),
                )  # fmt: skip
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
            elif state == DRAINING and known is None and self._ring.dropped[row] <= entry["since"]:
                self._say_drop(row, now_ns)  # an answer to an older wish is none
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
            lane.doubt(self._lane, row, now_ns)
            lost_from_ms, lost_to_ms = self._ring.lost[row].tolist()
            if lost_to_ms:
                self._history.lost(row, lost_from_ms, lost_to_ms)
            return
        self._begin(row, name, self._restarted, now_ns)

    def _begin(self, row: int, name: str, drop: bool, now_ns: int) -> None:
        """Start a symbol from nothing: SYMBOL now, its history once its streams are live."""
        lane.set_symbol(self._lane, row, name, HELD, 0)
        self._ring.last_ids[row] = self._ring.lost[row] = 0
        self._history.say(row, reset_records(row, name, drop, now_ns))
        self._to_warm.add(row)

    def _drop(self, row: int, now_ns: int) -> None:
        del self._rows[row]
        for route in (binance.MARKET, binance.PUBLIC):
            self._link(row // binance.SYMBOLS_PER_CONNECTION, route).unsubscribe(row)
        self._history.forget(row)
        self._history.names.pop(row, None)
        self._to_warm.discard(row)
        self._silence.forget(row)
        self._on_whole(row)
        lane.clear_symbol(self._lane, row)
        self._say_drop(row, now_ns)

    def _say_drop(self, row: int, now_ns: int) -> None:
        """DROP, at once: the node waits for its sequence. A full ring makes it wait for a tick."""
        if self._history.outbox.emit(heal.marker(DROP, row, now_ns), 0) == 0:
            self._version = -1
            return
        self._ring.last_ids[row] = 0
        self._ring.dropped[row] = int(self._lane.cursor[0])

    def _link(self, block: int, route: str) -> Link:
        key = (block, route)
        if key not in self._links:
            url = binance.stream_url(self._settings.ws_url, route)
            link = Link(
                url, route, self._lane, self._ring.feed_hist, self._on_down, self._on_acked,
                self._address, self._pace,
            )  # fmt: skip
            self._links[key] = link
            self._tasks.append(asyncio.get_running_loop().create_task(link.run()))
        return self._links[key]

    # --- told by links and history ---

    def _on_acked(self, link: Link, rows: tuple[int, ...]) -> None:
        """Streams were acked: from here on nothing that happens can be missed unseen."""
        if link.route != binance.MARKET:
            return
        self._begin_anchor()
        for row in rows:
            if row in self._to_warm:
                self._to_warm.discard(row)
                self._history.warm_up(row)
            elif row in self._rows and int(self._lane.symbols[row, STATUS]) == HELD:
                self._history.mend(row)

    def _on_down(self, link: Link) -> None:
        """A connection is gone: its symbols are unsure until the next trade or REST tells."""
        symbols = self._lane.symbols
        for row in link.wanted:
            if link.route == binance.PUBLIC:
                symbols[row, lane.UPDATE_ID] = 0  # a restarted matching engine counts anew
            else:
                self._doubt(row)

    def _doubt(self, row: int) -> None:
        """The symbol's trades may have stopped unseen: degraded until somebody shows."""
        symbols = self._lane.symbols
        if symbols[row, STATUS] == LIVE:
            symbols[row, STATUS] = UNSURE
            lane.doubt(self._lane, row, boot_ns())

    def _is_live(self, row: int) -> bool:
        return self._acked_ns(row, binance.MARKET) > 0

    def _acked_ns(self, row: int, route: str) -> int:
        link = self._links.get((row // binance.SYMBOLS_PER_CONNECTION, route))
        return link.acked_ns(row) if link is not None else 0

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
            if self._is_live(row):
                self._to_warm.discard(row)
                self._history.warm_up(row)
        if not self._snapshot_rows:
            self._ring.words[SNAPSHOT_DONE] = sequence

    def _watch(self, now_ns: int) -> None:
        """Silence: of a connection, of a symbol's channel, of a symbol that should have shown."""
        for link in self._links.values():
            link.watch(now_ns)
        acked: dict[str, dict[int, int]] = {}
        for route in (binance.MARKET, binance.PUBLIC):
            live = ((row, self._acked_ns(row, route)) for row in self._rows)
            acked[route] = {row: acked_ns for row, acked_ns in live if acked_ns > 0}
        for action in self._silence.judge(
            now_ns, self._lane.ages, acked[binance.MARKET], acked[binance.PUBLIC]
        ):
            self._answer(action)
        status = self._lane.symbols[:, STATUS]
        for row, acked_ns in acked[binance.MARKET].items():
            waited = now_ns - acked_ns > UNSURE_NS
            stuck = status[row] == HELD and row not in self._to_warm
            if self._history.busy(row) or not (stuck or (waited and status[row] == UNSURE)):
                continue
            if int(self._lane.symbols[row, LAST_ID]) == 0:
                self._history.warm_up(row)  # it never came as far as its first trade
            else:
                self._history.mend(row)

    def _answer(self, action: silence.Action) -> None:
        """Do something about a silent channel."""
        row, name = action.row, self._rows[action.row]
        route = binance.PUBLIC if action.channel == silence.QUOTE else binance.MARKET
        link = self._link(row // binance.SYMBOLS_PER_CONNECTION, route)
        if action.what == silence.LOOK:
            if self._rest.left() > heal.CANDLES_RESERVE:
                look = asyncio.get_running_loop().create_task(self._look(row, name))
                self._looks.add(look)
                look.add_done_callback(self._looks.discard)
            return
        channel = CHANNELS[action.channel]
        log.warning("silent symbol=%s channel=%s answer=%s", name, channel, action.what)
        if action.channel == silence.TRADE:
            self._doubt(row)
        elif action.channel == silence.QUOTE:
            self._lane.symbols[row, lane.UPDATE_ID] = 0  # it may be ours that refuses them
        if action.what == silence.RESUBSCRIBE:
            link.resubscribe((row,))
        else:
            link.replace(f"{name} {channel} stays silent")

    async def _look(self, row: int, name: str) -> None:
        """Ask REST whether a symbol that says nothing trades."""
        try:
            newest_id = binance.parse_newest_trade(
                await self._rest.get(binance.ticker_path(name), binance.TICKER_WEIGHT)
            )
        except (RestError, binance.BadAnswer) as error:
            log.warning("cannot tell whether it trades symbol=%s reason=%s", name, error)
            return
        if self._rows.get(row) == name:
            self._silence.told(row, newest_id, boot_ns())


def remember(lane_: lane.Lane) -> None:
    """What a restarted feed finds in the ring: LAST_NS of each row that traded lately.

    The oldest quarter is left out: a dead writer may have begun to write over it. In a small ring
    it may have gone further than that; half a record must not stop us.
    """
    slots = len(lane_.slots)
    head = int(lane_.cursor[0])
    sequences = np.arange(max(0, head - slots * 3 // 4), head)
    found = lane_.slots[sequences & (slots - 1)]
    trades = found[(found["kind"] == TRADE) & (found["symbol"] < len(lane_.symbols))]
    lane_.symbols[trades["symbol"], LAST_NS] = trades["exch_ns"]


async def wait_for_brain(ring: Ring) -> bool:
    """Whether the brain said ready for this generation of the ring, within BRAIN_WAIT_S."""
    for _ in range(int(BRAIN_WAIT_S / TICK_S)):
        if process.stop or ring.words[BRAIN_READY] == ring.words[GENERATION]:
            return True
        process.beat()
        await asyncio.sleep(TICK_S)
    return False


async def serve(ring: Ring, settings: config.Config, generation: int) -> None:
    """Everything between start and stop, as long as the ring is of this generation."""
    if not await wait_for_brain(ring):
        process.fail(f"The brain was not ready within {BRAIN_WAIT_S:.0f} s: see its log.")
    if ring.words[GENERATION] != generation:
        return
    address = Address(lanes=settings.lanes)
    async with Rest(settings.rest_url, ring.feed_stats, address) as rest:
        await Feed(ring, settings, rest, address).run()


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit code 0 after SIGTERM."""
    parser = argparse.ArgumentParser(prog="feed.main", description="Exchange bytes to ring.")
    parser.add_argument("--ring", type=Path, required=True, help="ring file made by the node")
    parser.add_argument("--name", default="feed", help="this process in the log")
    options = parser.parse_args(argv)
    try:
        settings = config.load()
        ring = attach(options.ring)
    except (config.ConfigError, RingError) as error:
        process.fail(str(error), 2)
    process.setup_logging(options.name, settings.log_level, settings.secrets)
    process.install_signals()
    generation = int(ring.words[GENERATION])
    try:
        ring.claim(FEED)
    except RingError as error:
        process.fail(str(error))
    uvloop.run(serve(ring, settings, generation))
    if ring.words[GENERATION] != generation:
        process.fail(f"Another node has taken {ring.path} over: this feed leaves it to that one.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
