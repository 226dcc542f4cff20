"""`aegis redis …`: a command to the running server, printed as redis-cli prints it.

A real redis-cli from PATH is used when there is one; otherwise redis-py asks and `render` prints
the nested reply the way people know it.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any, Final, NoReturn
from urllib.parse import unquote, urlsplit, urlunsplit

from maintenance import running

ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quoted(value: bytes) -> str:
    """As sdscatrepr: printable characters as they are, others escaped; UTF-8 stays readable."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return '"' + "".join(chr(b) if 32 <= b < 127 else f"\\x{b:02x}" for b in value) + '"'
    shown = (ESCAPES.get(c, c if c.isprintable() else repr(c)[1:-1]) for c in text)
    return '"' + "".join(shown) + '"'


def render(reply: Any, indent: str = "") -> str:
    """The lines of one reply, nested lists numbered and indented under their number."""
    match reply:
        case None:
            return "(nil)"
        case bool():
            return "(true)" if reply else "(false)"
        case int():
            return f"(integer) {reply}"
        case bytes():
            return quoted(reply)
        case Status():
            return reply.text
        case Exception():
            return f"(error) {reply}"
        case list() | tuple():
            return _render_list(list(reply), indent)
        case _:
            return str(reply)


def _render_list(rows: list[Any], indent: str) -> str:
    if not rows:
        return "(empty array)"
    width = len(str(len(rows)))
    lines = []
    for number, row in enumerate(rows, 1):
        head = f"{number:>{width}}) "
        body = render(row, indent + " " * len(head))
        lines.append(("" if number == 1 else indent) + head + body)
    return "\n".join(lines)


class Status:
    """A simple-string reply (+OK), printed without quotes."""

    def __init__(self, text: str) -> None:
        self.text = text


_STATUS_WORDS: Final = frozenset({b"OK", b"PONG", b"QUEUED", b"Background saving started"})


def _ask(url: str, words: list[str]) -> Any:
    import redis

    from streams import connect

    pool = connect(url, 1).connection_pool
    settings = {**pool.connection_kwargs, "decode_responses": False}
    client = pool.connection_class(**settings)
    try:
        client.connect()
        client.send_command(*words)
        reply = client.read_response()
    except redis.ResponseError as error:
        return error
    finally:
        client.disconnect()
    typed = words[0].lower() == "type"
    if isinstance(reply, bytes) and (reply in _STATUS_WORDS or typed):
        return Status(reply.decode())
    return reply


def _become(program: str, url: str, words: list[str]) -> NoReturn:
    """exec redis-cli; a password goes by the environment, never by the process list."""
    parts = urlsplit(url)
    environ = dict(os.environ)
    bare = parts
    if parts.password is not None:
        environ["REDISCLI_AUTH"] = unquote(parts.password)
        bare = parts._replace(netloc=f"{parts.hostname}:{parts.port or 6379}")
        if parts.username:
            words = ["--user", parts.username, *words]
    if parts.scheme == "unix":
        words = ["-s", parts.path, *words]
    else:
        words = ["-u", urlunsplit(bare), *words]
    if parts.scheme == "rediss":
        words = ["--insecure", *words]
    os.execve(program, [program, *words], environ)  # noqa: S606 (no shell is the point)


def main(words: list[str]) -> int:
    """Pass the words on; 0 unless the server answered with an error."""
    cfg = running.settings()
    running.require_redis(cfg)
    program = shutil.which("redis-cli") or shutil.which("valkey-cli")
    if program:
        _become(program, cfg.redis_url, words)
    if not words:
        print("Name a command, like `./aegis redis XLEN aegis:sim:signals`.", file=sys.stderr)
        return 2
    reply = _ask(cfg.redis_url, words)
    print(render(reply))
    return 1 if isinstance(reply, Exception) else 0
