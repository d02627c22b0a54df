"""What DeepSpeed is told: the recipe's own options, and a file of the user beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r1fast.config import ConfigError
from r1fast.distributed_config import DistributedConfig
from r1fast.options import parse
from r1fast.zero_config import check_nvme, deepspeed_options


def options(tmp_path: Path, further: Any, dtype: str = "bfloat16") -> dict[str, Any]:
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps(further), encoding="utf-8")
    return deepspeed_options(DistributedConfig(engine="deepspeed", deepspeed_config=str(file)), dtype)


def test_a_file_adds_to_the_recipe(tmp_path: Path) -> None:
    further = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000},
        "communication_data_type": "fp32",
        "bf16": {"enabled": True},
    }
    found = options(tmp_path, further)
    assert found["zero_optimization"] == {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 1000}
    assert found["communication_data_type"] == "fp32" and found["bf16"]["check_grad_overflow"]
    assert (found["gradient_clipping"], found["managed_gradient_accumulation"]) == (0.0, False)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage = 3, and the recipe makes it 2"),
        ({"gradient_clipping": 1.0}, "gradient_clipping = 1.0, and the recipe makes it 0.0"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer = .* is not passed on"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler = .* is not passed on"),
        ({"zero_optimisation": {"reduce_bucket_size": 9}}, "zero_optimisation = .* is not passed on"),
        ({"bf16": {"enabled": True}}, "bf16 = .* is not passed on"),
        ({"fp16": {"enabled": True}}, "fp16 = .* is not passed on"),
        ({"zero_optimization": {"round_robin_gradients": True}}, "zero_optimization.round_robin_gradients = .* is not"),
        ({"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}}, "offload_optimizer = .* is not passed on"),
        ([1], "holds no JSON object"),
    ],
)
def test_what_a_file_may_not_say_is_refused(tmp_path: Path, further: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(tmp_path, further, "float32")


def test_offload_names_its_place() -> None:
    config = DistributedConfig(
        engine="deepspeed", zero_stage=3, offload_optimizer="nvme", offload_parameters="cpu", nvme_path="/disk"
    )
    zero = deepspeed_options(config, "float32")["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "nvme", "nvme_path": "/disk"}
    assert zero["offload_param"] == {"device": "cpu"}
    at_home = deepspeed_options(replace(config, nvme_path="~/disk"), "float32")["zero_optimization"]
    assert at_home["offload_optimizer"]["nvme_path"] == str(Path.home() / "disk")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--distributed.zero_stage 3", "distributed.zero_stage is DeepSpeed's"),
        ("--distributed.engine deepspeed --distributed.offload_parameters cpu", "needs zero_stage = 3, not 2"),
        ("--distributed.engine deepspeed --distributed.nvme_path /disk", "give both or neither"),
        (
            "--distributed.engine deepspeed --distributed.zero_stage 3 --optimizer.offload_activations true",
            "would move the gathered weights, too",
        ),
        ("--distributed.engine deepspeed --distributed.deepspeed_config no.json", "cannot be read"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(words.split())


def test_zero_0_moves_nothing_and_has_no_bfloat16() -> None:
    words = ["--distributed.engine", "deepspeed", "--distributed.zero_stage", "0"]
    parse(words)
    with pytest.raises(ConfigError, match=r"zero_stage = 0 with run\.dtype = 'bfloat16'.* use 1, or engine = 'torch'"):
        parse([*words, "--run.dtype", "bfloat16"])
    with pytest.raises(ConfigError, match="needs zero_stage = 1 at least"):
        parse([*words, "--distributed.offload_optimizer", "cpu"])


def test_nvme_without_its_library_is_refused_by_name() -> None:
    builders = pytest.importorskip("deepspeed.ops.op_builder")
    check_nvme(DistributedConfig())
    if builders.AsyncIOBuilder().is_compatible(verbose=False):
        pytest.skip("libaio is here")
    with pytest.raises(ConfigError, match=r"'nvme' needs DeepSpeed's async_io, which cannot be built here .*libaio"):
        check_nvme(DistributedConfig(engine="deepspeed", zero_stage=3, offload_optimizer="nvme", nvme_path="/disk"))
