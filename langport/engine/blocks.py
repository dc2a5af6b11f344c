"""The pool of KV-cache blocks: which are free, which are shared, and which hold tokens that may be asked for again.

A full block is known by a hash of its tokens and of all blocks before it, so a sequence that begins with the same
tokens uses the same blocks instead of computing them. A known block that nobody uses stays until its place is
needed; the one that was used longest ago goes first.

Sources: PagedAttention, Kwon et al. 2023, section 4; automatic prefix caching as vLLM documents it.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

NULL_BLOCK = 0
"""Never allocated. Padding in block tables points here, and so do the places of blocks that were let go because no
later token sees them: a read of what is masked anyway stays inside the cache."""

BlockHash = bytes


class BlockLeak(Exception):
    """The pool's books do not add up: our bug, please report it."""


def extend_hashes(hashes: list[BlockHash], tokens: list[int], block_size: int, salt: bytes) -> None:
    """Add the hashes of the full blocks of `tokens` that `hashes` does not cover yet."""
    previous = hashes[-1] if hashes else salt
    for begin in range(len(hashes) * block_size, len(tokens) - block_size + 1, block_size):
        block = array("q", tokens[begin : begin + block_size]).tobytes()
        previous = blake2b(previous + block, digest_size=16).digest()
        hashes.append(previous)


def window_blocks(window: int, max_num_batched_tokens: int, block_size: int) -> int:
    """The most blocks that a sequence holds when no layer sees more than `window` tokens.

    They cover what the first token of the largest step still sees, that step, and the rounding at both ends.
    """
    return -(-(window - 1 + max_num_batched_tokens) // block_size) + 1


class BlockPool:
    """Hands out block numbers and counts their users; knows nothing of tensors."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """`num_blocks` includes the null block; `block_size` is in tokens."""
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        """Blocks without a user, in the order in which they are given out: unknown ones, then the longest unused."""
        self._num_users: Counter[int] = Counter()
        self._by_hash: dict[BlockHash, int] = {}
        self._hash_of: dict[int, BlockHash] = {}

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
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._num_users[block] = 1
            table.append(block)
        return True

    def shrink(self, table: list[int], num_tokens: int) -> None:
        """Take one user from the blocks of `table` that `num_tokens` tokens do not need, and cut them off."""
        num_blocks = self.blocks_for(num_tokens)
        self._let_go(table[num_blocks:])
        del table[num_blocks:]

    def find(self, hashes: Iterable[BlockHash]) -> list[int]:
        """The known blocks of the longest beginning of `hashes`."""
        found: list[int] = []
        for block_hash in hashes:
            block = self._by_hash.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def find_windowed(self, hashes: Iterable[BlockHash], num_visible: int) -> list[int]:
        """The same for a sequence whose next token sees no more than the last `num_visible` full blocks.

        Blocks before those need not be known: they are null blocks in the answer.
        """
        found: list[int] = []
        num_known = longest = 0  # known blocks up to here without a gap, and the longest beginning that can be used
        for block_hash in hashes:
            found.append(self._by_hash.get(block_hash, NULL_BLOCK))
            num_known = 0 if found[-1] == NULL_BLOCK else num_known + 1
            if num_known >= min(num_visible, len(found)):
                longest = len(found)
        num_hidden = max(0, longest - num_visible)
        return [NULL_BLOCK] * num_hidden + found[num_hidden:longest]

    def num_free_beside(self, blocks: list[int]) -> int:
        """Free blocks that would be left if `blocks` were shared."""
        return len(self._free) - sum(block in self._free for block in blocks)

    def share(self, blocks: list[int]) -> None:
        """Count one more user for each of `blocks`, which `find` just returned."""
        for block in blocks:
            if block == NULL_BLOCK:
                continue
            self._free.pop(block, None)
            self._num_users[block] += 1

    def remember(self, block: int, block_hash: BlockHash) -> None:
        """The block now holds the tokens that the hash stands for. A second block with the same tokens is not kept."""
        if block_hash not in self._by_hash and block not in self._hash_of:
            self._by_hash[block_hash] = block
            self._hash_of[block] = block_hash

    def release(self, table: list[int]) -> None:
        """Take one user from every block of `table` and empty it. Later blocks are given out before earlier ones."""
        self._let_go(table)
        table.clear()

    def release_first(self, table: list[int], count: int) -> None:
        """Take one user from each of the first `count` blocks; their places in `table` become null blocks."""
        begin = count  # behind the null blocks of earlier calls
        while begin and table[begin - 1] != NULL_BLOCK:
            begin -= 1
        self._let_go(table[begin:count])
        table[begin:count] = [NULL_BLOCK] * (count - begin)

    def _let_go(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            if block == NULL_BLOCK:
                continue
            self._num_users[block] -= 1
            if self._num_users[block] == 0:
                del self._num_users[block]
                self._free[block] = None
                if block not in self._hash_of:
                    self._free.move_to_end(block, last=False)

    def check_integrity(self, tables: Iterable[list[int]]) -> None:
        """Every block but the null block is free, or in as many of `tables` as it has users.

        Raises: BlockLeak with the blocks that are lost, or counted wrongly.
        """
        users = Counter(block for table in tables for block in table if block != NULL_BLOCK)
        wrong = {block for block in users | self._num_users if users[block] != self._num_users[block]}
        lost = set(range(1, self.num_blocks)) - users.keys() - self._free.keys()
        doubled = users.keys() & self._free.keys()
        unknown = {block for block_hash, block in self._by_hash.items() if self._hash_of.get(block) != block_hash}
        if wrong or lost or doubled or unknown or len(self._by_hash) != len(self._hash_of):
            raise BlockLeak(f"wrong user counts {wrong}, lost {lost}, free and used {doubled}, hashes {unknown}")

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of.pop(block, None)
        if block_hash is not None:
            del self._by_hash[block_hash]
