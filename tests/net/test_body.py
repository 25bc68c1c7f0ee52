"""Bodies that cost more than they weigh."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st

from nemo_magic.net.body import refuse_crowded

VALUES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='ab"\\,{}[]\n\u00e9'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='a"\\,[{'), inner),
)


def structure(value: Any) -> int:
    """Containers, and what separates their values."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        return 0
    return 1 + max(len(inner) - 1, 0) + sum(map(structure, inner))


@pytest.mark.slow
@given(VALUES, st.integers(0, 20), st.booleans())
def test_values_are_counted_and_what_stands_in_strings_is_not(value: Any, most: int, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    if structure(value) > most:
        with pytest.raises(HTTPException) as refused:
            refuse_crowded(body, most)
        assert refused.value.status_code == 413
        assert refused.value.detail == f"the body has {structure(value)} values, at most {most} are taken"
    else:
        refuse_crowded(body, most)


@pytest.mark.parametrize("unit", [b'"', b'\\"', b'"\\', b"\\", b"{", b'{"', b"[,"])
def test_what_is_no_json_is_counted_in_one_go(unit: bytes) -> None:
    # Quadratic, this would not end.
    refuse_crowded(b'{"' + unit * 1_000_000, 1_500_000)
