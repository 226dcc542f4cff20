"""One WebSocket: socket bytes into a buffer, the jitted pass over it, the unusual to the protocol.

An I/O shell. The event loop receives straight into a numpy buffer (BufferedProtocol); after each
receipt the kernel takes every whole text frame. `websockets`' sans-I/O protocol does the rest:
handshake, ping and pong, fragments, close, and every breach of the protocol. TLS is the loop's.

    buffer   | scratch of the kernel | taken | start .. end: not yet taken | room | slack |

The buffer grows to BUFFER_BYTES_MAX; a frame larger than that costs the connection, counted. What
breaks the protocol in its first two bytes is not waited for: garbage may announce any length.

Every end leaves `reason` in words and `status`, the number that the other side gave for it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import ssl
from collections.abc import Callable
from typing import Final, cast

import numpy as np
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

import latency
from clock import boot_ns
from feed import decode
from feed.lane import STAT, Lane
from feed.walk import SCRATCH_BYTES, SLACK_BYTES, Bytes, Table
from ring import FEED_HISTS

log = logging.getLogger("feed.connection")

BUFFER_BYTES: Final = 1 << 18  # one receive of a busy socket
BUFFER_BYTES_MAX: Final = 1 << 24  # the largest frame that is waited for
READ_BYTES_MIN: Final = 1 << 16  # room that a receive is given at least
HEAD_BYTES_MAX: Final = 1 << 16  # of the handshake's answer
STATE_WORDS: Final = 8
_DATA_OPCODES: Final = (Opcode.CONT, Opcode.TEXT, Opcode.BINARY)
HIST_BUFFER: Final = FEED_HISTS.index("buffer_ns")
GOODBYE_S: Final = 1.0  # for the close frame to leave; then the socket is dropped
CONTROL_BYTES_MAX: Final = 125  # of a control frame
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] (\d{3})")


@functools.cache
def default_tls() -> ssl.SSLContext:
    """The system's certificates, or those that SSL_CERT_FILE names; loading them takes a while."""
    return ssl.create_default_context()


def breaks_protocol(first: int, second: int) -> bool:
    """Whether no server may begin a frame with these two bytes."""
    opcode = first & 0x0F
    control = opcode in (Opcode.CLOSE, Opcode.PING, Opcode.PONG)
    if first & 0x70 or second & 0x80 or not (control or opcode in _DATA_OPCODES):
        return True  # reserved bits, a mask, an opcode that does not exist
    return control and (not first & 0x80 or second > CONTROL_BYTES_MAX)


class Connection(asyncio.BufferedProtocol):
    """The life of one TCP connection, its place in the lane's tables told by `state`.

    With `hold` nothing after the handshake is read before `go`: what comes waits in the kernel.
    """

    def __init__(
        self,
        url: str,
        lane: Lane,
        state: Table,
        hist: Table,
        on_reply: Callable[[bytes], None],
        hold: bool = False,
    ) -> None:
        self._protocol = ClientProtocol(parse_uri(url), max_size=BUFFER_BYTES_MAX)
        self._lane, self._state, self._hist = lane, state, hist
        self._on_reply, self._hold = on_reply, hold
        self._transport: asyncio.Transport | None = None
        self._buffer: Bytes = np.zeros(SCRATCH_BYTES + BUFFER_BYTES + SLACK_BYTES, np.uint8)
        self._view = self._buffer.data
        self._start = self._end = SCRATCH_BYTES
        self._fragments: bytearray | None = None
        self.reason = ""
        self.status = 0  # close code or HTTP status that ended it, 0 without one
        self.answer = b""  # of a refused handshake, for what it says about waiting
        self.last_ns = 0  # boot time of the last receipt
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()

    # --- called by the event loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._protocol.send_request(self._protocol.connect())
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._end : len(self._buffer) - SLACK_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        recv_ns = boot_ns()
        self.last_ns = recv_ns
        self._end += nbytes
        if not self.opened.done():
            self._handshake()
        if self.opened.done() and not self.closed.done():
            self._take(recv_ns)
            self._hist[HIST_BUFFER, latency.bucket(boot_ns() - recv_ns)] += 1
        if self.closed.done():
            self._start = self._end = SCRATCH_BYTES  # of no interest any more
        self._make_room()

    def eof_received(self) -> bool:
        self._protocol.receive_eof()
        self._flush()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.reason = self.reason or (repr(exc) if exc else self._close_reason())
        if not self.opened.done():
            self.opened.set_exception(ConnectionError(self.reason))
            self.opened.exception()  # read here: nobody may be waiting any more
        if not self.closed.done():
            self.closed.set_result(None)

    # --- called by the link ---

    def send(self, text: bytes) -> None:
        """Send one text message."""
        if not self.closed.done() and self._protocol.state is State.OPEN:
            self._protocol.send_text(text)
            self._flush()

    def ping(self) -> None:
        """Ask for a sign of life."""
        if not self.closed.done() and self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"")
            self._flush()

    def go(self) -> None:
        """Read what was held back, and go on reading."""
        if self._hold and self._transport is not None and not self._transport.is_closing():
            self._hold = False
            self._transport.resume_reading()

    def close(self, reason: str = "") -> None:
        """Say goodbye and let go; nothing that comes after this is taken."""
        self.reason = self.reason or reason
        self._finish()
        if self._transport is None or self._transport.is_closing():
            return
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
            self._flush()
        self._transport.close()  # flushes; over TLS it waits for a peer that may be gone
        asyncio.get_running_loop().call_later(GOODBYE_S, self._transport.abort)

    # --- inside ---

    def _handshake(self) -> None:
        """Give the protocol the answer's head and nothing of what follows it."""
        data = self._view[self._start : self._end].tobytes()
        head, mark, _ = data.partition(b"\r\n\r\n")
        if not mark:
            if len(data) > HEAD_BYTES_MAX:
                self._fail("answer to the handshake is too long")
            return
        status = _STATUS_LINE.match(head)
        if status is None or int(status[1]) != 101:
            self.status, self.answer = int(status[1]) if status else 0, data
            line = head.partition(b"\r")[0]
            self._fail(f"handshake refused: {line[:100]!r}")
            return
        self._start += len(head) + len(mark)
        self._protocol.receive_data(head + mark)
        answers = [e for e in self._protocol.events_received() if isinstance(e, Response)]
        error = self._protocol.handshake_exc
        if error is not None or not answers:
            self._fail(f"handshake failed: {error or 'no answer'}")
            return
        if self._hold and self._transport is not None:
            self._transport.pause_reading()
        self.opened.set_result(None)

    def _take(self, recv_ns: int) -> None:
        """Run the pass until it needs more bytes; replies and unusual frames in between."""
        while not self.closed.done():
            if self._fragments is None:
                self._start = decode.decode(
                    self._buffer, self._start, self._end, recv_ns, self._state, self._lane
                )
                code = self._state[decode.CODE]
                if code == decode.REPLY:
                    begin, end = int(self._state[decode.AT]), int(self._state[decode.END])
                    self._on_reply(self._view[begin:end].tobytes())
                    continue
                if code == decode.MORE:
                    self._refuse_oversize()
                    return
            if self._end - self._start >= 2 and breaks_protocol(*self._view[self._start :][:2]):
                self._unusual(self._view[self._start : self._end].tobytes(), recv_ns)
                return  # the protocol has words for it
            size = self._frame_size()
            self._refuse_oversize()
            if size == 0 or self._start + size > self._end:
                return
            data = self._view[self._start : self._start + size].tobytes()
            self._start += size
            self._unusual(data, recv_ns)

    def _frame_size(self) -> int:
        """Bytes of the frame at `start`, header included; 0 while its header is not whole."""
        have = self._end - self._start
        if have < 2:
            return 0
        second = int(self._buffer[self._start + 1])
        wide = {126: 2, 127: 8}.get(second & 0x7F, 0)
        masked = 4 if second & 0x80 else 0
        if have < 2 + wide:
            return 0
        size = second & 0x7F
        if wide:
            raw = self._view[self._start + 2 : self._start + 2 + wide]
            size = int.from_bytes(raw, "big")
        return min(2 + wide + masked + size, BUFFER_BYTES_MAX + 1)

    def _refuse_oversize(self) -> None:
        """Give up at once when the frame at `start` says that it will never fit."""
        wide = self._end - self._start >= 10 and int(self._buffer[self._start + 1]) & 0x7F == 127
        if wide and self._frame_size() > BUFFER_BYTES_MAX:
            self._lane.stats[STAT["oversize"]] += 1
            self._fail("frame too large")

    def _unusual(self, data: bytes, recv_ns: int) -> None:
        """One frame that is no whole text frame, or any frame between the parts of a message."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._on_frame(event, recv_ns)
        self._flush()
        if self._protocol.parser_exc is not None or self._protocol.close_expected():
            self.reason = self.reason or self._close_reason()
            if self._transport is not None:
                self._transport.close()
                asyncio.get_running_loop().call_later(GOODBYE_S, self._transport.abort)
            self._finish()

    def _on_frame(self, event: Frame, recv_ns: int) -> None:
        if event.opcode is Opcode.TEXT:
            self._fragments = bytearray()
        elif event.opcode is not Opcode.CONT or self._fragments is None:
            self._lane.stats[STAT["control"]] += 1  # ping, pong, close; binary frames mean nothing
            return
        self._fragments += event.data
        if len(self._fragments) > BUFFER_BYTES_MAX:
            self._fail("message too large")
        elif event.fin:
            message, self._fragments = bytes(self._fragments), None
            self._take_message(message, recv_ns)

    def _take_message(self, message: bytes, recv_ns: int) -> None:
        """Run the pass over a message that came in fragments, as one frame in its own buffer."""
        framed = b"\x81\x7f" + len(message).to_bytes(8, "big") + message
        buffer: Bytes = np.zeros(SCRATCH_BYTES + len(framed) + SLACK_BYTES, np.uint8)
        end = SCRATCH_BYTES + len(framed)
        buffer[SCRATCH_BYTES:end] = np.frombuffer(framed, np.uint8)
        decode.decode(buffer, SCRATCH_BYTES, end, recv_ns, self._state, self._lane)
        if self._state[decode.CODE] == decode.REPLY:
            self._on_reply(message)

    def _make_room(self) -> None:
        """Move the rest to the front when it is short of room; grow, or give up at the bound."""
        if self._start == self._end:
            self._start = self._end = SCRATCH_BYTES
        stop = len(self._buffer) - SLACK_BYTES
        if stop - self._end >= READ_BYTES_MIN:
            return
        rest = self._end - self._start
        room = stop - SCRATCH_BYTES
        if rest + READ_BYTES_MIN <= room:
            self._buffer[SCRATCH_BYTES : SCRATCH_BYTES + rest] = self._buffer[
                self._start : self._end
            ].copy()
        elif room >= BUFFER_BYTES_MAX:
            self._lane.stats[STAT["oversize"]] += 1
            self._fail("frame too large")
            return
        else:
            grown: Bytes = np.zeros(SCRATCH_BYTES + 2 * room + SLACK_BYTES, np.uint8)
            grown[SCRATCH_BYTES : SCRATCH_BYTES + rest] = self._buffer[self._start : self._end]
            self._buffer, self._view = grown, grown.data
        self._start, self._end = SCRATCH_BYTES, SCRATCH_BYTES + rest

    def _flush(self) -> None:
        """Write what the protocol wants sent; an empty piece means half-close."""
        if self._transport is None or self._transport.is_closing():
            return
        for piece in self._protocol.data_to_send():
            if piece:
                self._transport.write(piece)

    def _fail(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._start = self._end = SCRATCH_BYTES
        if self._transport is not None:
            self._transport.abort()
        if not self.opened.done():
            self.opened.set_exception(InvalidHandshake(reason))
            self.opened.exception()
        self._finish()

    def _finish(self) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def _close_reason(self) -> str:
        broken = self._protocol.parser_exc
        said = self._protocol.close_rcvd
        if said is not None:
            self.status = int(said.code)
            return f"closed {said}"
        if broken is not None and not isinstance(broken, EOFError):
            return f"broke the protocol: {broken}"
        rest = self._end - self._start
        return f"closed without a word{f' inside a frame, {rest} bytes of it' if rest else ''}"
