"""The admin API over models that come and go: which are in memory, load one, unload one."""

from __future__ import annotations

from typing import Literal

import msgspec

from langport.errors import CheckpointError, InvalidRequest, Unavailable
from langport.gateway.exchange import Exchange
from langport.gateway.models import Served
from langport.gateway.residence import ModelStatus, Residence

MODELS, LOAD, UNLOAD = "/admin/models", "/admin/models/{name}/load", "/admin/models/{name}/unload"
ROUTES = (("GET", MODELS), ("POST", LOAD), ("POST", UNLOAD))
"""Method and path of all that is answered here. In a path, a slash of a model's name is %2F."""


class ModelObject(ModelStatus, kw_only=True):
    """A model with its name."""

    id: str
    object: Literal["model.residence"] = "model.residence"


class ModelList(msgspec.Struct):
    data: list[ModelObject]
    object: Literal["list"] = "list"


class ModelAdmin:
    """Handlers of the admin API."""

    def __init__(self, served: Served) -> None:
        self._served = served

    async def answer(self, exchange: Exchange) -> None:
        """Raises: ModelNotFound, InvalidRequest, Unavailable when a model cannot be loaded."""
        if exchange.route == MODELS:
            models = [await _shown(name, residence) for name, residence in self._residences().items()]
            await exchange.reply_json(ModelList(models))
            return
        name, residence = self._find(exchange.ids["name"])
        if exchange.route == UNLOAD:
            residence.unload()
        else:
            try:
                await residence.load()
            except CheckpointError as error:
                raise Unavailable(f"The model {name} could not be loaded: {error}") from error
        await exchange.reply_json(await _shown(name, residence))

    def _residences(self) -> dict[str, Residence]:
        return {each.name: each.residence for each in self._served.upstreams if each.residence is not None}

    def _find(self, name: str) -> tuple[str, Residence]:
        """By a model's name or an alias of it."""
        upstream = self._served.find(name, param="name")
        if upstream.residence is None:
            able = ", ".join(self._residences()) or "none"
            raise InvalidRequest(
                f"'{upstream.name}' is no model of this machine that is loaded on its own. Those that are: {able}.",
                param="name",
            )
        return upstream.name, upstream.residence


async def _shown(name: str, residence: Residence) -> ModelObject:
    return ModelObject(id=name, **msgspec.structs.asdict(await residence.report()))
