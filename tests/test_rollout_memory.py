"""The engine's cache: too small, asleep, left in the middle of a call, and used for a long time."""

from __future__ import annotations

import gc
import random
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch

from r1fast.ops.checks import PAGE_TOKENS
from r1fast.ops.page_pool import PageMoves, PagePool
from r1fast.policy import Policy
from r1fast.records import Prompt, Rollout
from r1fast.rollout import engine as engine_module
from r1fast.rollout import engine_calls, generation
from r1fast.rollout.batch import DecodeBatch
from r1fast.rollout.call import Call
from r1fast.rollout.completions import Completions
from r1fast.rollout.engine import RolloutEngine
from r1fast.rollout.page_store import PageStore
from r1fast.sampling import Sampling
from tests.tiny_model import EOS, NUM_VOCAB, tiny_policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    """One whose completions never end by themselves."""
    return replace(tiny_policy(), eos_token_ids=(NUM_VOCAB,))


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[PagePool]:
    """Every pool that an engine makes."""
    made: list[PagePool] = []

    def make(**options: Any) -> PagePool:
        made.append(PagePool(**options))
        return made[-1]

    monkeypatch.setattr(engine_module, "PagePool", make)
    return made


def _prompts(count: int, shortest: int, longest: int, seed: int = 3) -> list[Prompt]:
    generator = random.Random(seed)
    return [
        Prompt(
            id=f"p{n}",
            text="",
            token_ids=tuple(generator.randrange(3, NUM_VOCAB) for _ in range(generator.randint(shortest, longest))),
        )
        for n in range(count)
    ]


def _sampling(max_tokens: int, **options: Any) -> Sampling:
    return Sampling(**({"temperature": 1.0, "max_tokens": max_tokens, "stage": "rl_1", "visit": 0} | options))


def _numbers(rollouts: list[Rollout]) -> list[tuple[Any, ...]]:
    columns = ("token_ids", "logp", "log_kept_mass", "entropy")
    return [(r.prompt.id, r.sample_index, *(getattr(r, c).tolist() for c in columns)) for r in rollouts]


def _is_empty(pool: PagePool) -> bool:
    pool.check()
    tables = pool.tables
    return bool((tables.group_S == -1).all()) and bool((tables.suffix_pages_SM == -1).all())


@pytest.mark.parametrize(("pages", "host"), [(5, True), (8, True), (6, False)])
def test_a_small_cache_swaps_or_starts_again(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, pools: list[PagePool], pages: int, host: bool
) -> None:
    prompts, sampling = _prompts(4, 60, 90), _sampling(140)
    engine = RolloutEngine(policy, rows=9, seed=0)
    reference = _numbers(engine.generate(prompts, 3, sampling))
    engine = RolloutEngine(policy, rows=9, seed=0, cache_bytes=pages * engine.shape.page_bytes)
    left = {"swapped": 0, "restarted": 0}
    swap_out, restart = PageStore.swap_out, generation.Generation._restart

    def count_swap(store: PageStore, moves: PageMoves) -> None:
        left["swapped"] += len(moves)
        swap_out(store, moves)

    def count_restart(self: Any, member: Any) -> None:
        left["restarted"] += 1
        restart(self, member)

    monkeypatch.setattr(PageStore, "swap_out", count_swap)
    monkeypatch.setattr(generation.Generation, "_restart", count_restart)
    if not host:
        monkeypatch.setattr(Call, "pages_at_most", lambda self, rows: pages)
    assert _numbers(engine.generate(prompts, 3, sampling)) == reference
    assert (left["swapped"] > 0) == host and (left["restarted"] > 0) >= (not host)
    assert engine.store is not None and engine.store.num_pages == pages and all(map(_is_empty, pools))


def test_what_never_fits_is_refused_with_the_numbers(policy: Policy) -> None:
    engine = RolloutEngine(policy, rows=16, seed=0)
    page_bytes = engine.shape.page_bytes
    engine = RolloutEngine(policy, rows=16, seed=0, cache_bytes=4 * page_bytes)
    with pytest.raises(
        ValueError, match=rf"'p1' of 100 tokens and max_tokens = 140 take 5 pages .* has 4, {4 * page_bytes:,}"
    ):
        engine.generate([*_prompts(1, 20, 20), Prompt(id="p1", text="", token_ids=(5,) * 100)], 2, _sampling(140))
    assert len(engine.generate(_prompts(1, 20, 20), 2, _sampling(140))) == 2  # and the engine lives on
    with pytest.raises(ValueError, match="cache_bytes = 100 must hold 2 pages at least"):
        RolloutEngine(policy, rows=16, seed=0, cache_bytes=100)


def test_asleep_it_holds_no_memory_and_awake_it_gives_the_same(policy: Policy) -> None:
    engine = RolloutEngine(policy, rows=16, seed=0)
    prompts, sampling = _prompts(3, 5, 90), _sampling(70)
    before = _numbers(engine.generate(prompts, 4, sampling))
    store = engine.store
    assert store is not None and store._arena.committed_bytes > 0
    address = store.key.data_ptr()
    engine.sleep()
    engine.sleep()
    assert store._arena.committed_bytes == 0
    assert _numbers(engine.generate(prompts, 4, sampling)) == before
    assert engine.store is store and store.key.data_ptr() == address
    engine.sleep()
    engine.wake()
    assert store._arena.committed_bytes > 0 and _numbers(engine.generate(prompts, 4, sampling)) == before


@pytest.mark.parametrize("max_tokens", [20, 64, 65, 200])
def test_samples_that_fit_decode_side_by_side(policy: Policy, monkeypatch: pytest.MonkeyPatch, max_tokens: int) -> None:
    steps, real = [0], DecodeBatch.step

    def count(self: DecodeBatch, num_rows: int) -> None:
        steps[0] += 1
        real(self, num_rows)

    monkeypatch.setattr(DecodeBatch, "step", count)
    RolloutEngine(policy, rows=16, seed=0).generate(_prompts(4, 5, 90), 4, _sampling(max_tokens))
    assert steps[0] == max_tokens - 1  # the first token is the prompt's


def test_groups_come_as_they_finish(policy: Policy) -> None:
    engine = RolloutEngine(policy, rows=16, seed=0)
    prompts = _prompts(6, 5, 30)
    limits = [n for prompt in range(6) for n in (5 + 9 * prompt, 3, 4, 9 * (6 - prompt))]
    groups = list(engine.groups(prompts, 4, _sampling(80), limits))
    assert {group[0].prompt.id for group in groups} == {prompt.id for prompt in prompts} and len(groups) == 6
    assert all([r.sample_index for r in group] == [0, 1, 2, 3] for group in groups)
    assert [[len(r.token_ids) for r in group] for group in sorted(groups, key=lambda group: group[0].prompt.id)] == [
        limits[n : n + 4] for n in range(0, 24, 4)
    ]
    whole = engine.generate(prompts, 4, _sampling(80), max_tokens=limits)
    assert sorted(_numbers(whole)) == sorted(_numbers([r for group in groups for r in group]))
    with pytest.raises(ValueError, match="max_tokens must be 24 positive numbers"):
        engine.generate(prompts, 4, _sampling(80), max_tokens=limits[:-1])


def test_a_call_that_is_left_gives_everything_back(policy: Policy, pools: list[PagePool]) -> None:
    engine = RolloutEngine(policy, rows=8, seed=0)
    prompts, sampling = _prompts(6, 5, 90), _sampling(30)
    reference = _numbers(engine.generate(prompts, 4, sampling))
    groups = engine.groups(prompts, 4, sampling)
    first = next(groups)
    for other in (lambda: engine.generate(prompts, 4, sampling), engine.sleep):
        with pytest.raises(RuntimeError, match="not used up"):
            other()
    groups.close()
    assert all(map(_is_empty, pools))
    assert _numbers(first) == [numbers for numbers in reference if numbers[0] == first[0].prompt.id]
    assert _numbers(engine.generate(prompts, 4, sampling)) == reference


def test_weights_that_change_in_the_middle_of_a_call_are_noticed(pools: list[PagePool]) -> None:
    policy = replace(tiny_policy(), eos_token_ids=(NUM_VOCAB,))
    groups = RolloutEngine(policy, rows=8, seed=0).groups(_prompts(6, 5, 9), 4, _sampling(30))
    next(groups)
    policy.version += 1
    with pytest.raises(RuntimeError, match="from version 0 to 1"):
        list(groups)
    assert all(map(_is_empty, pools))


@pytest.mark.parametrize("place", ["step", "prefill", "look"])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_exception_in_mid_generation(
    policy: Policy, pools: list[PagePool], monkeypatch: pytest.MonkeyPatch, place: str, error: type[BaseException]
) -> None:
    engine = RolloutEngine(policy, rows=8, seed=0)
    prompts, sampling = _prompts(6, 5, 90), _sampling(30)
    reference = _numbers(engine.generate(prompts, 4, sampling))
    owner, name = {
        "step": (DecodeBatch, "step"),
        "prefill": (DecodeBatch, "run_prompts"),
        "look": (Completions, "add"),
    }[place]
    calls, real = [0], getattr(owner, name)

    def fail(self: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == {"step": 40, "prefill": 3, "look": 15}[place]:
            raise error("in the middle")
        return real(self, *arguments, **options)

    finished: list[Rollout] = []
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fail)
        with pytest.raises(error, match="in the middle"):
            for group in engine.groups(prompts, 4, sampling):
                finished += group
    assert finished and set(map(str, _numbers(finished))) <= set(map(str, reference))
    assert all(map(_is_empty, pools))
    linear = policy.module.base_model.layers[0].mlp.up_proj
    assert "forward" not in vars(linear)
    assert _numbers(engine.generate(prompts, 4, sampling)) == reference


def test_a_group_that_ends_in_the_step_that_fails_is_not_lost(
    policy: Policy, pools: list[PagePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, whole = Completions.add, []

    def fail(self: Completions, sample: int, ended: Any) -> None:
        real(self, sample, ended)
        if not self._missing[sample // 4]:
            whole.append(sample // 4)
            raise MemoryError("after a group's last sample")

    monkeypatch.setattr(Completions, "add", fail)
    groups = RolloutEngine(policy, rows=8, seed=0).groups(_prompts(6, 5, 90), 4, _sampling(30))
    finished = [next(groups)]
    with pytest.raises(MemoryError, match="last sample"):
        next(groups)
    assert [int(group[0].prompt.id[1:]) for group in finished] == whole
    assert all(map(_is_empty, pools))


def test_a_poisoned_row_names_prompt_and_token(pools: list[PagePool]) -> None:
    policy = tiny_policy()
    with torch.no_grad():  # the token that one prompt alone has
        policy.module.get_input_embeddings().weight[NUM_VOCAB - 1] = float("nan")
        policy.module.config.tie_word_embeddings = False
    policy = replace(policy, eos_token_ids=(EOS,))
    prompts = [*_prompts(2, 5, 9), Prompt(id="poisoned", text="", token_ids=(4, NUM_VOCAB - 1))]
    with pytest.raises(
        FloatingPointError, match=r"prompt '.*', sample \d+: the model's logits for its token 1 are not"
    ):
        RolloutEngine(policy, rows=16, seed=0).generate(prompts, 2, _sampling(20))
    assert all(map(_is_empty, pools))


@pytest.fixture
def fills(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """At every look of the host: tokens that the pages in use have room for, tokens in them, prefixes and suffixes."""
    found: list[tuple[int, int, int]] = []
    real = generation.Generation._look

    def look(self: generation.Generation) -> None:
        real(self)
        live = [member for member in self.members if member is not None]
        prefixes = [self.pool.prefix(group) for group in {self.pool.group_of(member.sequence) for member in live}]
        tokens = sum(member.num_written for member in live) + sum(prefix.num_tokens for prefix in prefixes)
        used = (self.store.num_pages - self.pool.num_free) * PAGE_TOKENS
        found.append((used, tokens, len(live) + len(prefixes)))

    monkeypatch.setattr(generation.Generation, "_look", look)
    return found


@pytest.mark.parametrize("rows", [16, 48])
@pytest.mark.parametrize("longest", [60, 150])
def test_pages_in_use_are_the_tokens_and_a_page_a_segment(
    policy: Policy, fills: list[tuple[int, int, int]], rows: int, longest: int
) -> None:
    prompts, chance = _prompts(10, 1, longest), random.Random(longest)
    limits = [chance.randint(1, 200) for _ in range(40)]
    RolloutEngine(policy, rows=rows, seed=0).generate(prompts, 4, _sampling(200), max_tokens=limits)
    assert len(fills) > 40 and fills[-1] == (0, 0, 0)
    assert all(used <= 1.02 * tokens + PAGE_TOKENS * segments for used, tokens, segments in fills)
    assert max(used for used, _, _ in fills) >= 2 * 16 * PAGE_TOKENS


def test_rows_that_end_early_hold_a_few_tokens_room_more(fills: list[tuple[int, int, int]]) -> None:
    prompts = _prompts(10, 1, 90)
    RolloutEngine(tiny_policy(), rows=16, seed=0).generate(prompts, 6, _sampling(200))
    ahead = engine_calls.LOOK_EVERY + 1  # reserved before the host looked, which it did sooner
    assert all(used <= tokens + (PAGE_TOKENS + ahead) * segments for used, tokens, segments in fills)
    assert sum(used for used, _, _ in fills) <= sum(tokens + PAGE_TOKENS * segments for _, tokens, segments in fills)


def _held(engine: RolloutEngine) -> dict[str, int]:
    """What may not grow: bytes resident, files open, objects of Python, threads, room of the engine."""
    for _ in range(2):
        gc.collect()
    assert engine.store is not None and engine._seats is not None
    process = psutil.Process()
    slots = engine._seats.batch.slots
    return {
        "bytes": process.memory_info().rss,
        "files": process.num_fds(),
        "objects": len(gc.get_objects()),
        "threads": process.num_threads(),
        "pages": engine.store.num_pages + engine.store.num_host_pages,
        "rows": slots.tokens_SN.numel(),
    }


def _many_calls(num_calls: int) -> tuple[dict[str, int], dict[str, int]]:
    """What is held after a tenth of the calls, of which no two are alike, and after all of them."""
    policy, before = tiny_policy(), {}
    engine = RolloutEngine(
        policy, rows=16, seed=0, cache_bytes=40 * RolloutEngine(policy, rows=1, seed=0).shape.page_bytes
    )
    chance = random.Random(0)
    engine.generate(_prompts(4, 100, 100), 4, _sampling(130))  # none is larger
    for number in range(1, num_calls + 1):
        most = chance.choice([1, 5, 20, 70, 130])
        sampling = _sampling(most, temperature=chance.choice([0.0, 1.0]), top_k=chance.choice([0, 9]), visit=number)
        prompts = _prompts(chance.randint(1, 4), 1, 100, seed=number)
        limits = [chance.randint(1, most) for _ in range(4 * len(prompts))]
        assert len(engine.generate(prompts, 4, sampling, max_tokens=limits)) == len(limits)
        if number % 50 == 49:
            engine.sleep()
        if number in (num_calls // 10, num_calls):
            engine.wake()
            before, after = before or _held(engine), _held(engine)
    return before, after


def _assert_nothing_grew(before: dict[str, int], after: dict[str, int], more_bytes: int) -> None:
    assert after["bytes"] - before["bytes"] <= more_bytes
    assert after["objects"] - before["objects"] <= 60
    for name in ("files", "threads", "pages", "rows"):
        assert after[name] == before[name], name


def test_thirty_calls_leave_nothing_behind() -> None:
    _assert_nothing_grew(*_many_calls(30), more_bytes=32 << 20)  # the first calls' pages are touched one by one


@pytest.mark.slow
def test_a_thousand_calls_leave_nothing_behind() -> None:
    before, after = _many_calls(1000)
    print(before, after)
    _assert_nothing_grew(before, after, more_bytes=4 << 20)


def _soak(num_calls: int, monkeypatch: pytest.MonkeyPatch, pools: list[PagePool]) -> None:
    """Random calls, sleeps, updates and broken-off calls of one engine; its memory does not grow."""
    policy = tiny_policy()
    monkeypatch.setattr(engine_calls, "LOOK_EVERY", 4)
    page_bytes = RolloutEngine(policy, rows=4, seed=0).shape.page_bytes
    engine = RolloutEngine(policy, rows=12, seed=0, cache_bytes=9 * page_bytes)
    chance = random.Random(0)
    for number in range(num_calls):
        action = chance.random()
        prompts = _prompts(chance.randint(1, 5), 1, chance.choice([20, 70, 130]), seed=number)
        sampling = _sampling(chance.choice([1, 5, 66, 130]), temperature=chance.choice([0.0, 0.7, 1.0]), visit=number)
        if action < 0.1:
            engine.sleep()
        elif action < 0.2:
            with torch.no_grad():
                for parameter in policy.module.parameters():
                    parameter.mul_(0.999)
            policy.version += 1
        elif action < 0.3:
            for _ in zip(engine.groups(prompts, 2, sampling), range(1), strict=False):
                pass
        else:
            rollouts = engine.generate(prompts, chance.randint(1, 4), sampling)
            assert {r.policy_version for r in rollouts} == {policy.version}
            assert all(torch.isfinite(r.logp).all() and 1 <= len(r.token_ids) <= sampling.max_tokens for r in rollouts)
        assert all(map(_is_empty, pools)) and len(pools) < 20
        assert engine.store is None or engine.store.num_pages <= 9


def test_a_short_soak(monkeypatch: pytest.MonkeyPatch, pools: list[PagePool]) -> None:
    _soak(40, monkeypatch, pools)


@pytest.mark.slow
def test_a_long_soak(monkeypatch: pytest.MonkeyPatch, pools: list[PagePool]) -> None:
    _soak(2000, monkeypatch, pools)
