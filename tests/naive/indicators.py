"""Slow twin of brain/indicators.py: TA-Lib's conventions in batch form over plain lists.

Every function takes a whole series and gives a list of the same length, NaN where the answer is
not known yet. Seeds: EMA by the mean of its first N, Wilder averages by the mean of the first N
changes, ADX's sums by N - 1 values, MACD's fast average late so that both start together.
"""

from __future__ import annotations

from math import nan, sqrt


def ema(values: list[float], n: int) -> list[float]:
    out = [nan] * len(values)
    if len(values) < n:
        return out
    out[n - 1] = sum(values[:n]) / n
    for i in range(n, len(values)):
        out[i] = out[i - 1] + 2.0 / (n + 1) * (values[i] - out[i - 1])
    return out


def rsi(closes: list[float], n: int) -> list[float]:
    out = [nan] * len(closes)
    changes = [closes[i] - closes[i - 1] for i in range(1, len(closes))]
    if len(changes) < n:
        return out
    gain = sum(max(x, 0.0) for x in changes[:n]) / n
    loss = sum(max(-x, 0.0) for x in changes[:n]) / n
    out[n] = 100.0 * gain / (gain + loss) if gain + loss > 0 else 0.0
    for i in range(n, len(changes)):
        gain = (gain * (n - 1) + max(changes[i], 0.0)) / n
        loss = (loss * (n - 1) + max(-changes[i], 0.0)) / n
        out[i + 1] = 100.0 * gain / (gain + loss) if gain + loss > 0 else 0.0
    return out


def true_range(highs: list[float], lows: list[float], closes: list[float]) -> list[float]:
    return [nan] + [
        max(
            highs[i] - lows[i],
            abs(highs[i] - closes[i - 1]),
            abs(lows[i] - closes[i - 1]),
        )
        for i in range(1, len(highs))
    ]


def atr(highs: list[float], lows: list[float], closes: list[float], n: int) -> list[float]:
    out = [nan] * len(highs)
    ranges = true_range(highs, lows, closes)
    if len(highs) <= n:
        return out
    out[n] = sum(ranges[1 : n + 1]) / n
    for i in range(n + 1, len(highs)):
        out[i] = (out[i - 1] * (n - 1) + ranges[i]) / n
    return out


def adx(highs: list[float], lows: list[float], closes: list[float], n: int) -> list[float]:
    size = len(highs)
    ranges = true_range(highs, lows, closes)
    plus, minus = [0.0] * size, [0.0] * size
    for i in range(1, size):
        up, down = highs[i] - highs[i - 1], lows[i - 1] - lows[i]
        plus[i] = up if up > down and up > 0 else 0.0
        minus[i] = down if down > up and down > 0 else 0.0
    out, dx = [nan] * size, [nan] * size
    if size < 2 * n:
        return out
    p, m, r = sum(plus[1:n]), sum(minus[1:n]), sum(ranges[1:n])
    for i in range(n, size):
        p, m, r = p - p / n + plus[i], m - m / n + minus[i], r - r / n + ranges[i]
        di_plus = 100.0 * p / r if r > 0 else 0.0
        di_minus = 100.0 * m / r if r > 0 else 0.0
        total = di_plus + di_minus
        dx[i] = 100.0 * abs(di_plus - di_minus) / total if total > 0 else 0.0
    out[2 * n - 1] = sum(dx[n : 2 * n]) / n
    for i in range(2 * n, size):
        out[i] = (out[i - 1] * (n - 1) + dx[i]) / n
    return out


def macd(closes: list[float]) -> tuple[list[float], list[float]]:
    """The line and its signal: 12, 26, 9; both known from index 33 on."""
    size, slow_n, fast_n, signal_n = len(closes), 26, 12, 9
    line, signal = [nan] * size, [nan] * size
    slow = ema(closes, slow_n)
    fast = [nan] * (slow_n - fast_n) + ema(closes[slow_n - fast_n :], fast_n)
    raw = [f - s for f, s in zip(fast, slow, strict=True)]
    tail = ema(raw[slow_n - 1 :], signal_n)
    for i, value in enumerate(tail):
        if value == value:
            line[slow_n - 1 + i], signal[slow_n - 1 + i] = raw[slow_n - 1 + i], value
    return line, signal


def mean(values: list[float], n: int) -> list[float]:
    return [nan if i < n - 1 else sum(values[i - n + 1 : i + 1]) / n for i in range(len(values))]


def bollinger(closes: list[float], n: int) -> tuple[list[float], list[float]]:
    """The middle and the population deviation."""
    middle = mean(closes, n)
    deviation = [nan] * len(closes)
    for i in range(n - 1, len(closes)):
        window = closes[i - n + 1 : i + 1]
        deviation[i] = sqrt(sum((x - middle[i]) ** 2 for x in window) / n)
    return middle, deviation


def session_vwap(
    opens_ms: list[int],
    highs: list[float],
    lows: list[float],
    closes: list[float],
    volumes: list[float],
) -> list[float]:
    """(H + L + C) / 3 weighted by volume since the UTC day began; the close while none traded."""
    out, day, value, volume = [], -1, 0.0, 0.0
    for i, at in enumerate(opens_ms):
        if at // 86_400_000 != day:
            day, value, volume = at // 86_400_000, 0.0, 0.0
        value += (highs[i] + lows[i] + closes[i]) / 3.0 * volumes[i]
        volume += volumes[i]
        out.append(value / volume if volume > 0 else closes[i])
    return out


def taker_imbalance(volumes: list[float], takers: list[float], n: int) -> list[float]:
    """(bought - sold) / traded by takers over the last n bars; 0 when nothing traded."""
    out = [nan] * len(volumes)
    for i in range(n - 1, len(volumes)):
        v, t = sum(volumes[i - n + 1 : i + 1]), sum(takers[i - n + 1 : i + 1])
        out[i] = (2.0 * t - v) / v if v > 0 else 0.0
    return out
