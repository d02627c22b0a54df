"""What a language model is told when it rewrites the cold start's chains."""

from __future__ import annotations

from string import Template

from r1fast.rewards.judge import read_template

# The stage whose template the base model is asked in: the first that speaks its own.
CONVERSATION = "sft_1"
NEEDED = ("question", "response", "language")
PROMPT = r"""Rewrite a solution for readers. Write all of it in $language. Keep every step of the reasoning and its
result; add no step and correct nothing. Write whole sentences, without headings or code.

[Question]
$question

[Solution]
$response

Reply in exactly this form, and with nothing else:
<think>
the reasoning, rewritten
</think>
a summary of the reasoning that ends with the answer in \boxed{}"""


def read_instruction(path: str) -> Template:
    """Of the file `path`, the built-in one where it is empty; ConfigError for a file without the names in NEEDED."""
    return read_template(path, PROMPT, NEEDED, ())
