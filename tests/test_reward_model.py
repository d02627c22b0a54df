"""Reward models: losses against closed forms, scores that do not depend on the batch, checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_run import math_prompt, save_model
from transformers import AutoModelForSequenceClassification

from r1fast.policy import Policy
from r1fast.reward_model import RewardModel, pairwise_loss, pointwise_loss, summary_of
from r1fast.tiny.templates import CHAT as TINY_CHAT


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    """With a random head, so that scores differ."""
    directory = save_model(tmp_path_factory.mktemp("model"))
    policy = Policy.load(directory, device="cpu", dtype=torch.float32)
    model = RewardModel.from_policy(policy, directory)
    assert model.score([[5, 6, 2]]).tolist() == [0.0]  # a head of zeros
    torch.manual_seed(0)
    with torch.no_grad():
        model.module.score.weight.normal_()
    return model


def test_pairwise_loss() -> None:
    chosen = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64, requires_grad=True)
    loss = pairwise_loss(chosen, rejected)
    loss.backward()
    gaps = [1.0, -3.0, 0.0]
    assert float(loss.detach()) == pytest.approx(sum(-math.log(1 / (1 + math.exp(-gap))) for gap in gaps))
    slopes = [-1 / (1 + math.exp(gap)) for gap in gaps]  # d(-log sigmoid(g))/dg = -sigmoid(-g)
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx(slopes)
    assert rejected.grad.tolist() == pytest.approx([-slope for slope in slopes])


def test_pointwise_loss() -> None:
    scores = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    loss = pointwise_loss(scores, torch.tensor([1.0, 1.0], dtype=torch.float64))
    loss = loss + pointwise_loss(scores, torch.tensor([0.0, 0.0], dtype=torch.float64))
    loss.backward()
    chance = [1 / (1 + math.exp(-2.0)), 1 / (1 + math.exp(1.0))]
    assert float(loss.detach()) == pytest.approx(sum(-math.log(p) - math.log(1 - p) for p in chance))
    assert scores.grad is not None and scores.grad.tolist() == pytest.approx([2 * p - 1 for p in chance])


def test_losses_stay_finite_far_out() -> None:
    far = torch.tensor([200.0])
    assert float(pairwise_loss(-far, far)) == pytest.approx(400.0)
    assert float(pointwise_loss(far, torch.zeros(1))) == pytest.approx(200.0)


@pytest.mark.parametrize(
    ("text", "summary"),
    [("<think> a </think> b c", "b c"), ("b c ", "b c"), ("<think> a </think> ", ""), ("<think> a", "<think> a")],
)
def test_summary(text: str, summary: str) -> None:
    assert summary_of(text) == summary


def test_encoding_ends_in_the_end_token(model: RewardModel) -> None:
    (ids,) = model.encode([math_prompt()], ["the answer is 7"])
    text = model.tokenizer.decode(ids)
    assert text.endswith("<assistant> the answer is 7 <eos>") and text.startswith("<bos>")


def test_a_chain_that_the_template_opens_is_opened_once(model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole response is read as it was sampled, a summary alone behind an empty chain."""
    monkeypatch.setattr(model.tokenizer, "chat_template", f"{TINY_CHAT} <think>")
    whole, summary = model.encode([math_prompt()] * 2, ["<think> first add </think> 7", "7"])
    assert model.tokenizer.decode(whole).endswith("<assistant> <think> first add </think> 7 <eos>")
    assert model.tokenizer.decode(summary).endswith("<assistant> <think> </think> 7 <eos>")


def test_a_score_does_not_depend_on_the_batch(model: RewardModel) -> None:
    generator = torch.Generator().manual_seed(1)
    lists = [torch.randint(4, 200, (n,), generator=generator).tolist() for n in (9, 3, 17, 5)]
    together = model.score(lists)
    alone = torch.cat([model.score([ids]) for ids in lists])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.score(lists[::-1]).flip(0), together, rtol=1e-4, atol=1e-5)
    assert together.std() > 0.01


def test_score_responses_keeps_the_order(model: RewardModel) -> None:
    responses = ["first add 7", "7", "the answer is 7 . then now"]
    prompts = [math_prompt()] * 3
    expected = [model.score_responses(prompts[:1], [text])[0] for text in responses]
    assert model.score_responses(prompts, responses, rows=2) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert model.score_responses([], []) == []


def test_scores_carry_gradients(model: RewardModel) -> None:
    model.score([[5, 6, 7], [8, 9]]).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.module.parameters())
    model.module.zero_grad(set_to_none=True)


def test_save_and_load(model: RewardModel, tmp_path: Path) -> None:
    policy = Policy.load(save_model(tmp_path / "policy", seed=9), device="cpu", dtype=torch.float32)
    model.save(tmp_path / "saved")
    loaded = RewardModel.load(tmp_path / "saved", policy)
    state = loaded.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.module.state_dict().items())
    lists = [[5, 6, 7, 2], [9, 8, 2]]
    torch.testing.assert_close(model.score(lists), loaded.score(lists))
    # transformers alone reads the same scores
    reference = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    logits = [float(reference(input_ids=torch.tensor([ids])).logits.detach()) for ids in lists]
    assert logits == pytest.approx(model.score(lists).tolist(), rel=1e-4)


def test_a_policy_is_no_trained_reward_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = save_model(tmp_path / "policy")
    policy = Policy.load(directory, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match=r"policy lacks 1 of the reward model's weights \(score\.weight\): it would"):
        RewardModel.load(directory, policy)
    RewardModel.from_policy(policy, directory)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())
