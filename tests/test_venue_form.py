"""A form is read as the standard library reads it, whatever stands in it."""

from __future__ import annotations

from urllib.parse import parse_qsl

from hypothesis import given
from hypothesis import strategies as st

from venue.rest import parameters

TEXT = st.text(alphabet="ab=&%+2F;é ", max_size=24)


@given(TEXT, TEXT)
def test_every_form_is_read_as_the_library_reads_it(query: str, body: str) -> None:
    wanted = dict(parse_qsl(body, keep_blank_values=True))
    wanted |= dict(parse_qsl(query, keep_blank_values=True))
    made = parameters(query.encode(), body.encode())
    assert list(made.items()) == list(wanted.items())
