"""The model's name in the bytes of a request, compared with what a JSON reader sees."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langport.errors import InvalidRequest
from langport.gateway.model_name import with_model

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["model", '"model":"x"', "\\", "}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("model"), inner, max_size=3),
    max_leaves=10,
)
BODIES = st.dictionaries(st.text() | st.sampled_from(["messages", 'a"model":', "models"]), JSON, max_size=4)


@given(BODIES, st.text(min_size=1), st.text(min_size=1), st.booleans(), st.sampled_from([None, 1]), st.randoms())
def test_only_the_name_changes(body, old, new, is_ascii, indent, random):
    body.pop("model", None)
    for has_own in (True, False):
        items = [*body.items(), *([("model", old)] if has_own else [])]
        random.shuffle(items)
        text = json.dumps(dict(items), ensure_ascii=is_ascii, indent=indent).encode("utf-8", "surrogatepass")
        changed = with_model(text, new, has_own=has_own)
        expected = dict(items)
        expected["model"] = new
        assert json.loads(changed.decode("utf-8", "surrogatepass")) == expected
        if has_own:
            assert with_model(changed, old, has_own=True).replace(b" ", b"") == _as_msgspec(text, old).replace(
                b" ", b""
            )


def _as_msgspec(text: bytes, name: str) -> bytes:
    """The text with the name spelled as we do, which need not be as `json` does."""
    return with_model(text, name, has_own=True)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"a"}',
        b'{"model":"a","x":1,"\\u006dodel":"b"}',
        b'{"mo\\u0064el":"b","model":"a"}',
        b'{"model":"a","x":{"model":1},"model":null}',
    ],
)
def test_two_names_are_refused(body):
    with pytest.raises(InvalidRequest, match="more than once"):
        with_model(body, "b", has_own=True)


def test_an_escaped_name_is_found():
    assert with_model(b'{"mod\\u0065l":"a"}', "b", has_own=True) == b'{"mod\\u0065l":"b"}'


def test_a_body_that_fits_is_the_same_object():
    body = b'{"messages":[], "model" : "a"}'
    assert with_model(body, "a", has_own=True) is body
