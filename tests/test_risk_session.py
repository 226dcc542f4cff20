"""The shell around the core: what it does while Redis is full, new or away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import redis.exceptions
from redis_writes import commit
from risk_desk import KEYS, Desk, sends

import process
import streams
from risk import session
from risk.events import CommandRead, Commit, CommitFailed, Done, SignalRead, Trouble
from risk.gate import Limits
from risk.lease import Lease
from risk.main import Risk
from risk.session import Session
from risk.step import step


def make_session(r: Any = None) -> Session:
    cfg = SimpleNamespace(account="main", ws_url="ws://x", mode="sim", halt=False)
    exchange = SimpleNamespace(throttled_until_ms=0.0)
    risk: Any = SimpleNamespace(
        cfg=cfg, keys=KEYS, redis=r, lease=Lease("me", 3_000), exchange=exchange, run_id=""
    )
    risk.market = SimpleNamespace(speed=1.0)
    risk.market_ms = lambda: 0.0
    risk.epoch_seen, risk.take_after_ms, risk.halt_again = 1, 0.0, False
    risk.market = SimpleNamespace(speed=1.0)
    return Session(risk, 1, Limits())


def writing(
    monkeypatch: pytest.MonkeyPatch,
    answers: list[BaseException | str],
    work: Callable[[Session], Awaitable[None]],
) -> list[tuple[str, bool]]:
    """Run `work` beside the one writer; (operation, armed) of each try, in order."""
    tries: list[tuple[str, bool]] = []

    async def main() -> None:
        held = make_session()

        async def commit(*_: Any, writes: Sequence[streams.Write], **more: Any) -> Any:
            verdicts: list[str] = []
            for write in writes:
                tries.append((write.ops[0][0], write.armed))
                answer = answers.pop(0) if answers else "ok"
                if isinstance(answer, redis.exceptions.ResponseError):
                    return verdicts, answer
                if isinstance(answer, BaseException):
                    raise answer
                verdicts.append(answer)
            return verdicts, None

        monkeypatch.setattr(streams, "commit", commit)
        monkeypatch.setattr(session, "RETRY_S", 0.001)
        task = asyncio.create_task(held.write())
        await work(held)
        task.cancel()

    asyncio.run(main())
    return tries


FULL = redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'")


def test_a_full_redis_is_asked_again_for_a_record_and_never_for_an_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    desk.open()
    out = sends(desk.signal(id="against", side="sell", stop="1010", target="980"), "exit")[0]
    entry, record = Commit((("entry",),), armed=True), Commit((("record",),))
    leave = Commit((("leave",),), then=(out,))

    async def work(held: Session) -> None:
        for made in (record, entry, leave):
            held.queue(made)
        await asyncio.sleep(0.05)
        failed = [e.commit for e in held.inbox if isinstance(e, CommitFailed)]
        assert failed == [record, entry, leave, record]  # the exit does not wait for Redis
        assert [type(e) for e in held.inbox][-1] is Trouble
        assert not held.outbox and not held.writing

    tries = writing(monkeypatch, [FULL, FULL], work)
    assert tries == [("record", False)] * 3 + [("leave", False)]


def test_entries_open_their_script_and_others_follow_in_order() -> None:
    held = make_session()
    record, entry = Commit((("record",),)), Commit((("entry",),), armed=True)
    for made in (record, record, entry, entry, record, entry, *[record] * session.BATCH_MAX):
        held.queue(made)
    batches = []
    while held.outbox:
        batches.append([made for _, made in held.next_writes()])
    assert batches[:2] == [[record, record], [entry, entry, record]]
    assert [len(batch) for batch in batches] == [2, 3, session.BATCH_MAX, 1]


def test_what_is_in_a_hurry_goes_before_all_that_was_not_sent_yet() -> None:
    async def work() -> list[list[tuple[int, str]]]:
        held = make_session()
        for name in "ab":
            held.queue(Commit(((name,),)))
        (first,) = [held.next_writes()]
        held.outbox.extendleft(reversed(first))  # sent once, to be sent again
        held.queue(Commit((("c",),)))
        held.queue(Commit((("urgent",),), hurry=True))
        return [[(n, made.ops[0][0]) for n, made in held.next_writes()]]

    assert asyncio.run(work()) == [[(1, "a"), (2, "b"), (3, "urgent"), (4, "c")]]


def test_what_follows_a_write_that_failed_is_written_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third = (Commit(((name,),)) for name in ("first", "second", "third"))

    async def work(held: Session) -> None:
        for made in (first, second, third):
            held.queue(made)
        await asyncio.sleep(0.05)
        assert [e.commit for e in held.inbox if isinstance(e, CommitFailed)] == [second]
        assert not held.outbox

    tries = writing(monkeypatch, ["ok", FULL], work)
    assert [name for name, _ in tries] == ["first", "second", "second", "third"]


@pytest.mark.parametrize("answer", ["ok", FULL], ids=["written", "refused"])
@pytest.mark.parametrize(("takes_s", "sent"), [(0.0, 1), (0.2, 1)])
def test_a_slow_write_holds_no_protection_back_and_none_goes_out_twice(
    monkeypatch: pytest.MonkeyPatch, answer: BaseException | str, takes_s: float, sent: int
) -> None:
    desk = Desk()
    _, stop, _ = desk.open()

    async def main() -> None:
        held = make_session()
        put: list[Any] = []
        monkeypatch.setattr(held.dispatcher, "put", put.append)
        monkeypatch.setattr(session, "RETRY_S", 0.001)
        answers = [answer]

        async def commit(*_: Any, **__: Any) -> Any:
            await asyncio.sleep(takes_s)
            told = answers.pop(0) if answers else "ok"
            return ([], told) if isinstance(told, BaseException) else ([told], None)

        monkeypatch.setattr(streams, "commit", commit)
        writing = asyncio.create_task(held.write())
        held.queue(Commit((("record",),), about=stop.about, then=(stop,), hurry=True))
        await asyncio.sleep(0.15)
        waited = takes_s * 1000 > session.HURRY_MS
        assert len(put) == int(waited or answer == "ok")
        await asyncio.sleep(takes_s * 2)
        failed = [e.commit.then for e in held.inbox if isinstance(e, CommitFailed)]
        assert len(put) + len([then for then in failed if then]) == sent
        writing.cancel()

    asyncio.run(main())


def test_what_is_in_a_hurry_is_written_before_all_that_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, stop, _ = Desk().open()

    async def work(held: Session) -> None:
        monkeypatch.setattr(held.dispatcher, "put", lambda _: None)
        for name in ("refusal", "refusal"):
            held.queue(Commit(((name,),)))
        held.queue(Commit((("leg",),), about=stop.about, then=(stop,), hurry=True))
        await asyncio.sleep(0.02)

    assert [name for name, _ in writing(monkeypatch, [], work)] == ["leg", "refusal", "refusal"]


def test_a_session_that_is_over_sends_nothing_that_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    _, stop, _ = Desk().open()

    async def work() -> None:
        held = make_session()
        put: list[Any] = []
        monkeypatch.setattr(held.dispatcher, "put", put.append)
        held.queue(Commit((("record",),), about=stop.about, then=(stop,), hurry=True))
        held.over.set()
        await asyncio.sleep(2 * session.HURRY_MS / 1000)
        assert put == []

    asyncio.run(work())


def test_while_redis_fails_an_entry_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(held: Session) -> None:
        held.failing = True
        held.queue(Commit((("entry",),), armed=True))
        assert [type(e) for e in held.inbox] == [CommitFailed] and not held.outbox

    assert writing(monkeypatch, [], work) == []


def test_a_wrong_script_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(held: Session) -> None:
        held.queue(Commit((("record",),)))
        await asyncio.sleep(0.02)
        assert not held.outbox

    wrong = redis.exceptions.ResponseError("ERR user_script:1: nil")
    assert writing(monkeypatch, [wrong], work) == [("record", False)]


def test_a_stopping_session_waits_for_its_writes_and_stops() -> None:
    async def work() -> None:
        held = make_session()
        assert held.idle
        held.writing = True
        assert not held.idle
        held.writing = False
        desk = Desk()
        entry = sends(desk.signal(), "entry")[0]
        held.state = desk.state
        assert not held.idle
        desk.accepted(sends(desk.fill(entry, "1", "1000"), "stop")[0])
        desk.done(entry, "FILLED", "1")
        assert held.idle

    asyncio.run(work())


def test_opening_on_a_full_redis_is_not_armed_and_goes_on(redis_url: str) -> None:
    async def work() -> None:
        r = streams.connect_async(redis_url)
        held = make_session(r)
        await r.config_set("maxmemory", 1)
        try:
            await held.ensure_groups()
            await held.arm()
            assert not held.state.armed
            await r.config_set("maxmemory", 0)
            await held.look_at_armed()
            assert held.state.armed
        finally:
            await r.config_set("maxmemory", 0)
            await r.aclose()

    asyncio.run(work())


@pytest.mark.parametrize("looks_between", [0, 1])
def test_a_resume_arms_again_however_soon_it_follows_the_halt(
    redis_url: str, looks_between: int
) -> None:
    async def work() -> None:
        r = streams.connect_async(redis_url)
        await r.set(KEYS.epoch, "1")
        held = make_session(r)
        await held.arm()
        assert held.state.armed

        async def command(name: str) -> None:
            fields = {"name": name, "id": name}
            for effect in step(held.state, CommandRead("1-0", fields), held.now()):
                if isinstance(effect, Commit):
                    assert await commit(r, 1, effect.ops) == "ok"

        await command("halt")
        for _ in range(looks_between):
            await held.look_at_redis()
            assert not held.state.armed
        await command("resume")
        await held.look_at_redis()
        assert held.state.armed
        await r.delete(KEYS.armed)  # by hand: that stands, nobody arms again
        await command("resume")
        await held.look_at_redis()
        assert not held.state.armed


def test_every_pending_entry_of_a_former_holder_is_read_before_a_new_one(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PENDING_COUNT", 10)

    async def work() -> None:
        r = streams.connect_async(redis_url)
        held = make_session(r)
        await held.ensure_groups()
        names = [str(n) for n in range(25)]
        for name in names:
            await streams.publish_async(r, KEYS.signals, {"id": name})
        await streams.read_group(r, [KEYS.signals], "main", session.CONSUMER)  # and it died
        await streams.publish_async(r, KEYS.signals, {"id": "new"})
        reading = asyncio.create_task(held.read())
        await asyncio.sleep(0.3)
        reading.cancel()
        read = [event.fields["id"] for event in held.inbox if isinstance(event, SignalRead)]
        assert read == [*names, "new"]
        await r.aclose()

    asyncio.run(work())


class Server:
    """A Redis that tells who it is and for how long."""

    def __init__(self) -> None:
        self.run_id, self.up_s, self.epoch = "a", 1_000, 7

    async def info(self, section: str) -> dict[str, Any]:
        return {"run_id": self.run_id, "uptime_in_seconds": self.up_s}

    async def get(self, key: str) -> str | None:
        assert key == KEYS.epoch
        return str(self.epoch) if self.epoch else None

    async def hexists(self, key: str, field: str) -> bool:
        return False


def looking(server: Any) -> Any:
    """What of a Risk looks at its server."""
    risk = SimpleNamespace(redis=server, cfg=SimpleNamespace(lease_ttl_ms=3_000), keys=KEYS)
    risk.run_id, risk.take_after_ms, risk.epoch_seen = "", 0.0, 0
    risk.halted = risk.halt_again = False
    return risk


@pytest.mark.parametrize(
    ("up_s", "then", "then_s", "wait_ms"),
    [
        (1_000, "a", 1_000, 0),
        (3, "a", 3, 0),
        (1, "a", 1, 2_000),
        (0, "a", 0, 3_000),
        (1_000, "b", 1_000, 3_000),  # another server, and nobody knows since when
        (1_000, "b", 1, 2_000),  # started again: who held before has run out by that much
        (1_000, "b", 0, 3_000),
    ],
)
def test_a_redis_that_may_have_forgotten_a_lease_is_given_one_ttl(
    monkeypatch: pytest.MonkeyPatch, up_s: int, then: str, then_s: int, wait_ms: float
) -> None:
    server: Any = Server()
    risk = looking(server)
    monkeypatch.setattr("risk.main.boot_ms", lambda: 50_000.0)

    async def work() -> None:
        server.up_s = up_s
        await Risk.look_at_server(risk)
        server.run_id, server.up_s = then, then_s
        await Risk.look_at_server(risk)
        after_ms = risk.take_after_ms
        await Risk.look_at_server(risk)  # the same one again: no further pause
        assert risk.take_after_ms == after_ms

    asyncio.run(work())
    assert risk.take_after_ms == 50_000.0 + wait_ms


def test_the_heart_beats_while_we_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[int] = []
    monkeypatch.setattr(process, "beat", lambda: beats.append(1))
    monkeypatch.setattr("risk.main.BEAT_S", 0.01)

    async def work() -> None:
        async with Risk.beating(SimpleNamespace()):  # type: ignore[arg-type]
            await asyncio.sleep(0.05)
        told = len(beats)
        assert told >= 3
        await asyncio.sleep(0.03)
        assert len(beats) == told

    asyncio.run(work())


def test_a_full_redis_that_knows_us_lets_us_start_and_an_empty_one_does_not(
    redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fetch(*_: str) -> Done:
        return Done({"dualSidePosition": False})

    async def world() -> str:
        return "w1"

    risk: Any = SimpleNamespace(cfg=SimpleNamespace(redis_url=redis_url), keys=KEYS, world=world)
    risk.exchange = SimpleNamespace(fetch=fetch)
    risk.claim = lambda: Risk.claim(risk)
    r = streams.connect(redis_url)
    try:
        r.config_set("maxmemory", 1)
        with pytest.raises(SystemExit):
            asyncio.run(Risk.check_account(risk))
        assert "Redis is full" in capsys.readouterr().err
        r.config_set("maxmemory", 0)
        streams.ensure_identity(r, KEYS, "w1", 1)
        r.config_set("maxmemory", 1)
        asyncio.run(Risk.check_account(risk))
    finally:
        r.config_set("maxmemory", 0)
        r.close()
