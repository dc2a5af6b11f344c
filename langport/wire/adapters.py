"""`POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, in the form that vLLM's servers gave them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class LoadAdapterRequest(msgspec.Struct, kw_only=True):
    """Serve one more adapter."""

    lora_name: Name
    """What clients will call it."""
    lora_path: Annotated[str, Meta(min_length=1, max_length=4096)]
    """A directory of the server's machine, or a hub id."""
    base_model_name: str | None = None
    """The model it belongs to, where several could take it."""
    load_inplace: bool | None = None
    """Replace an adapter that is served under the name."""


class UnloadAdapterRequest(msgspec.Struct, kw_only=True):
    """Serve an adapter no longer."""

    lora_name: Name


LOAD_DECODER = msgspec.json.Decoder(LoadAdapterRequest)
UNLOAD_DECODER = msgspec.json.Decoder(UnloadAdapterRequest)
