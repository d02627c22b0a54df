"""The configuration's keys, a stage's view of it, and the loss options in force at a step."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest

from r1fast.config import RL_STAGES, STAGES, Config, ConfigError, LossConfig
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.schema import KEYS

# Every option. A change here is a change of the user's interface: README and recipes follow it.
ALL_KEYS = {
    "run": "name dir seed device dtype threads samples_per_step log_every_steps save_every_steps async_save "
    "keep_states keep_best tensorboard",
    "model": "path student gguf_file template trust_remote_code",
    "data": "source file dev_file held_out_file preset fields bad_rows eval_files pass_rates min_pass_rate "
    "max_pass_rate gym_tasks num_train num_dev num_held_out seed language max_bad_golds",
    "general": "prompts examples preferences safety",
    "pipeline": "stages",
    "rl": "steps prompts_per_step general_prompts_per_step group_size updates_per_rollout temperature top_p max_tokens "
    "lr warmup_steps baseline advantage_scale reference_refresh_steps zero_variance dev_every_steps dev_problems "
    "strict",
    "rollout": "backend tensor_parallel rows threads cuda_graphs draft_tokens draft_rows",
    "loss": "objective level clip_low clip_high dual_clip delta kl kl_coef correction correction_level correction_cap "
    "entropy_coef aggregate warn_gap correct_gap stop_gap",
    "sft": "steps epochs batch_size lr lr_final warmup_steps general_share dev_every_steps files",
    "optimizer": "name beta1 beta2 eps weight_decay max_grad_norm micro_batch_tokens gradient_checkpointing "
    "offload_activations offload_while_generating offload_idle_models",
    "lora": "rank alpha rank_stabilised dropout targets",
    "distributed": "engine zero_stage offload_optimizer offload_parameters sequence_parallel nvme_path "
    "deepspeed_config",
    "faults": "loading_s rollout_s reward_s training_s save_s evaluation_s slow_s max_skips spike spike_factor "
    "spike_window",
    "scoring": "custom gate",
    "cold_start": "prompts samples_per_prompt temperature max_tokens max_per_prompt max_kept min_language "
    "rewrite rewrite_prompt",
    "rejection": "prompts samples_per_prompt temperature max_tokens max_per_prompt min_language max_paragraph_tokens "
    "max_chain_tokens drop_code_blocks min_grade general_share",
    "reward_model": "steps batch_size lr pairs held_out_pairs",
    "judge": "endpoint model key_variable prompt pair_prompt temperature max_tokens votes concurrency timeout_s "
    "total_timeout_s retries prompt_price reply_price",
    "evaluation": "temperature top_p samples_per_problem max_tokens high_temperature high_temperature_samples",
}
MAX_KEYS = 20


def test_the_full_list_of_keys() -> None:
    assert {section: list(keys) for section, keys in KEYS.items()} == {s: k.split() for s, k in ALL_KEYS.items()}
    assert [section.name for section in fields(Config)] == [
        *("run", "model", "data", "general", "pipeline", "rl", "rollout", "loss", "sft", "optimizer"),
        *("lora", "distributed", "faults", "rewards", "scoring", "cold_start", "rejection", "reward_model", "judge"),
        *("evaluation", "stages"),
    ]
    assert max(len(keys) for keys in KEYS.values()) <= MAX_KEYS


def test_every_key_says_what_it_is() -> None:
    for keys in KEYS.values():
        for key in keys.values():
            assert key.help, key.path
            assert key.type_name, key.path


def test_defaults_are_the_published_numbers() -> None:
    config = Config()
    rl = config.rl
    assert (rl.lr, rl.group_size, rl.prompts_per_step * rl.group_size, rl.steps) == (3e-6, 16, 512, 10_400)  # type: ignore[operator]
    assert rl.prompts_per_step * rl.group_size * rl.updates_per_rollout == 8_192  # type: ignore[operator]
    assert rl.max_tokens == ((0, 32_768), (8_200, 65_536))
    assert (config.loss.kl, config.loss.kl_coef, rl.reference_refresh_steps, rl.temperature) == ("k3", 0.001, 400, 1.0)
    assert (config.evaluation.temperature, config.evaluation.top_p) == (0.6, 0.95)


def test_a_config_cannot_be_written_to() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().rl.lr = 1.0  # type: ignore[misc]


def test_a_stage_sees_its_overrides_in_their_sections() -> None:
    config = Config(
        rewards={"math": {"accuracy": 1.0}},
        stages={"rl_1": {"lr": 1e-4, "loss": {"clip_low": 10.0}, "rewards": {"math": {"language": 1.0}}}},
    )
    view = config.for_stage("rl_1")
    assert (view.rl.lr, view.loss.clip_low, view.loss.clip_high) == (1e-4, 10.0, 0.2)
    assert view.rewards == {"math": {"accuracy": 1.0, "language": 1.0}}
    assert config.for_stage("r1_zero").rl == config.rl
    assert config.rewards == {"math": {"accuracy": 1.0}}
    assert view.for_stage("rl_1") == view


@pytest.mark.parametrize(
    ("stage", "key", "value"), [("sft_2", "lr", 0.5), ("evaluation", "top_p", 0.5), ("reward_models", "pairs", 3)]
)
def test_flat_keys_go_to_the_stages_main_section(stage: str, key: str, value: float) -> None:
    view = Config(stages={stage: {key: value}}).for_stage(stage)
    assert getattr(getattr(view, STAGES[stage]), key) == value


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(ConfigError, match="'rl_3' does not exist; the stages are base"):
        Config().for_stage("rl_3")


def test_rl_stages() -> None:
    assert RL_STAGES == ("r1_zero", "rl_1", "rl_2", "student_rl")


def test_the_loss_section_has_the_fields_of_policy_loss() -> None:
    names = [option.name for option in fields(LossConfig)]
    assert names == [*(option.name for option in fields(PolicyLoss)), "warn_gap", "correct_gap", "stop_gap"]


def test_policy_loss_takes_schedules_at_a_step() -> None:
    config = Config(loss=LossConfig(kl_coef=((0, 0.01), (5, 0.0)), clip_high=((0, 0.2), (3, 0.28))))
    early, late = config.policy_loss(2), config.policy_loss(5)
    assert (early.kl_coef, early.clip_high) == (0.01, 0.2)
    assert (late.kl_coef, late.clip_high) == (0.0, 0.28)


def test_the_default_loss_is_grpo_as_published() -> None:
    loss = Config().policy_loss(0)
    assert (loss.objective, loss.level, loss.aggregate, loss.correction) == ("clip", "token", "sequence_mean", "none")
    assert (loss.clip_low, loss.clip_high, loss.kl, loss.kl_coef, loss.entropy_coef) == (0.2, 0.2, "k3", 0.001, 0.0)
    assert loss.dual_clip is None
    assert loss.delta is None
