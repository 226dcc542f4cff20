"""The index over orders says what a look at all of them would say."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from risk.orders import Order
from risk.state import Orders

IDS = ("a", "b", "c", "d", "e", "f")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("put", "put", "put", "del")),
        st.sampled_from(IDS),
        st.sampled_from(("one", "two")),  # the round trip
        st.sampled_from("est"),
        st.sampled_from(("intent", "acked", "filled", "rejected", "partial")),
    ),
    max_size=60,
)


def order(order_id: str, cause: str, leg: str, state: str) -> Order:
    return Order(order_id, cause, leg, "BTCUSDT", "buy", Decimal(1), Decimal(1), state)


@given(STEPS)
def test_legs_and_entries_are_those_of_a_look_at_everything(
    steps: list[tuple[str, str, str, str, str]],
) -> None:
    kept, plain = Orders(), dict[str, Order]()
    for what, order_id, cause, leg, state in steps:
        if what == "del":
            if order_id in plain:
                del kept[order_id], plain[order_id]
            continue
        known = plain.get(order_id)
        made = order(order_id, cause, known.leg if known else leg, state)
        kept[order_id] = made
        if known is not None and known.cause != cause:
            del plain[order_id]
        plain[order_id] = made
        assert dict(kept) == plain and list(kept.values()) == list(plain.values())
    for cause in ("one", "two", "none"):
        wanted = {o.id for o in plain.values() if o.cause == cause}
        assert {o.id for o in kept.legs(cause)} == wanted
    entering = {o.id for o in plain.values() if o.leg == "e" and not o.terminal}
    assert {o.id for o in kept.entering()} == entering
    assert len(kept) == len(plain) and all(order_id in kept for order_id in plain)
