"""What fields of settings are made of: the mark of an option, common types, and how names and secrets are told."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec


@dataclass(frozen=True)
class Flag:
    """Marks a field as an option and says how it is written."""

    metavar: str = ""
    name: str | None = None
    """The option's name where it is not the field's."""
    form: Literal["value", "list", "size", "switch"] = "value"
    """A list is repeated on the command line, comma separated elsewhere; a size may say KiB, MB, GiB, ...; a switch has
    no value on the command line, where --no- turns it off, and is true or false elsewhere."""
    expects: str | None = None
    """What a valid value is, where the type alone does not say it well."""
    environment: str | None = None
    """The environment variable where it is not LANGPORT_ and the name."""


Count = Annotated[int, msgspec.Meta(ge=1)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Key = Annotated[str, msgspec.Meta(pattern=r"^(?!\(hidden\)$)\S+$")]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
HIDDEN = "(hidden)"
"""What `langport config show` prints for secrets."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for an unknown name that resembles a known one, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def hide_password(text: str) -> str:
    """A text with a URL in it as it may be shown."""
    text = re.sub(r"(?<=://)([^:/@]*):.*@", rf"\1:{HIDDEN}@", text)
    return re.sub(r"(?<=password=)[^&'\"]*", HIDDEN, text)
