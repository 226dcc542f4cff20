"""What most users write: `websockets` and orjson in one loop. Prints a JSON line as `bench feed`.

python -m benchmarks.rival PORT SYMBOLS TICKS
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import orjson
from websockets.asyncio.client import connect

from benchmarks import frames


async def read(port: int, symbols: int, ticks: int) -> dict[str, float]:
    """Seconds and CPU between the first and the last tick."""
    names = [f"{name.lower()}@aggTrade" for name in frames.symbol_names(symbols)]
    url = f"ws://127.0.0.1:{port}/market/stream?streams={'/'.join(names)}"
    count, total, began_s, began_cpu_s = 0, 0.0, 0.0, 0.0
    async with connect(url, compression=None, max_queue=None) as socket:
        while count < ticks:
            trade = orjson.loads(await socket.recv(decode=False))["data"]
            total += float(trade["p"])
            count += 1
            if count == 1:
                began_s, began_cpu_s = time.perf_counter(), time.process_time()
        seconds, cpu = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return {"ticks": count, "seconds": seconds, "cpu_seconds": cpu, "price_sum": total}


if __name__ == "__main__":
    port, symbols, ticks = map(int, sys.argv[1:4])
    print(json.dumps(asyncio.run(read(port, symbols, ticks))), flush=True)
