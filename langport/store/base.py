"""The seams: what the API and the gateway ask of a store, and the plain structs that cross them.

An object is a JSON document with a few columns to find it by. It may have items, an ordered list of further documents:
the messages of a chat completion, the input of a response, the answered lines of a batch. A store knows nothing of what
is in them. Every object belongs to an owner, and who asks with another owner does not find it.

Beside the objects a store may keep accounts: the keys that were made, and what was used with which.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

ANYONE = ""
"""The owner of what was stored without a key."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One stored object."""

    kind: str
    """What it is, e.g. `chat.completion`, `response`, `file` or `batch`."""
    id: str
    """Unique among all kinds."""
    owner: str
    created_at: int
    """Seconds since 1970."""
    body: bytes
    """The object's JSON document; what it says of metadata and status is the caller's business."""
    model: str | None = None
    status: str | None = None
    tag: str | None = None
    """What else lists are filtered by, e.g. a file's purpose."""
    parent: str | None = None
    """The id of the object that this one continues (`previous_response_id`)."""
    metadata: dict[str, str] = {}
    expires_at: int | None = None
    """From this second on it is gone. None: never."""


class Item(msgspec.Struct, frozen=True):
    """One of an object's ordered documents."""

    id: str
    position: int
    """Its place, unique within the object; gaps are allowed."""
    body: bytes
    tag: str | None = None


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which of an owner's objects, from which on."""

    limit: int
    after: str | None = None
    """The id of the last object of the page before."""
    is_descending: bool = False
    """Newest first."""
    model: str | None = None
    tag: str | None = None
    metadata: Mapping[str, str] = {}
    """Pairs that must all be there."""


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One key that was made. Its secret is not kept, only a digest that finds the key."""

    id: str
    name: str
    owner: str
    """Whose the objects are that are stored with it."""
    digest: bytes
    """SHA-256 of the secret."""
    hint: str
    """The secret's beginning, by which people tell keys apart."""
    created_at: int
    """Seconds since 1970, as all times here."""
    body: bytes
    """What it may do, as JSON; the gateway's business."""
    expires_at: int | None = None
    revoked_at: int | None = None
    previous_digest: bytes | None = None
    """Of the secret before the last rotation."""
    previous_until: int | None = None
    """Until then that one is good as well."""
    version: int = 0
    """Of all changes of keys the number of this key's last one; the store counts them."""


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one request took."""

    at: int
    """When it ended, in milliseconds since 1970."""
    request_id: str
    key_id: str
    """Empty where no key was needed."""
    model: str
    upstream: str
    path: str
    status: int
    prompt_tokens: int
    completion_tokens: int
    is_estimated: bool
    cost_nano: int
    """In billionths of the operator's unit of money."""
    duration_ms: int


class UsageSum(msgspec.Struct, frozen=True, kw_only=True):
    """What several requests took together."""

    day: int | None = None
    """Days since 1970 in UTC; None where the sum is over days. None means the same below."""
    key_id: str | None = None
    model: str | None = None
    upstream: str | None = None
    num_requests: int = 0
    num_failed: int = 0
    """Those whose status is 400 or more."""
    num_estimated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nano: int = 0


UsageGroup = Literal["day", "key", "model", "upstream"]


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which sums."""

    first_day: int
    last_day: int
    """Days since 1970, both included."""
    groups: tuple[UsageGroup, ...] = ()
    """One sum for each combination of these; none gives one sum."""
    key_id: str | None = None
    model: str | None = None


class Accounts(Protocol):
    """Where keys and their use are kept. All calls raise StoreUnavailable, as a store's do."""

    async def exists(self) -> bool:
        """Whether anything was ever stored; asking does not create the store."""
        ...

    async def keys(self, after_version: int = 0) -> list[KeyRecord]:
        """The keys that were made or changed after a version, in the order of their changes."""
        ...

    async def put_key(self, record: KeyRecord) -> KeyRecord | None:
        """Add a key (of version 0), or overwrite the one of its id and version; the same with its new version.

        None when somebody else has changed it meanwhile: then nothing has happened.
        """
        ...

    async def add_usage(self, records: Sequence[UsageRecord]) -> None:
        """Write down what requests took, all or nothing."""
        ...

    async def usage(self, query: UsageQuery) -> list[UsageSum]:
        """Sums of what was taken, ordered by their groups."""
        ...

    async def purge_requests(self, before_ms: int) -> None:
        """Forget single requests that ended before; their sums stay."""
        ...

    async def requests(self, *, limit: int, key_id: str | None = None) -> list[UsageRecord]:
        """The latest requests, newest first."""
        ...


class Store(Protocol):
    """Where objects are kept. All calls raise StoreUnavailable when the store is down, full or hopelessly busy."""

    async def put(self, record: Record, items: Sequence[Item] = ()) -> None:
        """Keep an object and its items; one of the same id is replaced, unless it is somebody else's."""
        ...

    async def get(self, kind: str, id: str, owner: str) -> Record | None:
        """The object, unless there is none, it has expired, or it is somebody else's."""
        ...

    async def change(self, record: Record, *, if_status: Collection[str] | None = None) -> bool:
        """Overwrite body, status, metadata and expiry; False when it is gone, or its status is none of `if_status`."""
        ...

    async def delete(self, kind: str, id: str, owner: str) -> bool:
        """Remove an object with its items; False when there was none."""
        ...

    async def page(self, kind: str, owner: str, query: Query) -> tuple[list[Record], bool] | None:
        """A page of an owner's objects in the order they came, and whether there are more.

        None when `after` names none of them.
        """
        ...

    async def chain(self, kind: str, id: str, owner: str) -> list[tuple[Record, list[Item]]]:
        """An object and those it continues with all their items, oldest first; empty when there is no such object.

        Ends early where one has been deleted: then the first one's `parent` is not None.
        """
        ...

    async def with_status(self, kind: str, statuses: Collection[str]) -> list[Record]:
        """All owners' objects in one of these states, oldest first: what a restarted server has to go on with."""
        ...

    async def items(
        self, id: str, *, limit: int, after: str | None = None, is_descending: bool = False, tag: str | None = None
    ) -> tuple[list[Item], bool] | None:
        """A page of an object's items by position, and whether there are more; None when `after` is not one of them.

        Whose they are is not asked: look up the object first.
        """
        ...

    async def put_items(self, id: str, items: Sequence[Item]) -> None:
        """Add items, all or none; one at a taken position replaces that."""
        ...

    async def positions(self, id: str) -> list[int]:
        """The positions of all items, rising."""
        ...

    async def count_items(self, id: str) -> dict[str | None, int]:
        """How many items there are of each tag."""
        ...

    async def drop_items(self, id: str) -> None:
        """Remove all items of an object."""
        ...

    async def purge(self) -> list[Record]:
        """Remove what has expired, and return it, so that what hangs on it can be removed as well."""
        ...

    async def lead(self) -> bool:
        """Become, or stay, the one process that works on batches; the place of one that dies is free at once."""
        ...

    async def exists(self) -> bool:
        """Whether anything was ever stored; asking does not create the store."""
        ...

    async def close(self) -> None:
        """Finish what was asked and let go of the store."""
        ...
