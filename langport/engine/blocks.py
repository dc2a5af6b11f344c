"""The pool of KV-cache blocks and the tables that say which block holds which tokens of a sequence.

Source: PagedAttention, Kwon et al. 2023, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable

NULL_BLOCK = 0
"""Never allocated: padding in block tables points here, so that a padded read stays inside the cache."""


class BlockLeak(Exception):
    """The pool's books do not add up: our bug, please report it."""


class BlockPool:
    """Hands out block numbers; knows nothing of tensors."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """`num_blocks` includes the null block; `block_size` is in tokens."""
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, NULL_BLOCK, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_usable(self) -> int:
        """All blocks but the null block."""
        return self.num_blocks - 1

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def grow(self, table: list[int], num_tokens: int) -> bool:
        """Extend `table` so that it holds `num_tokens` tokens; False, and nothing changed, if too few are free."""
        missing = self.blocks_for(num_tokens) - len(table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            table.append(self._free.pop())
        return True

    def release(self, table: list[int]) -> None:
        """Give back every block of `table` and empty it."""
        self._free.extend(reversed(table))
        table.clear()

    def check_integrity(self, tables: Iterable[list[int]]) -> None:
        """Every block is either free or in exactly one of `tables`.

        Raises: BlockLeak with the blocks that are lost or doubly used.
        """
        owned = [block for table in tables for block in table]
        seen = sorted(owned + self._free)
        expected = list(range(NULL_BLOCK + 1, self.num_blocks))
        if seen != expected:
            lost = sorted(set(expected) - set(seen))
            doubled = sorted({block for block in seen if seen.count(block) > 1})
            raise BlockLeak(f"lost blocks {lost}, doubly used blocks {doubled}")
