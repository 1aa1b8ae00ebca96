"""What is checked, and set, once an engine's configuration is known: where it is made, and not in workers, which get it pickled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .recipe import ASKED, Recipe
from .releases import PROCESSOR, is_v2, problem, v2_processor
from .trust import MEMBERS, check_folder, check_weights


def check_engine(vllm_config: Any) -> None:
    r"""
    Check an engine that is to serve a combination, and have it ask for coefficients.

    Raises:
        `ValueError`: If this vLLM, or what was asked of it, cannot serve it exactly.
    """
    if found := problem():
        raise ValueError(found)
    model_config = vllm_config.model_config
    config = model_config.hf_config
    recipe: Recipe = config.recipe
    for name, member in config.member_configs().items():
        longest = getattr(member.get_text_config(), "max_position_embeddings", None)
        if longest is not None and model_config.max_model_len > longest:
            raise ValueError(
                f"The member {name!r} has {longest} positions, fewer than the {model_config.max_model_len} asked for: give "
                f"`--max-model-len {longest}` or less."
            )
    folder = Path(model_config.model)
    if folder.is_dir():
        check_folder(folder)
        for name in config.keys().values():
            check_weights(name, folder / MEMBERS / name)
    if model_config.enable_prompt_embeds:
        raise ValueError("Embeddings as prompts are one member's: `--enable-prompt-embeds` is not for a combination.")
    if PROCESSOR not in (model_config.logits_processors or []):
        model_config.logits_processors = [*(model_config.logits_processors or []), PROCESSOR]
    v2 = is_v2(vllm_config)  # with the processor, for which some vLLMs choose V1
    if v2 and v2_processor() is None:
        raise ValueError(
            "This vLLM's V2 model runner takes no logits processor, which has requests checked where they arrive: leave out "
            "VLLM_USE_V2_MODEL_RUNNER, or install vLLM 0.32."
        )
    scheduled = len(recipe.rows()) > 1
    if scheduled and not v2:
        raise ValueError(
            "A recipe with a schedule needs the V2 model runner: set VLLM_USE_V2_MODEL_RUNNER=1, with vLLM 0.32 or later."
        )
    if vllm_config.speculative_config is not None and not v2:
        raise ValueError(
            "With speculation, the V1 model runner tells a model nothing of requests, and checks nothing that they ask for: set "
            "VLLM_USE_V2_MODEL_RUNNER=1, with vLLM 0.32 or later, or serve without drafts."
        )
    config.served_by_v2 = v2
    note(config)


@dataclass(frozen=True)
class Served:
    """What an engine serves, as those need to know it who take requests."""

    recipe: Recipe
    v2: bool
    fixed: bool

    def check(self, extra: Any) -> None:
        """Raise a `ValueError` if a request asks for what this engine does not give."""
        rows = self.recipe.asked(extra)
        if rows is None:
            return
        if self.fixed:
            raise ValueError(
                "This server gives one strength to all requests (`fixed_coefficients`): leave out the coefficients."
            )
        if len(rows) > 1 and not self.v2:
            raise ValueError("A schedule needs the V2 model runner (VLLM_USE_V2_MODEL_RUNNER=1): give one number.")


# The engines that this process takes requests for: one in a server.
_SERVED: list[Served] = []


def note(config: Any) -> None:
    """Have this process know what is served: where the configuration is made, and where it is unpickled by a server's other processes."""
    served = Served(config.recipe, bool(config.served_by_v2), bool(config.fixed_coefficients))
    if served not in _SERVED:
        _SERVED.append(served)


def served_recipes() -> list[Recipe]:
    return [served.recipe for served in _SERVED]


def check_request(extra: Any) -> None:
    """
    Raise what the engines of this process have against a request, if none would take it: where it arrives, so that it is a 400 of that
    request. In a worker it would end the engine.
    """
    if not _SERVED and any((extra or {}).get(key) is not None for key in ASKED):
        raise ValueError("This process knows no combination: vllm-eft must be installed where requests are taken.")
    problems = []
    for served in _SERVED:
        try:
            served.check(extra)
            return
        except ValueError as error:
            problems.append(error)
    if problems:
        raise problems[-1]
