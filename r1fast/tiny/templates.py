"""Prompt templates of the tiny world, as Jinja chat templates that travel with a checkpoint's tokenizer.

`R1_ZERO` states the structure (the single token `<instruction>` stands for a sentence that names it) before the tags
it asks for; `CHAT` is the plain conversation used after the cold start.
"""

from __future__ import annotations

R1_ZERO = (
    "{{ bos_token }} <instruction> <think> </think> <answer> </answer>"
    "{% for message in messages %} {{ '<user>' if message['role'] == 'user' else '<assistant>' }} "
    "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
)
CHAT = (
    "{{ bos_token }}{% for message in messages %} {{ '<user>' if message['role'] == 'user' else '<assistant>' }} "
    "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
)


def render(template: str, question: str) -> str:
    """The text before the answer, without the leading `<bos>`: what the corpus shows."""
    instruction = "<instruction> <think> </think> <answer> </answer> " if template is R1_ZERO else ""
    return f"{instruction}<user> {question} <assistant>"
