"""The playground: base, tuned and combined side by side in a browser, with sliders for the recipe and the heat-map below. Needs Gradio."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..analysis import analyse
from ..analysis.heatmap import page
from ..modeling_eft import EFTForCausalLM
from ..programs.options import read_options
from ..programs.pictures import Processors, Seen
from ..prompts.messages import read_text
from ..prompts.pictures import tokenizer_of
from ..recipe.combination import REFERENCE
from .dials import Dials, dials_of
from .streaming import Answer

if TYPE_CHECKING:
    import gradio
    from transformers import PreTrainedTokenizerBase

_COMBINED = "combined"
_TITLE = "Emulated fine-tuning"
_RISKS = (
    "The combination can lose to `tuned` or to `base` alone, and what any of them says may be false or harmful. "
    "A safety-tuned model's delta, weakened or turned around, takes its safety training away."
)
# No fonts from elsewhere: a theme of Gradio may load its own from Google.
_FONTS: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
_EVERY = 0.05  # seconds between two updates of the page, which sends the whole text each time
_CSS = ".heatmap iframe { width: 100%; height: 760px; border: 0; border-radius: 8px; } footer { display: none !important; }"
_FRAME = '<iframe sandbox="allow-scripts" referrerpolicy="no-referrer" title="What the delta did" srcdoc="{page}"></iframe>'


def build(model: EFTForCausalLM, tokenizer: Any, *, processors: Mapping[str, Any] | None = None) -> gradio.Blocks:
    r"""
    The page as Gradio blocks. Show it with [`launch`], whose settings keep it from loading anything from elsewhere.

    The recipe of the model stays as it is: the sliders' coefficients are handed to each `generate` call. One answer is made at a
    time, whoever asks.

    Args:
        model ([`EFTForCausalLM`]): The combination, of any recipe of numbers: the sliders are those of its members.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`):
            What prompts are written with; with its chat template, if it has one and the user wants it. With a processor, a picture may be
            asked about.
        processors (`Mapping[str, ProcessorMixin]`, *optional*):
            By member, the processor that makes its inputs of a picture, where it is another than `tokenizer`.

    Raises:
        `ImportError`: If Gradio is not installed.
        `ValueError`: If there is a processor for some members, and none for others, or a coefficient is one by phase or by rule.
    """
    gr = _gradio()
    viewers = Processors(model, tokenizer, processors)
    if processors:
        viewers.check()
    template, tokenizer = bool(tokenizer.chat_template), tokenizer_of(tokenizer)
    ways = dials_of(model._members.names, model.combination)
    panels = [name for name in model.members if name != REFERENCE] + [_COMBINED]
    with gr.Blocks(analytics_enabled=False, title=_TITLE) as blocks:
        gr.Markdown(f"# {_TITLE}\n{_loaded(model)}\n\n{_RISKS}")
        with gr.Row():
            with gr.Column(scale=3):
                prompt = gr.Textbox(label="Prompt", lines=4, autofocus=True, elem_id="prompt")
                chat = gr.Checkbox(label="as a chat message", value=template, visible=template)
                shown = gr.Image(
                    label="Picture", type="pil", image_mode="RGB", sources=["upload", "clipboard"], height=220, visible=viewers.all,
                    elem_id="picture",
                )  # fmt: skip
                with gr.Row():
                    ask = gr.Button("Generate", variant="primary", elem_id="generate")
                    stop = gr.Button("Stop", elem_id="stop")
            with gr.Column(scale=2):
                labels = [way.label for way in ways]
                way = gr.Radio(labels, value=labels[0], label="Recipe", visible=len(labels) > 1, elem_id="recipe")
                groups, sliders = [], []
                for each in ways:
                    with gr.Group(visible=each is ways[0]) as group:
                        sliders += [
                            gr.Slider(d.low, d.high, d.start, step=0.05, label=d.label, elem_classes="dial") for d in each.dials
                        ]
                    groups.append(group)
                with gr.Accordion("Length and sampling", open=False):
                    length = gr.Slider(1, 1024, 128, step=1, label="Most new tokens", elem_id="length")
                    temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature (0: the most likely token)")
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        with gr.Row():
            texts = [
                gr.Textbox(label=name, lines=8, interactive=False, elem_id=f"says-{name}", buttons=["copy"]) for name in panels
            ]
        heatmap = gr.HTML(elem_classes="heatmap")

        def respond(only: Sequence[str]) -> Any:
            def answers(
                text: str, as_chat: bool, chosen: str, longest: int, heat: float, number: int, *values: Any
            ) -> Iterator[Any]:
                said, turned, rest = (
                    values[: len(panels)],
                    values[len(panels) :][: len(sliders)],
                    values[len(panels) + len(sliders) :],
                )
                picture = rest[0] if rest else None
                try:
                    coefficients = _coefficients(model, ways, chosen, turned)
                    options = read_options({"max_new_tokens": longest, "temperature": heat})
                    prompt = _prompt(tokenizer, viewers, text, as_chat, picture)
                    yield from _answers(
                        model,
                        tokenizer,
                        prompt,
                        coefficients,
                        dict(zip(panels, said, strict=True)),
                        only,
                        int(number or 0),
                        options,
                        picture,
                    )
                except Exception as error:  # templates and models are others', and raise what they like
                    raise gr.Error(str(error) or type(error).__name__, print_exception=False) from error

            return answers

        given = [prompt, chat, way, length, temperature, seed, *texts, *sliders, shown]
        settings: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        running = [
            gr.on([ask.click, prompt.submit], respond(panels), given, [*texts, heatmap], **settings),
            gr.on([slider.release for slider in sliders], respond([_COMBINED]), given, [*texts, heatmap], **settings),
        ]
        stop.click(None, cancels=running, api_visibility="private")
        way.change(
            lambda chosen: [gr.update(visible=label == chosen) for label in labels],
            way,
            groups,
            api_visibility="private",
            queue=False,
        )
    return blocks


def launch(
    model: EFTForCausalLM,
    tokenizer: Any,
    *,
    processors: Mapping[str, Any] | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    prevent_thread_lock: bool = False,
) -> gradio.Blocks:
    r"""
    Serve the playground until it is interrupted. Nothing is sent or loaded from elsewhere: no telemetry, no fonts, no public link.

    Args:
        model ([`EFTForCausalLM`]): The combination.
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): Its tokenizer; see [`build`].
        processors (`Mapping[str, ProcessorMixin]`, *optional*): By member, its processor; see [`build`].
        host (`str`, *optional*, defaults to `"127.0.0.1"`): The address to listen at. With another than this machine's own, everybody who
            reaches it can use the models.
        port (`int`, *optional*, defaults to 7860): The port.
        prevent_thread_lock (`bool`, *optional*, defaults to `False`): Return at once, and serve until the result's `close()`.

    Returns:
        `gradio.Blocks`: What [`build`] made, served.

    Raises:
        `OSError`: If the port is taken; `ImportError`: If Gradio is not installed.
    """
    gr = _gradio()
    blocks = build(model, tokenizer, processors=processors)
    blocks.queue().launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        show_error=True,
        ssr_mode=False,
        pwa=False,
        prevent_thread_lock=prevent_thread_lock,
        theme=gr.themes.Default(**_FONTS),
        css=_CSS,
        footer_links=[],
        max_file_size="20mb",  # of a picture: as the server's limit
    )
    return blocks


def check_installed() -> None:
    """Raise `ImportError` if Gradio is missing."""
    _gradio()


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ImportError("The playground needs Gradio: pip install 'hf-eft[playground]'") from error
    return gradio


def _loaded(model: EFTForCausalLM) -> str:
    """Which models these are, as Markdown."""
    named = []
    for name, member in model.members.items():
        where = Path(str(member.config._name_or_path)).name or member.config.model_type
        named.append(f"{name}: `{where.replace('`', '')}`")
    return f"{', '.join(named)}. Recipe: `{model.combination}`"


def _coefficients(model: EFTForCausalLM, ways: Sequence[Dials], chosen: str, values: Sequence[float]) -> torch.Tensor:
    """What the sliders of the chosen way say, `(1, members)`; `values` are those of all ways."""
    start = 0
    for way in ways:
        end = start + len(way.dials)
        if way.label == chosen:
            made = way.coefficients(tuple(map(float, values[start:end])))
            return torch.tensor([[made.get(name, 0.0) for name in model._members.names]])
        start = end
    raise ValueError(f"The recipe {chosen!r} is none of {[way.label for way in ways]}.")


def _prompt(tokenizer: Any, viewers: Processors, text: str, as_chat: bool, picture: Any) -> Seen:
    """What members read, and see if there is a picture."""
    if not text.strip():
        raise ValueError("The prompt is empty: write something to answer.")
    read_text(text, "the prompt")
    if picture is not None and not as_chat:
        raise ValueError("A picture is asked about in a chat, whose template says where it stands: choose `as a chat message`.")
    if not as_chat:
        return Seen({"input_ids": torch.tensor([tokenizer(text)["input_ids"]])})
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
    ids, seen = viewers.read([{"role": "user", "content": text if picture is None else parts}])
    return Seen({"input_ids": torch.tensor([ids])}) if seen is None else seen


def _answers(
    model: EFTForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Seen,
    coefficients: torch.Tensor,
    said: dict[str, str],
    only: Sequence[str],
    seed: int,
    options: dict[str, Any],
    picture: Any,
) -> Iterator[list[str]]:
    """The texts of all panels and the heat-map, again and again while they are made: the members' answers, then the combination's."""
    texts = {name: "" if name in only else text for name, text in said.items()}
    for name in only:
        own = {"coefficients": coefficients, **prompt.pictures} if name == _COMBINED else prompt.alone(name)
        ids = prompt.inputs["input_ids"] if name == _COMBINED else own.pop("input_ids")
        answer = Answer(model if name == _COMBINED else model.members[name], tokenizer, ids[0], seed, **own, **options)
        with closing(iter(answer)) as pieces:  # whoever stops the page stops the generation
            shown = 0.0
            for texts[name] in pieces:
                if (now := time.monotonic()) - shown >= _EVERY:
                    yield [*texts.values(), ""]
                    shown = now
        yield [*texts.values(), ""]
    tokens = answer.tokens
    if tokens is None or len(tokens) == 0:
        return
    found = analyse(model, tokenizer, prompt.inputs["input_ids"], tokens, coefficients=coefficients, **prompt.pictures)
    images = [] if picture is None else [picture]
    yield [*texts.values(), _FRAME.format(page=html.escape(page([found], images=images)))]
