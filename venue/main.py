"""`python -m venue.main`: the command line of the venue, and what it starts.

`--port 0 --symbols 5 --rate 500 --seed 7` prints one line when it is ready: a market made here
(`server`), or, with `--upstream`, an account on another exchange's market (`proxy`).
"""

from __future__ import annotations

import argparse
import socket
import uuid
from decimal import Decimal
from pathlib import Path

import uvloop

import config
import process
from clock import wall_ms
from venue import exchange, limits, proxy, scenario
from venue.exchange import Exchange, Moment, Setup
from venue.orders import money
from venue.recording import Recording
from venue.server import Serving, Venue, run
from venue.shell import listener
from venue.store import SIM, Store
from venue.symbols import FEE_TIERS, SYMBOLS_MAX

BNB_MAX = 1_000_000  # of the first deposit
LATENCY_MS_MAX = 60_000


def arguments(argv: list[str] | None, cfg: config.Config) -> argparse.Namespace:
    """The command line; what is not given comes from the settings."""
    parser = argparse.ArgumentParser(
        prog="venue", description="a simulated Binance USDⓈ-M exchange on loopback"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=cfg.venue_port, help="0 takes a free one")
    parser.add_argument("--symbols", type=int, default=cfg.venue_symbols)
    parser.add_argument("--rate", type=float, default=cfg.venue_rate, help="ticks/s, all symbols")
    parser.add_argument("--seed", type=int, default=cfg.venue_seed)
    parser.add_argument(
        "--speed",
        type=float,
        default=cfg.venue_speed,
        help="market seconds per second; default 30, with a tape 1",
    )
    parser.add_argument(
        "--edge",
        type=float,
        default=cfg.venue_edge,
        help="drift after structure breaks in standard deviations; 0: none",
    )
    parser.add_argument(
        "--day",
        choices=("seed", "now"),
        default="seed",
        help="a generated market begins on the seed's day, or at the host's present time",
    )
    parser.add_argument(
        "--tape",
        nargs="+",
        default=list(cfg.venue_tape),
        metavar="FILE",
        help="recordings, archive CSVs or zips, FILE.npz:SESSION, to play instead of generating",
    )
    parser.add_argument("--fee-tier", type=int, default=cfg.venue_fee_tier, help="0 to 9")
    parser.add_argument("--bnb", type=float, default=cfg.venue_bnb, help="at birth; pays fees")
    parser.add_argument(
        "--scenario",
        action="append",
        default=[],
        metavar="WHAT",
        help="kind:symbol:at_s:key=value (market seconds after birth), or a JSON file; repeatable",
    )
    parser.add_argument(
        "--fuzz",
        action="store_true",
        help="unknown keys, NA trades, foreign rows in market streams",
    )
    parser.add_argument("--record", metavar="FILE", help="write trades and quotes as a tape")
    parser.add_argument("--strict", action=argparse.BooleanOptionalAction, default=cfg.venue_strict)
    parser.add_argument(
        "--limits", default=cfg.venue_limits, help="of requests: real, off, or a multiple like 10"
    )
    parser.add_argument(
        "--latency-ms",
        default=cfg.venue_latency_ms,
        metavar="MS",
        help="real milliseconds that a request takes there and back: 40, or 20-60 at random",
    )
    parser.add_argument(
        "--socket-s",
        type=float,
        default=cfg.venue_socket_s,
        help="a socket is disconnected after so many real seconds",
    )
    parser.add_argument("--state", metavar="DIR", help="default: by the settings")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        help="go on with the world in DIR, if any; with an upstream the default",
    )
    paper = cfg.mode == "paper"
    parser.add_argument(
        "--upstream",
        default=cfg.upstream_url if paper else "",
        metavar="URL",
        help="no market of its own: trade on this exchange's, by its public REST",
    )
    parser.add_argument("--upstream-ws", default=cfg.upstream_ws_url, metavar="URL")
    return _checked(parser, parser.parse_args(argv), cfg)


def _checked(
    parser: argparse.ArgumentParser, options: argparse.Namespace, cfg: config.Config
) -> argparse.Namespace:
    """Defaults that hang together, and bounds; what is wrong ends the process with a sentence."""
    if cfg.mode == "paper" and not options.upstream:
        parser.error("mode paper needs an --upstream")
    if options.resume is None:
        options.resume = bool(options.upstream)
    if options.state is None:
        options.state = str(Path(cfg.state_dir) / ("paper" if options.upstream else "venue"))
    if options.speed is None:
        options.speed = 1.0 if options.tape else 30.0
    try:
        options.limits = limits.scale_of(options.limits)
    except ValueError:
        parser.error("--limits must be real, off or a multiple above 0")
    try:
        options.latency_ms = latency_of(options.latency_ms)
    except ValueError:
        parser.error(f"--latency-ms must be MS or MIN-MAX, 0 to {LATENCY_MS_MAX}")
    if options.socket_s <= 0:
        parser.error("--socket-s must be above 0")
    if not 1 <= options.symbols <= SYMBOLS_MAX:
        parser.error(f"--symbols must be 1 to {SYMBOLS_MAX}")
    if not 0 <= options.port <= 65535:
        parser.error("--port must be 0 to 65535")
    if options.speed <= 0 or options.edge < 0 or options.rate < 0 or options.seed < 0:
        parser.error("--speed must be above 0; --rate, --seed and --edge not below 0")
    if not 0 <= options.fee_tier < len(FEE_TIERS) or not 0 <= options.bnb <= BNB_MAX:
        parser.error(f"--fee-tier must be 0 to 9, --bnb 0 to {BNB_MAX}")
    try:
        options.scenario = scenario.texts(options.scenario)
    except OSError as error:
        parser.error(f"scenario file {error.filename} cannot be read: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))
    return options


def latency_of(text: str) -> tuple[float, float]:
    """(at least, at most) of `40` or `20-60`. Raises ValueError."""
    least, _, most = text.partition("-")
    out = float(least), float(most or least)
    if not 0 <= out[0] <= out[1] <= LATENCY_MS_MAX:
        raise ValueError(text)
    return out


def born(options: argparse.Namespace, store: Store) -> Exchange:
    """A world from the store or a new one with its first deposit. Raises StoreError, ValueError."""
    store.require_kind(SIM)
    if options.resume and store.holds_world():
        return store.resume()
    setup = Setup(
        uuid.uuid4().hex[:16],
        options.symbols,
        options.rate,
        options.seed,
        options.speed,
        options.edge,
        tuple(options.tape),
        options.scenario,
        wall_ms() if options.day == "now" else 0,
    )
    world = exchange.create(setup)
    bnb = money(Decimal(str(options.bnb)))
    exchange.open_account(world, Moment(world.t0_ms, 0), options.fee_tier, bnb)
    store.create(world)
    return world


def main(argv: list[str] | None = None) -> int:
    process.setup_logging("venue")
    try:
        options = arguments(argv, config.load())
        with listener(options.host, options.port) as bound:
            store = Store(Path(options.state))
            with store.locked():
                if options.upstream:
                    uvloop.run(proxy.run(options, store, bound))
                else:
                    world = born(options, store)
                    uvloop.run(_whole(world, store, options, bound))
    except (config.ConfigError, ValueError) as error:  # StoreError, TapeError, a scenario
        process.fail(str(error))
    except OSError as error:
        process.fail(
            f"venue cannot start on {options.host}:{options.port} with state"
            f" {options.state}: {error.strerror or error}; choose another port or folder"
        )
    return 0


def opened(options: argparse.Namespace) -> Recording | None:
    """The recording that is asked for; a resumed venue goes on with it. Raises ValueError."""
    if not options.record:
        return None
    try:
        return Recording(Path(options.record), again=options.resume)
    except OSError as error:
        raise ValueError(f"{options.record} cannot be recorded to: {error.strerror}") from None


async def _whole(
    world: Exchange, store: Store, options: argparse.Namespace, bound: socket.socket
) -> None:
    serving = Serving(
        options.strict,
        options.limits,
        int(options.socket_s * 1000),
        options.latency_ms,
        options.fuzz,
    )
    await run(Venue(world, store, serving, opened(options)), bound)


if __name__ == "__main__":
    raise SystemExit(main())
