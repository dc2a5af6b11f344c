"""LoRA adapters added and removed while serving, at the paths and in the words of vLLM's servers.

An adapter is one more upstream, which the upstream of its base model makes; this knows names and no weights.
"""

from __future__ import annotations

import asyncio
import logging

from langport.errors import InvalidRequest, NotFound, PermissionDenied
from langport.gateway.asgi import Header
from langport.gateway.models import Served
from langport.gateway.upstream import Upstream
from langport.wire.adapters import LOAD_DECODER, UNLOAD_DECODER, LoadAdapterRequest, UnloadAdapterRequest
from langport.wire.error import decode_body
from langport.wire.unknown import ignored_header, unknown_fields

logger = logging.getLogger("langport.gateway")


class AdapterAdmin:
    """Changes the table of served names; one change at a time."""

    def __init__(self, served: Served, *, is_allowed: bool) -> None:
        self._served = served
        self.is_allowed = is_allowed
        """Whether clients may; may change."""
        self._changing = asyncio.Lock()

    async def load(self, body: bytes, *, is_strict: bool = False) -> tuple[str, list[Header]]:
        """Serve one more adapter, or another one under its name; what to tell the client, and in which headers.

        Raises: PermissionDenied, InvalidRequest and NotFound (`lora_name`, `lora_path`, `base_model_name`), Unavailable
        while the model is not running. Nothing has changed then.
        """
        self._check_allowed()
        request = decode_body(LOAD_DECODER, body)
        headers = ignored_header(unknown_fields(body, LoadAdapterRequest), is_strict=is_strict)
        _check_name(request.lora_name)
        async with self._changing:
            current = self._replaced(request)
            base = self._base(request, current)
            assert base.load_adapter is not None
            adapter = await base.load_adapter(request.lora_name, request.lora_path)
            self._served.put(adapter)
            if current is not None and current.unload is not None:
                current.unload()
        logger.info("%s: a LoRA adapter of %s is served, from %s", adapter.name, base.name, request.lora_path)
        return f"Success: LoRA adapter '{adapter.name}' added successfully.", headers

    async def unload(self, body: bytes, *, is_strict: bool = False) -> tuple[str, list[Header]]:
        """Serve an adapter no longer; requests that run end as they began. What to tell the client, with headers.

        Raises: PermissionDenied, InvalidRequest, NotFound (`lora_name`).
        """
        self._check_allowed()
        name = decode_body(UNLOAD_DECODER, body).lora_name
        headers = ignored_header(unknown_fields(body, UnloadAdapterRequest), is_strict=is_strict)
        async with self._changing:
            adapter = self._served.model(name)
            if adapter is None:
                raise NotFound(f"The lora adapter '{name}' cannot be found. {self._adapters()}", param="lora_name")
            if adapter.unload is None:
                raise InvalidRequest(f"'{name}' is a model and no LoRA adapter. {self._adapters()}", param="lora_name")
            self._served.remove(name)
            adapter.unload()
        logger.info("%s: this LoRA adapter is not served any more", name)
        return f"Success: LoRA adapter '{name}' removed successfully.", headers

    def _check_allowed(self) -> None:
        if not self.is_allowed:
            raise PermissionDenied(
                "This server does not let clients add or remove LoRA adapters. Start it with --allow-adapter-updates "
                "(or LANGPORT_ALLOW_ADAPTER_UPDATES=true) to allow it, or give adapters at start with --lora NAME=DIR."
            )

    def _replaced(self, request: LoadAdapterRequest) -> Upstream | None:
        """The adapter that has the name now, when it may be replaced."""
        name = request.lora_name
        if self._served.is_alias(name):
            raise InvalidRequest(f"'{name}' is an alias (--redirect) here; choose another name.", param="lora_name")
        current = self._served.model(name)
        if current is not None and current.unload is None:
            raise InvalidRequest(f"'{name}' is the name of a served model; choose another.", param="lora_name")
        if current is not None and not request.load_inplace:
            raise InvalidRequest(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
                param="lora_name",
            )
        return current

    def _base(self, request: LoadAdapterRequest, current: Upstream | None) -> Upstream:
        """The model that is to take the adapter."""
        able = {upstream.name: upstream for upstream in self._served.upstreams if upstream.load_adapter is not None}
        name = request.base_model_name
        if name is not None:
            return self._named_base(name, able)
        if current is not None and (parent := str(current.card().get("parent"))) in able:
            return able[parent]
        if len(able) == 1:
            return next(iter(able.values()))
        if not able:
            raise InvalidRequest(f"No model here takes LoRA adapters: {_WHO}.", param="base_model_name")
        raise InvalidRequest(
            f"Several models could take the adapter; say which with base_model_name: {', '.join(able)}.",
            param="base_model_name",
        )

    def _named_base(self, name: str, able: dict[str, Upstream]) -> Upstream:
        found = self._served.find(name, param="base_model_name")
        if found.name in able:
            return found
        parent = found.card().get("parent")
        what = f"is itself an adapter of {parent}" if parent else f"takes no LoRA adapters: {_WHO}"
        those = f" Those that take some: {', '.join(able)}." if able else ""
        raise InvalidRequest(f"'{found.name}' {what}.{those}", param="base_model_name")

    def _adapters(self) -> str:
        names = [upstream.name for upstream in self._served.upstreams if upstream.unload is not None]
        return f"Loaded: {', '.join(names) or 'none'}."


_WHO = "only decoder-only models of this server do, no encoders, encoder-decoders or remote models"


def _check_name(name: str) -> None:
    """Raises: InvalidRequest for what would look odd in a log."""
    if not name.isprintable() or name != name.strip():
        raise InvalidRequest("lora_name must be printable and not begin or end with a space.", param="lora_name")
