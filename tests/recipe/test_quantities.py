from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfer.recipe.quantities import parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("50GB", 50 * 10**9),
        ("50 gb", 50 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5TB", 15 * 10**11),
        ("1000", 1000),
        (7, 7),
        ("8 B", 8),
        ("2kib", 2048),
    ],
)
def test_bytes(text: str | int, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("many", "must be a size such as '50GB', '512MiB' or a whole number of bytes, not 'many'"),
        ("-5GB", "must be a size such as '50GB', '512MiB' or a whole number of bytes, not '-5GB'"),
        ("1.5", "must be a size such as '50GB', '512MiB' or a whole number of bytes, not '1.5'"),
        (1.5, "must be a size such as '50GB', '512MiB' or a whole number of bytes, not 1.5"),
        (True, "must be a size such as '50GB', '512MiB' or a whole number of bytes, not true"),
        (None, "must be a size such as '50GB', '512MiB' or a whole number of bytes, not null"),
        ("0GB", "must be at least one byte, not '0GB'"),
        (0, "must be at least one byte, not 0"),
        ("٣GB", "must be a size such as '50GB', '512MiB' or a whole number of bytes, not '٣GB'"),
    ],
)
def test_what_is_no_size(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        parse_bytes(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5min", 300), ("5 m", 300), ("1.5h", 5400), ("2 days", 172800), ("1 hour", 3600), ("90 SECONDS", 90)],
)
def test_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "must be a duration such as '30s', '5min' or '2h', not '5'"),
        ("5 minuts", "must be a duration such as '30s', '5min' or '2h', not '5 minuts'"),
        ("1:30", "must be a duration such as '30s', '5min' or '2h', not '1:30'"),
        ("", "must be a duration such as '30s', '5min' or '2h', not ''"),
        ("0min", "must be longer than no time, not '0min'"),
    ],
)
def test_what_is_no_duration(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        parse_seconds(text)
    assert str(caught.value) == message


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for parse in (parse_bytes, parse_seconds):
        try:
            quantity = parse(text)
        except ValueError:
            continue
        assert quantity > 0


@settings(deadline=None)
@given(st.integers(1, 10**15))
def test_whole_bytes_are_exact(n_bytes: int) -> None:
    assert parse_bytes(f"{n_bytes}B") == n_bytes
