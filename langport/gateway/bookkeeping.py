"""What the gateway does with a store of keys and usage, in one piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import time

from langport.config import Price, Settings, StoreSettings
from langport.gateway.exchange import Exchange
from langport.gateway.key_book import KeyBook
from langport.gateway.ledger import Ledger
from langport.gateway.stored_keys import StoredKeys
from langport.store.base import Accounts


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
    ) -> None:
        """`records_always`: record usage also while no key was ever made; else the store is not opened for it."""
        refuses = settings.keys_on_failure == "refuse"
        self.accounts = accounts
        self.book = KeyBook(accounts, clock)
        self.keys = StoredKeys(accounts, refuses_on_failure=refuses, clock=clock)
        self.ledger = Ledger(
            accounts, prices, retention_days=settings.retention_days, refuses_on_failure=refuses, clock=clock
        )
        self._records_always = records_always

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


def keep_books(settings: Settings, accounts: Accounts | None) -> Bookkeeping | None:
    """The books that the settings ask for; None where nothing is stored."""
    if accounts is None:
        return None
    gateway = settings.gateway
    records_always = gateway.record_usage or gateway.admin_key is not None
    return Bookkeeping(accounts, settings.store, gateway.prices, records_always=records_always)
