"""What a client is told."""

from __future__ import annotations

from langport.errors import MAX_MESSAGE, InvalidRequest


def test_a_message_that_quotes_a_large_request_is_shortened_in_its_middle() -> None:
    error = InvalidRequest("There is no model 'x" + "y" * 10_000_000 + "'; there are a and b.", param="z" * 5000)
    assert len(error.message) <= MAX_MESSAGE
    assert error.message.startswith("There is no model 'xyy")
    assert error.message.endswith("yy'; there are a and b.")
    assert str(error) == error.message
    assert error.param is not None
    assert len(error.param) <= MAX_MESSAGE


def test_other_messages_are_whole() -> None:
    assert InvalidRequest("a" * MAX_MESSAGE).message == "a" * MAX_MESSAGE
