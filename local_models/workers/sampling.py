"""From the logits of one position to one token."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

GREEDY_BELOW = 1e-5  # dividing by less overflows


@dataclass(frozen=True)
class SamplingParams:
    """As OpenAI and vLLM spell them. temperature 0 takes the likeliest token; top_k 0 means no limit."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0


@dataclass
class ThinkingBudget:
    """Closes a thought that has become long enough.

    left: tokens that it may still have. close_id: the token of </think>. ends: the tokens after which it is over anyway.
    """

    left: int
    close_id: int
    ends: frozenset[int]

    def due(self) -> int | None:
        """The token that must come next, if one must."""
        return self.close_id if self.left == 0 else None

    def note(self, token_id: int) -> None:
        """A token was written."""
        self.left = -1 if token_id in self.ends else self.left - (self.left > 0)


@dataclass
class Sampler:
    """One answer's choices: its random stream and the tokens it has written so far. budget: of its thought, if it has one.

    prompt_ids count for repetition_penalty only, as in vLLM and transformers.
    """

    params: SamplingParams
    generator: torch.Generator
    prompt_ids: frozenset[int] = frozenset()
    counts: Counter[int] = field(default_factory=Counter)
    budget: ThinkingBudget | None = None

    def pick(self, logits: torch.Tensor) -> int:
        """logits: (vocabulary,), any float type, any device."""
        due = self.budget.due() if self.budget else None
        token_id = self._choose(self._penalised(logits.float())) if due is None else due
        self.counts[token_id] += 1
        if self.budget is not None:
            self.budget.note(token_id)
        return token_id

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        params = self.params
        if params.repetition_penalty != 1.0 and (seen := sorted(self.prompt_ids | self.counts.keys())):
            ids = torch.tensor(seen, device=logits.device)
            values = logits[ids]
            values = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
            logits = logits.index_copy(0, ids, values)
        if self.counts and (params.presence_penalty or params.frequency_penalty):
            ids = torch.tensor(list(self.counts), device=logits.device)
            counts = torch.tensor(list(self.counts.values()), device=logits.device, dtype=logits.dtype)
            logits = logits.index_add(0, ids, -(params.presence_penalty + params.frequency_penalty * counts))
        return logits

    def _choose(self, logits: torch.Tensor) -> int:
        params = self.params
        if params.temperature < GREEDY_BELOW:
            return int(logits.argmax())
        size = logits.shape[-1]
        kept = min(params.top_k, size) if params.top_k else size
        if kept == size and params.top_p >= 1.0:
            values, ids = logits, None
        else:
            values, ids = torch.topk(logits, kept)  # sorted, largest first
        probabilities = torch.softmax(values / params.temperature, dim=-1)
        if params.top_p < 1.0:
            before = probabilities.cumsum(-1) - probabilities
            cut = before >= params.top_p
            cut[0] = False  # the likeliest token stays, also for top_p 0
            probabilities = probabilities.masked_fill(cut, 0.0)
        if params.min_p > 0:
            probabilities = probabilities.masked_fill(probabilities < params.min_p * probabilities.max(), 0.0)
        choice = int(torch.multinomial(probabilities, 1, generator=self.generator))
        return choice if ids is None else int(ids[choice])
