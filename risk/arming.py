"""Arming: what `armed` must say, and the limits that it stands for.

In live mode entries are allowed only while the key `armed` carries the hash of the account and of
the risk settings: whoever changes a setting has to arm again. Light enough for the command line.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from risk.gate import Limits


def limits_of(cfg: Any) -> Limits:
    """The gate's limits from a config: exact where they meet prices."""

    def exact(number: float) -> Decimal:
        return Decimal(repr(number))

    return Limits(
        signal_age_ms=cfg.signal_age_ms,
        positions_max=cfg.positions_max,
        risk_per_trade=exact(cfg.risk_per_trade),
        leverage_max=cfg.leverage_max,
        exposure_max=exact(cfg.exposure_max),
        capital_max=exact(cfg.capital_max),
        cost_r_max=exact(cfg.cost_r_max),
        collar_bps=exact(cfg.collar_bps),
        entry_policy=cfg.entry_policy,
        rotation=cfg.rotation,
        signal_decay=cfg.decay_exit,
        naked_ms=cfg.naked_ms,
        hold_max_ms=cfg.hold_max_ms,
        stagnation_ms=cfg.stagnation_ms,
        recv_window_ms=cfg.recv_window_ms,
        quality_min=cfg.quality_min,
        sizing=cfg.sizing,
        kelly=exact(cfg.kelly),
        atr_stops=exact(cfg.atr_stops),
        daily_loss_max=exact(cfg.daily_loss_max),
        drawdown_max=exact(cfg.drawdown_max),
        loss_streak_max=cfg.loss_streak_max,
        errors_max=cfg.errors_max,
        fees_day_max=exact(cfg.fees_day_max),
        trades_day_max=cfg.trades_day_max,
    )


def settings_hash(limits: Limits, account: str) -> str:
    """What `armed` must carry in live mode: these settings, this account."""
    text = json.dumps([account, {k: str(v) for k, v in asdict(limits).items()}], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
