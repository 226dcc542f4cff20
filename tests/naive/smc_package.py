"""The oracle mode: smart-money structure by the definitions of the smartmoneyconcepts package.

One candle at a time, looking back only; after each candle `swings()`, `gaps()`, `breaks()`,
`blocks()` and `pools()` are what the package says of all candles so far, without the swings that it
invents at both ends. What a candle made known is kept in a log that only grows; what the package
erases in hindsight is filtered when asked. Gap geometry and touch are the live engine's own code.

The package's traps that are kept here, because equality is the point: windows of 2L of which L lie
in the future (known L candles late); levels rounded to float32; a break dropped when a later level
broke no later; blocks of swings that were superseded dropped; breakers that never reset.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np

from brain import smc

gap_side = smc.gap_side.py_func
reached = smc.reached.py_func
Row = tuple[float, ...]


def f32(x: float) -> float:
    return float(np.float32(x))


@dataclass(slots=True)
class Blocks:
    """Order blocks of one side: settled up to a candle, the rest is replayed when asked."""

    side: int  # +1: swing highs broken upwards
    settled: int = -1
    active: list[int] = field(default_factory=list)
    breaker: set[int] = field(default_factory=set)
    crossed: set[int] = field(default_factory=set)
    table: dict[int, list[float]] = field(default_factory=dict)

    def copy(self) -> Blocks:
        table = {key: list(row) for key, row in self.table.items()}
        return Blocks(
            self.side, self.settled, list(self.active), set(self.breaker), set(self.crossed), table
        )

    def step(self, i: int, book: Book, swing: int | None) -> None:
        """Candle i, while `swing` is the last swing of this side before it."""
        high, low, close, v = book.high, book.low, book.close, book.volume
        for at in list(self.active):
            top, bottom = self.table[at][1:3] if at in self.table else (0.0, 0.0)
            if at in self.breaker:
                if high[i] > top if self.side > 0 else low[i] < bottom:
                    self.table.pop(at, None)
                    self.active.remove(at)
            elif low[i] < bottom if self.side > 0 else high[i] > top:
                self.breaker.add(at)
                if at in self.table:
                    self.table[at][4] = i - 1 if self.side > 0 else i
        if swing is None or swing in self.crossed:
            return
        level = high[swing] if self.side > 0 else low[swing]
        if not (close[i] > level if self.side > 0 else close[i] < level):
            return
        self.crossed.add(swing)
        at = i - 1
        if i - swing > 1:  # the last of the most extreme candles between
            values = low[swing + 1 : i] if self.side > 0 else high[swing + 1 : i]
            best = min(values) if self.side > 0 else max(values)
            at = i - 1 - values[::-1].index(best)
            top, bottom = f32(high[at]), f32(low[at])
        elif self.side > 0:  # no candle between: the package turns this one over
            top, bottom = f32(low[at]), f32(high[at])
        else:
            top, bottom = f32(high[at]), f32(low[at])
        new, old = v[i] + v[i - 1], v[i - 2] if i >= 2 else 0.0
        least, most = sorted((np.float32(new), np.float32(old)))
        share = least / most * np.float32(100.0) if most else 100.0  # in float32, as it does
        before = self.table[at][4] if at in self.table else 0  # made twice: its end is not reset
        self.table[at] = [self.side, top, bottom, f32(new + old), before, float(share)]
        self.active.append(at)


@dataclass(slots=True)
class Book:
    """All candles so far and what they made known."""

    length: int  # the package's swing_length
    pip: float = 0.0  # of liquidity, fixed
    opens: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    close: list[float] = field(default_factory=list)
    volume: list[float] = field(default_factory=list)
    turns: list[tuple[int, int]] = field(default_factory=list)  # alternating (index, side)
    gap_log: list[list[float]] = field(default_factory=list)  # middle side top bottom touched
    joined: list[list[float]] = field(default_factory=list)
    break_log: dict[int, list[float]] = field(default_factory=dict)  # swing: code side level broken
    swept: dict[int, int] = field(default_factory=dict)  # swing: first candle a pip beyond it
    unbroken: list[int] = field(default_factory=list)
    unswept: list[tuple[int, int]] = field(default_factory=list)
    untouched: list[list[float]] = field(default_factory=list)
    sides: tuple[Blocks, Blocks] = field(default_factory=lambda: (Blocks(1), Blocks(-1)))

    def push(self, o: float, h: float, low: float, c: float, v: float) -> None:
        """One closed candle."""
        for series, value in zip(
            (self.opens, self.high, self.low, self.close, self.volume), (o, h, low, c, v),
            strict=True,
        ):  # fmt: skip
            series.append(value)
        t = len(self.close) - 1
        self._touch(t)
        self._gap(t)
        for index in self.unbroken:
            row = self.break_log[index]
            row[3] = t if t >= index + 2 and self._beyond(t, row) else 0
        self.unbroken = [index for index in self.unbroken if not self.break_log[index][3]]
        for index, side in self.unswept:
            if self._a_pip_beyond(index, side, t):
                self.swept[index] = t
        self.unswept = [turn for turn in self.unswept if turn[0] not in self.swept]
        self._turn(t)
        for blocks in self.sides:
            self._settle(blocks, t)

    # --- swings

    def _turn(self, t: int) -> None:
        """A raw swing L candles ago: of two of one side in a row the more extreme stays."""
        n, i = self.length, t - self.length
        if i < 2 * n - 1:
            return
        if self.high[i] == max(self.high[i - n + 1 : t + 1]):
            side = 1
        elif self.low[i] == min(self.low[i - n + 1 : t + 1]):
            side = -1
        else:
            return
        if self.turns and self.turns[-1][1] == side:
            last = self.turns[-1][0]
            if not (self.high[i] > self.high[last] if side > 0 else self.low[i] < self.low[last]):
                return
            self.swept.pop(last, None)
            self.unswept = [turn for turn in self.unswept if turn[0] != last]
            self.turns.pop()
        self.turns.append((i, side))
        for j in range(i + 1, t + 1):
            if i not in self.swept and self._a_pip_beyond(i, side, j):
                self.swept[i] = j
        if i not in self.swept:
            self.unswept.append((i, side))
        self._pattern(t)

    def level(self, turn: tuple[int, int]) -> float:
        return self.high[turn[0]] if turn[1] > 0 else self.low[turn[0]]

    def swings(self) -> dict[int, Row]:
        """index: (side, level)."""
        return {i: (side, self.level((i, side))) for i, side in self.turns}

    # --- breaks

    def _beyond(self, j: int, row: list[float]) -> bool:
        return self.close[j] > row[2] if row[1] > 0 else self.close[j] < row[2]

    def _pattern(self, t: int) -> None:
        """The last four swings make a break of the second one possible."""
        if len(self.turns) < 4:
            return
        side = self.turns[-1][1]
        a, b, c, d = (side * self.level(turn) for turn in self.turns[-4:])
        code = 0 if a < c < b < d else 1 if c < a < b < d else -1
        index = self.turns[-3][0]
        if code < 0 or index in self.break_log:
            return
        row = [code, side, f32(self.level(self.turns[-3])), 0]
        for j in range(index + 2, t + 1):
            if self._beyond(j, row):
                row[3] = j
                break
        self.break_log[index] = row
        if not row[3]:
            self.unbroken.append(index)

    def breaks(self) -> dict[int, Row]:
        """index: (0 BOS or 1 CHoCH, side, level, broken); those broken before any later one."""
        out, least = {}, len(self.close)
        for index in sorted(self.break_log, reverse=True):
            row = self.break_log[index]
            if row[3] and row[3] < least:
                least = int(row[3])
                out[index] = tuple(row)
        return out

    # --- gaps

    def _gap(self, t: int) -> None:
        """Three candles, the outer two apart, the middle one of the same colour."""
        if t < 2:
            return
        side = gap_side(self.high[t - 2], self.low[t - 2], self.high[t], self.low[t])
        if side == 0 or not (self.close[t - 1] - self.opens[t - 1]) * side > 0.0:
            return
        top, bottom = (
            (self.low[t], self.high[t - 2]) if side > 0 else (self.low[t - 2], self.high[t])
        )
        self.gap_log.append([t - 1, side, top, bottom, 0])
        self.untouched.append(self.gap_log[-1])
        if self.joined and self.joined[-1][0] == t - 2 and self.joined[-1][1] == side:
            last = self.joined.pop()
            top, bottom = max(top, last[2]), min(bottom, last[3])
        self.joined.append([t - 1, side, top, bottom, 0])
        self.untouched.append(self.joined[-1])

    def _touch(self, t: int) -> None:
        for row in self.untouched:
            side = int(row[1])
            if reached(side, row[2] if side > 0 else row[3], self.high[t], self.low[t]):
                row[4] = t
        self.untouched = [row for row in self.untouched if not row[4]]

    def gaps(self, join: bool = False) -> dict[int, Row]:
        """middle: (side, top, bottom, mitigated)."""
        return {int(row[0]): tuple(row[1:]) for row in (self.joined if join else self.gap_log)}

    # --- blocks

    def _of_side(self, side: int) -> list[int]:
        return [i for i, s in self.turns if s == side]

    def _run(self, blocks: Blocks, until: int) -> None:
        known = self._of_side(blocks.side)
        for i in range(blocks.settled + 1, until + 1):
            at = bisect_left(known, i)
            blocks.step(i, self, known[at - 1] if at else None)
        blocks.settled = max(blocks.settled, until)

    def _settle(self, blocks: Blocks, t: int) -> None:
        """No swing to come lies before t + 2 - L, and only the last one may still be replaced."""
        limit = t + 1 - self.length
        if self.turns and self.turns[-1][1] == blocks.side:
            limit = min(limit, self.turns[-1][0])
        self._run(blocks, limit)

    def blocks(self, side: int) -> dict[int, Row]:
        """index: (side, top, bottom, volume, mitigated, percentage)."""
        made = self.sides[0 if side > 0 else 1].copy()
        self._run(made, len(self.close) - 1)
        return {at: tuple(row) for at, row in made.table.items()}

    # --- liquidity

    def _a_pip_beyond(self, index: int, side: int, j: int) -> bool:
        if side > 0:
            return self.high[j] >= self.high[index] + self.pip
        return self.low[j] <= self.low[index] - self.pip

    def pools(self) -> dict[int, Row]:
        """index: (side, level, end, swept): at least two swings within a pip, not yet swept."""
        out = {}
        for side in (1, -1):
            mine, used = self._of_side(side), set()
            for k, i in enumerate(mine):
                if i in used:
                    continue
                swept, members = self.swept.get(i, 0), [i]
                h = self.level((i, side))
                for j in mine[k + 1 :]:
                    if swept and j >= swept:
                        break
                    if j not in used and h - self.pip <= self.level((j, side)) <= h + self.pip:
                        members.append(j)
                        used.add(j)
                if len(members) > 1:
                    mean = sum(self.level((j, side)) for j in members) / len(members)
                    out[i] = (side, f32(mean), members[-1], swept)
        return out
