"""Settings: parsed, bounded, named in one sentence when wrong, and documented where users look."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import config

ROOT = Path(__file__).resolve().parent.parent


def test_defaults_run_the_demo() -> None:
    cfg = config.load({})
    assert cfg.mode == "sim"
    assert cfg.rest_url == "http://127.0.0.1:8420"
    assert cfg.ws_url == "ws://127.0.0.1:8420"
    assert cfg.entry_policy == "rule"
    assert (cfg.api_key, cfg.api_secret) == ("test", "test")


def test_live_has_no_default_keys_and_asks_for_proof() -> None:
    cfg = config.load({"AEGIS_MODE": "live"})
    assert (cfg.api_key, cfg.api_secret) == ("", "")
    assert cfg.entry_policy == "proven"
    assert cfg.rest_url == "https://fapi.binance.com"


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(config.ConfigError, match="AEGIS_POSITION_MAX is no setting"):
        config.load({"AEGIS_POSITION_MAX": "3"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AEGIS_MODE", "production"),
        ("AEGIS_POSITIONS_MAX", "three"),
        ("AEGIS_POSITIONS_MAX", "0"),
        ("AEGIS_POSITIONS_MAX", "91"),
        ("AEGIS_RISK_PER_TRADE", "nan"),
        ("AEGIS_RING_SLOTS", "100000"),
        ("AEGIS_SYMBOLS", "BTC/USDT"),
        ("AEGIS_ACCOUNT", "a:b"),
        ("REDIS_URL", "localhost:6379"),
        ("REDIS_URL", "redis://host:99999"),
        ("REDIS_URL", "redis://host:abc"),
        ("AEGIS_SYMBOLS", "-1"),
        ("AEGIS_SYMBOLS", "600"),
        ("AEGIS_VENUE_URL", "ftp://host"),
        ("AEGIS_HALT", "maybe"),
    ],
)
def test_an_unparsable_setting_is_one_sentence(name: str, value: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.load({name: value})
    assert str(caught.value).startswith(f"{name}=")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "ok"), [("0.00009", False), ("0.0001", True), ("0.1", True), ("0.11", False)]
)
def test_bounds_are_inclusive(raw: str, ok: bool) -> None:
    env = {"AEGIS_RISK_PER_TRADE": raw}
    if ok:
        assert config.load(env).risk_per_trade == float(raw)
    else:
        with pytest.raises(config.ConfigError):
            config.load(env)


def test_symbols_are_a_count_or_names() -> None:
    assert config.load({"AEGIS_SYMBOLS": "300"}).symbols == 300
    assert config.load({"AEGIS_SYMBOLS": "btcusdt, ETHUSDT"}).symbols == ("BTCUSDT", "ETHUSDT")


def test_the_broker_is_the_next_database() -> None:
    assert config.load({"REDIS_URL": "redis://h:1/0"}).broker_url == "redis://h:1/1"
    assert config.load({"REDIS_URL": "rediss://:pw@h:1"}).broker_url == "rediss://:pw@h:1/1"
    assert config.load({"REDIS_URL": "unix:///run/r.sock"}).broker_url.startswith("redis+socket://")
    with pytest.raises(config.ConfigError, match="set AEGIS_BROKER_URL"):
        config.load({"REDIS_URL": "redis://h/15"})
    given = config.load({"REDIS_URL": "redis://h:1", "AEGIS_BROKER_URL": "redis://other:2/7"})
    assert given.broker_url == "redis://other:2/7"


def test_secrets_are_not_printed() -> None:
    cfg = config.load(
        {"AEGIS_MODE": "demo", "BINANCE_API_KEY": "k" * 64, "BINANCE_API_SECRET": "s" * 64}
    )
    assert "kkkk" not in repr(cfg) and "ssss" not in repr(cfg)
    assert cfg.secrets == ("k" * 64, "s" * 64)


def test_real_keys_never_reach_a_simulated_exchange() -> None:
    for mode in config.SIMULATED:
        cfg = config.load({"AEGIS_MODE": mode, "BINANCE_API_KEY": "k" * 64})
        assert cfg.api_key == "test"


def test_keys_come_through_an_inherited_memory_file() -> None:
    fd = os.memfd_create("keys")
    os.write(fd, b"the-key\nthe-secret")
    cfg = config.load({"AEGIS_KEYS_FD": str(fd), "AEGIS_MODE": "live"})
    assert (cfg.api_key, cfg.api_secret) == ("the-key", "the-secret")
    os.close(fd)
    with pytest.raises(config.ConfigError, match="AEGIS_KEYS_FD"):
        config.load({"AEGIS_KEYS_FD": str(fd)})


def test_env_example_is_the_table() -> None:
    assert (ROOT / ".env.example").read_text() == config.env_example()


def test_readme_holds_the_settings_table() -> None:
    assert config.readme_table() in (ROOT / "README.md").read_text()


def test_paper_follows_the_real_exchange_and_is_asked_like_a_venue() -> None:
    cfg = config.load({"AEGIS_MODE": "paper", "AEGIS_VENUE_URL": "http://127.0.0.1:9"})
    live = config.load({"AEGIS_MODE": "live"})
    assert (cfg.upstream_url, cfg.upstream_ws_url) == (live.rest_url, live.ws_url)
    assert (cfg.rest_url, cfg.ws_url) == ("http://127.0.0.1:9", "ws://127.0.0.1:9")
    assert (cfg.api_key, cfg.api_secret) == ("test", "test")
