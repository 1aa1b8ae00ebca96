"""The merges that tokenizers have in common, and that nothing else which they merge comes between."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from .merges import Merge, TokenizerView


def shared_merges(
    views: Sequence[TokenizerView],
    letters: Collection[bytes],
    wanted: Callable[[bytes], bool] = lambda token: True,
    rival: Callable[[bytes], bool] = lambda token: True,
) -> list[Merge]:
    r"""
    The merges of a BPE whose tokens every one of these tokenizers' tokens are made of, in every text that all cut alike.

    A tokenizer merges by rank. So up to its rank m it has done what the BPE of its first m merges does, and the merges that follow only
    join what that made. If two tokenizers' first m merges are the same, both join tokens of the same sequence: written in those tokens, a
    text is the same to both. A merge beyond the common beginning is shared as well if nothing that only some tokenizers merge can take one
    of its parts away before its turn: a token of lower rank, itself not shared by then, that is longer than the left part and ends like it,
    or longer than the right part and begins like it.

    Why that is enough: let all merges up to some rank be done, in a tokenizer and with the shared merges alone, and let each token of the
    first be one or more of the second. A merge of the first that is not shared joins tokens, so this stays true. Let the next be the shared
    one of `u` and `v`, and let them stand side by side among the shared tokens with an end of a tokenizer's token between. Its token in
    front of that end is `u` or is longer. If longer, it is not shared, for a shared token would be one token on the other side too; so it
    is of the kind that was excluded. The same holds for `v`. So both sides merge. Where a tokenizer has two shared merges in another order
    than the list, the order does not matter, as neither has a part for which they compete: it would be longer and begin or end like it.

    Args:
        views (`Sequence[TokenizerView]`): The tokenizers.
        letters (`Collection[bytes]`): What merging starts from.
        wanted (`Callable`): Which of the tokens that all make alike may be shared.
        rival (`Callable`): Which tokens can come between: those that are ever made in the pieces of text that are meant.

    Returns:
        `list[tuple[bytes, bytes]]`: The merges, in the order in which they are done: that of the first tokenizer.
    """
    lists = [[pair for pair in view.merges if rival(pair[0] + pair[1])] for view in views]
    early = [[token for token in (*view.letters, *view.irregular) if len(token) > 1 and token not in letters] for view in views]
    beginning = 0 if any(early) else _common_beginning(lists, wanted)
    shared = lists[0][:beginning]  # nothing else was merged before them
    taken = {*letters, *(left + right for left, right in shared)}
    ranked = [{left + right: (rank, (left, right)) for rank, (left, right) in enumerate(pairs[beginning:])} for pairs in lists]
    pairs = {
        token: pair
        for token, (_, pair) in ranked[0].items()
        if wanted(token) and all(each.get(token, (0, None))[1] == pair for each in ranked)
    }  # in the base's order, in which the parts of a token come before it
    lefts, rights = {left for left, _ in pairs.values()}, {right for _, right in pairs.values()}
    rivals = [_Rivals(first, list(ranks), lefts, rights) for first, ranks in zip(early, ranked, strict=True)]
    for token, (left, right) in pairs.items():
        if {left, right} <= taken and not any(
            other.before(left, right, ranks[token][0], taken) for other, ranks in zip(rivals, ranked, strict=True)
        ):
            taken.add(token)
            shared.append((left, right))
    return shared


def _common_beginning(lists: Sequence[Sequence[Merge]], wanted: Callable[[bytes], bool]) -> int:
    """How many merges are the same in all lists from the start on, and wanted."""
    for k, pairs in enumerate(zip(*lists, strict=False)):
        if any(pair != pairs[0] for pair in pairs) or not wanted(pairs[0][0] + pairs[0][1]):
            return k
    return min(map(len, lists))


class _Rivals:
    r"""
    The tokens of a tokenizer that are longer than a part of a merge and end, or begin, as it does, by rank.

    Args:
        early (`Sequence[bytes]`): Tokens that can be there before any merge: characters that others write in bytes, and what is made out of
            turn.
        ranked (`Sequence[bytes]`): Those that are merged, by rank.
        lefts, rights (`Collection[bytes]`): The parts of merges that will be asked for.
    """

    def __init__(
        self, early: Sequence[bytes], ranked: Sequence[bytes], lefts: Collection[bytes], rights: Collection[bytes]
    ) -> None:
        self._ending: dict[bytes, list[tuple[int, bytes]]] = defaultdict(list)
        self._beginning: dict[bytes, list[tuple[int, bytes]]] = defaultdict(list)
        for rank, token in [*((-1, token) for token in early), *enumerate(ranked)]:
            for k in range(1, len(token)):
                if token[k:] in lefts:
                    self._ending[token[k:]].append((rank, token))
                if token[:k] in rights:
                    self._beginning[token[:k]].append((rank, token))

    def before(self, left: bytes, right: bytes, rank: int, taken: Collection[bytes]) -> bool:
        """Whether one of them, none of those that are `taken`, can come before the merge of two parts at a rank."""
        for rivals in (self._ending.get(left), self._beginning.get(right)):
            # They are in order of rank, and what was taken once stays so: what is passed over need not be looked at again.
            while rivals and rivals[0][1] in taken:
                rivals.pop(0)
            if rivals and rivals[0][0] < rank:
                return True
        return False
