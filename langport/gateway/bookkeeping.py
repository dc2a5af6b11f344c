"""What the gateway does with a store of keys and usage, in one piece."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from time import time

from langport.gateway.exchange import Exchange
from langport.gateway.key_book import KeyBook
from langport.gateway.ledger import Ledger, UsageLedger
from langport.gateway.stored_keys import StoredKeys
from langport.settings.tree import Price, Settings, StoreSettings
from langport.store.base import Accounts, KeyRecord


class Bookkeeping:
    """Keys and usage over one store, which somebody else opens and closes."""

    def __init__(
        self,
        accounts: Accounts,
        settings: StoreSettings,
        prices: Mapping[str, Price],
        *,
        records_always: bool = False,
        clock: Callable[[], float] = time,
        ledger: UsageLedger | None = None,
    ) -> None:
        """`records_always`: record usage also while no key was ever made; else the store is not opened for it.

        `ledger`: another process's, where that keeps the books.
        """
        refuses = settings.keys_on_failure == "refuse"
        self.accounts = accounts
        self.book = KeyBook(accounts, clock)
        self.keys = StoredKeys(accounts, refuses_on_failure=refuses, clock=clock)
        self.ledger: UsageLedger = ledger or Ledger(
            accounts, prices, retention_days=settings.retention_days, refuses_on_failure=refuses, clock=clock
        )
        self.tell: Callable[[KeyRecord], Awaitable[None]] | None = None
        """Lets other processes of this server know of a change; returns when they do."""
        self._records_always = records_always

    async def know(self, record: KeyRecord) -> None:
        """A key was changed here, and counts as it is now in all processes of this server."""
        self.keys.apply(record)
        if self.tell is not None:
            await self.tell(record)

    def record(self, exchange: Exchange) -> None:
        """Write down what an ended request took; of one with late work when that has ended, too."""
        if not self._records_always and not self.keys.has_any:
            return
        if exchange.late_work is not None and not exchange.late_work.done():
            exchange.late_work.add_done_callback(lambda _: self.ledger.add(exchange))
        else:
            self.ledger.add(exchange)

    async def close(self) -> None:
        """Write down what waits. The store is still open."""
        await self.ledger.close()


def keep_books(settings: Settings, accounts: Accounts | None, ledger: UsageLedger | None = None) -> Bookkeeping | None:
    """The books that the settings ask for; None where nothing is stored. `ledger`: see `Bookkeeping`."""
    if accounts is None:
        return None
    gateway = settings.gateway
    records_always = gateway.record_usage or gateway.admin_key is not None
    return Bookkeeping(accounts, settings.store, gateway.prices, records_always=records_always, ledger=ledger)
