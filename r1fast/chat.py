"""`r1fast chat RUN [--model NAME]`: talk to any model of a run in the terminal, its thinking apart from its answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text
from transformers.utils.logging import disable_progress_bar

from r1fast.config import Config, ConfigError, user_input
from r1fast.context import CONVERSATIONAL, load_model, local_device
from r1fast.conversation import Conversation, Options, Part
from r1fast.run_dir import open_config
from r1fast.run_models import RunModel, choose_model, run_models
from r1fast.start import open_source

STYLES: dict[Part, str] = {"thinking": "dim italic", "answer": ""}


def main(argv: Sequence[str] | None = None) -> int:
    """Ask until the questions end; 0, or 2 for a run, a model or an option that is not there."""
    arguments = _parser().parse_args(argv)
    run_dir, console = Path(arguments.run), Console(highlight=False)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = open_config(run_dir)
        model = choose_model(run_models(config, run_dir), arguments.model)
        options = _options(arguments, config)
        policy = load_model(config, run_dir, model.origin, local_device(config))
    except ConfigError as error:
        print(f"r1fast: {error}", file=sys.stderr, flush=True)
        return 2
    conversation = Conversation(policy=policy, options=options, keeps_chains=model.origin not in CONVERSATIONAL)
    if sys.stdin.isatty():
        _greet(console, config, model, conversation)
    for question in _questions(console):
        if question in ("/quit", "/exit"):
            break
        if question == "/new":
            conversation.forget()
            console.print(Text("a new conversation", style="dim"))
        else:
            _answer(console, conversation, question, at_once=arguments.at_once)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="r1fast chat",
        description="Talk to a model of a run. Questions come from the terminal, or one a line from standard input.",
    )
    parser.add_argument("run", help="run directory, for example runs/tiny")
    parser.add_argument(
        "--model", default="", help="a row of the closing table or a stage (default: the last finished)"
    )
    parser.add_argument("--temperature", type=float, help="0: the likeliest token (default: the run's evaluation's)")
    parser.add_argument("--top_p", type=float, help="nucleus mass, 1: all (default: the run's evaluation's)")
    parser.add_argument("--max_tokens", type=int, help="of an answer (default: the run's evaluation's)")
    parser.add_argument("--seed", type=int, default=0, help="the same questions and seed give the same answers")
    parser.add_argument(
        "--remember",
        action=argparse.BooleanOptionalAction,
        help="show the model the questions and answers before (default: yes, but for the tiny world's models, which "
        "have seen single questions only)",
    )
    parser.add_argument("--at_once", action="store_true", help="show an answer when it is whole, not word by word")
    return parser


def _options(arguments: argparse.Namespace, config: Config) -> Options:
    evaluation = config.for_stage("evaluation").evaluation
    given = {name: getattr(arguments, name) for name in ("temperature", "top_p", "max_tokens")}
    values = {name: getattr(evaluation, name) if value is None else value for name, value in given.items()}
    for name, value, valid, need in (
        ("temperature", values["temperature"], 0 <= values["temperature"] < float("inf"), "at least 0"),
        ("top_p", values["top_p"], 0 < values["top_p"] <= 1, "above 0 and at most 1"),
        ("max_tokens", values["max_tokens"], values["max_tokens"] >= 1, "at least 1"),
        ("seed", arguments.seed, arguments.seed >= 0, "at least 0"),
    ):
        if not valid:
            raise ConfigError(f"--{name} {value} must be {need}")
    remember = config.data.source != "tiny" if arguments.remember is None else arguments.remember
    return Options(**values, seed=arguments.seed, remember=remember)


def _greet(console: Console, config: Config, model: RunModel, conversation: Conversation) -> None:
    options = conversation.options
    made = f" (of stage {model.origin})" if model.name != model.origin else ""
    turns = "remembers the conversation" if conversation.remembers else "takes every question alone"
    console.print(
        Text.assemble(
            (model.name, "bold"), f"{made}: temperature {options.temperature:g}, top-p {options.top_p:g}; {turns}"
        )
    )
    if config.data.source == "tiny":
        example = next(prompt.text for prompt in open_source(config).prompts("dev") if prompt.language == "en")
        console.print(Text(f"it knows the words of the tiny world only; ask like this: {example}", style="dim"))
    console.print(Text("/new starts over, /quit or Ctrl-D ends, Ctrl-C breaks an answer off", style="dim"))


def _questions(console: Console) -> Iterator[str]:
    """Lines typed, or read from standard input (and repeated, so that the output can be followed); no blank ones."""
    typed = sys.stdin.isatty()
    while True:
        try:
            line = input("\nyou: ") if typed else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if not line and not typed:
            return
        question = line.strip()
        if question:
            if not typed:
                console.print(Text(f"you: {question}"), soft_wrap=True)
            yield question


def _answer(console: Console, conversation: Conversation, question: str, *, at_once: bool) -> None:
    unknown = conversation.unknown_words(question)
    if unknown:
        console.print(Text(f"not among this model's words: {' '.join(unknown)}", style="yellow"), soft_wrap=True)
    shown: Part | None = None
    try:
        with user_input():
            pieces = conversation.ask(question)
            for part, text in list(pieces) if at_once else pieces:
                if part != shown:
                    console.print("" if shown is None else "\n", end="")
                    console.print(Text(f"{part}: ", style="bold" if part == "answer" else STYLES[part]), end="")
                    shown = part
                console.print(Text(text, style=STYLES[part]), end="", soft_wrap=True)
        console.print("" if shown else "(an empty answer)")
    except KeyboardInterrupt:
        console.print(Text("  (broken off)", style="dim"))
        return
    except ConfigError as error:
        console.print(Text(str(error), style="yellow"), soft_wrap=True)
        return
    if conversation.cut_off:
        limit = conversation.options.max_tokens
        console.print(Text(f"(cut off: it reached --max_tokens {limit} or the end of its window)", style="dim"))


if __name__ == "__main__":
    sys.exit(main())
