"""What a folder may not decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm_eft.trust import check_description, check_folder, check_weights, member_description

GOOD: dict[str, Any] = {
    "model_type": "eft",
    "member_names": ["base", "tuned", "reference"],
    "text_config": {"model_type": "llama"},
}


def test_a_plain_description_is_read() -> None:
    check_description({**GOOD, "tuned_config": {}, "reference_config": {}, "combination": {"coefficients": {"base": 1.0}}})


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"auto_map": {"AutoConfig": "code.Config"}}, "keys that are not read: 'auto_map'"),
        ({"other_config": {}}, "keys that are not read: 'other_config'"),
        ({"member_names": ["../base"]}, "cannot be called"),
        ({"member_names": ["base"] * 2}, "each once"),
        ({"member_names": [f"m{n}" for n in range(65)]}, "at most 64"),
        ({"shared_members": {"tuned": "nobody"}}, "`shared_members` must name"),
        ({"shared_members": {"tuned": "base", "reference": "tuned"}}, "`shared_members` must name"),
        ({"adapters": {"tuned": "../trunk"}}, "cannot be called"),
        ({"combination": {"coefficients": {}, "code": "x"}}, "keys that are not read: 'code'"),
        ({"references": {"base": {"repo_id": "a/b", "revision": "main"}}}, "a repository for each"),
    ],
)
def test_what_is_not_read_is_refused(more: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_description({**GOOD, **more})


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ({"repo_id": "a/b", "revision": "main"}, "can move"),
        ({"repo_id": "/etc", "revision": "0" * 40}, "repository of the Hub"),
        ({"repo_id": "https://x/y", "revision": "0" * 40}, "repository of the Hub"),
        ({"repo_id": "a/b", "revision": "0" * 40, "subfolder": "x"}, "nothing else"),
    ],
)
def test_a_reference_is_a_repository_at_a_commit(reference: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_description({**GOOD, "references": dict.fromkeys(GOOD["member_names"], reference)})


def test_a_members_configuration_loses_what_names_code_at_any_depth() -> None:
    found = member_description("base", {"model_type": "llama", "auto_map": {}, "rope": {"_name_or_path": "x", "theta": 1.0}})
    assert found == {"model_type": "llama", "rope": {"theta": 1.0}}
    with pytest.raises(ValueError, match="another combination"):
        member_description("base", {"model_type": "eft"})
    deep: dict[str, Any] = {"model_type": "llama"}
    for _ in range(20):
        deep = {"model_type": "llama", "inner": deep}
    with pytest.raises(ValueError, match="nested more than"):
        member_description("base", deep)


def test_files_elsewhere_and_pickles_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "members" / "base").mkdir(parents=True)
    (folder / "members" / "base" / "pytorch_model.bin").write_bytes(b"")
    check_folder(folder)
    with pytest.raises(ValueError, match="no safetensors"):
        check_weights("base", folder / "members" / "base")
    (tmp_path / "secret").write_text("x")
    (folder / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="leads out of the folder"):
        check_folder(folder)
