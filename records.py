"""The market's vocabulary: the 64-byte record that travels from feed to brain.

    byte   0        8        16    24   32   40   48   56       60     61      62     64
           exch_ns  recv_ns  id    a    b    c    d    symbol   kind   flags   aux
           i8       i8       i8    f8   f8   f8   f8   u4       u1     u1      u2

    TRADE       a price  b qty             id aggTrade id    flags: BUYER_MAKER, DEGRADED
    QUOTE       a bid  b bid qty  c ask  d ask qty           id update id
    MARK        a mark  b index  c funding rate  d next funding time (ms)
    BAR         exch_ns open time, a-d OHLC, aux timeframe in minutes
                flags: CLOSED, CORRECTION, EXCHANGE
    BAR_VOLUME  the next slot, same head: a volume  b quote volume  c taker-buy volume  d trades
    SYMBOL      symbol id and name (UTF-8 over a-d) announced; its BARs follow
    DROP        the symbol's state is to be reset
    CLOCK       exch_ns market time; symbol NO_SYMBOL
    GAP         id first missing trade, a how many are declared lost; b, c from and to (market ms).
                a = 0: from this id on something is missing, nothing is lost yet: degraded
                flags REFUSED: the firewall refused these, nothing is missing
    HEALED      the symbol is whole again; id its last trade, 0 after a correction

One record is one cache line. exch_ns is market time, recv_ns boot time, read once per receive
buffer. Ids of symbols are rows of one ring file and never leave it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

RECORD: Final = np.dtype(
    [
        ("exch_ns", "<i8"),
        ("recv_ns", "<i8"),
        ("id", "<i8"),
        ("a", "<f8"),
        ("b", "<f8"),
        ("c", "<f8"),
        ("d", "<f8"),
        ("symbol", "<u4"),
        ("kind", "u1"),
        ("flags", "u1"),
        ("aux", "<u2"),
    ]
)
assert RECORD.itemsize == 64

TRADE: Final = 1
QUOTE: Final = 2
MARK: Final = 3
BAR: Final = 4
BAR_VOLUME: Final = 5
SYMBOL: Final = 6
DROP: Final = 7
CLOCK: Final = 8
GAP: Final = 9
HEALED: Final = 10
KIND_NAMES: Final = (
    "none", "trade", "quote", "mark", "bar", "bar_volume", "symbol", "drop", "clock", "gap",
    "healed",
)  # fmt: skip
assert KIND_NAMES[HEALED] == "healed"

BUYER_MAKER: Final = 1  # TRADE: the buyer rested, so the aggressor sold
DEGRADED: Final = 2  # TRADE: a real print far from a robust reference, or a symbol being healed
CLOSED: Final = 1  # BAR: the bar is over
CORRECTION: Final = 2  # BAR: replaces what was published for this open time
EXCHANGE: Final = 4  # BAR: from a kline stream; to compare with, never history
REFUSED: Final = 1  # GAP: these ids are used up by prints that the firewall refused

NO_SYMBOL: Final = 0xFFFFFFFF
NAME_BYTES_MAX: Final = 32  # a-d

TIMEFRAMES_MIN: Final = (1, 5, 15, 60, 1440)
TIMEFRAME_NAMES: Final = ("1m", "5m", "15m", "1h", "1d")
assert len(TIMEFRAMES_MIN) == len(TIMEFRAME_NAMES)
assert all(coarse % fine == 0 for fine, coarse in pairwise(TIMEFRAMES_MIN))

_NAME_OFFSET = 24  # where field a begins
assert RECORD.fields is not None and RECORD.fields["a"][1] == _NAME_OFFSET


def write_name(slots: npt.NDArray[Any], index: int, name: str) -> None:
    """Write a symbol's name over fields a-d of slots[index].

    Raises ValueError when the UTF-8 form is longer than 32 bytes.
    """
    raw = name.encode()
    if len(raw) > NAME_BYTES_MAX:
        raise ValueError(f"symbol name {name!r} is longer than {NAME_BYTES_MAX} bytes")
    view = slots.view(np.uint8).reshape(-1, RECORD.itemsize)
    view[index, _NAME_OFFSET : _NAME_OFFSET + NAME_BYTES_MAX] = np.frombuffer(
        raw.ljust(NAME_BYTES_MAX, b"\0"), np.uint8
    )


def read_name(slots: npt.NDArray[Any], index: int) -> str:
    """The name that a SYMBOL record at slots[index] carries."""
    view = slots.view(np.uint8).reshape(-1, RECORD.itemsize)
    raw = view[index, _NAME_OFFSET : _NAME_OFFSET + NAME_BYTES_MAX].tobytes()
    return raw.rstrip(b"\0").decode()
