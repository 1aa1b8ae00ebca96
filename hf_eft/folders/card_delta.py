"""The card of a delta that learnt through a base: what it is, what it needs, what is lost."""

from __future__ import annotations

from collections.abc import Sequence

from ..files.learnt import Learnt
from ..recipe.combination import BASE, REFERENCE, TUNED, Combination
from .card import TAGS
from .card_text import PAPER, blocks_of_members, formula, how_learnt, risks


def delta_card(
    learnt: Learnt,
    *,
    adapter: bool,
    reference: tuple[str, str | None] | None,
    measured: Sequence[str] = (),
    repo_id: str | None = None,
    licence: str | None = None,
) -> str:
    r"""
    The card of a delta, the `README.md` beside its weights. No path of this machine gets into it.

    Args:
        learnt ([`Learnt`]): What it says of itself.
        adapter (`bool`): Whether it is an adapter on the reference, rather than a model.
        reference (`tuple[str, str or None]`, *optional*): The repository and the commit of what it was before, if that is published.
        measured (`Sequence[str]`, *optional*): What was measured while it learnt, a line each.
        repo_id (`str`, *optional*): Where it will be published.
        licence (`str`, *optional*): Its licence, which is yours to choose; none is stated without it.

    Returns:
        `str`: Markdown with metadata: the bases and the reference as `base_model`.

    Example:

    ```python
    >>> from hf_eft.files.learnt import Base, Learnt
    >>> from hf_eft.folders.card_delta import delta_card

    >>> learnt = Learnt((Base("llama", 64, 8, 1000, name="owner/large"),), alpha=0.5, recommended_alpha=0.625)
    >>> card = delta_card(learnt, adapter=True, reference=("owner/small", None))
    >>> "Strength in training: 0.5" in card
    True
    ```
    """
    from huggingface_hub import ModelCard, ModelCardData

    published = {base.name: base.revision for base in learnt.bases if base.name is not None and base.published}
    if reference is not None:
        published[reference[0]] = reference[1]
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[*TAGS, "learnt-through-the-combination"],
        base_model=list(published) or None,
        license=licence,
    )
    recipe = Combination.emulate(alpha=learnt.recommended_alpha)
    what = "A LoRA adapter" if adapter else "A small model"
    body = [
        f"# {repo_id.split('/')[-1] if repo_id else 'A delta'}",
        f"{what} that learnt through a larger model, to be used with it: a delta for emulated fine-tuning, {PAPER}. Made with "
        "`hf-eft tune`.",
        f"```text\n{formula(recipe)}\n```",
        "## How it learnt",
        how_learnt({TUNED: learnt}),
        *(["\n".join(f"- {line}" for line in measured)] if measured else []),
        "## Use it",
        _use(learnt, adapter, reference, repo_id, recipe),
        f"## Risks\n\n{risks(recipe)}\n",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(body)))


def _use(
    learnt: Learnt, adapter: bool, reference: tuple[str, str | None] | None, repo_id: str | None, recipe: Combination
) -> str:
    """How to run it. Of an adapter, `hf_eft.hub` knows what it is put on: the reference."""
    first = next((base for base in learnt.bases if base.published), None)
    base = first.name if first is not None and first.name is not None else "<the base>"
    small = reference[0] if reference is not None else "<the reference>"
    command = f'hf-eft generate --base {base} --tuned {repo_id or "<this>"} --reference {small} --chat "What is a heat pump?"'
    lines = ["First, `pip install 'hf-eft[cli,peft]'`." if adapter else "First, `pip install 'hf-eft[cli]'`."]
    lines.append(f"```bash\n{command}\n```")
    lines.append("The strength is the recommended one where none is given.")
    if first is not None and first.name is not None and reference is not None and repo_id is not None:
        if adapter:
            places = f'{{"{BASE}": "{base}", "{TUNED}": "{repo_id}", "{REFERENCE}": "{small}"}}'
            lines.append(f"```python\nfrom hf_eft import hub\n\nmodel, tokenizers = hub.load({places})\n```")
        else:
            where = {BASE: (first.name, first.revision), TUNED: (repo_id, None), REFERENCE: reference}
            lines.append(f"```python\n{blocks_of_members(where, recipe)['As a model']}\n```")
    return "\n\n".join(lines)
