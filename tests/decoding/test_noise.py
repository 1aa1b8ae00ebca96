"""The noise that a draft and the target share: a seed that somebody wrote down gives the same tokens later."""

from __future__ import annotations

import torch

from hf_eft.decoding.speculative.coupling import Noise


def test_a_seed_means_the_same_in_every_release() -> None:
    scores = torch.zeros(4, 64)
    assert Noise(3).pick(scores, [0, 1, 2, 3]).tolist() == [51, 28, 29, 24]
    assert Noise(3).pick(scores[:2], [1, 3], present=[1, 3]).tolist() == [28, 24]
    assert Noise([3, 5]).pick(scores[:2], [0, 7]).tolist() == [47, 45]
