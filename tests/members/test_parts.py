"""What a set of members is made of, by name; and names that come from the caller."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from hf_eft.members.parts import _free
from hf_eft.members.releases import CACHE, renamed, takes_cache
from hf_eft.members.vocabulary import end_tokens


@pytest.mark.parametrize(
    ("taken", "free"),
    [
        ([], "trunk"),
        (["base"], "trunk"),
        (["trunk"], "trunk_2"),
        (["trunk", "trunk_2"], "trunk_3"),
        (["trunk", "trunk_3", "base"], "trunk_2"),
        (["trunk_1", "trunk_2"], "trunk"),
    ],
    ids=str,
)
def test_a_model_under_adapters_that_is_no_member_gets_a_name_that_no_member_has(taken: list[str], free: str) -> None:
    assert _free(set(taken)) == free


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_may_come_under_either_name(name: str) -> None:
    given = {"".join(list(name)): 5, "use_cache": True}  # keywords of the caller's making: no other object is the same string
    for wanted in ("cache", "past_key_values"):
        assert renamed(given, wanted) == {wanted: 5, "use_cache": True}
    assert renamed({"use_cache": True}) == {"use_cache": True}
    with pytest.raises(TypeError, match="two names of one argument"):
        renamed({"cache": 5, "past_key_values": 5})


def test_a_method_that_takes_a_cache_is_still_what_it_was() -> None:
    def forward(tokens: int, cache: int | None = None) -> tuple[int, int | None]:
        """Read."""
        return tokens, cache

    taking = takes_cache(forward)
    assert [taking(1, **{name: 2}) for name in ("cache", "past_key_values")] == [(1, 2)] * 2 and taking(1) == (1, None)
    assert (taking.__name__, taking.__doc__, taking.__module__) == ("forward", "Read.", __name__)
    assert list(inspect.signature(taking).parameters) == ["tokens", CACHE]


@pytest.mark.parametrize(("given", "ends"), [(None, []), (2, [2]), ([2, 3], [2, 3]), ((2,), [2]), ([], [])], ids=str)
def test_what_ends_a_text_is_a_token_or_several(given: Any, ends: list[int]) -> None:
    assert end_tokens(SimpleNamespace(eos_token_id=given)) == ends


@pytest.mark.parametrize("given", ["2", [2, "3"], 2.0, {"a": 2}, [[2]]], ids=str)
def test_what_is_no_token_does_not_end_a_text(given: Any) -> None:
    with pytest.raises(ValueError, match="`eos_token_id` of a generation config must be a token or a list of them, got"):
        end_tokens(SimpleNamespace(eos_token_id=given))
