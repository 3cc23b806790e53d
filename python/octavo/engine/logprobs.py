"""Log-probabilities from arrays of a step to the dictionaries of the outputs."""

from __future__ import annotations

from octavo.outputs import Logprob, LogprobsOnePosition
from octavo.runner.batch import LogprobBatch
from octavo.text.tokenizer import Tokenizer


class DecodedTokens(dict[int, "str | None"]):
    """Token id to its text alone, filled as ids are met; bytes that are no character are replaced."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token_id: int) -> str | None:
        if self._tokenizer is None:
            return None
        piece = self._tokenizer.whole_piece(token_id)
        text = self[token_id] = piece if isinstance(piece, str) else piece.decode(errors="replace")
        return text


class LogprobRows:
    """The rows of one step's arrays as Python lists, converted once."""

    def __init__(self, batch: LogprobBatch) -> None:
        self._ids = batch.token_ids.tolist()
        self._values = batch.values.tolist()
        self._ranks = batch.ranks.tolist()

    def position(self, row: int, k: int, decoded: DecodedTokens | None) -> LogprobsOnePosition:
        """The row's own token and the `k` likeliest, in that order; a token in both appears once."""
        ids, values = self._ids[row], self._values[row]
        token = ids[0]
        result = {
            token: Logprob(values[0], self._ranks[row], decoded[token] if decoded is not None else None)
        }
        for rank, (other, value) in enumerate(zip(ids[1 : k + 1], values[1 : k + 1]), 1):
            if other != token:
                result[other] = Logprob(value, rank, decoded[other] if decoded is not None else None)
        return result
