"""Members from their places, each at its own, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..configuration_eft import as_config
from ..files.learnt import LEARNT
from ..files.trust import ADAPTER, CONFIG, MODEL_TYPE, check_code, check_weights, read_json
from ..members.auto import sees
from ..recipe.combination import BASE, REFERENCE, TUNED, Coefficient, Combination
from .loading import announced, load_model
from .places import Place
from .processing import TOKENIZER_CONFIG, load_processing

Token = str | bool | Mapping[str, str | bool] | None


def load_places(
    places: Mapping[str, Place],
    each: Mapping[str, Mapping[str, Any]],
    trust_remote_code: bool,
    progress: Callable[[str], None] | None,
    own: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """
    The models (or folders of adapters), the tokenizers or processors and the reports of members from their places. Those of `own` were told
    more.
    """
    loaded: dict[Any, tuple[Any, Any, Any]] = {}
    models, tokenizers, reports = {}, {}, {}
    for name in announced({name: place.name for name, place in places.items()}, progress):
        place, options = places[name], each.get(name, {})
        key = (place, repr(sorted(options.items(), key=lambda item: item[0])))
        if key not in loaded:
            if name in own and look(name, place) is None:
                raise ValueError(
                    f"`member_kwargs` has arguments for the member {name!r}, which is an adapter: it is as the model that it is put on."
                )
            loaded[key] = _load_one(name, place, options, trust_remote_code)
            if loaded[key][2] is not None:
                reports[name] = loaded[key][2]
        models[name], tokenizer = loaded[key][:2]
        if tokenizer is not None:
            tokenizers[name] = tokenizer
    return models, tokenizers, reports


def look(name: str, place: Place) -> dict[str, Any] | None:
    """
    A member's configuration as it lies there, `None` for an adapter.

    Raises:
        `ValueError`: If there is neither, or it is a combination.
    """
    try:
        adapter, path = place.file(ADAPTER), place.file(CONFIG)
    except OSError as error:
        raise ValueError(f"The member {name!r} cannot be found in {place.name!r}: {error}") from error
    if adapter is not None:
        return None
    if path is None:
        raise ValueError(f"The member {name!r} has no {CONFIG} in {place.name!r}: it is no model of transformers.")
    description = read_json(path)
    if description.get("model_type") == MODEL_TYPE:
        raise ValueError(
            f"The member {name!r} in {place.name!r} is another combination: it is refused. Give a causal language model."
        )
    return description


def _load_one(name: str, place: Place, options: Mapping[str, Any], trust_remote_code: bool) -> tuple[Any, Any, Any]:
    remote: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if trust_remote_code and place.commit:
        remote["code_revision"] = place.commit
    description = look(name, place)
    if description is None:
        tokenizer = _processing(name, place, True, remote)
        return place.folder(patterns=(ADAPTER, LEARNT, "adapter_model.safetensors")), tokenizer, None
    if trust_remote_code and "auto_map" in description:
        check_code(name, description)
        config, own_code = AutoConfig.from_pretrained(place.name, **place.where, **remote), remote
    else:
        try:
            config, own_code = as_config(name, description), {"trust_remote_code": False}
        except (ValueError, TypeError) as error:
            hint = (
                " It has code of its own, which runs with `trust_remote_code=True` only." if "auto_map" in description else ""
            )
            raise ValueError(f"The member {name!r} in {place.name!r} cannot be loaded: {error}{hint}") from error
    if place.commit is None:
        check_weights(name, Path(place.name))
    tokenizer = _processing(name, place, sees(config), remote)
    model, report = load_model(name, place.name, config, **place.where, **own_code, **options)
    if place.commit is not None:
        model.config._name_or_path, model.config._commit_hash = place.source
    return model, tokenizer, report


def _processing(name: str, place: Place, sees: bool, remote: Mapping[str, Any]) -> Any:
    """A member's tokenizer or processor, `None` if there is none."""
    if place.file(TOKENIZER_CONFIG) is None:
        return None
    return load_processing(name, place.name, place.file, sees, **place.where, **remote)


def assemble(
    cls: Any,
    given: Mapping[str, Any],
    tokenizers: Mapping[str, Any],
    alpha: Coefficient | None = None,
    beta: Coefficient | None = None,
    combination: Combination | None = None,
    vocabulary: str | None = None,
) -> Any:
    """The combination of loaded members, by name: a `cls`, which is [`EFTForCausalLM`]."""
    tuned = {name: model for name, model in given.items() if name not in (BASE, REFERENCE)}
    return cls.from_models(
        given.get(BASE),
        tuned=tuned[TUNED] if set(tuned) == {TUNED} else tuned or None,
        reference=given.get(REFERENCE),
        alpha=alpha,
        beta=beta,
        combination=combination,
        tokenizers=tokenizers,
        vocabulary=vocabulary,
    )


def token_for(repo_id: str, token: Token) -> str | bool | None:
    """The token for a repository that the caller named."""
    return token.get(repo_id) if isinstance(token, Mapping) else token
