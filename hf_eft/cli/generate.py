"""`hf-eft generate`: one prompt, streamed, or a file of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..files.json_lines import whole_text
from ..programs.answer import Answerer
from ..programs.batch import Item, Results, Sink, Stream, check_results, fingerprint, read_items, run_batches
from .app import app, console, notes
from .many import Many, RayCommand, say_failed, show_progress
from .models import Models, identity, prompt_reader
from .options import generation_options, with_groups

_BATCH = "Batch runs"


@dataclass(frozen=True)
class Prompted:
    """What a prompt is, and how long what follows it may be."""

    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the tuned model's chat template.")] = False
    system: Annotated[str | None, typer.Option(help="A system message for --chat.", show_default=False)] = None
    image: Annotated[
        list[Path] | None,
        typer.Option(
            help="A picture that is shown with the prompt, for each; with --chat, to members that see.", show_default=False
        ),
    ] = None
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens may follow a prompt.")] = 64

    def all_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of `generate`, those of the command among them."""
        return {"max_new_tokens": self.max_new_tokens, **options}

    def answerer(self, models: Models, options: dict[str, Any]) -> Answerer:
        """The models, ready to be asked."""
        if self.system is not None and not self.chat:
            raise typer.BadParameter("a system message is part of a chat: add --chat", param_hint="--system")
        if self.image and not self.chat:
            raise typer.BadParameter(
                "pictures are part of a chat, whose template places them: add --chat", param_hint="--image"
            )
        if missing := [path for path in self.image or () if not path.is_file()]:
            raise typer.BadParameter(f"there is no file {str(missing[0])!r}", param_hint="--image")
        model, tokenizers = models.load_all()
        if self.image and not model.processors:
            models.tell_blind(model)
        return Answerer(
            model,
            prompt_reader(model, tokenizers),
            self.all_options(options),
            chat=self.chat,
            system=self.system,
            **self.of_the_answers({**tokenizers, **model.processors}),
        )

    def item(self, text: str) -> Item:
        """The prompt of a command line, and what is shown with it."""
        return Item(1, prompt=text, images=tuple(self.image or ()))

    def of_the_answers(self, tokenizers: Mapping[str, Any]) -> dict[str, Any]:
        """What else an `Answerer` is told."""
        return {}


@dataclass(frozen=True)
class Asking(Prompted):
    """How prompts are put to the models."""

    member_prompts: Annotated[
        bool,
        typer.Option(
            "--member-prompts", help="Each member reads the chat in its own template, or as plain text where it has none."
        ),
    ] = False
    seed: Annotated[int | None, typer.Option(help="Seed for sampling. In batch runs 0 if left out.", show_default=False)] = None
    speculative: Annotated[bool, typer.Option("--speculative", help="Let the tuned model draft: the same tokens, sooner.")] = (
        False
    )

    def answerer(self, models: Models, options: dict[str, Any]) -> Answerer:
        if self.speculative and options.get("num_beams", 1) != 1:
            raise typer.BadParameter("beams are not drafted: leave out --num-beams or this", param_hint="--speculative")
        return super().answerer(models, options)

    def of_the_answers(self, tokenizers: Mapping[str, Any]) -> dict[str, Any]:
        own = {"tokenizers": tokenizers} if self.member_prompts else {}
        return {"seed": self.seed or 0, "speculative": self.speculative, **own}


@dataclass(frozen=True)
class Batch:
    """Where prompts come from and results go."""

    input: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            metavar="FILE|-",
            help='A file of prompts, one a line, or of {"prompt": ...} or {"messages": ...} in lines or an array; - is the standard input. '
            "With --ray also a folder, Parquet, a saved data set, or a URI.",
            rich_help_panel=_BATCH,
            show_default=False,
        ),
    ] = None
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.jsonl",
            help="Where results go, a line for each. If it is there, the run carries on where it stopped. The standard output if left out. "
            "With --ray a folder.",
            rich_help_panel=_BATCH,
            show_default=False,
        ),
    ] = None
    input_format: Annotated[
        Literal["auto", "text", "jsonl"],
        typer.Option(help="What the lines are; auto looks at the file's name, then at its first line.", rich_help_panel=_BATCH),
    ] = "auto"
    batch_size: Annotated[int, typer.Option(min=1, help="How many lines run together.", rich_help_panel=_BATCH)] = 8
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what --output has, and begin anew.", rich_help_panel=_BATCH)
    ] = False

    @property
    def as_json(self) -> bool | None:
        """Whether lines are JSON; `None` where the first line decides."""
        if self.input_format == "auto":
            return str(self.input).endswith((".jsonl", ".ndjson", ".json")) or None
        return self.input_format == "jsonl"


@app.command(
    cls=RayCommand,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Any other option of `generate` may follow, as in: --num-beams 4 --repetition-penalty 1.1, or --temperature 0.7, which samples.",
)
@with_groups
def generate(
    context: typer.Context,
    models: Models,
    asking: Asking,
    batch: Batch,
    many: Many,
    prompt: Annotated[str | None, typer.Argument(help="What to continue. Read from the standard input if left out.")] = None,
    stream: Annotated[bool, typer.Option(help="Print tokens as they come (not with beams).")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reply as JSON.")] = False,
) -> None:
    """
    Continue a prompt, or a file of prompts. Without models, the embedded tiny family answers.

    A batch run writes a line of JSON for each line of its input, in order, and carries on where it stopped. A line that cannot be
    answered has an "error"; the run goes on and exits with 3.
    """
    if batch.input is not None:
        if asking.image:
            raise typer.BadParameter(
                'lines of a batch run show their own pictures: "messages" with parts {"type": "image", "image": FILE}',
                param_hint="--image",
            )
        options, positional = _options(prompt, context.args)
        if positional:
            raise typer.BadParameter(f"give a prompt or --input, not both: got {positional}")
        if many.ray is None:
            many.check_unused()
            _run(models, asking, batch, options)
        else:
            load = partial(_loaded, models, asking, options)
            lines = None if batch.input_format == "auto" else batch.as_json
            many.run(batch.input, batch.output, _known(asking, options), load, batch.batch_size, lines, batch.restart)
        return
    for name, value in {**vars(Batch()), **vars(Many())}.items():
        if getattr(batch, name, getattr(many, name, None)) != value:
            raise typer.BadParameter("a batch run needs an --input", param_hint=f"--{name.replace('_', '-')}")
    if asking.member_prompts and not asking.chat:
        raise typer.BadParameter("members have their own prompts of a chat: add --chat", param_hint="--member-prompts")
    text, options = one_prompt(prompt, context.args)
    answerer = asking.answerer(models, options)
    try:
        _reply(answerer, asking.item(text), asking.seed, stream and not as_json, as_json)
    except (ValueError, NotImplementedError) as error:
        raise typer.BadParameter(str(error)) from error


def _options(prompt: str | None, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    # An unknown option before the prompt arrives as the prompt, with the rest behind it.
    return generation_options([*([] if prompt is None else [prompt]), *arguments])


def one_prompt(prompt: str | None, arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The prompt of a command line, or else of the standard input, and the options of `generate` around it."""
    options, positional = _options(prompt, arguments)
    if len(positional) > 1:
        raise typer.BadParameter(f"expected one prompt, got {positional}; quote it, and give every option a value")
    text = positional[0] if positional else whole_text(sys.stdin.buffer.read()).rstrip("\n")
    if not text.strip():
        raise typer.BadParameter("the prompt is empty: give one as an argument or on the standard input", param_hint="PROMPT")
    return text, options


def _reply(answerer: Answerer, item: Item, seed: int | None, stream: bool, as_json: bool) -> None:
    """Answer one prompt and print."""
    from transformers import TextStreamer, set_seed

    if seed is not None:
        set_seed(seed)
    one = all(answerer.options.get(name, 1) == 1 for name in ("num_beams", "num_return_sequences"))
    streamer = TextStreamer(answerer.tokenizer, skip_prompt=True, skip_special_tokens=True) if stream and one else None
    replies = answerer.reply(item, streamer)
    if as_json:
        typer.echo(json.dumps(replies[0] if len(replies) == 1 else {"replies": replies}, ensure_ascii=False))
    elif streamer is None:
        for reply in replies:
            console.print(reply["text"].strip(), markup=False, highlight=False)


def _run(models: Models, asking: Asking, batch: Batch, options: dict[str, Any]) -> None:
    """A batch run."""
    data = sys.stdin.buffer.read() if batch.input == "-" else Path(str(batch.input)).read_bytes()
    try:
        items = read_items(data, batch.as_json)
    except ValueError as error:
        raise typer.BadParameter(f"{batch.input}: {error}", param_hint="--input") from error
    if not items:
        raise typer.BadParameter(f"there are no lines in {batch.input}", param_hint="--input")
    known = {
        "the input": fingerprint(data),
        "--input-format": batch.as_json,
        **_known(asking, options),
        "--batch-size": batch.batch_size,
    }
    output = None if batch.output is None else Path(batch.output)
    if output is not None:  # before models are loaded, which may take minutes
        if Path(str(batch.input)).exists() and output.exists() and output.samefile(str(batch.input)):
            raise typer.BadParameter("the results would be written over the input: choose another file", param_hint="--output")
        check_results(output, known, batch.restart)
    answerer, models_and_recipe = _loaded(models, asking, options)
    sink: Sink
    if output is None:
        sink = Stream(sys.stdout.buffer)
        _progress(answerer, items, sink, batch.batch_size)
    else:
        with Results(output, {**known, **models_and_recipe}, batch.restart) as sink:
            if sink.kept:
                notes.print(f"{output} has {sink.kept} of {len(items)} results: carrying on.", style="dim", soft_wrap=True)
            _progress(answerer, items, sink, batch.batch_size)
    say_failed(sink.errors, len(items))


def _known(asking: Asking, options: dict[str, Any]) -> dict[str, Any]:
    """What the answers depend on besides input, batches and models."""
    return {
        "the options of generate": asking.all_options(options),
        "--seed": asking.seed or 0,
        "--chat": asking.chat,
        "--system": asking.system,
        "--member-prompts": asking.member_prompts,
        "--speculative": asking.speculative,
    }


def _loaded(models: Models, asking: Asking, options: dict[str, Any]) -> tuple[Answerer, dict[str, Any]]:
    """What answers, and what tells its models and recipe from others."""
    answerer = asking.answerer(models, options)
    return answerer, {"the models": identity(models, answerer.model), "the recipe": answerer.model.combination.to_dict()}


def _progress(answerer: Answerer, items: list[Item], sink: Sink, batch_size: int) -> None:
    done = run_batches(items, sink, answerer, batch_size)
    show_progress(((lines, sink.errors) for lines in done), min(sink.kept, len(items)), len(items))
