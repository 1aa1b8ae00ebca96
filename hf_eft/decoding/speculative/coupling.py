"""How a draft and the target agree on tokens: pure functions of scores. Both couplings leave the target's distribution exact."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


class Noise:
    r"""
    Gumbel noise that depends on nothing but seed, row and position, so that a row's tokens depend neither on the batch nor on padding
    nor on speculation. With one seed for all rows, row `i` has the stream `(seed, i)`; with a seed for each row, each has its own
    whatever its place in the batch.

    Args:
        seed (`int` or `Sequence[int]`): One seed, or one for each row.
    """

    def __init__(self, seed: int | Sequence[int]) -> None:
        self.seed = seed

    def _generator(self, row: int, position: int) -> torch.Generator:
        stream = f"{self.seed}/{row}" if isinstance(self.seed, int) else f"{self.seed[row]}"
        digest = hashlib.blake2b(f"{stream}/{position}".encode(), digest_size=8).digest()
        # Drawn on the CPU whatever the device: the stream is the same everywhere.
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def check_rows(self, rows: int) -> None:
        """Raise if there is not a seed for each row."""
        if not isinstance(self.seed, int) and len(self.seed) != rows:
            raise ValueError(f"`seed` must be a number or one for each of the {rows} rows, got {len(self.seed)}.")

    def pick(self, scores: torch.Tensor, positions: Sequence[int], present: Sequence[int] | None = None) -> torch.Tensor:
        r"""
        Sample a token for each row (Gumbel-max): the same noise for the same row and position, whatever the scores.

        Args:
            scores (`torch.Tensor` of shape `(rows, vocab)`): Log-probs up to a constant.
            positions (`Sequence[int]`): How many tokens each row has generated before.
            present (`Sequence[int]`, *optional*): Which rows of the batch they are; all by default.

        Returns:
            `torch.LongTensor` of shape `(rows,)`.
        """
        uniform = torch.stack(
            [
                torch.rand(scores.shape[-1], generator=self._generator(row, position), dtype=torch.float64)
                for row, position in zip(range(len(positions)) if present is None else present, positions, strict=True)
            ]
        ).to(scores.device)  # (rows, vocab)
        return (scores.double() - (-uniform.log()).log()).argmax(-1)


def accept_equal(drafted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    r"""
    How many drafted tokens each row keeps: those before the first that the target would not have chosen.

    Args:
        drafted (`torch.LongTensor` of shape `(rows, block)`): The draft.
        wanted (`torch.LongTensor` of shape `(rows, block or more)`): The target's choices at the same positions.

    Returns:
        `torch.LongTensor` of shape `(rows,)`.
    """
    return (drafted == wanted[:, : drafted.shape[1]]).long().cumprod(-1).sum(-1)


def accept_ratio(drafted: torch.Tensor, draft: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Rejection coupling (Leviathan et al. 2023, algorithm 1; Chen et al. 2023): a token drafted from `q` is kept with probability
    `min(1, p / q)`; in place of the first that is not, one is drawn from the normalised `max(p - q, 0)`.

    Args:
        drafted (`torch.LongTensor` of shape `(rows, block)`): Tokens drawn from `draft`.
        draft (`torch.FloatTensor` of shape `(rows, block, vocab)`): The probabilities q that they were drawn from.
        target (`torch.FloatTensor` of shape `(rows, block, vocab)`): The target's probabilities p.

    Returns:
        `tuple[torch.LongTensor, torch.LongTensor]`: How many tokens each row keeps, `(rows,)`, and the token that takes the place of the
        first rejected one, `(rows,)`; of no meaning where all are kept.
    """
    rows, block = drafted.shape
    p = target.gather(-1, drafted[..., None]).squeeze(-1)  # (rows, block)
    q = draft.gather(-1, drafted[..., None]).squeeze(-1)
    accepted = torch.rand_like(p) * q < p
    kept = accepted.long().cumprod(-1).sum(-1)
    at = kept.clamp(max=block - 1)
    every = torch.arange(rows, device=kept.device)
    residual = (target[every, at] - draft[every, at]).clamp(min=0)  # (rows, vocab)
    # Where p and q are equal up to rounding nothing is left over; then nothing was rejected either, but for rounding.
    empty = residual.sum(-1, keepdim=True) <= 0
    residual = torch.where(empty, target[every, at], residual)
    return kept, torch.multinomial(residual, 1).squeeze(1)
