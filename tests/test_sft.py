"""Supervised stages: what the loss sees, how many steps, and that the loss falls."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import math_prompt, open_context, save_model, tiny_config, without_times
from transformers import AutoModelForCausalLM

from r1fast.context import read_lines, write_lines
from r1fast.metrics import read_metrics
from r1fast.packing import pack
from r1fast.policy import Policy
from r1fast.records import Sequence
from r1fast.source import Example
from r1fast.stages import sft
from r1fast.stages.sft import (
    NLL,
    encode_examples,
    example_row,
    learning_rate,
    num_steps,
    read_examples,
    run_sft,
    stage_examples,
)
from r1fast.templates import set_template
from r1fast.trainer import Trainer

EXAMPLES = [
    Example(prompt=math_prompt(), response="<think> first add 3 + 4 = 7 . </think> the answer is \\boxed{ 7 }"),
    Example(prompt=math_prompt("r"), response="7"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def policy(model: Path) -> Policy:
    policy = Policy.load(model, device="cpu", dtype=torch.float32)
    set_template(policy.tokenizer, "chat", embedded=True)
    return policy


def test_loss_is_on_the_response_and_its_end(policy: Policy) -> None:
    sequences = encode_examples(EXAMPLES, policy)
    for sequence, example in zip(sequences, EXAMPLES, strict=True):
        prompt, response = sequence.token_ids.tensor_split([sequence.num_prompt_tokens])
        assert policy.tokenizer.decode(prompt) == f"<bos> <user> {example.prompt.text} <assistant>"
        assert policy.tokenizer.decode(response) == f"{example.response} <eos>"
    targets = torch.cat([batch.targets for batch in pack(sequences, micro_batch_tokens=4096)])
    assert policy.tokenizer.decode(targets) == f"{EXAMPLES[0].response} <eos> 7 <eos>"


def test_a_chain_that_the_template_opens_is_opened_once(policy: Policy) -> None:
    """The tags are those that a sample has; an answer without a chain is not learnt as one."""
    policy.tokenizer.chat_template += " <think>"
    chained, plain = (policy.tokenizer.decode(sequence.token_ids) for sequence in encode_examples(EXAMPLES, policy))
    assert chained == f"<bos> <user> {EXAMPLES[0].prompt.text} <assistant> {EXAMPLES[0].response} <eos>"
    assert plain == f"<bos> <user> {EXAMPLES[1].prompt.text} <assistant> <think> </think> 7 <eos>"


def test_loss_value_and_gradient_are_those_of_transformers(policy: Policy, model: Path) -> None:
    sequences = encode_examples(EXAMPLES, policy)
    count = sum(len(s.token_ids) - s.num_prompt_tokens for s in sequences)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    expected = torch.zeros(())
    for sequence in sequences:
        labels = sequence.token_ids.clone()
        labels[: sequence.num_prompt_tokens] = -100
        own = len(labels) - sequence.num_prompt_tokens
        expected = expected + reference(input_ids=sequence.token_ids[None], labels=labels[None]).loss * own / count
    expected.backward()
    grad_norm = math.sqrt(sum(float((p.grad**2).sum()) for p in reference.parameters()))
    trainer = Trainer(policy, tiny_config(model).optimizer)
    sums = trainer.step(pack(sequences, micro_batch_tokens=40), loss=NLL, denominator=count, lr=0.0)
    assert sums["loss_sum"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert sums["grad_norm_sum"] == pytest.approx(grad_norm, rel=1e-4)


def test_examples_survive_their_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "examples.jsonl", [example_row(example) for example in EXAMPLES])
    assert read_examples(tmp_path / "examples.jsonl") == EXAMPLES


def test_steps_and_learning_rate(model: Path) -> None:
    config = tiny_config(model, sft__steps=0, sft__epochs=2.5, sft__batch_size=8, sft__lr=1.0, sft__lr_final=0.1)
    assert [num_steps(config, count) for count in (1, 16, 64)] == [1, 5, 20]
    assert num_steps(replace(config, sft=replace(config.sft, steps=7)), 64) == 7
    rates = [learning_rate(config, step, 5) for step in range(5)]
    assert rates == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * step / 4)) for step in range(5)])
    warm = replace(config, sft=replace(config.sft, warmup_steps=2))
    assert learning_rate(warm, 0, 5) == pytest.approx(rates[0] / 2) and learning_rate(warm, 1, 5) == rates[1]


@pytest.mark.parametrize(("killed_after", "repeated"), [(7, [7]), (5, [4, 5]), (1, [1])])
def test_a_resumed_stage_is_bitwise_the_uninterrupted_one(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int, repeated: list[int]
) -> None:
    config = tiny_config(model, sft__steps=8, sft__batch_size=3, sft__lr=1e-2, run__save_every_steps=3)
    step, trained = Trainer.step, []

    def dying(self: Trainer, *arguments: Any, **options: Any) -> dict[str, float]:
        if len(trained) == killed_after:
            raise KeyboardInterrupt
        trained.append(self.num_steps + 1)
        return step(self, *arguments, **options)

    def run(name: str) -> tuple[dict[str, float], list[Any], dict[str, torch.Tensor]]:
        with open_context(config, tmp_path / name) as context:
            rows = [example_row(example) for example in EXAMPLES]
            write_lines(context.directory("cold_start") / "examples.jsonl", rows)
            result = run_sft(context, "sft_1")
        return result, without_times(read_metrics(tmp_path / name)), context.load("sft_1").module.state_dict()

    whole = run("whole")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            run("parts")
        trained.append(0)  # no longer dying
        parts = run("parts")
    assert parts[:2] == whole[:2]
    assert parts[2].keys() == whole[2].keys() and all(torch.equal(parts[2][name], whole[2][name]) for name in whole[2])
    again = trained[killed_after + 1 :]
    assert trained[:killed_after] == list(range(1, killed_after + 1)) and again == list(range(repeated[0], 9))


def test_the_stage_learns_its_examples(tmp_path: Path, model: Path) -> None:
    config = tiny_config(model, sft__steps=12, sft__batch_size=4, sft__lr=1e-2, sft__general_share=0.5)
    with open_context(config, tmp_path / "run") as context:
        rows = [example_row(example) for example in EXAMPLES]
        write_lines(context.directory("cold_start") / "examples.jsonl", rows)
        result = run_sft(context, "sft_1")
        checkpoint = context.directory("sft_1") / "checkpoint"
    assert result == {"examples": 4, "steps": 12}  # as many general ones
    losses = [line["sft_1/loss"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 12 and losses[0] > 4.0 and losses[-1] < 0.75 * losses[0]
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (model, checkpoint))
    assert not torch.equal(before.model.embed_tokens.weight, after.model.embed_tokens.weight)


def test_dev_is_read_as_asked_and_the_best_model_kept(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(
        model, sft__steps=5, sft__batch_size=2, sft__dev_every_steps=2, run__keep_best="format", rl__dev_problems=2
    )
    real, readings = sft.dev_reading, iter([0.5, 1.0, 0.25])

    def reading(*arguments: Any) -> dict[str, float]:
        found = real(*arguments)
        assert {"dev/accuracy", "dev/format"} <= found.keys()
        return {**found, "dev/format": next(readings)}

    monkeypatch.setattr(sft, "dev_reading", reading)
    with open_context(config, tmp_path / "run") as context:
        write_lines(context.directory("cold_start") / "examples.jsonl", [example_row(example) for example in EXAMPLES])
        run_sft(context, "sft_1")
        directory = context.directory("sft_1")
    lines = read_metrics(tmp_path / "run")
    assert [line.get("sft_1/dev/format") for line in lines] == [None, 0.5, None, 1.0, 0.25]
    assert [line.get("sft_1/best_step") for line in lines] == [None, 2.0, None, 4.0, None]
    assert all("time/dev_s" in line for line in (lines[1], lines[3], lines[4])) and "time/save_s" in lines[0]
    best, last = (AutoModelForCausalLM.from_pretrained(directory / name) for name in ("best", "checkpoint"))
    assert not torch.equal(best.model.embed_tokens.weight, last.model.embed_tokens.weight)


def test_a_tokenizer_of_another_model_is_named_before_anything_is_trained(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU nobody looks at token ids: there it would be a device-side assertion, or NaN."""
    foreign = Sequence(token_ids=torch.tensor([3, 4, 40_000]), num_prompt_tokens=1)
    monkeypatch.setattr(sft, "encode_examples", lambda examples, policy: [foreign])
    with open_context(tiny_config(model, sft__steps=1), tmp_path / "run") as context:
        write_lines(context.directory("cold_start") / "examples.jsonl", [example_row(EXAMPLES[0])])
        with pytest.raises(ValueError, match=r"token ids 3\.\.40000 leave the vocabulary of \d+; wrong tokenizer"):
            run_sft(context, "sft_1")


def test_files_are_mixed_in_by_weight(tmp_path: Path, model: Path) -> None:
    rows = [{"messages": example_row(EXAMPLES[0])["messages"], "id": f"file {n}"} for n in range(10)]
    write_lines(tmp_path / "more.jsonl", rows)
    config = tiny_config(model, stages__sft_1__files=f'{{ "{tmp_path}/more.jsonl" = 2.5 }}')
    with open_context(config, tmp_path / "run") as context:
        write_lines(context.directory("cold_start") / "examples.jsonl", [example_row(example) for example in EXAMPLES])
        ids = Counter(example.prompt.id for example in stage_examples(context, "sft_1"))
        assert stage_examples(context, "sft_1") == stage_examples(context, "sft_1")
        assert context.config.for_stage("sft_2").sft.files == {}
    assert ids["q"] == ids["r"] == 1 and sum(ids.values()) == 27
    assert sorted(count for name, count in ids.items() if name.startswith("file")) == [2] * 5 + [3] * 5
