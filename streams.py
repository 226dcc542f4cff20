"""Redis is the bus, the database and the cockpit: every key, stream and script stands here.

What this file guarantees: a stream entry and the hash that projects it change in one script or
not at all; what risk writes carries its lease's epoch and is refused once a newer one exists; a
signal, a fill, an outcome and a job exist once, however often their writing is repeated. It never
retries by itself: a lost reply is an error that the caller sees, because a silent second XADD is
a second order. Text everywhere, units in names, so that redis-cli reads it.

Market keys live under aegis:<mode>:, account keys under aegis:<mode>:<account>:.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

SCHEMA_MAJOR: Final = 1
SOCKET_TIMEOUT_S: Final = 10
BLOCK_MS_MAX: Final = 2_000  # well under the socket timeout: an idle stream must not look dead
HEALTH_CHECK_S: Final = 30  # Heroku cuts idle connections at 300 s
STANDBY_KEPT_MS: Final = 1_000  # who has not said for so long that it stands by does not
SEEN_MAX: Final = 20_000  # trade and signal ids remembered for "once"; oldest are forgotten first
FORGOTTEN: Final = -1  # instead of an epoch: Redis lost its memory
CAUSE_CHARS: Final = 16  # of base32 in a client order id: 80 bits
assert BLOCK_MS_MAX < SOCKET_TIMEOUT_S * 1000

Fields = Mapping[str, str]
Op = tuple[Any, ...]


# --- keys ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of all keys of one mode and account."""

    mode: str
    account: str = "main"

    def market(self, name: str) -> str:
        return f"aegis:{self.mode}:{name}"

    def own(self, name: str) -> str:
        return f"aegis:{self.mode}:{self.account}:{name}"

    # market
    signals = property(lambda self: self.market("signals"))
    outcomes = property(lambda self: self.market("outcomes"))
    decisions = property(lambda self: self.market("decisions"))
    pending = property(lambda self: self.market("pending"))
    signal_ids = property(lambda self: self.market("signal_ids"))
    symbols = property(lambda self: self.market("symbols"))
    nodes = property(lambda self: self.market("nodes"))
    model_live = property(lambda self: self.market("model:live"))
    record = property(lambda self: self.market("record"))
    journal = property(lambda self: self.market("journal"))
    dead = property(lambda self: self.market("dead"))
    schema = property(lambda self: self.market("schema"))
    help = property(lambda self: self.market("help"))
    # account
    orders = property(lambda self: self.own("orders"))
    orders_open = property(lambda self: self.own("orders:open"))
    fills = property(lambda self: self.own("fills"))
    fill_ids = property(lambda self: self.own("fill_ids"))
    ledger = property(lambda self: self.own("ledger"))
    ledger_ids = property(lambda self: self.own("ledger_ids"))
    positions = property(lambda self: self.own("positions"))
    portfolio = property(lambda self: self.own("portfolio"))
    exchange = property(lambda self: self.own("exchange"))
    breakers = property(lambda self: self.own("breakers"))
    settings = property(lambda self: self.own("settings"))
    status = property(lambda self: self.own("status"))
    armed = property(lambda self: self.own("armed"))
    lease = property(lambda self: self.own("lease"))
    epoch = property(lambda self: self.own("epoch"))
    standbys = property(lambda self: self.own("standbys"))
    written = property(lambda self: self.own("written"))
    commands = property(lambda self: self.own("commands"))
    replies = property(lambda self: self.own("replies"))
    equity = property(lambda self: self.own("equity"))

    def node(self, name: str, boot: str) -> str:
        return self.market(f"node:{name}:{boot}")

    def brain(self, node: str, name: str) -> str:
        return self.market(f"brain:{node}:{name}")

    def model(self, version: str) -> str:
        return self.market(f"model:{version}")

    def job(self, name: str, slot: int | str) -> str:
        return self.market(f"job:{name}:{slot}")

    def order(self, client_id: str) -> str:
        return self.own(f"order:{client_id}")

    def position(self, symbol: str) -> str:
        return self.own(f"position:{symbol}")


@dataclass(frozen=True, slots=True)
class Stream:
    """One row of the stream table; health and trimming are derived from it."""

    name: str  # attribute of Keys
    writer: str
    reader: str
    entries_max: int  # approximate, trimmed by the writer's XADD and by the trim job
    rate: str  # what an operator should expect
    holds: str
    trimmed: bool = True  # False: money; beyond the bound the operator is told, nothing is cut


TABLE: Final = (
    Stream("signals", "brain", "risk", 5_000, "0-10/s", "signals; a validated XADD is one too"),
    Stream("outcomes", "brain", "learn job", 5_000, "0-10/s", "features and label, resolved"),
    Stream("decisions", "brain, risk", "why, status", 5_000, "0-50/s", "verdicts, why it trades"),
    Stream("journal", "all", "operator", 1_000, "rare", "what an operator would want to know"),
    Stream("dead", "risk", "operator", 500, "never", "entries that could not be understood"),
    Stream("orders", "risk", "why, audit", 10_000, "0-50/s", "one entry per order event"),
    Stream(
        "fills", "risk", "audit, export", 10_000, "0-10/s", "every execution once", trimmed=False
    ),
    Stream("ledger", "risk", "audit", 10_000, "0-10/s", "every money event once", trimmed=False),
    Stream("commands", "jobs, operator", "risk", 1_000, "0-1/s", "asked of risk"),
    Stream("equity", "equity job", "status, web", 5_000, "1/min", "equity over time"),
)
_ENTRIES_MAX: Final = {stream.name: stream.entries_max for stream in TABLE}
_MAXLEN: Final = {stream.name: stream.entries_max if stream.trimmed else 0 for stream in TABLE}

HELP: Final[dict[str, str]] = {
    "signals": "stream: brain -> risk; XREVRANGE aegis:<mode>:signals + - COUNT 3",
    "outcomes": "stream: each signal's end (win, loss, timeout), what the model learns from",
    "decisions": "stream: each candidate's and signal's verdicts, down to the check that refused",
    "pending": "hash: open signals by id, JSON, followed until stop, target or time-out",
    "signal_ids": "zset: ids of recent signals, so that one exists once",
    "symbols": "hash: the universe; name -> why it is in",
    "nodes": "zset: node rows by last heartbeat (Redis seconds); see node:<name>:<boot>",
    "node:<name>:<boot>": "hash: a node's counters, ring lag, ages and latencies, once a second",
    "brain:<node>:<name>": "string: JSON, a brain's rules, funnel and recording, every two seconds",
    "record": "string: JSON, asks brains to record while it is there; see aegis record",
    "model:live": "hash: the model that brains use; version, counts, last outcome learned",
    "job:<name>:<slot>": "string: running:<token> or done, so that a job runs once per slot",
    "journal": "stream: what an operator would want to know",
    "dead": "stream: entries that could not be understood, with the reason",
    "schema": "hash: version, mode and world of this keyspace",
    "help": "hash: this text",
    "<account>:orders": "stream: each order event, from intent to filled, canceled, expired",
    "<account>:order:<id>": "hash: one order, its state and cause",
    "<account>:orders:open": "set: client ids of orders without a terminal state",
    "<account>:fills": "stream: every execution once, by trade id",
    "<account>:fill_ids": "zset: trade ids already recorded",
    "<account>:ledger": "stream: realised, fee, funding, transfer; each money event once",
    "<account>:ledger_ids": "zset: money events already recorded",
    "<account>:positions": "set: symbols with a position; see position:<symbol>",
    "<account>:position:<symbol>": "hash: side, qty, entry, stop and target orders, confidence",
    "<account>:portfolio": "hash: wallet, equity, realised, fees, exposure, trade counts",
    "<account>:exchange": "hash: the last snapshot of the exchange's truth, its time and epoch",
    "<account>:breakers": "hash: what stops entries: halted, tripped:<name>, quarantine:<symbol>",
    "<account>:settings": "hash: the risk settings in force",
    "<account>:status": "hash: the one-line answer to 'how is it?'",
    "<account>:armed": "string: entries are allowed only while this exists; DEL stops entries",
    "<account>:lease": "string: the risk process that may act, for three seconds at a time",
    "<account>:epoch": "string: the lease's fencing number",
    "<account>:standbys": "zset: risk processes that wait for the lease, by Redis milliseconds",
    "<account>:written": "string: epoch:number of risk's last write; an older one comes too late",
    "<account>:commands": "stream: asked of risk; answered in replies",
    "<account>:replies": "hash: command id -> answer",
    "<account>:equity": "stream: equity over time",
}


# --- ids -------------------------------------------------------------------------------------


_DIGITS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS: Final = tuple(first + second for first in _DIGITS for second in _DIGITS)  # of ten bits
_SHIFTS: Final = tuple(range(150, -1, -10))


@functools.lru_cache(4_096)  # every leg of a round trip hashes the same cause
def _base32(text: str, chars: int) -> str:
    """Small letters of base32; two at a time, because signals wait for their id."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=20).digest())
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])[:chars]


def cause_id(world: str, symbol: str, timeframe: str, bar_ms: int, side: str, rule: str) -> str:
    """A signal's id: the same cause has the same id on every node, at every repetition."""
    return _base32(f"{world}|{symbol}|{timeframe}|{bar_ms}|{side}|{rule}", 26)


def prefix3(keys: Keys) -> str:
    """Three characters that tell our client ids from another deployment's on one account."""
    return _base32(keys.own(""), 3)


def client_id(prefix: str, cause: str, leg: str, revision: int = 0) -> str:
    """Client order id, 23 characters or a little more: ag + prefix + cause + leg + revision.

    Legs: e entry, s stop, t target, c emergency close, x exit.
    """
    if len(leg) != 1 or leg not in "estcx":
        raise ValueError(f"unknown leg {leg!r}")
    made = f"ag{prefix}{_base32(cause, CAUSE_CHARS)}{leg}{revision}"
    assert len(made) <= 36
    return made


# --- connections -----------------------------------------------------------------------------


def _connection_settings(url: str, connections_max: int) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "decode_responses": True,
        "encoding_errors": "replace",  # anybody may XADD: one bad byte must not stop a reader
        "protocol": 2,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": HEALTH_CHECK_S,
        "max_connections": connections_max,
    }
    if url.startswith("rediss://"):  # Heroku's certificate is self-signed
        settings["ssl_cert_reqs"] = ssl.CERT_NONE
    return settings


def connect(url: str, connections_max: int = 2) -> redis.Redis:
    """A client that never repeats a command by itself. Does not connect yet."""
    settings = _connection_settings(url, connections_max)
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **settings)


def connect_async(url: str, connections_max: int = 3) -> redis.asyncio.Redis:
    """As connect, for asyncio. A blocking read occupies one connection."""
    settings = _connection_settings(url, connections_max)
    return redis.asyncio.Redis.from_url(url, retry=AsyncRetry(NoBackoff(), 0), **settings)


def _stream_of(key: str) -> str:
    return key.rsplit(":", 1)[-1]


def publish(r: redis.Redis, key: str, fields: Fields) -> str:
    """Append one entry; the stream stays near its bound of TABLE. Returns the entry's id."""
    bound = _ENTRIES_MAX[_stream_of(key)]
    return str(r.xadd(key, dict(fields), maxlen=bound, approximate=True))  # type: ignore[arg-type]


def undelivered(r: redis.Redis, key: str, group: Mapping[str, Any]) -> int | None:
    """Entries of a stream that a group, as XINFO GROUPS tells it, was not given yet. None: some,
    but Redis cannot tell how many (it trimmed in between). Its `lag` stays wrong after a roll-back;
    0 is looked for."""
    if not r.xrange(key, f"({group['last-delivered-id']}", "+", 1):
        return 0
    lag = group.get("lag")
    return None if lag is None else max(1, int(lag))


async def publish_async(r: redis.asyncio.Redis, key: str, fields: Fields) -> str:
    """As publish, for asyncio."""
    bound = _ENTRIES_MAX[_stream_of(key)]
    made = await r.xadd(key, dict(fields), maxlen=bound, approximate=True)  # type: ignore[arg-type]
    return str(made)


async def ensure_group(r: redis.asyncio.Redis, key: str, group: str, start: str = "$") -> bool:
    """Make stream and group if missing; True when made. `start` "$" is now, "0" everything."""
    try:
        await r.xgroup_create(key, group, id=start, mkstream=True)
    except redis.ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise
        return False
    return True


async def read_group(
    r: redis.asyncio.Redis,
    keys: Sequence[str],
    group: str,
    consumer: str,
    *,
    own_pending_after: Mapping[str, str] | None = None,
    count: int = 64,
    block_ms: int | None = None,
) -> list[tuple[str, str, dict[str, str]]]:
    """(stream, id, fields) of new entries, or of this consumer's own pending ones after an id of
    each stream.

    After every connection error read the own pending list first, from "0" to its end: an entry
    whose reply was lost is there and is shown nowhere else. One that was trimmed while pending
    has {}.
    """
    if block_ms is not None and not 0 < block_ms <= BLOCK_MS_MAX:
        raise ValueError(f"block_ms must lie in 1..{BLOCK_MS_MAX}")
    wanted: Any = own_pending_after or dict.fromkeys(keys, ">")
    answer: Any = await r.xreadgroup(group, consumer, wanted, count=count, block=block_ms)
    return [
        (stream, entry_id, fields or {})
        for stream, entries in answer or []
        for entry_id, fields in entries
    ]


# --- scripts ---------------------------------------------------------------------------------
# All validation first, all writes last: a script has no rollback.

_COMMIT = """
-- KEYS: epoch armed written, then every key that is named by its place
-- ARGV: epoch, number of the last commit that was confirmed, and as JSON for each commit:
--       number within its epoch, or 0 | need-armed | ack place or 0 | ack group | ack id |
--       "unless" places | operations
-- Commits are carried out in order; the first one that fails ends it.
local function add(key, most, fields)
  if most == 0 then return redis.call("XADD", key, "*", unpack(fields)) end
  return redis.call("XADD", key, "MAXLEN", "~", most, "*", unpack(fields))
end
local function carry_out(ops)
  for _, op in ipairs(ops) do
    local name, key = op[1], KEYS[op[2]]
    if name == "xadd" then
      add(key, op[3], op[4])
    elseif name == "xadd_once" then
      local seen = KEYS[op[5]]
      if redis.call("ZADD", seen, "NX", op[7], op[6]) == 1 then
        add(key, op[3], op[4])
        redis.call("ZREMRANGEBYRANK", seen, 0, -tonumber(op[8]) - 1)
      end
    elseif name == "hset" then redis.call("HSET", key, unpack(op[3]))
    elseif name == "hdel" then redis.call("HDEL", key, unpack(op[3]))
    elseif name == "sadd" then redis.call("SADD", key, op[3])
    elseif name == "srem" then redis.call("SREM", key, op[3])
    elseif name == "del" then redis.call("DEL", key)
    elseif name == "expire" then redis.call("EXPIRE", key, op[3])
    end
  end
end
local acks = {}
local function commit(armed, ack, group, id, unless, ops)
  if armed and redis.call("EXISTS", KEYS[2]) == 0 then return "disarmed" end
  local verdict = "ok"
  for _, place in ipairs(unless) do
    if redis.call("EXISTS", KEYS[place]) == 1 then verdict = "duplicate" end
  end
  local function acknowledge()
    if ack > 0 then redis.call("XACK", KEYS[ack], group, id) end
  end
  -- A full Redis refuses a script's first write if that needs memory, and lets all later ones
  -- pass: entries come first in their script and are acknowledged last, so that the first write is
  -- an entry's; what else is acknowledged comes through.
  if not armed then acknowledge() end
  if verdict == "ok" then carry_out(ops) end
  if armed then acks[#acks + 1] = acknowledge end
  return verdict
end
local epoch, stored = ARGV[1], redis.call("GET", KEYS[1])
if stored ~= epoch then -- a lower one than ours cannot be: Redis lost its memory
  return {tonumber(stored or "0") > tonumber(epoch) and "stale" or "forgotten"}
end
local of, last = string.match(redis.call("GET", KEYS[3]) or "", "^(%d+):(%d+)$")
last = of == epoch and tonumber(last) or 0
if last < tonumber(ARGV[2]) then return {"forgotten"} end -- an older file was restored
local told, stands = {}, last
for _, write in ipairs(cjson.decode(ARGV[3])) do
  local number, fine, verdict = write[1], true, nil
  if number > 0 and number <= last then
    -- written before its reply was lost; an entry is never repeated: it was held up on its way
    verdict = write[2] and "late" or "ok"
  else
    fine, verdict = pcall(commit, unpack(write, 2, 7))
  end
  if not fine then
    if type(verdict) == "table" then verdict = verdict.err end
    told[#told + 1] = "error " .. verdict
    break
  end
  told[#told + 1] = verdict
  if verdict == "ok" then stands = math.max(stands, number) end
end
for _, acknowledge in ipairs(acks) do acknowledge() end
if stands > last then redis.call("SET", KEYS[3], string.format("%s:%d", epoch, stands)) end
return told
"""

_LEASE_TAKE = """
-- KEYS: lease epoch   ARGV: holder ttl_ms seen
-- -> new epoch, or 0 while another holds it, or -1 where an epoch once seen is forgotten
if redis.call("EXISTS", KEYS[1]) == 1 then return 0 end
if tonumber(redis.call("GET", KEYS[2]) or "0") < tonumber(ARGV[3]) then return -1 end
redis.call("DEL", KEYS[1]) -- needs no memory; after it a full Redis lets the two SETs pass
local now = redis.call("TIME")
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local epoch = math.max(tonumber(redis.call("GET", KEYS[2]) or "0") + 1, now_ms)
local text = string.format("%.0f", epoch)
redis.call("SET", KEYS[2], text)
redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
return text
"""

_LEASE_RENEW = """
-- GET and PEXPIRE only: works on a full Redis
if redis.call("GET", KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call("PEXPIRE", KEYS[1], ARGV[2])
"""

_LEASE_DROP = """
if redis.call("GET", KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call("DEL", KEYS[1])
"""

_STAND_BY = """
-- KEYS: lease standbys   ARGV: holder kept_ms   -> ms until the lease runs out; below 0 without one
local now = redis.call("TIME")
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
redis.call("ZADD", KEYS[2], now_ms, ARGV[1])
redis.call("ZREMRANGEBYSCORE", KEYS[2], "-inf", now_ms - tonumber(ARGV[2]))
redis.call("PEXPIRE", KEYS[2], ARGV[2])
return redis.call("PTTL", KEYS[1])
"""

_PUT_SIGNAL = """
-- KEYS: signals pending signal_ids   ARGV: id score seen_max maxlen pending-json fields...
if redis.call("ZADD", KEYS[3], "NX", ARGV[2], ARGV[1]) == 0 then return false end
redis.call("ZREMRANGEBYRANK", KEYS[3], 0, -tonumber(ARGV[3]) - 1)
redis.call("HSET", KEYS[2], ARGV[1], ARGV[5])
return redis.call("XADD", KEYS[1], "MAXLEN", "~", ARGV[4], "*", unpack(ARGV, 6))
"""

_PUT_OUTCOME = """
-- KEYS: outcomes pending   ARGV: id maxlen fields...
if redis.call("HDEL", KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call("XADD", KEYS[1], "MAXLEN", "~", ARGV[2], "*", unpack(ARGV, 3))
return 1
"""

_JOB_TAKE = """
-- one run per slot: a killed worker's slot frees itself after the job's own limit
if redis.call("SET", KEYS[1], "running:" .. ARGV[1], "NX", "PX", ARGV[2]) then return 1 end
return 0
"""

_JOB_DONE = """
if redis.call("GET", KEYS[1]) ~= "running:" .. ARGV[1] then return 0 end
redis.call("SET", KEYS[1], "done", "PX", ARGV[2])
return 1
"""

_MODEL_CAS = """
-- KEYS: model:live   ARGV: expected last id, fields...   learned once and in order
local last = redis.call("HGET", KEYS[1], "last_id") or ""
if last ~= ARGV[1] then return 0 end
redis.call("HSET", KEYS[1], unpack(ARGV, 2))
return 1
"""

Command = tuple[Any, ...]  # as Redis takes it
Verdict = Literal["ok", "stale", "forgotten", "late", "disarmed", "duplicate"]


def _flat(fields: Mapping[str, object]) -> list[str]:
    parts = itertools.chain.from_iterable(fields.items())
    return [part if part.__class__ is str else str(part) for part in parts]  # most are


@dataclass(frozen=True, slots=True)
class Write:
    """One atomic write of risk's: all operations, or none.

    Operations: ("xadd", key, fields), ("xadd_once", key, fields, seen_zset, member, score),
    ("hset", key, fields), ("hdel", key, names), ("sadd"|"srem", key, member), ("del", key),
    ("expire", key, seconds). `ack` is (stream, group, entry id); with `armed` the key `armed` must
    exist; none of the keys `unless` may. `number` counts the commits of an epoch from 1.
    """

    ops: tuple[Op, ...]
    ack: tuple[str, str, str] | None = None
    armed: bool = False
    unless: tuple[str, ...] = ()
    number: int = 0


def _encode(op: Op, place: Callable[[str], int]) -> list[object]:
    """An operation as the script takes it: keys by their places, bounds beside them."""
    name, key = op[0], place(op[1])
    if name in ("xadd", "hset", "hdel") and not op[2]:
        raise ValueError(f"{name} on {op[1]} without fields")
    if name == "xadd":
        return [name, key, _MAXLEN[_stream_of(op[1])], _flat(op[2])]
    if name == "xadd_once":
        bound = _MAXLEN[_stream_of(op[1])]
        seen, member, score = place(op[3]), str(op[4]), str(op[5])
        return [name, key, bound, _flat(op[2]), seen, member, score, SEEN_MAX]
    if name == "hset":
        return [name, key, _flat(op[2])]
    if name == "hdel":
        return [name, key, [str(field) for field in op[2]]]
    if name in ("sadd", "srem", "expire"):
        return [name, key, str(op[2])]
    if name == "del":
        return [name, key]
    raise ValueError(f"unknown operation {name!r}")


def _commit_call(
    keys: Keys, epoch: int, writes: Sequence[Write], confirmed: int = 0
) -> tuple[list[str], tuple[int, int, bytes]]:
    """KEYS and ARGV of some commits: operations name their keys by position."""
    places = {keys.epoch: 1, keys.armed: 2, keys.written: 3}

    def place(key: str) -> int:
        return places.setdefault(key, len(places) + 1)

    told: list[list[object]] = []
    for write in writes:
        stream, group, entry_id = write.ack or ("", "", "")
        acked = place(stream) if stream else 0
        unless = [place(key) for key in write.unless]
        ops = [_encode(op, place) for op in write.ops]
        told.append([write.number, write.armed, acked, group, entry_id, unless, ops])
    return list(places), (epoch, confirmed, orjson.dumps(told))


async def commit(
    r: redis.asyncio.Redis,
    keys: Keys,
    *,
    epoch: int,
    writes: Sequence[Write],
    confirmed: int = 0,
) -> tuple[list[Verdict], redis.exceptions.ResponseError | None]:
    """Risk's only way to write: some commits in order, each whole or not at all.

    One verdict for each that was decided: "ok"; "stale" when a newer epoch exists, "forgotten" when
    ours is gone from Redis or a commit that was `confirmed` (nothing is written, then or later);
    "disarmed" when `armed` is asked for and the key is gone; "duplicate" when one of `unless`
    exists (the signal is acknowledged all the same). A commit whose number stands is not written
    again ("ok"; "late" for one that needs `armed`, which is never repeated). The error that stopped
    at the next one, if any: it and what follows were not written. Raises what redis-py raises;
    then nobody knows what was written.
    """
    names, argv = _commit_call(keys, epoch, writes, confirmed)
    told: list[str] = await _eval_async(r, _COMMIT, names, argv)
    error = None
    if told[-1].startswith("error "):
        text = told.pop().removeprefix("error ").removeprefix("-")
        kind = redis.exceptions.ResponseError
        error = redis.exceptions.OutOfMemoryError(text) if "OOM" in text[:200] else kind(text)
    return told, error  # type: ignore[return-value]


@functools.cache
def _sha(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()  # Redis's choice


_SCRIPTS: Final = {_sha(script): script for script in (_PUT_SIGNAL, _PUT_OUTCOME)}


async def _eval_async(
    r: redis.asyncio.Redis, script: str, names: Sequence[str], argv: Sequence[Any]
) -> Any:
    """EVALSHA; a server that forgot the script (restart, flush) gets it again."""
    try:
        return await r.evalsha(_sha(script), len(names), *names, *argv)
    except redis.exceptions.NoScriptError:
        return await r.eval(script, len(names), *names, *argv)


def _eval(r: redis.Redis, script: str, names: Sequence[str], argv: Sequence[Any]) -> Any:
    try:
        return r.evalsha(_sha(script), len(names), *names, *argv)
    except redis.exceptions.NoScriptError:
        return r.eval(script, len(names), *names, *argv)


async def lease_take(
    r: redis.asyncio.Redis, keys: Keys, holder: str, ttl_ms: int, seen: int = 0
) -> int:
    """A new epoch when the lease was free, else 0. An epoch is never below Redis's own clock.

    FORGOTTEN when the stored epoch is below one `seen` before: a lease may be forgotten as well.
    """
    names, argv = [keys.lease, keys.epoch], [holder, ttl_ms, seen]
    return int(await _eval_async(r, _LEASE_TAKE, names, argv))


async def lease_renew(r: redis.asyncio.Redis, keys: Keys, holder: str, ttl_ms: int) -> bool:
    """False when the lease is no longer ours."""
    return bool(await _eval_async(r, _LEASE_RENEW, [keys.lease], [holder, ttl_ms]))


async def lease_drop(r: redis.asyncio.Redis, keys: Keys, holder: str) -> bool:
    """Give the lease back, if it is ours."""
    return bool(await _eval_async(r, _LEASE_DROP, [keys.lease], [holder]))


async def stand_by(r: redis.asyncio.Redis, keys: Keys, holder: str) -> int:
    """Say that we wait for the lease; real ms until it runs out, below zero when nobody has it."""
    names, argv = [keys.lease, keys.standbys], [holder, STANDBY_KEPT_MS]
    return int(await _eval_async(r, _STAND_BY, names, argv))


def standing_by(r: redis.Redis, keys: Keys) -> list[str]:
    """Who waits for the lease now."""
    seconds, micros = r.time()
    since_ms = seconds * 1000 + micros // 1000 - STANDBY_KEPT_MS
    seen: Any = r.zrangebyscore(keys.standbys, since_ms, "+inf")
    return [name for name in seen if name != r.get(keys.lease)]


def entry_command(key: str, fields: Fields) -> Command:
    """Append one entry, as `publish` does. Answers its id."""
    return ("XADD", key, "MAXLEN", "~", _ENTRIES_MAX[_stream_of(key)], "*", *_flat(fields))


def pending_command(keys: Keys, signal_id: str, pending_json: str) -> Command:
    """Remember a signal that is not published. Answers 0 when it was known."""
    return ("HSETNX", keys.pending, signal_id, pending_json)


def signal_command(keys: Keys, signal: Fields, pending_json: str, score_ms: int) -> Command:
    """Publish a signal and its open state together. Answers nil when this id was published."""
    return (
        "EVALSHA", _sha(_PUT_SIGNAL), 3, keys.signals, keys.pending, keys.signal_ids,
        signal["id"], score_ms, SEEN_MAX, _ENTRIES_MAX["signals"], pending_json, *_flat(signal),
    )  # fmt: skip


def outcome_command(keys: Keys, signal_id: str, fields: Fields) -> Command:
    """Publish a signal's outcome if it is still pending. Answers 0 when it was not."""
    return (
        "EVALSHA", _sha(_PUT_OUTCOME), 2, keys.outcomes, keys.pending,
        signal_id, _ENTRIES_MAX["outcomes"], *_flat(fields),
    )  # fmt: skip


def send_all(r: redis.Redis, commands: Sequence[Command]) -> list[Any]:
    """Several writes in one round trip, in order, each by itself; one that Redis refuses answers
    its RedisError. Raises RedisError when nobody knows which were done."""
    pipe = r.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)  # type: ignore[no-untyped-call]
    answers: list[Any] = pipe.execute(raise_on_error=False)
    for index, answer in enumerate(answers):
        if isinstance(answer, redis.exceptions.NoScriptError):  # restart, flush
            _, sha, *rest = commands[index]
            try:
                answers[index] = r.eval(_SCRIPTS[sha], *rest)
            except redis.ResponseError as error:
                answers[index] = error
    return answers


def job_take(
    r: redis.Redis, keys: Keys, name: str, slot: int | str, token: str, limit_s: float
) -> bool:
    """True for exactly one taker of a slot; a taker that dies frees it after `limit_s`."""
    return bool(_eval(r, _JOB_TAKE, [keys.job(name, slot)], [token, int(limit_s * 1000)]))


def job_done(
    r: redis.Redis, keys: Keys, name: str, slot: int | str, token: str, remember_s: float
) -> bool:
    """Mark the slot done for `remember_s`, if it is still this taker's."""
    return bool(_eval(r, _JOB_DONE, [keys.job(name, slot)], [token, int(remember_s * 1000)]))


def model_cas(r: redis.Redis, keys: Keys, expected_last_id: str, fields: Fields) -> bool:
    """Replace the live model if nobody learned in between; `fields` carries the new last_id."""
    return bool(_eval(r, _MODEL_CAS, [keys.model_live], [expected_last_id, *_flat(fields)]))


# --- identity --------------------------------------------------------------------------------


class IdentityError(Exception):
    """This keyspace belongs to another mode, world or version; the sentence says what to do."""


def ensure_identity(r: redis.Redis, keys: Keys, world: str, created_ms: int) -> None:
    """Claim an empty keyspace for (mode, world), or refuse one that belongs to another.

    Raises IdentityError. Two first starts agree: HSETNX decides, the loser compares.
    """
    stored: dict[str, str] = r.hgetall(keys.schema)  # type: ignore[assignment]
    if not stored and r.hsetnx(keys.schema, "world", world):
        r.hset(
            keys.schema,
            mapping={"major": SCHEMA_MAJOR, "mode": keys.mode, "created_ms": created_ms},
        )
        r.hset(keys.help, mapping=HELP)  # type: ignore[arg-type]
        return
    stored = r.hgetall(keys.schema)  # type: ignore[assignment]
    if int(stored.get("major", SCHEMA_MAJOR)) > SCHEMA_MAJOR:
        raise IdentityError(
            f"this Redis is in use by a newer version (schema {stored['major']}, ours is "
            f"{SCHEMA_MAJOR}): update this one."
        )
    if stored.get("mode", keys.mode) != keys.mode:
        raise IdentityError(
            f"the keys under {keys.market('')} belong to mode {stored['mode']}: give each mode its "
            "own Redis or database."
        )
    if stored.get("world") != world:
        raise IdentityError(
            f"this Redis holds world {stored.get('world')} but the exchange is world {world}: "
            "start with --keep to resume, or run `./aegis purge` to begin anew."
        )
    r.hset(keys.help, mapping=HELP)  # type: ignore[arg-type]
