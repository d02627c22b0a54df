"""Names, signatures and defaults that other people's scripts rely on, and where each trap has its test."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from r1fast.kernels.group_advantage import group_advantage
from r1fast.kernels.grpo_loss import PolicyLoss, grpo_loss
from r1fast.kernels.linear_grpo import linear_grpo_loss
from r1fast.kernels.linear_logprob import linear_logprob
from r1fast.kernels.token_logprob import TokenLogprob, token_logprob

TESTS = Path(__file__).parent
KERNELS = Path(inspect.getfile(PolicyLoss)).parent
SETTINGS = "temperature=1.0, softcap=None"
TOKENS = "old_logp_T=None, ref_logp_T=None, rollout_logp_T=None, log_kept_mass_T=None"
SIGNATURES = {
    token_logprob: f"logits_TV, targets_T, *, {SETTINGS}, entropy=False, inplace_backward=False, check=False",
    linear_logprob: f"hidden_TD, weight_VD, targets_T, *, bias_V=None, {SETTINGS}, entropy=False, "
    "memory_budget_bytes=None, check=False",
    grpo_loss: f"logp_T, advantage_N, cu_seqlens, *, {TOKENS}, entropy_T=None, mask_T=None, denominator, options, "
    "check=False",
    linear_grpo_loss: f"hidden_TD, weight_VD, targets_T, advantage_N, cu_seqlens, *, bias_V=None, {SETTINGS}, "
    f"memory_budget_bytes=None, {TOKENS}, mask_T=None, denominator, options, check=False",
    group_advantage: "rewards_N, group_N, *, baseline='mean', scale='group_std', unbiased=True, eps=0.0, check=False",
}

# Bugs that users of other implementations found, and the test here that a change which brings one back fails.
TRAPS = {
    "a gradient that is wrong while the loss is right": "test_grpo_loss::test_gradients_of_every_combination",
    "the same, from the hidden states on": "test_linear_grpo::test_gradients_of_every_combination",
    "a first block of nothing but -inf": "test_traps::test_a_first_block_of_nothing_but_minus_infinity",
    "a target at -inf": "test_token_logprob::test_infinite_logits",
    "all logits at -120, at 1e4, at -1e4": "test_token_logprob::test_logits_far_from_zero",
    "a vocabulary that is no multiple of the block": "test_traps::test_columns_beyond_the_vocabulary_add_nothing",
    "a target in the first, the last, the last partial tile": "test_traps::"
    "test_columns_beyond_the_vocabulary_add_nothing",
    "no token, or one": "test_token_logprob::test_values_and_gradients_against_fp64",
    "offsets beyond 32 bits": "test_traps::test_offsets_beyond_32_bits",
    "the same on a GPU": "test_real_shapes::test_more_elements_than_32_bits_count",
    "grid axes 1 and 2": "test_traps::test_grids_have_one_axis",
    "65,536 rows": "test_traps::test_more_rows_than_grid_axes_1_and_2_hold",
    "logits that are not contiguous": "test_token_logprob::test_any_strides_and_target_types",
    "a copy of logits that are not contiguous": "test_real_shapes::"
    "test_logits_are_neither_copied_nor_cast_whatever_their_strides",
    "targets of 32 or 64 bits, misaligned": "test_traps::test_targets_at_an_odd_address_and_with_gaps",
    "an ignore index, a target out of range": "test_bad_arguments::"
    "test_values_are_named_too_where_reading_them_waits_for_nothing",
    "the same where values are not read": "test_traps::"
    "test_a_target_outside_the_vocabulary_is_no_read_outside_the_logits",
    "a gradient in place that a later reader sees": "test_token_logprob::"
    "test_inplace_backward_overwrites_and_a_later_reader_raises",
    "autotuning that runs a kernel twice": "test_contract::test_nothing_is_autotuned",
    "NaN in masked places": "test_grpo_loss::test_what_stands_in_masked_places_is_never_read",
    "NaN in masked hidden states": "test_linear_grpo::test_masked_hidden_states_may_be_nan_and_all_may_be_masked",
    "a NaN that leaves its row": "test_token_logprob::"
    "test_a_nan_row_stays_alone_and_goes_no_further_without_a_gradient",
    "a NaN that leaves its sequence": "test_grpo_loss::test_a_nan_that_is_not_masked_stays_in_its_sequence",
    "a batch that is masked throughout": "test_grpo_loss::test_nothing_to_learn_from_is_a_finite_zero",
    "a group without variance that loses its KL": "test_linear_grpo_passes::"
    "test_a_group_without_variance_keeps_its_kl_and_its_entropy_gradient",
    "grad_output other than 1, retain_graph": "test_linear_grpo_passes::"
    "test_the_losss_gradient_scales_it_and_backward_runs_twice",
    "every needs_input_grad": "test_linear_grpo_passes::"
    "test_three_products_two_with_a_frozen_head_one_without_gradients",
    "the same in linear_logprob": "test_linear_logprob::test_only_what_is_needed_is_computed",
    "tied weights": "test_traps::test_tied_weights_get_both_gradients",
    "the entropy's gradient": "test_token_logprob::test_unused_outputs_and_second_derivatives",
    "a ratio on the edge of the clip": "test_grpo_loss_edges::test_the_edges_of_the_clip",
    "a ratio of 1 on a clip at 1": "test_grpo_loss_edges::test_a_ratio_of_exactly_1_on_a_clip_at_exactly_1",
    "no old log-probs": "test_grpo_loss_edges::"
    "test_without_old_log_probs_the_ratio_is_1_and_the_gradient_minus_the_advantage",
    "beta = 0 that reads the reference": "test_grpo_loss_edges::test_kl_off_never_reads_the_reference",
    "k3 of close and of far policies": "test_grpo_loss_edges::"
    "test_k3_is_exact_for_close_policies_and_pulls_back_from_far_ones",
    "other bits from run to run": "test_traps::test_every_op_gives_the_same_bits_every_time",
    "other results from other chunks": "test_linear_grpo_passes::test_chunks_that_cut_sequences_change_nothing",
    "dweight's error that grows with the number of chunks": "test_linear_grpo_passes::"
    "test_the_weights_gradient_is_as_good_from_many_chunks_as_from_one",
    "a graph for every length": "test_compile::test_one_graph_for_all_lengths",
    "fp64 in a compiled graph": "test_compile::test_no_double_precision_in_the_graph",
    "autocast inside": "test_traps::test_autocast_does_not_reach_inside_the_fused_loss",
    "an empty shard of ZeRO-3": "test_bad_arguments::test_bad_arguments_raise_before_anything_runs",
    "metrics that a path lacks": "test_traps::test_the_fused_loss_reports_what_the_loss_reports",
    "constant rewards that get an advantage": "test_group_advantage::test_a_constant_group_is_exactly_zero",
    "a variance by E[x^2] - E[x]^2": "test_group_advantage::test_rewards_that_are_large_and_close_keep_their_digits",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_signatures(function: object) -> None:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert str(inspect.Signature(bare)) == f"({SIGNATURES[function]})"  # type: ignore[index]


def test_results_and_options() -> None:
    assert TokenLogprob._fields == ("logp", "lse", "entropy")
    assert list(inspect.signature(PolicyLoss).parameters) == [
        *("objective", "level", "clip_low", "clip_high", "dual_clip", "delta", "kl", "kl_coef"),
        *("correction", "correction_level", "correction_cap", "entropy_coef", "aggregate"),
    ]


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_has_a_test(trap: str) -> None:
    file, name = TRAPS[trap].split("::")
    assert re.search(rf"^def {name}\(", (TESTS / f"{file}.py").read_text(), re.MULTILINE), TRAPS[trap]


def test_nothing_is_autotuned() -> None:
    """It would run a kernel that writes over its input several times, and needs a GPU to import."""
    sources = {path.name: path.read_text() for path in KERNELS.glob("*.py")}
    assert sum("@triton.jit" in source for source in sources.values()) == 3
    assert not [name for name, source in sources.items() if re.search("autotune|heuristics", source)]


def test_every_op_has_its_definition_beside_it() -> None:
    for function in SIGNATURES:
        module = inspect.getmodule(function)
        assert callable(getattr(module, f"{function.__name__}_reference")), function.__name__
