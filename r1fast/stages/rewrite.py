"""Rewriting of the cold start's chains by a language model: the base model itself, or a server.

R1 had DeepSeek-V3 rewrite correct samples of R1-Zero for readers. What comes back is judged anew: it must still be
right, in the readable structure and in the question's language.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from string import Template

from r1fast.config import Config
from r1fast.context import RunContext
from r1fast.records import Prompt, ScoredRollout
from r1fast.rewards.endpoint import Endpoint, EndpointError
from r1fast.rewards.response import parse_response, response_text
from r1fast.rewrite_instruction import CONVERSATION, read_instruction
from r1fast.rollout.backend import make_engine
from r1fast.sampling import Sampling
from r1fast.scorer import Scorer, written
from r1fast.stages.chain_filters import lacks_language, repeats
from r1fast.templates import RESPONSE_PREFIX

LANGUAGES = {
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "de": "German",
    "zh": "Chinese",
    "ja": "Japanese",
    "ru": "Russian",
    "ar": "Arabic",
}

Writer = Callable[[Sequence[Prompt]], list[str]]  # instructions -> replies in order, empty where there is none

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """A review of a part of the cold start: of each prompt's kept samples the first `max_per_prompt` are rewritten."""

    write: Writer
    endpoint: Endpoint | None  # that `write` asks
    instruction: Template
    min_language: float
    max_per_prompt: int

    def __call__(
        self, scored: Sequence[ScoredRollout], verdicts: Sequence[tuple[str, str]], scorer: Scorer
    ) -> list[tuple[str, str]]:
        """`kept` with the rewritten text, or what is wrong with it; other samples stay as they were judged."""
        found = list(verdicts)
        chosen: list[int] = []
        per_prompt: Counter[str] = Counter()
        for number, item in enumerate(scored):
            if found[number][0] != "kept":
                continue
            per_prompt[item.rollout.prompt.text] += 1
            if per_prompt[item.rollout.prompt.text] <= self.max_per_prompt:
                chosen.append(number)
            else:
                found[number] = "enough of this prompt", ""
        texts = self.write([self._instruct(scored[number]) for number in chosen])
        plain = [_without_prefix(scored[number].rollout.prompt) for number in chosen]
        again = scorer.score([written(prompt, text) for prompt, text in zip(plain, texts, strict=True)])
        for number, item in zip(chosen, again, strict=True):
            found[number] = self._judge(item)
        return found

    @property
    def last_error(self) -> str:
        """The server's."""
        return "" if self.endpoint is None else self.endpoint.last_error

    def take_metrics(self) -> dict[str, float]:
        """The server's; the base model costs nothing."""
        return {} if self.endpoint is None else self.endpoint.take_metrics()

    def _instruct(self, item: ScoredRollout) -> Prompt:
        prompt = item.rollout.prompt
        words = self.instruction.substitute(
            question=prompt.text,
            response=response_text(prompt, item.rollout),
            language=LANGUAGES.get(prompt.language, prompt.language),
        )
        sample = f"{prompt.id} {item.rollout.sample_index}"
        return Prompt(id=sample, text=words, token_ids=(), kind="general", language=prompt.language)

    def _judge(self, item: ScoredRollout) -> tuple[str, str]:
        response = parse_response(item.rollout.text)
        chain = (response.chain or "").strip()
        if response.pattern != "readable":
            return ("rewritten in another form" if item.rollout.text else "not rewritten"), ""
        if item.parts["accuracy"] < 1.0:
            return "rewritten wrong", ""
        if repeats(chain):
            return "repetition", ""
        if lacks_language(chain, item.rollout.prompt.language, self.min_language):
            return "mixed language", ""
        return "kept", f"<think>\n{chain}\n</think>\n{response.summary.strip()}"


def make_rewriting(context: RunContext, config: Config) -> Rewriting | None:
    """What [cold_start] asks for; None where the source rewrites. Loads the base model if that is to do it."""
    options = config.cold_start
    if options.rewrite == "source":
        return None
    endpoint = Endpoint(config.judge, context.ranks.pulse.beat) if options.rewrite == "endpoint" else None
    return Rewriting(
        write=_base_model(context, config) if endpoint is None else _server(endpoint),
        endpoint=endpoint,
        instruction=read_instruction(options.rewrite_prompt),
        min_language=options.min_language,
        max_per_prompt=options.max_per_prompt,
    )


def _base_model(context: RunContext, config: Config) -> Writer:
    policy = context.load("base", stage=CONVERSATION, user="cold_start")
    engine = make_engine(policy, config, context.ranks)
    greedy = Sampling(temperature=0.0, max_tokens=config.cold_start.max_tokens, stage="rewrite", visit=0)

    def write(instructions: Sequence[Prompt]) -> list[str]:
        prompts = context.prompts(policy, instructions)
        rollouts = engine.generate(list(prompts), 1, greedy) if instructions else []
        return [response_text(rollout.prompt, rollout).strip() for rollout in rollouts]

    return write


def _server(endpoint: Endpoint) -> Writer:
    def write(instructions: Sequence[Prompt]) -> list[str]:
        replies = endpoint.ask_all([prompt.text for prompt in instructions])
        failed = [reply for reply in replies if isinstance(reply, EndpointError)]
        if failed:
            logger.warning("%d of %d chains were not rewritten; the first: %s", len(failed), len(replies), failed[0])
        return ["" if isinstance(reply, EndpointError) else reply.strip() for reply in replies]

    return write


def _without_prefix(prompt: Prompt) -> Prompt:
    """The prompt for a text that is whole: without the `<think>` that R1-Zero's template may have opened."""
    return replace(prompt, metadata={key: value for key, value in prompt.metadata.items() if key != RESPONSE_PREFIX})
