"""Rules of a checkpoint's generation config that hold for every request, whatever its sampling parameters.

Source: transformers' generation utilities, whose names they carry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from langport.engine.sequence import Sequence
from langport.errors import CheckpointError
from langport.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class GenerationRules:
    """Tokens that are forced or never allowed at some place."""

    forced_bos_token_id: int | None = None
    """The first generated token."""
    forced_eos_token_ids: tuple[int, ...] = ()
    """The last token that `max_tokens` leaves room for."""
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    """Not allowed as the first token that is free."""
    no_repeat_ngram_size: int = 0

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> GenerationRules:
        """generation_config.json first, then the older place, config.json. Raises: CheckpointError naming the field."""

        def find(name: str) -> Any:
            value = checkpoint.generation_config.get(name)
            return checkpoint.config.get(name) if value is None else value

        def token_ids(name: str) -> tuple[int, ...]:
            value = find(name)
            values = value if isinstance(value, list) else [] if value is None else [value]
            for item in values:
                if not isinstance(item, int) or isinstance(item, bool) or not item < checkpoint.vocab_size:
                    raise refusal(name, f"holds {item!r}, which is no token id below {checkpoint.vocab_size}")
            return tuple(item for item in values if item >= 0)

        def refusal(name: str, problem: str) -> CheckpointError:
            return CheckpointError(f"{checkpoint.path}: {name} in generation_config.json or config.json {problem}")

        size = find("no_repeat_ngram_size") or 0
        if not isinstance(size, int) or size < 0:
            raise refusal("no_repeat_ngram_size", f"is {size!r}, not a whole number, 0 or more")
        return cls(
            forced_bos_token_id=next(iter(token_ids("forced_bos_token_id")), None),
            forced_eos_token_ids=token_ids("forced_eos_token_id"),
            suppress_tokens=token_ids("suppress_tokens"),
            begin_suppress_tokens=token_ids("begin_suppress_tokens"),
            no_repeat_ngram_size=size,
        )

    @cached_property
    def is_empty(self) -> bool:
        return self == GenerationRules()

    def forced(self, sequence: Sequence) -> tuple[int, ...]:
        """The only tokens that may come next; empty when the choice is free."""
        if sequence.num_output_tokens == 0 and self.forced_bos_token_id is not None:
            return (self.forced_bos_token_id,)
        if sequence.num_output_tokens == sequence.sampling.max_tokens - 1:
            return self.forced_eos_token_ids
        return ()

    def banned(self, sequence: Sequence) -> list[int]:
        """Tokens that may not come next."""
        banned = list(self.suppress_tokens)
        first_free = int(self.forced_bos_token_id is not None)
        if sequence.num_output_tokens == first_free:
            banned += self.begin_suppress_tokens
        if self.no_repeat_ngram_size:
            banned += _repeated_ngram_ends(sequence.tokens, self.no_repeat_ngram_size)
        return banned


def _repeated_ngram_ends(tokens: list[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram which `tokens` already holds."""
    if len(tokens) < size:
        return []
    prefix = tokens[len(tokens) - size + 1 :]
    return [tokens[i + size - 1] for i in range(len(tokens) - size + 1) if tokens[i : i + size - 1] == prefix]
