"""Sessions of captures reduced to arrays: `file.npz:session`, or `file.npz` if it has one only.

A session is `<market>_<SYMBOL>_<date>` with `__trades` and perhaps `__bookticker`. Prints that are
no market trades are dropped and counted. Quotes have no event time; where they have no exchange
time either (spot), the recorder's is shifted by its median distance from the exchange's.
"""

from __future__ import annotations

import re
import zipfile

import numpy as np
from numpy.typing import NDArray

from venue.source import (
    AGG_COLS,
    QUOTE_COLS,
    TRADE_COLS,
    Ints,
    Source,
    TapeError,
    e8,
    table,
)

NAME = re.compile(r"^(?P<session>[a-z]+_(?P<symbol>.+)_\d+)__(?P<kind>trades|bookticker)$")


def read(path: str, room: int) -> list[Source]:
    """The one symbol of one session. Raises TapeError."""
    file, found, session = path.rpartition(".npz:")
    file = f"{file}.npz" if found else path
    try:
        with np.load(file, allow_pickle=False) as arrays:
            names = [match for key in arrays.files if (match := NAME.match(key))]
            known = sorted({match["session"] for match in names})
            if not found and len(known) == 1:
                session = known[0]
            if session not in known:
                listed = ", ".join(known) or "none"
                raise TapeError(
                    f"tape {file} has the sessions {listed}: choose one as FILE:SESSION"
                )
            own = {m["kind"]: arrays[m.string] for m in names if m["session"] == session}
        symbol = next(m["symbol"] for m in names if m["session"] == session)
        return [_source(symbol, own, room)]
    except TapeError:
        raise
    except FileNotFoundError:
        raise TapeError(f"tape {file} does not exist") from None
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise TapeError(f"tape {file} is no npz of sessions ({error})") from None


def _source(symbol: str, own: dict[str, NDArray[np.void]], room: int) -> Source:
    if sum(len(rows) for rows in own.values()) > room:
        raise ValueError("too many rows: cut it")
    trades, dropped, shift_ms = table(TRADE_COLS), 0, 0
    if "trades" in own:
        raw = own["trades"]
        shift_ms = int(np.median(raw["event_ms"] - raw["local_ns"] // 1_000_000))
        good = raw[(raw["market"] != 0) & (raw["qty"] > 0) & (raw["price"] > 0)]
        dropped = len(raw) - len(good)
        trades = _columns(good["event_ms"], good["exch_ms"], good["trade_id"], len(good))
        trades[:, 3], trades[:, 4] = e8(good["price"]), e8(good["qty"])
        trades[:, 5] = good["buyer_maker"] != 0
    quotes = table(QUOTE_COLS)
    if "bookticker" in own:
        raw = own["bookticker"]
        local_ms = raw["local_ns"] // 1_000_000 + shift_ms
        ms = np.where(raw["exch_ms"] > 0, raw["exch_ms"], local_ms)
        quotes = np.zeros((len(raw), QUOTE_COLS), np.int64)
        quotes[:, 0] = quotes[:, 1] = ms
        quotes[:, 2] = np.arange(1, len(raw) + 1)
        quotes[:, 6] = quotes[:, 2]
        for column, name in ((3, "bid"), (4, "bidq"), (5, "ask"), (7, "askq")):
            quotes[:, column] = e8(raw[name])
    if not len(trades) and not len(quotes):
        raise ValueError("the session is empty")
    return Source(symbol, trades, table(AGG_COLS), quotes, dropped)


def _columns(event_ms: Ints, trade_ms: Ints, number: Ints, count: int) -> Ints:
    out = np.zeros((count, TRADE_COLS), np.int64)
    out[:, 0], out[:, 1], out[:, 2] = event_ms, trade_ms, number
    return out
