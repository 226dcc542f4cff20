"""Every setting, with its unit, default and bounds; read once, at the entry points only.

`load` takes the environment and gives a frozen Config or one sentence that says what to do. An
AEGIS_ variable that no setting knows is an error, because a misspelt limit is no limit. Exchange
keys come from the environment or, under `aegis up`, from an inherited memory file, so that they
stand in no process list; Config never prints them.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

MODES: Final = ("sim", "paper", "demo", "live")
KEYS_FD_ENV: Final = "AEGIS_KEYS_FD"
KEYS_BYTES_MAX: Final = 16_384
DATABASE_MAX: Final = 15  # of a Redis with default settings
SIMULATED: Final = ("sim", "paper")  # real exchange keys never go there
LANES_MAX: Final = 16  # of a node; two processes each, so no host of ours has use for more

# Set by our own processes for one another, not by people.
INTERNAL: Final = frozenset({KEYS_FD_ENV, "AEGIS_HEARTBEAT_FILE", "AEGIS_NO_VENV", "AEGIS_WORLD"})

REST_URLS: Final = {"demo": "https://demo-fapi.binance.com", "live": "https://fapi.binance.com"}
WS_URLS: Final = {"demo": "wss://fstream.binancefuture.com", "live": "wss://fstream.binance.com"}


class ConfigError(Exception):
    """A setting is unknown or cannot be used; the sentence says what to do."""


# --- parsers: text -> value, or ValueError with the rest of the sentence -------------------------


def _text(raw: str) -> str:
    return raw


def _bool(raw: str) -> bool:
    if raw.lower() in ("1", "true", "yes", "on"):
        return True
    if raw.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("must be 1 or 0")


# The exchange keeps 200 conditional orders of an account: a stop and a target of each position, and
# for a moment the stop that replaces another.
POSITIONS_MOST: Final = 90


def _int(low: int, high: int) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        try:
            value = int(raw)
        except ValueError:
            raise ValueError(f"must be a whole number from {low} to {high}") from None
        if not low <= value <= high:
            raise ValueError(f"must lie in {low}..{high}")
        return value

    return parse


def _float(low: float, high: float) -> Callable[[str], float]:
    def parse(raw: str) -> float:
        try:
            value = float(raw)
        except ValueError:
            raise ValueError(f"must be a number from {low:g} to {high:g}") from None
        if not low <= value <= high:  # NaN too
            raise ValueError(f"must lie in {low:g}..{high:g}")
        return value

    return parse


def _ring_slots(raw: str) -> int:
    value = _int(1024, 1 << 24)(raw)
    if value & (value - 1):
        raise ValueError("must be a power of two")
    return value


def _choice(*names: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return raw

    return parse


def _name(raw: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", raw):
        raise ValueError("must be 1 to 64 letters, digits, '.', '_' or '-'")
    return raw


def _list(raw: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in raw.split(",") if part.strip())


def _symbols(raw: str) -> int | tuple[str, ...]:
    if raw.strip().isdigit():
        return _int(1, 1000)(raw)
    names = _list(raw)
    if not names or any(re.search(r"^[^\w]|[\s/:]", name) for name in names):
        raise ValueError("must be a count like 20 or names like BTCUSDT,ETHUSDT")
    return tuple(name.upper() for name in names)


def _optional_float(low: float, high: float) -> Callable[[str], float | None]:
    bounded = _float(low, high)
    return lambda raw: bounded(raw) if raw else None


def _limits(raw: str) -> str:
    if raw not in ("real", "off"):
        _float(0.001, 1_000_000)(raw)
    return raw


def _latency(raw: str) -> str:
    least, _, most = raw.partition("-")
    if _float(0, 60_000)(least) > _float(0, 60_000)(most or least):
        raise ValueError("the range must rise")
    return raw


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if not raw:
            return raw
        parts = urlsplit(raw)
        try:
            _ = parts.port
        except ValueError:
            raise ValueError("has no valid port") from None
        if parts.scheme not in schemes or not (
            parts.hostname or (parts.path and "+" in parts.scheme) or parts.scheme == "unix"
        ):
            raise ValueError(f"must be a {' or '.join(schemes)} address like {schemes[0]}://host")
        return raw.rstrip("/")

    return parse


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: environment name, attribute, default as text, unit, parser, meaning."""

    env: str
    default: str
    unit: str
    parse: Callable[[str], Any]
    meaning: str
    by_mode: Mapping[str, str] = field(default_factory=dict)  # other defaults in some modes

    @property
    def attribute(self) -> str:
        return self.env.removeprefix("AEGIS_").removeprefix("BINANCE_").lower()


_SIM_OFF: Final = {"sim": "0"}  # a simulated market is there to be traded to the end

SETTINGS: Final = (
    Setting("AEGIS_MODE", "sim", "name", _choice(*MODES), "sim, paper, demo or live"),
    Setting("AEGIS_ACCOUNT", "main", "name", _name, "account; part of every account key"),
    Setting("AEGIS_NODE_ID", "", "name", lambda raw: _name(raw) if raw else "",
            "this node's name; the host's name when empty"),
    Setting("REDIS_URL", "", "address", _url("redis", "rediss", "unix"),
            "Redis or Valkey; empty: `aegis up` starts a private one"),
    Setting("AEGIS_BROKER_URL", "", "address", _url("redis", "rediss", "redis+socket"),
            "Celery's broker; empty: the database after REDIS_URL's"),
    Setting("AEGIS_STATE_DIR", ".aegis", "folder", _text, "state of `aegis up` and of the venue"),
    Setting("AEGIS_SHM_DIR", "/dev/shm", "folder", _text,  # noqa: S108 - shared memory, 0600
            "where ring files lie; the temporary folder where that is missing"),
    Setting("AEGIS_LOG_LEVEL", "WARNING", "level",
            _choice("DEBUG", "INFO", "WARNING", "ERROR"), "level of the root logger"),
    # market
    Setting("AEGIS_SYMBOLS", "20", "count or names", _symbols, "the universe"),
    Setting("AEGIS_SYMBOLS_EXCLUDE", "", "names", _list, "never in the universe"),
    Setting("AEGIS_QUOTES", "USDT", "names", _list, "quote assets of the universe"),
    Setting("AEGIS_SYMBOLS_MAX", "512", "rows", _int(1, 4096), "rows of a ring's symbol table"),
    Setting("AEGIS_LANES", "1", "lanes", _int(1, LANES_MAX),
            "pairs of feed and brain, each with a ring, that share a node's symbols"),
    Setting("AEGIS_RING_SLOTS", "131072", "records", _ring_slots, "ring size, a power of two"),
    Setting("AEGIS_HEAL_TRADES_MAX", "5000", "trades", _int(0, 1_000_000),
            "a larger hole is declared lost and corrected from klines"),
    Setting("AEGIS_REPLACE_S", "85800", "s", _float(1, 86_000),
            "a connection of this age is replaced, with overlap; the exchange ends it at 86400"),
    # brain
    Setting("AEGIS_RULES", "", "dotted names", _list, "further rules, like mymodule.my_rule"),
    Setting("AEGIS_RULE_MS", "5", "ms", _float(0.01, 1000),
            "a rule that often takes longer for an answer is switched to shadow"),
    Setting("AEGIS_RULE_LIMIT_MS", "250", "ms", _int(20, 300),
            "a rule that has no answer by then is interrupted, before twice that, and off"),
    Setting("AEGIS_RECORD", "", "folder", _text,
            "each brain records there all that it takes in, from its start; empty: off"),
    Setting("AEGIS_RECORD_MB", "1024", "MB", _int(1, 1_000_000),
            "a recording ends at this size"),
    Setting("AEGIS_ENTRY_POLICY", "rule", "name", _choice("rule", "proven"),
            "rule: a valid rule suffices; proven: confidence must exceed break-even",
            {"live": "proven"}),
    # risk
    Setting("AEGIS_SIGNAL_AGE_MS", "15000", "ms, market", _int(100, 3_600_000),
            "a signal older than this is stale"),
    Setting("AEGIS_POSITIONS_MAX", "3", "positions", _int(1, POSITIONS_MOST), "positions at most"),
    Setting("AEGIS_ROTATION", "1", "0 or 1", _bool, "replace the weakest position when full"),
    Setting("AEGIS_RISK_PER_TRADE", "0.005", "share of equity", _float(0.0001, 0.1),
            "lost when a stop is hit"),
    Setting("AEGIS_LEVERAGE_MAX", "3", "times", _int(1, 125), "leverage at most"),
    Setting("AEGIS_EXPOSURE_MAX", "3.0", "times equity", _float(0.01, 125.0),
            "gross notional at most, pending entries included"),
    Setting("AEGIS_CAPITAL_MAX", "0", "USDT", _float(0, 1e12),
            "what sizing sees of the equity; 0: all"),
    Setting("AEGIS_COST_R_MAX", "0.5", "R", _float(0.01, 10.0),
            "round-trip cost against stop distance at most"),
    Setting("AEGIS_QUALITY_MIN", "0", "0..1", _float(0, 1), "a signal's quality at least"),
    Setting("AEGIS_COLLAR_BPS", "10", "bp", _float(0.1, 500),
            "how far past the touch an entry's limit may lie"),
    Setting("AEGIS_NAKED_MS", "1000", "ms", _int(100, 60_000),
            "a position without its stop for longer is flattened"),
    Setting("AEGIS_HOLD_MAX_MS", "7200000", "ms, market", _int(1_000, 10**10),
            "a position is closed after this"),
    Setting("AEGIS_STAGNATION_MS", "1800000", "ms, market", _int(1_000, 10**10),
            "a position within ±0.1 % of its entry for this long is closed"),
    Setting("AEGIS_DECAY_EXIT", "1", "0 or 1", _bool, "an opposing signal closes a position"),
    Setting("AEGIS_SIZING", "risk", "name", _choice("risk", "kelly", "atr"),
            "risk: a fixed share by the stop distance; kelly: a fraction of Kelly's share, at most "
            "that; atr: as risk, by a distance of at least AEGIS_ATR_STOPS"),
    Setting("AEGIS_KELLY", "0.25", "share", _float(0.01, 1), "of Kelly's share, with kelly"),
    Setting("AEGIS_ATR_STOPS", "2", "ATR", _float(0.1, 100), "least distance, with atr"),
    Setting("AEGIS_DAILY_LOSS_MAX", "0.05", "share of equity", _float(0, 1),
            "breaker: a day (UTC) that has lost this makes no more entries; 0: off", _SIM_OFF),
    Setting("AEGIS_DRAWDOWN_MAX", "0.2", "share of equity", _float(0, 1),
            "breaker: no entries so far below the highest equity until `resume`; 0: off",
            _SIM_OFF),
    Setting("AEGIS_LOSS_STREAK_MAX", "10", "round trips", _int(0, 10_000),
            "breaker: no entries after so many losses in a row until `resume`; 0: off", _SIM_OFF),
    Setting("AEGIS_ERRORS_MAX", "50", "orders in 5 min", _int(0, 500),
            "breaker: no entries while so many were refused or not answered; 0: off", _SIM_OFF),
    Setting("AEGIS_FEES_DAY_MAX", "0.02", "share of equity", _float(0, 1),
            "breaker: a day (UTC) that has paid this makes no more entries; 0: off", _SIM_OFF),
    Setting("AEGIS_TRADES_DAY_MAX", "200", "entries", _int(0, 1_000_000),
            "breaker: entries of a day (UTC) at most; 0: off", _SIM_OFF),
    Setting("AEGIS_LEASE_TTL_MS", "3000", "ms", _int(1_000, 60_000), "risk's lease"),
    Setting("AEGIS_RECV_WINDOW_MS", "1500", "ms", _int(100, 5_000), "recvWindow of an entry"),
    Setting("AEGIS_HALT", "0", "0 or 1", _bool, "1 stops entries; exits always work"),
    Setting("BINANCE_API_KEY", "", "secret", _text, "exchange key; read by risk only",
            {"sim": "test", "paper": "test"}),
    Setting("BINANCE_API_SECRET", "", "secret", _text, "exchange secret; read by risk only",
            {"sim": "test", "paper": "test"}),
    # venue
    Setting("AEGIS_VENUE_URL", "http://127.0.0.1:8420", "address", _url("http", "https"),
            "where the simulated exchange is found (sim, paper)"),
    Setting("AEGIS_VENUE_PORT", "8420", "port", _int(0, 65535), "where the venue listens; 0: any"),
    Setting("AEGIS_VENUE_SYMBOLS", "20", "symbols", _int(1, 1000), "symbols of the venue"),
    Setting("AEGIS_VENUE_RATE", "1000", "ticks/s", _float(1, 5e6),
            "trades and quotes per real second, all symbols together"),
    Setting("AEGIS_VENUE_SEED", "7", "number", _int(0, 2**31 - 1), "seed of the market"),
    Setting("AEGIS_VENUE_SPEED", "", "times", _optional_float(0.01, 1000),
            "market seconds per real second; empty: 30 generated, 1 with a tape"),
    Setting("AEGIS_VENUE_EDGE", "0.25", "share", _float(0, 1),
            "edge of the generated market after structure breaks; 0: a driftless walk"),
    Setting("AEGIS_VENUE_TAPE", "", "files", _list, "captures to play instead of generating"),
    Setting("AEGIS_VENUE_FEE_TIER", "0", "tier", _int(0, 9), "fee tier of the venue's account"),
    Setting("AEGIS_VENUE_BNB", "0", "BNB", _float(0, 1e6),
            "BNB that the venue's account begins with; above 0 it pays the fees"),
    Setting("AEGIS_VENUE_STRICT", "1", "0 or 1", _bool,
            "1: streams are served on their own route only, as the exchange does"),
    Setting("AEGIS_VENUE_LIMITS", "real", "real, off or times", _limits,
            "request limits of the venue: the exchange's, none, or a multiple"),
    Setting("AEGIS_VENUE_LATENCY_MS", "0", "ms or range", _latency,
            "real time that a request to the venue takes: 40, or 20-60 at random"),
    Setting("AEGIS_VENUE_SOCKET_S", "86400", "s", _float(0.1, 10_000_000),
            "the venue disconnects a socket of this age"),
    Setting("AEGIS_UPSTREAM_URL", REST_URLS["live"], "address", _url("http", "https"),
            "the exchange whose market paper trades on: its public REST"),
    Setting("AEGIS_UPSTREAM_WS_URL", WS_URLS["live"], "address", _url("ws", "wss"),
            "its market streams; routes follow"),
)  # fmt: skip
_BY_ENV: Final = {setting.env: setting for setting in SETTINGS}


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, parsed. Attributes are the names of SETTINGS without prefix, in lower case."""

    mode: str
    account: str
    node_id: str
    redis_url: str
    broker_url: str
    state_dir: str
    shm_dir: str
    log_level: str
    symbols: int | tuple[str, ...]
    symbols_exclude: tuple[str, ...]
    quotes: tuple[str, ...]
    symbols_max: int
    lanes: int
    ring_slots: int
    heal_trades_max: int
    replace_s: float
    rules: tuple[str, ...]
    rule_ms: float
    rule_limit_ms: int
    record: str
    record_mb: int
    entry_policy: str
    signal_age_ms: int
    positions_max: int
    rotation: bool
    risk_per_trade: float
    leverage_max: int
    exposure_max: float
    capital_max: float
    cost_r_max: float
    quality_min: float
    collar_bps: float
    naked_ms: int
    hold_max_ms: int
    stagnation_ms: int
    decay_exit: bool
    sizing: str
    kelly: float
    atr_stops: float
    daily_loss_max: float
    drawdown_max: float
    loss_streak_max: int
    errors_max: int
    fees_day_max: float
    trades_day_max: int
    lease_ttl_ms: int
    recv_window_ms: int
    halt: bool
    venue_url: str
    venue_port: int
    venue_symbols: int
    venue_rate: float
    venue_seed: int
    venue_speed: float | None
    venue_edge: float
    venue_tape: tuple[str, ...]
    venue_fee_tier: int
    venue_bnb: float
    venue_strict: bool
    venue_limits: str
    venue_latency_ms: str
    venue_socket_s: float
    upstream_url: str
    upstream_ws_url: str
    api_key: str = field(repr=False)
    api_secret: str = field(repr=False)

    @property
    def rest_url(self) -> str:
        """Base address of the exchange's REST, by mode."""
        return REST_URLS.get(self.mode, self.venue_url)

    @property
    def ws_url(self) -> str:
        """Base address of the exchange's WebSockets, by mode; routes follow."""
        if self.mode in WS_URLS:
            return WS_URLS[self.mode]
        return re.sub(r"^http", "ws", self.venue_url)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What logs must never show."""
        password = urlsplit(self.redis_url).password if self.redis_url else None
        return tuple(text for text in (self.api_key, self.api_secret, password) if text)


assert {setting.attribute for setting in SETTINGS} == {f.name for f in fields(Config)}


def next_database(redis_url: str) -> str:
    """The address of the database after this one; Celery's broker keeps out of our keys."""
    if not redis_url:
        return ""
    parts = urlsplit(redis_url)
    if parts.scheme == "unix":
        return f"redis+socket://{parts.path}?virtual_host=1"
    path = parts.path.strip("/")
    if path and not path.isdigit():
        raise ConfigError(f"REDIS_URL names database {path!r}: use a number, like /0.")
    if int(path or 0) >= DATABASE_MAX:
        raise ConfigError(f"REDIS_URL names the last database {path}: set AEGIS_BROKER_URL.")
    return urlunsplit(parts._replace(path=f"/{int(path or 0) + 1}"))


def _inherited_keys(environ: Mapping[str, str]) -> dict[str, str]:
    """Keys from the memory file that `aegis up` left open for risk."""
    raw_fd = environ.get(KEYS_FD_ENV)
    if not raw_fd:
        return {}
    try:
        text = os.pread(int(raw_fd), KEYS_BYTES_MAX, 0).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{KEYS_FD_ENV} names no readable file: unset it.") from error
    key, _, secret = text.partition("\n")
    return {"BINANCE_API_KEY": key, "BINANCE_API_SECRET": secret}


def load(environ: Mapping[str, str] | None = None) -> Config:
    """Parse the environment. Raises ConfigError with one sentence on the first bad setting."""
    environ = os.environ if environ is None else environ
    for name in sorted(environ):
        if name.startswith("AEGIS_") and name not in _BY_ENV and name not in INTERNAL:
            raise ConfigError(f"{name} is no setting: see .env.example for all of them.")
    given = {**environ, **_inherited_keys(environ)}
    mode_raw = given.get("AEGIS_MODE") or _BY_ENV["AEGIS_MODE"].default
    if mode_raw in SIMULATED:
        given = {k: v for k, v in given.items() if not k.startswith("BINANCE_API_")}
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        default = setting.by_mode.get(mode_raw, setting.default)
        raw = (given.get(setting.env) or default).strip()
        try:
            values[setting.attribute] = setting.parse(raw)
        except ValueError as error:
            shown = "***" if setting.unit == "secret" else repr(raw)
            raise ConfigError(f"{setting.env}={shown} {error}.") from None
    if isinstance(values["symbols"], int) and values["symbols"] > values["symbols_max"]:
        raise ConfigError(
            f"AEGIS_SYMBOLS={values['symbols']} exceeds AEGIS_SYMBOLS_MAX={values['symbols_max']}."
        )
    values["node_id"] = values["node_id"] or re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())
    values["broker_url"] = values["broker_url"] or next_database(values["redis_url"])
    if not Path(values["shm_dir"]).is_dir():
        values["shm_dir"] = tempfile.gettempdir()  # a folder on disk works, slower
    return Config(**values)


def env_example() -> str:
    """The text of .env.example: every setting with its default, unit and meaning."""
    lines = ["# Every setting of AEGIS with its default. Copy to .env and change what you need."]
    for setting in SETTINGS:
        modes = "".join(f"; {value} in {mode}" for mode, value in setting.by_mode.items())
        lines += ["", f"# {setting.meaning} [{setting.unit}{modes}]"]
        lines += [f"#{setting.env}={setting.default}"]
    return "\n".join(lines) + "\n"


def readme_table() -> str:
    """The settings table of README.md."""
    rows = ["| setting | default | unit | meaning |", "|---|---|---|---|"]
    for setting in SETTINGS:
        modes = "".join(f"; {value} in {mode}" for mode, value in setting.by_mode.items())
        default = f"`{setting.default}`" if setting.default else "empty"
        rows.append(f"| `{setting.env}` | {default}{modes} | {setting.unit} | {setting.meaning} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(env_example(), end="")
