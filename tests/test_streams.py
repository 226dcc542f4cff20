"""Redis: what must exist once exists once, whatever is repeated, on a real server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import threading
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
from redis_writes import commit

import streams
from risk.lease import is_weather
from streams import Keys

KEYS = Keys("sim")


def run(url: str, body: Callable[[redis.asyncio.Redis], Awaitable[None]]) -> None:
    async def main() -> None:
        r = streams.connect_async(url)
        try:
            await body(r)
        finally:
            await r.aclose()

    asyncio.run(main())


def test_a_commit_writes_all_of_its_operations(redis_url: str) -> None:
    async def body(r: redis.asyncio.Redis) -> None:
        epoch = await streams.lease_take(r, KEYS, "me", 3000)
        verdict = await commit(
            r,
            epoch,
            ops=[
                ("xadd", KEYS.orders, {"state": "intent"}),
                ("hset", KEYS.order("a"), {"state": "intent"}),
                ("sadd", KEYS.orders_open, "a"),
                ("sadd", KEYS.orders_open, "b"),
                ("srem", KEYS.orders_open, "b"),
                ("expire", KEYS.order("a"), 60),
            ],
        )
        assert verdict == "ok"
        assert await r.xlen(KEYS.orders) == 1
        assert await r.hgetall(KEYS.order("a")) == {"state": "intent"}
        assert await r.smembers(KEYS.orders_open) == {"a"}
        assert 0 < await r.ttl(KEYS.order("a")) <= 60

    run(redis_url, body)


def test_an_older_epoch_writes_nothing_and_acks_nothing(redis_url: str) -> None:
    async def body(r: redis.asyncio.Redis) -> None:
        await streams.ensure_group(r, KEYS.signals, "main", "0")
        entry = await streams.publish_async(r, KEYS.signals, {"id": "s"})
        await streams.read_group(r, [KEYS.signals], "main", "main")
        old = await streams.lease_take(r, KEYS, "one", 3000)
        await streams.lease_drop(r, KEYS, "one")
        new = await streams.lease_take(r, KEYS, "two", 3000)
        assert new > old
        ops = [("xadd", KEYS.orders, {"state": "intent"})]
        ack = (KEYS.signals, "main", entry)
        assert await commit(r, epoch=old, ops=ops, ack=ack) == "stale"
        assert await r.xlen(KEYS.orders) == 0
        assert (await r.xpending(KEYS.signals, "main"))["pending"] == 1
        assert await commit(r, epoch=new, ops=ops, ack=ack) == "ok"
        assert (await r.xpending(KEYS.signals, "main"))["pending"] == 0

    run(redis_url, body)


def test_a_duplicate_is_acked_and_not_written(redis_url: str) -> None:
    async def body(r: redis.asyncio.Redis) -> None:
        await streams.ensure_group(r, KEYS.signals, "main", "0")
        epoch = await streams.lease_take(r, KEYS, "me", 3000)
        ops = [("hset", KEYS.order("a"), {"state": "intent"}), ("xadd", KEYS.orders, {"n": "1"})]
        for expected in ("ok", "duplicate"):
            entry = await streams.publish_async(r, KEYS.signals, {"id": "s"})
            await streams.read_group(r, [KEYS.signals], "main", "main")
            verdict = await commit(
                r,
                epoch,
                ops=ops,
                ack=(KEYS.signals, "main", entry),
                unless=(KEYS.order("a"),),
            )
            assert verdict == expected
        assert await r.xlen(KEYS.orders) == 1
        assert (await r.xpending(KEYS.signals, "main"))["pending"] == 0

    run(redis_url, body)


def test_disarmed_refuses_what_needs_arming_only(redis_url: str) -> None:
    async def body(r: redis.asyncio.Redis) -> None:
        epoch = await streams.lease_take(r, KEYS, "me", 3000)
        ops = [("xadd", KEYS.orders, {"state": "intent"})]
        assert await commit(r, epoch=epoch, ops=ops, armed=True) == "disarmed"
        assert await commit(r, epoch=epoch, ops=ops) == "ok"
        await r.set(KEYS.armed, "1")
        assert await commit(r, epoch=epoch, ops=ops, armed=True) == "ok"

    run(redis_url, body)


def test_commits_of_one_script_are_written_in_order_up_to_the_one_that_fails(
    redis_url: str,
) -> None:
    async def body(r: redis.asyncio.Redis) -> None:
        epoch = await streams.lease_take(r, KEYS, "me", 3000)
        await r.set(KEYS.armed, "yes")
        await r.set(KEYS.positions, "no set")
        entry = ("xadd", KEYS.orders, {"n": "0"})
        after = (("xadd", KEYS.orders, {"n": "2"}),)
        writes = [
            streams.Write((entry,), armed=True),
            streams.Write((entry,), unless=(KEYS.armed,)),
            streams.Write((("hset", KEYS.portfolio, {"n": "1"}), entry)),
            streams.Write((("sadd", KEYS.positions, "x"),)),
            streams.Write(after),
        ]
        verdicts, error = await streams.commit(r, KEYS, epoch=epoch, writes=writes)
        assert verdicts == ["ok", "duplicate", "ok"]
        assert error is not None and "WRONGTYPE" in str(error) and not is_weather(error)
        assert [row["n"] for _, row in await r.xrange(KEYS.orders)] == ["0", "0"]
        verdicts, error = await streams.commit(r, KEYS, epoch=epoch, writes=[writes[4]] * 3)
        assert (verdicts, error) == (["ok"] * 3, None)
        verdicts, error = await streams.commit(r, KEYS, epoch=epoch - 1, writes=[writes[4]] * 3)
        assert (verdicts, error) == (["stale"], None)
        assert await r.xlen(KEYS.orders) == 5

    run(redis_url, body)


def test_a_fill_exists_once_however_often_it_is_written(redis_url: str) -> None:
    async def body(r: redis.asyncio.Redis) -> None:
        epoch = await streams.lease_take(r, KEYS, "me", 3000)
        for _ in range(3):
            for trade in ("BTCUSDT:1", "BTCUSDT:2"):
                op = ("xadd_once", KEYS.fills, {"trade": trade}, KEYS.fill_ids, trade, 5)
                assert await commit(r, epoch=epoch, ops=[op]) == "ok"
        assert await r.xlen(KEYS.fills) == 2

    run(redis_url, body)


def test_one_holder_at_a_time_and_epochs_rise(redis_url: str) -> None:
    async def body(r: redis.asyncio.Redis) -> None:
        first = await streams.lease_take(r, KEYS, "one", 200)
        assert first > 0
        assert await streams.lease_take(r, KEYS, "two", 200) == 0
        assert await streams.lease_renew(r, KEYS, "one", 200)
        assert not await streams.lease_renew(r, KEYS, "two", 200)
        assert not await streams.lease_drop(r, KEYS, "two")
        await asyncio.sleep(0.3)
        assert not await streams.lease_renew(r, KEYS, "one", 200)
        assert await streams.lease_take(r, KEYS, "two", 200) > first

    run(redis_url, body)


def test_an_epoch_that_rolled_back_is_still_higher_than_the_last(redis_url: str) -> None:
    async def body(r: redis.asyncio.Redis) -> None:
        first = await streams.lease_take(r, KEYS, "one", 50)
        await r.flushall()
        await asyncio.sleep(0.02)
        assert await streams.lease_take(r, KEYS, "two", 50) > first

    run(redis_url, body)


def fill_up(url: str, full: bool) -> None:
    """Take all memory from a server, or give it back."""
    plain = redis.Redis.from_url(url)
    plain.config_set("maxmemory", 1 if full else 0)
    plain.close()


def test_who_stands_by_is_seen_and_learns_when_the_lease_runs_out(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STANDBY_KEPT_MS", 200)
    look = streams.connect(redis_url)

    async def body(r: redis.asyncio.Redis) -> None:
        assert streams.standing_by(look, KEYS) == []
        assert await streams.stand_by(r, KEYS, "one") < 0  # nobody holds it
        assert streams.standing_by(look, KEYS) == ["one"]
        assert await streams.lease_take(r, KEYS, "one", 3000)
        assert streams.standing_by(look, KEYS) == []  # the holder waits for nothing
        assert 2_500 < await streams.stand_by(r, KEYS, "two") <= 3_000
        assert streams.standing_by(look, KEYS) == ["two"]
        await asyncio.sleep(0.25)
        assert streams.standing_by(look, KEYS) == []

    run(redis_url, body)
    look.close()


def test_of_several_entries_in_one_script_a_full_redis_takes_none(redis_url: str) -> None:
    """Also behind one that is known already, whose acknowledgement needs no memory."""

    async def body(r: redis.asyncio.Redis) -> None:
        await r.set(KEYS.armed, "yes")
        await streams.ensure_group(r, KEYS.signals, "main", "0")
        entries = [await streams.publish_async(r, KEYS.signals, {"id": "s"}) for _ in range(3)]
        await streams.read_group(r, [KEYS.signals], "main", "main")
        epoch = await streams.lease_take(r, KEYS, "me", 3000)
        known, *others = (
            streams.Write(
                (("xadd", KEYS.orders, {"n": str(n)}),),
                ack=(KEYS.signals, "main", entry_id),
                armed=True,
                unless=(KEYS.armed,) if n == 0 else (),
            )
            for n, entry_id in enumerate(entries)
        )
        fill_up(redis_url, True)
        verdicts, error = await streams.commit(r, KEYS, epoch=epoch, writes=[known, *others])
        assert verdicts == ["duplicate"]
        assert isinstance(error, redis.exceptions.OutOfMemoryError)
        assert await r.xlen(KEYS.orders) == 0
        left = await r.xpending_range(KEYS.signals, "main", "-", "+", 9)
        assert [row["message_id"] for row in left] == entries[1:]
        fill_up(redis_url, False)
        verdicts, error = await streams.commit(r, KEYS, epoch=epoch, writes=others)
        assert (verdicts, error) == (["ok", "ok"], None)
        assert [row["n"] for _, row in await r.xrange(KEYS.orders)] == ["1", "2"]
        assert (await r.xpending(KEYS.signals, "main"))["pending"] == 0

    try:
        run(redis_url, body)
    finally:
        fill_up(redis_url, False)


def test_a_full_redis_gives_a_lease_and_takes_no_entry(redis_url: str) -> None:
    ops = [("xadd", KEYS.orders, {"state": "intent"}), ("sadd", KEYS.orders_open, "a")]

    async def body(r: redis.asyncio.Redis) -> None:
        await r.set(KEYS.armed, "yes")
        await streams.ensure_group(r, KEYS.signals, "main", "0")
        entries = [await streams.publish_async(r, KEYS.signals, {"id": "s"}) for _ in range(2)]
        await streams.read_group(r, [KEYS.signals], "main", "main")
        fill_up(redis_url, True)
        epoch = await streams.lease_take(r, KEYS, "me", 3000)
        assert epoch > 0 and await streams.lease_renew(r, KEYS, "me", 3000)
        ack = (KEYS.signals, "main", entries[0])
        with pytest.raises(redis.exceptions.OutOfMemoryError) as told:
            await commit(r, epoch=epoch, ops=ops, ack=ack, armed=True)
        assert is_weather(told.value)
        assert await r.xlen(KEYS.orders) == 0
        assert (await r.xpending(KEYS.signals, "main"))["pending"] == 2
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            await streams.ensure_group(r, KEYS.signals, "main", "0")
        refused = [("xadd", KEYS.decisions, {"outcome": "refused"})]
        assert await commit(r, epoch=epoch, ops=refused, ack=ack) == "ok"
        fill_up(redis_url, False)
        ack = (KEYS.signals, "main", entries[1])
        assert await commit(r, epoch=epoch, ops=ops, ack=ack, armed=True) == "ok"
        assert (await r.xpending(KEYS.signals, "main"))["pending"] == 0

    try:
        run(redis_url, body)
    finally:
        fill_up(redis_url, False)


def test_an_unwell_server_is_weather_and_a_wrong_script_is_not(redis_url: str) -> None:
    errors = redis.exceptions
    for kind in (errors.ReadOnlyError, errors.MasterDownError, errors.BusyLoadingError):
        assert is_weather(kind("words"))
    assert is_weather(errors.ResponseError("MISCONF cannot persist"))
    assert is_weather(errors.ConnectionError("gone")) and is_weather(TimeoutError())
    assert not is_weather(errors.ResponseError("ERR user_script:1: nil"))


def test_bytes_that_are_no_text_are_read_with_a_mark(redis_url: str) -> None:
    async def body(r: redis.asyncio.Redis) -> None:
        await streams.ensure_group(r, KEYS.signals, "main", "0")
        plain = redis.Redis.from_url(redis_url)
        plain.xadd(KEYS.signals, {b"id": b"\xff\xfe", b"\xc3": b"1"})
        plain.close()
        ((_, _, fields),) = await streams.read_group(r, [KEYS.signals], "main", "main")
        assert fields == {"id": "\ufffd\ufffd", "\ufffd": "1"}

    run(redis_url, body)


def test_an_unknown_operation_is_our_bug() -> None:
    with pytest.raises(ValueError, match="unknown operation"):
        streams._commit_call(KEYS, 1, [streams.Write((("zap", KEYS.orders, {}),))])
    with pytest.raises(ValueError, match="without fields"):
        streams._commit_call(KEYS, 1, [streams.Write((("hset", KEYS.order("a"), {}),))])


def test_a_signal_and_its_outcome_exist_once(redis_url: str) -> None:
    r = streams.connect(redis_url)
    signal = {"id": "abc", "symbol": "BTCUSDT"}
    put = streams.signal_command(KEYS, signal, "{}", 1)
    first, second = streams.send_all(r, [put, put])
    assert first and second is None
    assert r.hgetall(KEYS.pending) == {"abc": "{}"}
    end = streams.outcome_command(KEYS, "abc", {"label": "win"})
    assert streams.send_all(r, [end, end]) == [1, 0]
    assert (r.xlen(KEYS.signals), r.xlen(KEYS.outcomes), r.hlen(KEYS.pending)) == (1, 1, 0)
    r.close()


def test_a_slot_runs_once_and_a_killed_worker_frees_it(redis_url: str) -> None:
    r = streams.connect(redis_url)
    assert streams.job_take(r, KEYS, "reconcile", 7, "a", 0.1)
    assert not streams.job_take(r, KEYS, "reconcile", 7, "b", 0.1)
    assert not streams.job_done(r, KEYS, "reconcile", 7, "b", 60)
    threading.Event().wait(0.2)  # the first taker died: its limit passes
    assert streams.job_take(r, KEYS, "reconcile", 7, "b", 10)
    assert streams.job_done(r, KEYS, "reconcile", 7, "b", 60)
    assert not streams.job_take(r, KEYS, "reconcile", 7, "c", 10)
    r.close()


def test_a_model_is_replaced_by_who_read_it_last(redis_url: str) -> None:
    r = streams.connect(redis_url)
    assert streams.model_cas(r, KEYS, "", {"last_id": "5-0", "counts": "{}"})
    assert not streams.model_cas(r, KEYS, "", {"last_id": "6-0"})
    assert streams.model_cas(r, KEYS, "5-0", {"last_id": "6-0"})
    r.close()


def test_a_keyspace_belongs_to_one_world(redis_url: str) -> None:
    r = streams.connect(redis_url)
    streams.ensure_identity(r, KEYS, "w1", 1)
    streams.ensure_identity(r, KEYS, "w1", 2)
    with pytest.raises(streams.IdentityError, match="world w1 but the exchange is world w2"):
        streams.ensure_identity(r, KEYS, "w2", 3)
    r.hset(KEYS.schema, "major", streams.SCHEMA_MAJOR + 1)
    with pytest.raises(streams.IdentityError, match="newer version"):
        streams.ensure_identity(r, KEYS, "w1", 4)
    r.close()


def test_help_names_every_stream_of_the_table(redis_url: str) -> None:
    r = streams.connect(redis_url)
    streams.ensure_identity(r, KEYS, "w1", 1)
    helped: dict[str, str] = r.hgetall(KEYS.help)  # type: ignore[assignment]
    for stream in streams.TABLE:
        key = getattr(KEYS, stream.name)
        assert stream.name in helped or f"<account>:{stream.name}" in helped, key
    r.close()


class SwallowOneReply(threading.Thread):
    """A proxy that forwards everything but the reply to one command, then cuts the line."""

    def __init__(self, url: str, command: bytes) -> None:
        super().__init__(daemon=True)
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self.target = (parts.hostname, parts.port)
        self.command = command
        self.swallowed = 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]

    def run(self) -> None:
        for _ in range(8):  # connections that one test makes, at most
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            self.serve(client)

    def serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.target) as upstream:
            while data := client.recv(65536):
                upstream.sendall(data)
                reply = upstream.recv(65536)
                if self.command in data and not self.swallowed:
                    self.swallowed += 1
                    return
                client.sendall(reply)


def test_a_lost_reply_is_an_error_and_never_a_second_entry(redis_url: str) -> None:
    proxy = SwallowOneReply(redis_url, b"XADD")
    proxy.start()
    r = streams.connect(f"redis://127.0.0.1:{proxy.port}/0")
    with pytest.raises(redis.ConnectionError):
        streams.publish(r, KEYS.journal, {"what": "test"})
    assert proxy.swallowed == 1
    r.close()
    proxy.server.close()
    direct = streams.connect(redis_url)
    assert direct.xlen(KEYS.journal) == 1
    direct.close()


@pytest.mark.parametrize("chars", [3, 16, 26, 32])
def test_ids_are_base32_of_a_digest(chars: int) -> None:
    for number in range(50):
        digest = hashlib.blake2b(str(number).encode(), digest_size=20).digest()
        told = base64.b32encode(digest).decode().lower()[:chars]
        assert streams._base32(str(number), chars) == told


def test_client_ids_fit_the_exchange_and_differ_by_leg_revision_and_prefix() -> None:
    cause = streams.cause_id("w", "BTCUSDT", "1m", 1, "buy", "r")
    prefix = streams.prefix3(KEYS)
    made = {
        streams.client_id(p, cause, leg, revision)
        for p in (prefix, streams.prefix3(Keys("live")))
        for leg in "estcx"
        for revision in (0, 1, 12)
    }
    assert len(made) == 2 * 5 * 3
    assert all(len(one) <= 36 and one.isalnum() and one.startswith("ag") for one in made)
    with pytest.raises(ValueError, match="unknown leg"):
        streams.client_id(prefix, cause, "z")


def test_a_cause_is_the_same_everywhere_and_differs_in_every_part() -> None:
    base = ("w", "BTCUSDT", "1m", 60_000, "buy", "break")
    assert streams.cause_id(*base) == streams.cause_id(*base)
    others = [
        ("v", *base[1:]),
        ("w", "ETHUSDT", *base[2:]),
        (*base[:2], "5m", *base[3:]),
        (*base[:3], 120_000, *base[4:]),
        (*base[:4], "sell", base[5]),
        (*base[:5], "sweep"),
    ]
    assert len({streams.cause_id(*one) for one in [base, *others]}) == 7


def test_streams_at_their_bound_fit_a_small_plan(redis_url: str) -> None:
    """The sum at default retention stays under 20 MB: fields as long as real ones."""
    r = streams.connect(redis_url)
    long_fields = {
        "signals": 24, "outcomes": 24, "decisions": 16, "orders": 14, "fills": 16, "ledger": 10,
        "commands": 6, "journal": 4, "dead": 5, "equity": 8,
    }  # fmt: skip
    total = 0
    for stream in streams.TABLE:
        fields = {f"field_{n:02d}": "1795000000123.45" for n in range(long_fields[stream.name])}
        key = getattr(KEYS, stream.name)
        sample = min(stream.entries_max, 1000)
        pipe = r.pipeline(transaction=False)
        for _ in range(sample):
            pipe.xadd(key, fields)  # type: ignore[arg-type]
        pipe.execute()
        usage = int(r.memory_usage(key, samples=0) or 0)  # type: ignore[arg-type]
        total += usage * stream.entries_max // sample
    assert total < 20_000_000, total
    r.close()


def test_a_numbered_commit_stands_once_and_a_late_one_not_at_all(redis_url: str) -> None:
    async def body(r: redis.asyncio.Redis) -> None:
        epoch = await streams.lease_take(r, KEYS, "me", 3000)

        await r.set(KEYS.armed, "yes")

        async def one(number: int, confirmed: int = 0, armed: bool = False) -> str:
            ops = [("xadd", KEYS.orders, {"n": str(number)})]
            return await commit(r, epoch, ops, armed=armed, number=number, confirmed=confirmed)

        assert [await one(1), await one(1), await one(3, 1, True)] == ["ok"] * 3
        assert await one(2, 1) == "ok"  # written before, or held up on its way: not now
        assert await one(2, 1, True) == await one(3, 1, True) == "late"
        assert [row["n"] for _, row in await r.xrange(KEYS.orders)] == ["1", "3"]

    run(redis_url, body)


def test_of_a_script_whose_reply_was_lost_only_what_did_not_stand_is_written(
    redis_url: str,
) -> None:
    async def body(r: redis.asyncio.Redis) -> None:
        epoch = await streams.lease_take(r, KEYS, "me", 3000)
        writes = [
            streams.Write((("xadd", KEYS.orders, {"n": str(n)}),), number=n) for n in range(1, 5)
        ]
        told = await streams.commit(r, KEYS, epoch=epoch, writes=writes[:3])
        assert told == (["ok"] * 3, None)
        told = await streams.commit(r, KEYS, epoch=epoch, writes=writes)  # once more, and one new
        assert told == (["ok"] * 4, None)
        assert [row["n"] for _, row in await r.xrange(KEYS.orders)] == ["1", "2", "3", "4"]
        bad = streams.Write((("sadd", KEYS.orders, "x"),), number=6)
        five, seven = (
            streams.Write((("xadd", KEYS.orders, {"n": str(n)}),), number=n) for n in (5, 7)
        )
        told = await streams.commit(r, KEYS, epoch=epoch, writes=[five, bad, seven], confirmed=4)
        assert told[0] == ["ok"] and told[1] is not None
        assert await r.get(KEYS.written) == f"{epoch}:5"

    run(redis_url, body)


def test_a_redis_that_forgot_a_confirmed_commit_or_the_epoch_takes_no_more(redis_url: str) -> None:
    async def body(r: redis.asyncio.Redis) -> None:
        epoch = await streams.lease_take(r, KEYS, "me", 3000)
        ops = [("xadd", KEYS.orders, {"state": "intent"})]

        async def one(number: int, confirmed: int) -> str:
            return await commit(r, epoch, ops, number=number, confirmed=confirmed)

        assert [await one(1, 0), await one(2, 1)] == ["ok", "ok"]
        await r.set(KEYS.written, f"{epoch}:1")  # as an older file has it
        assert await one(3, 2) == "forgotten"
        await r.set(KEYS.written, f"{epoch}:2")
        assert await one(3, 2) == "ok"
        await r.set(KEYS.epoch, str(epoch - 1))
        assert await one(4, 3) == "forgotten"
        await r.flushall()
        assert await one(4, 3) == "forgotten"
        assert await r.xlen(KEYS.orders) == 0

    run(redis_url, body)


def test_a_lease_is_not_taken_where_an_epoch_once_seen_is_forgotten(redis_url: str) -> None:
    async def body(r: redis.asyncio.Redis) -> None:
        seen = await streams.lease_take(r, KEYS, "me", 3000)
        assert await streams.lease_take(r, KEYS, "you", 3000, seen) == 0
        await r.flushall()
        assert await streams.lease_take(r, KEYS, "you", 3000, seen) == streams.FORGOTTEN
        assert await r.exists(KEYS.lease, KEYS.epoch) == 0
        assert await streams.lease_take(r, KEYS, "you", 3000) > 0

    run(redis_url, body)


@pytest.mark.parametrize("read_by_its_count, told", [(0, 3), (3, 1), (9, 1)])
def test_a_count_that_a_rollback_made_wrong_hides_nothing_and_claims_nothing(
    redis_url: str, read_by_its_count: int, told: int
) -> None:
    r = streams.connect(redis_url)
    names = [str(r.xadd(KEYS.signals, {"id": str(n)})) for n in range(3)]
    r.xgroup_create(KEYS.signals, "main", id="0")

    def undelivered(after: str) -> int | None:
        r.execute_command(
            "XGROUP", "SETID", KEYS.signals, "main", after, "ENTRIESREAD", str(read_by_its_count)
        )
        (group,) = r.xinfo_groups(KEYS.signals)
        return streams.undelivered(r, KEYS.signals, group)

    assert undelivered(names[-1]) == 0
    assert undelivered(names[0]) == told
    r.xdel(KEYS.signals, names[1])  # and Redis cannot count any more
    assert undelivered("0-1") is None
