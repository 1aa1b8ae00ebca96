"""A recipe folder: a few kB that refer to the members by repository and commit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ..configuration_eft import EFTConfig, as_config
from ..files.learnt import KEY, LEARNT, Base, Learnt
from ..files.trust import check_reference, is_repo_id
from ..members.learnt import say_of, shape_of
from ..recipe.combination import BASE, REFERENCE, TUNED, Combination
from .card import recipe_card
from .folder import install_recipe
from .gather import Token, assemble, load_places, look, token_for
from .loading import announced, load_tokenizer
from .places import Place
from .processing import TOKENIZER_CONFIG

logger = logging.getLogger(__name__)


def write_recipe(
    members: Mapping[str, str | Path],
    folder: Path,
    combination: Combination | None,
    revisions: Mapping[str, str],
    token: Token,
    progress: Callable[[str], None] | None,
    vocabulary: str | None = None,
) -> Path:
    r"""
    Write a recipe folder; see [`hub.compose`].

    Raises:
        `ValueError`: If a member is no repository, or cannot be found, or the recipe names another.
    """
    for name, where in members.items():
        if not is_repo_id(where):
            raise ValueError(
                f"The member {name!r} must be the id of a repository on the Hub to be referred to, got {str(where)!r}."
            )
    order = [BASE, *(name for name in members if name not in (BASE, REFERENCE)), REFERENCE]
    names = [name for name in order if name in members]
    recipe = Combination.of(None, None, combination, {name: None for name in names if name not in (BASE, REFERENCE)} or None)
    recipe.check_names(tuple(names))
    references, learnt, places = {}, dict[str, Learnt](), dict[str, Place]()
    base: Base | str | None = None
    for name in announced({name: str(members[name]) for name in names}, progress):
        repo_id = str(members[name])
        try:
            place = Place.on_hub(repo_id, revisions.get(name), token=token_for(repo_id, token))
        except OSError as error:
            raise ValueError(f"The member {name!r} cannot be found: {error}") from error
        description, places[name] = look(name, place), place
        references[name] = {"repo_id": repo_id, "revision": str(place.commit)}
        if name == BASE and description is not None:
            base = _base(description, repo_id, place.commit)
        elif name not in (BASE, REFERENCE) and (said := _learnt(name, place, description)) is not None:
            learnt[name] = said
    if combination is None and TUNED in learnt:
        recipe = Combination.emulate(alpha=learnt[TUNED].recommended_alpha)
    for name, said in learnt.items():
        say_of(name, said, base)
    if vocabulary is not None and any(
        not isinstance(mark, str) for phase in recipe.phases for mark in (phase.start, phase.end)
    ):
        raise ValueError(
            f"With `vocabulary={vocabulary!r}` a recipe folder has no tokenizer that says which tokens its phases' markers are: "
            "give them as texts."
        )
    recipe = _spelled(recipe, places)
    config = EFTConfig(
        member_names=names, references=references, vocabulary=vocabulary, combination=recipe.to_dict(),
        architectures=["EFTForCausalLM"],
    )  # fmt: skip
    sources = {name: (reference["repo_id"], reference["revision"]) for name, reference in references.items()}
    install_recipe(config, recipe, folder, recipe_card(sources, recipe, learnt=learnt, vocabulary=vocabulary))
    return folder


def _spelled(recipe: Combination, places: Mapping[str, Place]) -> Combination:
    """The recipe with the markers of its phases that are tokens spelled out, by the tokenizer that will be asked what they are."""
    if all(isinstance(mark, str) for phase in recipe.phases for mark in (phase.start, phase.end)):
        return recipe
    for name in sorted(places, key=(BASE, REFERENCE).count):
        if (place := places[name]).file(TOKENIZER_CONFIG) is not None:
            return recipe.spelled({name: load_tokenizer(name, place.name, **place.where)})
    return recipe


def _base(description: Mapping[str, Any], repo_id: str, commit: str | None) -> Base | str:
    """The base, by its configuration; its name alone where that is of a type that transformers does not know."""
    try:
        return shape_of(as_config(BASE, description), repo_id, commit)
    except (ValueError, TypeError):
        return repo_id


def _learnt(name: str, place: Place, description: Mapping[str, Any] | None) -> Learnt | None:
    """What a member says of how it learnt: in its configuration, or beside it where it is an adapter, which has none."""
    if description is not None:
        found = description.get(KEY)
        return None if found is None else Learnt.read(found, f"`{KEY}` in the configuration of the member {name!r}")
    path = place.file(LEARNT)
    return None if path is None else Learnt.beside(path.parent)


def follow(
    cls: Any,
    config: EFTConfig,
    where: str,
    combination: Combination,
    each: Mapping[str, Mapping[str, Any]],
    own: Collection[str],
    trust_remote_code: bool,
    tokens: Token,
    progress: Callable[[str], None] | None,
    hub_options: Mapping[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """
    Load what a recipe refers to as a `cls`, each repository at its own commit. The repositories are logged before anything is fetched.
    """
    references = {name: check_reference(name, config.references[name]) for name in config.member_names}
    listed = ", ".join(f"{name}: {repo_id}@{commit}" for name, (repo_id, commit) in references.items())
    logger.warning("The recipe in %r has these repositories loaded: %s", where, listed)
    places = {}
    for name, (repo_id, commit) in references.items():
        # A token is for what the user named: a file names this one, so that not even the stored token is sent unasked.
        token = tokens.get(repo_id, False) if isinstance(tokens, Mapping) else False
        places[name] = Place.on_hub(repo_id, commit, **{**hub_options, "token": token})
    models, tokenizers, reports = load_places(places, each, trust_remote_code, progress, own)
    return assemble(cls, models, tokenizers, combination=combination, vocabulary=config.vocabulary), reports


def refuse(config: EFTConfig, where: str) -> None:
    """Raise a `ValueError` that says which repositories a recipe would have loaded."""
    listed = "\n".join(f"  {name}: {each['repo_id']}@{each['revision']}" for name, each in config.references.items())
    raise ValueError(
        f"{where!r} is a recipe that has other repositories loaded:\n{listed}\nIf you trust them, pass `allow_references=True`."
    )
