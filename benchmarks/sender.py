"""The other side of the feed benchmark: a WebSocket server that is faster than any reader.

    python -m benchmarks.sender --symbols 300 --ticks 600000

prints one JSON line {"port", "ticks", "price_sum"}; takes one client, answers SUBSCRIBE, and once
as many trade streams were asked for as there are symbols, sends all frames as fast as they are
taken. Ends when the client leaves, or after LIFE_S.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from typing import Final

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from benchmarks import frames

LIFE_S: Final = 120.0
READ_BYTES: Final = 1 << 16


def asked_for(messages: list[Frame], names: set[str]) -> list[bytes]:
    """Answers to requests; the trade streams that they name are added to `names`."""
    answers = []
    for message in messages:
        request = json.loads(bytes(message.data))
        names.update(name for name in request["params"] if name.endswith("@aggTrade"))
        answers.append(json.dumps({"result": None, "id": request["id"]}).encode())
    return answers


def serve(client: socket.socket, symbols: int, data: bytes) -> None:
    """Handshake, subscriptions, then everything."""
    client.settimeout(LIFE_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    protocol, names = ServerProtocol(), set[str]()
    while len(names) < symbols:
        got = client.recv(READ_BYTES)
        if not got:
            return
        protocol.receive_data(got)
        events = protocol.events_received()
        for event in events:
            if isinstance(event, Request):
                protocol.send_response(protocol.accept(event))
                names.update(n for n in event.path.split("=")[-1].split("/") if "@aggTrade" in n)
        texts = [e for e in events if isinstance(e, Frame) and e.opcode is Opcode.TEXT]
        for answer in asked_for(texts, names):
            protocol.send_text(answer)
        for piece in protocol.data_to_send():
            client.sendall(piece)
    client.sendall(data)
    while client.recv(READ_BYTES):
        continue


def main() -> None:
    parser = argparse.ArgumentParser(description="frames at full speed, to one client")
    parser.add_argument("--symbols", type=int, default=300)
    parser.add_argument("--ticks", type=int, default=600_000)
    options = parser.parse_args()
    payloads, total = frames.agg_trades(options.ticks, options.symbols)
    data = frames.framed(payloads)
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(LIFE_S)
        hello = {"port": door.getsockname()[1], "ticks": len(payloads), "price_sum": total}
        print(json.dumps(hello), flush=True)
        try:
            client, _ = door.accept()
            with client:
                serve(client, options.symbols, data)
        except OSError as error:
            print(f"sender: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
