"""Sequences between ranks: whole, in an order that does not depend on who has them, to whoever wants them."""

from __future__ import annotations

from pathlib import Path

import torch
from processes import run_groups

from r1fast.balance import Size
from r1fast.distributed import Ranks, start
from r1fast.exchange import list_all, move
from r1fast.records import Sequence


def sequence(group: int, sample: int, *, with_logp: bool = True, with_mass: bool = True) -> Sequence:
    """Recognisable by its tokens; sample 0 is empty but for its prompt."""
    num_prompt, length = 1 + group, 3 * sample
    logp = -1.0 - torch.arange(length) / 8 - group
    return Sequence(
        token_ids=torch.arange(num_prompt + length) + 100 * group + 10 * sample,
        num_prompt_tokens=num_prompt,
        advantage=group + sample / 3,
        rollout_logp=logp if with_logp else None,
        log_kept_mass=logp / 4 if with_mass else None,
    )


def same(one: Sequence, other: Sequence) -> bool:
    values = zip((one.rollout_logp, one.log_kept_mass), (other.rollout_logp, other.log_kept_mass), strict=True)
    return (
        torch.equal(one.token_ids, other.token_ids)
        and one.token_ids.dtype == torch.int64
        and (one.num_prompt_tokens, one.advantage) == (other.num_prompt_tokens, other.advantage)
        and all((a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)) for a, b in values)
    )


def test_one_process_lists_by_key_and_moves_nothing() -> None:
    keys = [(2, 0), (0, 1), (2, 1), (0, 0)]
    sequences = [sequence(*key) for key in keys]
    listed = list_all(sequences, keys, Ranks())
    assert [one.number for one in listed] == [3, 1, 0, 2]
    assert [one.size for one in listed] == [Size(0, 1, 0), Size(0, 1, 3), Size(2, 3, 0), Size(2, 3, 3)]
    assert [one.advantage for one in listed] == [sequence(*key).advantage for key in sorted(keys)]
    assert move(sequences, listed, [[3, 0, 3]], Ranks()) == [sequences[2], sequences[3], sequences[2]]
    assert list_all([], [], Ranks()) == []


def _rank_main(rank: int, directory: Path) -> None:
    ranks = start("cpu")
    keys = [(group, sample) for group in range(4) for sample in range(3)]
    options = {
        (1, 1): {"with_logp": False},
        (3, 2): {"with_mass": False},
        (2, 2): {"with_logp": False, "with_mass": False},
    }
    owner = {key: (0 if key[0] % 2 else 2) for key in keys}  # rank 1 has none
    own = [key for key in reversed(keys) if owner[key] == rank]
    listed = list_all([sequence(*key, **options.get(key, {})) for key in own], own, ranks)
    assert [(one.size.group, one.rank) for one in listed] == [(key[0], owner[key]) for key in keys]
    sequences = [sequence(*key, **options.get(key, {})) for key in own]
    for wanted in ([[11, 0, 5], [2, 3, 4, 5], []], [[], list(range(12)), list(range(12))]):  # some twice, some never
        came = move(sequences, listed, wanted, ranks)
        expected = [sequence(*keys[n], **options.get(keys[n], {})) for n in wanted[rank]]
        assert len(came) == len(expected) and all(map(same, came, expected))
    (directory / f"done-{rank}").touch()
    ranks.barrier()
    ranks.shutdown()


def test_three_processes_get_what_they_want_from_whoever_has_it(tmp_path: Path) -> None:
    run_groups([(3, _rank_main)], tmp_path)
    assert len(list(tmp_path.glob("done-*"))) == 3
