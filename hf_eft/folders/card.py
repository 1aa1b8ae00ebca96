"""Model cards: of a saved combination, of a recipe, and the part to paste into a small tuned model's card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.learnt import Learnt
from ..files.repositories import check_repository, is_commit, is_repo_id
from ..members.combined import Combined
from ..members.learnt import learnt_by
from ..recipe.combination import BASE, REFERENCE, TUNED, Combination
from .card_text import PAPER, blocks_of_folder, blocks_of_members, formula, how_learnt, risks

TAGS = ("emulated-fine-tuning", "eft", "hf_eft")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,95}")
_NO_PLACE: tuple[None, None] = (None, None)


def licence_of(where: str | Path, *, online: bool = False) -> str | None:
    r"""
    The licence that a model's card states.

    Args:
        where (`str` or `Path`): A folder, or a repository of the Hub, whose card is looked for in the local cache.
        online (`bool`, *optional*, defaults to `False`): Whether to ask the Hub for the card of a repository that is not in the cache.

    Returns:
        `str` or `None`: The identifier, or the name of a licence that has none; `None` if no card states one.
    """
    from huggingface_hub import ModelCard, hf_hub_download, try_to_load_from_cache

    path: Any = Path(where) / "README.md"
    if not Path(where).exists() and is_repo_id(where):
        path = try_to_load_from_cache(str(where), "README.md")
        if online and not isinstance(path, str):
            path = hf_hub_download(str(where), "README.md")
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        return None
    try:
        data = ModelCard.load(Path(path), ignore_metadata_errors=True).data
    except Exception:  # a stranger's YAML: whatever it raises, no licence was read
        return None
    named = data.get("license_name") if data.get("license") == "other" else None
    stated = named or data.get("license")
    return stated if isinstance(stated, str) and _LICENCE.fullmatch(stated) else None


def model_card(
    model: Combined,
    *,
    sources: Mapping[str, str | tuple[str, str | None]] | None = None,
    repo_id: str | None = None,
) -> str:
    r"""
    The card of a saved combination, its `README.md`. No path of this machine gets into it.

    Args:
        model ([`EFTForCausalLM`]): The model.
        sources (`Mapping[str, str or tuple[str, str]]`, *optional*):
            By member, the repository of the Hub that it came from, or that and its commit. Where that is silent: what the model remembers
            (`model.sources`), then what the member's configuration says, if that is a repository.
        repo_id (`str`, *optional*): Where the combination will be published. Without it, the examples load it from the folder `"."`.

    Returns:
        `str`: Markdown with metadata: the members' repositories as `base_model` (with no `base_model_relation`: a combination is no
        adapter, merge, quantisation or fine-tune of any of them), tags, and the licence if all members state the same one.

    Raises:
        `ValueError`: If a source is no repository of the Hub, or of an unknown member.

    Example:

    ```python
    >>> from hf_eft import EFTForCausalLM, tiny
    >>> from hf_eft.folders.card import model_card

    >>> base, tuned, reference, _ = tiny.load()
    >>> card = model_card(EFTForCausalLM.from_models(base, tuned=tuned, reference=reference), sources={"base": "owner/large"})
    >>> "log p = base + tuned - reference - log Z" in card
    True
    ```
    """
    if unknown := set(sources or ()) - set(model.members):
        raise ValueError(f"`sources` names {sorted(unknown)}, but the members are {list(model.members)}.")
    if repo_id is not None:
        check_repository("combination", repo_id)
    places: dict[str, tuple[str | None, str | None]] = {}
    licences: dict[str, str | None] = {}
    for name, member in model.members.items():
        # The configuration of an adapter is that of the model under it, which the base or the reference may be, and the tuned one is not.
        is_adapter = name in model._members.adapted and name not in (BASE, REFERENCE)
        own = "" if is_adapter else str(getattr(member.config, "_name_or_path", "") or "")
        given = (sources or {}).get(name)
        places[name] = _given(name, given) if given is not None else _remembered(model, name, own)
        licences[name] = licence_of(places[name][0] or own) if places[name][0] or own else None
    intro = "Several language models that predict as one, saved as one model."
    learnt = learnt_by(model._members if model._beneath is None else model._beneath)
    blocks = blocks_of_folder(repo_id or ".", model.members, model.vocabulary)
    return _card(repo_id, intro, model.combination, places, licences, blocks, learnt)


def recipe_card(
    members: Mapping[str, tuple[str, str]],
    combination: Combination,
    *,
    repo_id: str | None = None,
    licences: Mapping[str, str] | None = None,
    learnt: Mapping[str, Learnt] | None = None,
    vocabulary: str | None = None,
) -> str:
    r"""
    The card of a recipe, which has no weights and refers to its members.

    Args:
        members (`Mapping[str, tuple[str, str]]`): By member, its repository on the Hub and its commit, 40 hexadecimal digits.
        combination ([`Combination`]): The recipe. Its coefficients are numbers: callables cannot be written down.
        repo_id (`str`, *optional*): Where the recipe will be published.
        licences (`Mapping[str, str]`, *optional*): By member, its licence; [`licence_of`] where that is silent.
        learnt (`Mapping[str, Learnt]`, *optional*): By member, what it says of how it learnt, if it learnt through a base.
        vocabulary (`str`, *optional*): In what they are combined, where their tokenizers differ.

    Returns:
        `str`: Markdown with metadata, as [`model_card`] makes it.

    Raises:
        `ValueError`: If a member's name is no identifier, its place no repository, its revision no commit, or a licence no identifier;
            if the recipe names other members or holds a callable.
    """
    for name, (where, commit) in members.items():
        if not name.isidentifier() or name.startswith("_"):
            raise ValueError(f"A member cannot be called {name!r}: choose an identifier.")
        check_repository(name, where, commit or "")
    if repo_id is not None:
        check_repository("recipe", repo_id)
    combination.check_names(tuple(members))
    given = dict(licences or {})
    if wrong := {name: value for name, value in given.items() if name not in members or not _LICENCE.fullmatch(value)}:
        raise ValueError(f"`licences` must have the identifier of a licence for some of {list(members)}, got {wrong}.")
    stated = {name: given.get(name) or licence_of(where) for name, (where, _) in members.items()}
    intro = "A recipe: it has no weights, and refers to the models that it combines."
    blocks = blocks_of_members(members, combination, vocabulary=vocabulary)
    return _card(repo_id, intro, combination, members, stated, blocks, learnt or {})


def snippet(tuned: str, reference: str, *, base: str | None = None, revisions: Mapping[str, str] | None = None) -> str:
    r"""
    A part to paste into the card of a small tuned model: how others up-scale it.

    Args:
        tuned (`str`): The repository of the tuned model.
        reference (`str`): The repository of what it was before it was fine-tuned.
        base (`str`, *optional*): A larger model of the family. Without it, `reference` stands in the examples until the reader names one.
        revisions (`Mapping[str, str]`, *optional*): The commits, by `"base"`, `"tuned"`, `"reference"`.

    Returns:
        `str`: Markdown, headings of the second level and below.

    Raises:
        `ValueError`: If one of them is no repository of the Hub, or a revision no commit.

    Example:

    ```python
    >>> from hf_eft.folders.card import snippet

    >>> print(snippet("owner/small-chat", "owner/small").splitlines()[0])
    ## Use this model to up-scale a larger one
    ```
    """
    given = dict(revisions or {})
    if unknown := given.keys() - {BASE, TUNED, REFERENCE}:
        raise ValueError(f"`revisions` has {sorted(unknown)}, expected commits by 'base', 'tuned', 'reference'.")
    where: dict[str, tuple[str, str | None]] = {}
    for name, place in ((BASE, base), (TUNED, tuned), (REFERENCE, reference)):
        if place is not None:
            check_repository(name, place, given.get(name))
            where[name] = (place, given.get(name))
    note = ""
    if base is None:
        note = (
            f" With `{reference}` in the place of the base, as it stands here, what comes out is exactly this model; with a larger "
            "one, its knowledge in this model's manner."
        )
    combination = Combination.emulate()
    return "\n\n".join(
        [
            "## Use this model to up-scale a larger one",
            "Add to a larger model, while it generates, what fine-tuning changed in this small one (emulated fine-tuning, "
            f"{PAPER}). The large one is not trained:",
            f"```text\n{formula(combination)}\n```",
            f"First, `pip install hf-eft`.{note}",
            *_sections(blocks_of_members(where, combination, None if base is not None else REFERENCE)),
            f"### Risks\n\n{risks(combination)}\n",
        ]
    )


def _card(
    repo_id: str | None,
    intro: str,
    combination: Combination,
    places: Mapping[str, tuple[str | None, str | None]],
    licences: Mapping[str, str | None],
    blocks: Mapping[str, str],
    learnt: Mapping[str, Learnt],
) -> str:
    """Metadata and text."""
    from huggingface_hub import ModelCard, ModelCardData

    repositories = list(dict.fromkeys(place for place, _ in places.values() if place is not None))
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(TAGS),
        base_model=repositories or None,
        **_licence(list(licences.values())),
    )
    title = repo_id.split("/")[-1] if repo_id is not None else "Emulated fine-tuning"
    body = "\n\n".join(
        [
            f"# {title}",
            f"{intro} Made with `hf_eft`; the method is emulated fine-tuning, {PAPER}.",
            f"```text\n{formula(combination)}\n```",
            "## Members",
            _table(combination, places, licences),
            *([f"## How it learnt\n\n{how_learnt(learnt)}"] if learnt else []),
            "## Use it",
            "First, `pip install hf-eft`.",
            *_sections(blocks),
            f"## Risks\n\n{risks(combination)}\n",
        ]
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _sections(blocks: Mapping[str, str]) -> list[str]:
    return [f"### {heading}\n\n```python\n{code}\n```" for heading, code in blocks.items()]


def _table(
    combination: Combination, places: Mapping[str, tuple[str | None, str | None]], licences: Mapping[str, str | None]
) -> str:
    rows = ["| member | model | commit | licence | part |", "|---|---|---|---|---|"]
    parts = {BASE: "the knowledge", REFERENCE: "what the tuned model was before it was fine-tuned"}
    for name, (place, commit) in places.items():
        model = f"[{place}](https://huggingface.co/{place})" if place is not None else "not published"
        shown = f"`{commit}`" if commit is not None else "-"
        used = name in combination.coefficients
        part = parts.get(name, "the behaviour") if used else "not part of the recipe"
        rows.append(f"| `{name}` | {model} | {shown} | {licences.get(name) or 'not stated'} | {part} |")
    return "\n".join(rows)


def _licence(stated: list[str | None]) -> dict[str, Any]:
    """The common licence; where members differ or one does not say, `other` and what each says; nothing if none says anything."""
    if not any(stated):
        return {}
    first = stated[0]
    if first is not None and set(stated) == {first}:
        return {"license": first}
    return {"license": "other", "license_name": "-and-".join(dict.fromkeys(licence or "unstated" for licence in stated))}


def _given(name: str, source: str | tuple[str, str | None]) -> tuple[str, str | None]:
    """A place that the caller named."""
    place, commit = (source, None) if isinstance(source, str) else source
    check_repository(name, place, commit)
    return place, commit


def _remembered(model: Combined, name: str, own: str) -> tuple[str | None, str | None]:
    """A place that the model remembers. Folders are no places: neither their paths nor their names are anyone else's business."""
    commit: Any
    place, commit = (getattr(model, "sources", None) or {}).get(name) or _NO_PLACE
    if not _is_published(place, commit):
        place, commit = own, getattr(model.members[name].config, "_commit_hash", None)
    return (place, commit if is_commit(commit) else None) if _is_published(place, commit) else _NO_PLACE


def _is_published(place: Any, commit: Any) -> bool:
    """Whether a name is a repository's: it came with a commit, or has an owner and is no folder that is here."""
    return is_repo_id(place) and (is_commit(commit) or ("/" in place and not Path(place).exists()))
