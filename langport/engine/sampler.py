"""From logits to tokens, for the whole batch at once. What no sequence in the batch uses costs nothing.

Order: log-probabilities are taken (by default: the raw ones), then penalties, bias and masks are applied, then
temperature, top-k, top-p, min-p and typical-p, as transformers' processors do. A draw inverts the cumulative
distribution at one random number per sequence.

With the native kernels all of that is one call for a step (`ops.sampling`). Torch's operators draw the same where there
are none, and for what the kernels do not know.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import partial

import msgspec
import torch
from torch import Tensor

from langport.engine.grammar import Masks
from langport.engine.rng import uniform
from langport.engine.rules import GenerationRules
from langport.engine.sequence import Sequence
from langport.ops.edits import Edit, EditKind, apply_edits
from langport.ops.native import Kernels
from langport.ops.sampling import Asked, can_sample, sample
from langport.types import TokenLogprob

LOGPROB_ROWS = 64
"""Rows of the vocabulary whose log-softmax is held at once when a prompt is scored."""
DRAW_ROWS = 8
"""Rows that a CPU draws from at once: what is computed from them stays in its cache."""
HEAD = 1024
"""So many likeliest tokens are looked at before all of them are sorted."""
BLOCK = 512
"""Columns that are added up, or searched for their largest, as one."""


class Sampler:
    """Draws the next token of every sequence."""

    def __init__(
        self,
        eos_token_ids: tuple[int, ...],
        rules: GenerationRules,
        *,
        scores_processed: bool = False,
        kernels: Kernels | None = None,
    ) -> None:
        """`scores_processed`: log-probabilities describe the distribution after penalties, bias and temperature."""
        self.eos_token_ids = eos_token_ids
        self.rules = rules
        self.scores_processed = scores_processed
        self.kernels = kernels

    def sample(
        self, logits: Tensor, sequences: Seq[Sequence], masks: Masks | None = None
    ) -> list[tuple[int, TokenLogprob | None]]:
        """The next token of each sequence and, where asked for, its log-probability.

        logits (num_seqs, vocab_size), one row per sequence; they may be changed in place. `masks` are those of the
        sequences' grammars, if there are any.
        """
        if self.kernels is None or not can_sample(logits):
            return self._sample_by_torch(logits, sequences, masks)
        draw_natively = partial(self._sample_natively, self.kernels)
        # Who draws from a row depends on that row alone: its neighbours must not change what is drawn.
        native = [row for row, sequence in enumerate(sequences) if _is_native(sequence)]
        if len(native) == len(sequences):
            return draw_natively(logits, sequences, masks)
        others = [row for row, sequence in enumerate(sequences) if not _is_native(sequence)]
        found: dict[int, tuple[int, TokenLogprob | None]] = {}
        for rows, draw in ((native, draw_natively), (others, self._sample_by_torch)):
            chosen = [sequences[row] for row in rows]
            if chosen:
                drawn = draw(logits[rows], chosen, None if masks is None else masks.of(rows))
                found.update(zip(rows, drawn, strict=True))
        return [found[row] for row in range(len(sequences))]

    def _sample_natively(
        self, kernels: Kernels, logits: Tensor, sequences: Seq[Sequence], masks: Masks | None
    ) -> list[tuple[int, TokenLogprob | None]]:
        numbers = uniform([s.seed for s in sequences], [s.num_output_tokens for s in sequences]).tolist()
        asked = [
            Asked(number, s.temperature, s.top_p, s.top_k, s.min_p, s.logprobs)
            for number, s in zip(numbers, (sequence.sampling for sequence in sequences), strict=True)
        ]
        edits = self._edits(sequences)
        grammars = None if masks is None else (masks.rows, masks.bits)
        drawn = sample(kernels, logits, asked, edits, grammars, scores_processed=self.scores_processed)
        found: list[tuple[int, TokenLogprob | None]] = []
        for row, token in enumerate(drawn.tokens):
            count = asked[row].logprobs
            if count is None:
                found.append((token, None))
                continue
            top = zip(drawn.likeliest[row][:count], drawn.likeliest_logprobs[row][:count], strict=True)
            found.append((token, TokenLogprob(token, drawn.logprobs[row], list(top))))
        return found

    def _sample_by_torch(
        self, logits: Tensor, sequences: Seq[Sequence], masks: Masks | None
    ) -> list[tuple[int, TokenLogprob | None]]:
        logits = logits.float()
        beams = [row for row, s in enumerate(sequences) if s.sampling.is_beam]
        wanted = [row for row, s in enumerate(sequences) if s.sampling.logprobs is not None and not s.sampling.is_beam]
        if beams:
            logits[beams] = logits[beams].log_softmax(-1)
        scores = logits[wanted].log_softmax(-1) if wanted and not self.scores_processed else None
        self._edit(logits, sequences, masks)
        if wanted and self.scores_processed:
            scores = _scaled(logits[wanted], [sequences[row] for row in wanted]).log_softmax(-1)
        tokens = self._draw(logits, sequences)
        found: dict[int, TokenLogprob] = {}
        for rows, logprobs in ((wanted, scores), (beams, logits[beams] if beams else None)):
            if logprobs is not None:
                counts = [sequences[row].sampling.logprobs or 0 for row in rows]
                found.update(zip(rows, _entries(logprobs, [tokens[row] for row in rows], counts), strict=True))
        return [(token, found.get(row)) for row, token in enumerate(tokens)]

    def _edit(self, logits: Tensor, sequences: Seq[Sequence], masks: Masks | None) -> None:
        """Penalties, bias, bans, forced tokens and grammars."""
        bound = [] if masks is None else [row for row, s in enumerate(sequences) if s.matcher and self._bans(s)]
        raw = logits[bound] if bound else None
        apply_edits(logits, self._edits(sequences))
        if masks is not None:
            masks.hide_(logits)
            if raw is not None:
                _follow_grammar_alone(logits, raw, masks, bound)

    def _edits(self, sequences: Seq[Sequence]) -> list[Edit]:
        """What changes the sequences' logits, by row."""
        edits: list[Edit] = []
        for row, sequence in enumerate(sequences):
            sampling = sequence.sampling
            if sampling.repetition_penalty != 1.0:
                seen = list(set(sequence.tokens))
                edits.append(Edit(row, EditKind.PENALIZE, seen, penalty=sampling.repetition_penalty))
            if sampling.allowed_token_ids:
                edits.append(Edit(row, EditKind.KEEP_ONLY, sampling.allowed_token_ids))
            if counts := sequence.output_counts:
                presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
                values = [-(presence + frequency * count) for count in counts.values()]
                edits.append(Edit(row, EditKind.ADD, list(counts), values))
            if sampling.logit_bias:
                edits.append(Edit(row, EditKind.ADD, list(sampling.logit_bias), list(sampling.logit_bias.values())))
            if banned := self._banned(sequence):
                edits.append(Edit(row, EditKind.BAN, banned))
            if forced := self.rules.forced(sequence):
                edits.append(Edit(row, EditKind.FORCE, forced))
        return edits

    def _bans(self, sequence: Sequence) -> bool:
        """Something beside a grammar may forbid tokens to this sequence."""
        sampling = sequence.sampling
        return bool(
            not self.rules.is_empty
            or sampling.bad_words
            or sampling.allowed_token_ids
            or sampling.ignore_eos
            or sequence.num_output_tokens < sampling.min_tokens
        )

    def _banned(self, sequence: Sequence) -> list[int]:
        """Tokens that may not come next."""
        sampling = sequence.sampling
        banned = [] if self.rules.is_empty else self.rules.banned(sequence)
        if sequence.num_output_tokens < sampling.min_tokens:
            banned += sampling.stop_token_ids
            banned += () if sampling.ignore_eos else self.eos_token_ids
        if sampling.ignore_eos and sequence.matcher is not None:
            banned += self.eos_token_ids  # the grammar would take it for the end
        for *beginning, last in sampling.bad_words:
            if sequence.ends_with(beginning):
                banned.append(last)
        return banned

    def _draw(self, logits: Tensor, sequences: Seq[Sequence]) -> list[int]:
        is_drawn = [s.sampling.temperature > 0 for s in sequences]
        tokens: list[int] = [0] * len(sequences) if all(is_drawn) else _largest(logits).tolist()
        plain = [row for row, s in enumerate(sequences) if is_drawn[row] and not _is_filtered(s)]
        filtered = [row for row, s in enumerate(sequences) if is_drawn[row] and _is_filtered(s)]
        num_rows = DRAW_ROWS if logits.device.type == "cpu" else len(sequences)
        for rows, draw in ((plain, _draw_plain), (filtered, _draw_filtered)):
            for begin in range(0, len(rows), num_rows):
                part = rows[begin : begin + num_rows]
                chosen = [sequences[row] for row in part]
                for row, token in zip(part, draw(_scaled(logits[part], chosen), chosen), strict=True):
                    tokens[row] = token
        return tokens


def _is_native(sequence: Sequence) -> bool:
    """Whether the kernels draw for it. Few requests ask for beams or typical tokens, and torch has them."""
    return not sequence.sampling.is_beam and sequence.sampling.typical_p >= 1.0


def _scaled(logits: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """Logits divided by each sequence's temperature; those of greedy sequences as they are."""
    temperatures = torch.tensor([s.sampling.temperature or 1.0 for s in sequences], device=logits.device)
    # Below float32's reach a tiny temperature would divide to infinity; the greedy limit is the same.
    return logits / temperatures.clamp(min=1e-5)[:, None]


def prompt_logprobs(logits: Tensor, targets: list[int], count: int, *, has_ranks: bool = False) -> list[TokenLogprob]:
    """Log-probability of each target under its row of logits (num_targets, vocab_size), and the `count` likeliest."""
    entries: list[TokenLogprob] = []
    for begin in range(0, len(targets), LOGPROB_ROWS):
        part = targets[begin : begin + LOGPROB_ROWS]
        raw = logits[begin : begin + LOGPROB_ROWS].float().log_softmax(-1)
        found = _entries(raw, part, [count] * len(part))
        entries += _ranked(found, raw) if has_ranks else found
    return entries


def _entries(logprobs: Tensor, tokens: list[int], counts: list[int]) -> list[TokenLogprob]:
    """One entry per row of log-probabilities (num_rows, vocab_size)."""
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logprobs.device)[:, None])[:, 0].tolist()
    values, ids = _likeliest(logprobs, min(max(counts), logprobs.shape[1]))
    tops = zip(ids.tolist(), values.tolist(), strict=True)
    return [
        TokenLogprob(token, logprob, list(zip(top_ids[:count], top_values[:count], strict=True)))
        for token, logprob, count, (top_ids, top_values) in zip(tokens, chosen, counts, tops, strict=True)
    ]


def _likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row, in order, and their token ids; equally likely tokens in the order of their ids.

    Which of equals torch's topk takes changes with `count`, that is, with what the neighbours ask for.
    """
    size = logits.shape[1]
    values, ids = logits.topk(min(count + 1, size), dim=-1)  # one more shows whether the last has equals left out
    if 0 < count < size:
        least = values[:, count - 1]
        for row in (least == values[:, count]).nonzero()[:, 0].tolist():
            num_larger = int((values[row] > least[row]).sum())
            ids[row, num_larger:count] = (logits[row] == least[row]).nonzero()[: count - num_larger, 0]
    ids = ids[:, :count].sort(dim=-1).values
    values, order = logits.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _largest(logits: Tensor) -> Tensor:
    """argmax of each row. torch finds a largest value far sooner than its place, so the place is sought near it."""
    blocks, last = _blocks(logits)
    largest = torch.cat((blocks.amax(-1), last.amax(-1, keepdim=True)), dim=1) if last.shape[1] else blocks.amax(-1)
    block = largest.argmax(-1, keepdim=True)
    values, columns = _in_block(logits, block, float("-inf"))
    return columns.gather(1, values.argmax(-1, keepdim=True))[:, 0]


def _blocks(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (num_rows, size) as (num_rows, num_blocks, BLOCK), and what is left (num_rows, less than BLOCK)."""
    num_blocks = rows.shape[1] // BLOCK
    return rows[:, : num_blocks * BLOCK].unflatten(1, (num_blocks, BLOCK)), rows[:, num_blocks * BLOCK :]


def _in_block(rows: Tensor, block: Tensor, filling: float) -> tuple[Tensor, Tensor]:
    """Each row's values in its block (num_rows, 1), filled up to BLOCK, and their columns."""
    columns = block * BLOCK + torch.arange(BLOCK, device=rows.device)
    is_there = columns < rows.shape[1]
    columns = columns.clamp(max=rows.shape[1] - 1)
    return rows.gather(1, columns).where(is_there, filling), columns


def _ranked(entries: list[TokenLogprob], logprobs: Tensor) -> list[TokenLogprob]:
    """The entries with their tokens' ranks under the same rows; equally likely tokens share the better rank."""
    chosen = logprobs.gather(1, torch.tensor([[entry.token_id] for entry in entries], device=logprobs.device))
    ranks = ((logprobs > chosen).sum(-1) + 1).tolist()
    return [msgspec.structs.replace(entry, rank=rank) for entry, rank in zip(entries, ranks, strict=True)]


def _follow_grammar_alone(logits: Tensor, raw: Tensor, masks: Masks, rows: list[int]) -> None:
    """Where bans and the grammar together leave no token, put the raw logits back under the grammar's mask alone.

    raw (len(rows), vocab_size) are those rows of the logits before anything was done to them.
    """
    for place, row in enumerate(rows):
        if logits[row].max() == float("-inf"):
            logits[row] = masks.hidden(raw[place], row)


def _is_filtered(sequence: Sequence) -> bool:
    sampling = sequence.sampling
    return sampling.top_p < 1.0 or sampling.top_k > 0 or sampling.min_p > 0.0 or sampling.typical_p < 1.0


def _draw_plain(logits: Tensor, sequences: Seq[Sequence]) -> list[int]:
    """Draw from the whole distribution."""
    return _invert(logits.softmax(-1), sequences).tolist()


def _draw_filtered(logits: Tensor, sequences: Seq[Sequence]) -> list[int]:
    """Draw from the likeliest tokens: top-k, then top-p of what is left, then min-p, then the most typical of those.

    Most often they are few, and the others need not be sorted.
    """
    probabilities = logits.softmax(-1)
    _, order = _likeliest(logits, min(HEAD, logits.shape[1]))
    kept, is_complete = _filter(probabilities.gather(1, order), sequences, logits.shape[1])
    tokens: list[int] = order.gather(1, _invert(kept, sequences)[:, None])[:, 0].tolist()
    rest = (~is_complete).nonzero()[:, 0].tolist()
    if rest:
        every, order = probabilities[rest].sort(dim=-1, descending=True, stable=True)
        chosen = [sequences[row] for row in rest]
        kept, _ = _filter(every, chosen, logits.shape[1])
        for row, token in zip(rest, order.gather(1, _invert(kept, chosen)[:, None])[:, 0].tolist(), strict=True):
            tokens[row] = token
    return tokens


def _filter(probabilities: Tensor, sequences: Seq[Sequence], vocab_size: int) -> tuple[Tensor, Tensor]:
    """Set to 0 what is not to be drawn among the likeliest tokens (num_seqs, size), likeliest first.

    Also says of each sequence whether no token after these could be drawn.
    """

    def column(name: str) -> Tensor:
        numbers = [getattr(s.sampling, name) for s in sequences]
        return torch.tensor(numbers, dtype=torch.float64, device=probabilities.device)[:, None]

    size = probabilities.shape[1]
    top_k, top_p, min_p = column("top_k"), column("top_p"), column("min_p")
    rank = torch.arange(size, device=probabilities.device)
    probabilities = probabilities.where((top_k == 0) | (rank < top_k), 0.0)
    through = probabilities.cumsum(-1, dtype=torch.float64)
    total = through[:, -1:].where(top_k > 0, 1.0)
    is_likely = probabilities >= min_p * probabilities[:, :1]
    keep = ((through - probabilities < top_p * total) | (top_p >= 1.0)) & is_likely
    ends_here = (top_k > 0) | ((through[:, -1:] >= top_p * total) & (top_p < 1.0)) | ~is_likely[:, -1:]
    is_complete = ((top_k <= size) & ends_here)[:, 0] | (size == vocab_size)
    keep[:, 0] = True
    probabilities = probabilities.where(keep, 0.0)
    if any(s.sampling.typical_p < 1.0 for s in sequences):
        probabilities = _most_typical(probabilities, column("typical_p"))
    return probabilities, is_complete


def _most_typical(probabilities: Tensor, mass: Tensor) -> Tensor:
    """Keep the tokens whose information is nearest to the expected one, up to `mass` (num_seqs, 1) of probability.

    Source: locally typical sampling, Meister et al. 2022.
    """
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    information = -probabilities.log()
    entropy = (probabilities * information).nan_to_num(0.0).sum(-1, keepdim=True)
    order = (information - entropy).abs().argsort(dim=-1, stable=True)
    nearest = probabilities.gather(1, order)
    keep = nearest.cumsum(-1, dtype=torch.float64) - nearest < mass
    keep[:, 0] = True
    return probabilities.where(torch.zeros_like(keep).scatter(1, order, keep) | (mass >= 1.0), 0.0)


def _invert(probabilities: Tensor, sequences: Seq[Sequence]) -> Tensor:
    """The first place (num_seqs,) where the cumulative distribution passes each sequence's random number.

    The distribution is added up by blocks, then within the one that holds the place.
    """
    blocks, last = _blocks(probabilities)
    sums = torch.cat((blocks.sum(-1, dtype=torch.float64), last.sum(-1, keepdim=True, dtype=torch.float64)), dim=1)
    through = sums.cumsum(-1)
    numbers = uniform([s.seed for s in sequences], [s.num_output_tokens for s in sequences])
    target = torch.from_numpy(numbers).to(probabilities.device)[:, None] * through[:, -1:]
    block = torch.searchsorted(through, target, right=True).clamp(max=through.shape[1] - 1)
    before = through.gather(1, (block - 1).clamp(min=0)).where(block > 0, 0.0)
    values, columns = _in_block(probabilities, block, 0.0)
    inside = values.cumsum(-1, dtype=torch.float64)
    # The two sums may differ in their last bits; the place must not lie behind the last token that has a chance.
    rest = torch.minimum(target - before, inside[:, -1:] * (1 - 2**-52))
    return columns.gather(1, torch.searchsorted(inside, rest, right=True).clamp(max=BLOCK - 1))[:, 0]
