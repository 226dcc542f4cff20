"""Records any exchange's market streams to a tape: `python -m venue.record URL FILE SYMBOL ...`.

URL is the base of the streams (ws://127.0.0.1:8420, wss://fstream.binance.com). Each symbol's
aggTrade and bookTicker are heard on their own routes. A lost connection is made again after
RETRY_S; rows that two connections told are one when the tape plays. SIGINT and SIGTERM end it
with everything written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import aiohttp
import orjson

from clock import NS_PER_MS, wall_ms
from venue.recording import BYTES_MAX, Recording

ROUTES = {"market": "aggTrade", "public": "bookTicker"}
FLUSH_S = 1.0
RETRY_S = 1.0
SYMBOLS_MAX = 200  # streams of one connection stay well below the exchange's bound
MESSAGE_BYTES_MAX = 1 << 22


async def _hear(base: str, route: str, symbols: list[str], recording: Recording) -> None:
    """One route, again and again; ends only when it is cancelled."""
    names = [f"{symbol.lower()}@{ROUTES[route]}" for symbol in symbols]
    subscribe = orjson.dumps({"method": "SUBSCRIBE", "params": names, "id": 1}).decode()
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.ws_connect(
                    f"{base}/{route}/stream", max_msg_size=MESSAGE_BYTES_MAX
                ) as socket:
                    await socket.send_str(subscribe)
                    async for message in socket:
                        if message.type is aiohttp.WSMsgType.TEXT:
                            recording.add(wall_ms() * NS_PER_MS, [message.data.encode()])
            except (aiohttp.ClientError, OSError) as error:
                print(f"{base}/{route}: {error}; again in {RETRY_S:g} s", file=sys.stderr)
            await asyncio.sleep(RETRY_S)


async def record(base: str, symbols: list[str], recording: Recording) -> None:
    """Until a signal; the recording is flushed every FLUSH_S and when it ends."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    tasks = [asyncio.create_task(_hear(base, route, symbols, recording)) for route in ROUTES]
    print("recording", flush=True)
    while not stopping.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), FLUSH_S)
        recording.flush()
        if recording.lost:
            print("the file is full", file=sys.stderr)
            break
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="venue.record", description="market streams to a tape")
    parser.add_argument("url", help="base of the streams, like ws://127.0.0.1:8420")
    parser.add_argument("file", type=Path)
    parser.add_argument("symbols", nargs="+")
    parser.add_argument("--bytes", type=int, default=BYTES_MAX, help="the file's size at most")
    options = parser.parse_args(argv)
    if not options.url.startswith(("ws://", "wss://")) or len(options.symbols) > SYMBOLS_MAX:
        parser.error(f"a ws:// or wss:// address and 1 to {SYMBOLS_MAX} symbols are needed")
    try:
        recording = Recording(options.file, options.bytes)
    except OSError as error:
        parser.error(f"{options.file} cannot be written: {error.strerror}")
    try:
        asyncio.run(record(options.url.rstrip("/"), options.symbols, recording))
    finally:
        recording.close()
    print(f"recorded lines={recording.lines} bytes={recording.written} lost={recording.lost}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
