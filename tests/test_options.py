"""Recipes and the command line: what wins, what is refused and how, and config.toml as an exact record."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1fast.config import STAGES, Config, ConfigError
from r1fast.context import local_device
from r1fast.options import (
    build,
    differing_engine,
    differing_keys,
    flatten,
    help_text,
    parse,
    read_config,
    read_recipe,
    recipe_names,
    to_toml,
)
from r1fast.schema import KEYS

# What a recipe needs on the command line.
NEEDED = {
    "r1": ["--model", "/models/base", "--model.student", "/models/student", "--data", "train.jsonl"],
    "smollm2-r1": ["--model", "/models/smollm2"],
    "smollm2-zero": ["--model", "/models/smollm2"],
}


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_its_config_toml_gives_it_back(name: str, tmp_path: Path) -> None:
    invocation = parse(["--recipe", name, *NEEDED.get(name, [])])
    assert (invocation.recipe, invocation.config.run.name, invocation.config.run.dir) == (name, name, f"runs/{name}")
    path = tmp_path / "config.toml"
    path.write_text(to_toml(invocation.config, {"commit": 'a"b\\c\n', "torch": "2.13"}), encoding="utf-8")
    assert read_config(path) == invocation.config
    assert tomllib.loads(path.read_text(encoding="utf-8"))["about"]["commit"] == 'a"b\\c\n'


def test_recipes_of_the_package() -> None:
    small = ["smoke", "smollm2-r1", "smollm2-zero", "tiny", "tiny-no-language"]
    large = ["r1", "r1-deepseek-v3", "r1-qwen2.5-7b", "r1-zero-qwen2.5-1.5b-gsm8k", "r1-zero-qwen2.5-32b"]
    students = ["llama3.1-8b", "llama3.3-70b", "qwen2.5-1.5b", "qwen2.5-14b", "qwen2.5-32b", "qwen2.5-7b"]
    assert recipe_names() == sorted([*small, *large, *(f"distill-{student}" for student in students)])


def test_tiny_is_the_default_and_runs_every_stage() -> None:
    invocation = parse([])
    assert invocation.recipe == "tiny"
    assert not invocation.dry_run
    assert invocation.config.pipeline.stages == tuple(STAGES)
    assert invocation.config.for_stage("rl_1").loss.clip_low == 10.0


@pytest.mark.parametrize("recipe", ["tiny", "tiny-no-language", "smoke"])
def test_the_embedded_models_run_on_a_cpu_beside_a_gpu(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their heads are too small for the cache on a GPU: there, the default command was refused."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = parse(["--recipe", recipe]).config
    assert local_device(config).type == "cpu"
    assert local_device(parse(["--recipe", recipe, "--run.device", "auto"]).config).type == "cuda"


def test_the_ablation_differs_from_tiny_by_the_language_reward_and_the_stages() -> None:
    differing = differing_keys(parse([]).config, parse(["--recipe", "tiny-no-language"]).config)
    assert differing == ["pipeline.stages", "stages.rl_1.rewards.math.language"]


def test_r1_states_the_published_numbers() -> None:
    config = parse(["--recipe", "r1", *NEEDED["r1"]]).config
    assert config.data.source == "file"
    rl_1, rl_2 = config.for_stage("rl_1"), config.for_stage("rl_2")
    assert (rl_1.rl.max_tokens, rl_1.loss.clip_low, rl_1.loss.clip_high) == (32_768, 10.0, 10.0)
    assert (rl_2.rl.steps, rl_2.rl.temperature) == (1_700, 0.7)
    assert rl_2.rewards["general"]["helpful"] == ((0, 0.0), (1_300, 1.0))
    assert config.for_stage("student_rl").rl.lr == 2e-6
    assert config.for_stage("r1_zero").rewards["math"]["accuracy"] == config.rewards["math"]["format"] == 1.0


def test_the_command_line_wins_over_the_recipe_and_a_stage_over_its_section() -> None:
    # rl_1 and student_rl have steps of their own in the recipe: --rl.steps reaches them too.
    config = parse(["--stages.rl_1.lr", "2e-6", "--rl.lr=1e-6", "--rl.steps", "3"]).config
    assert [config.for_stage(stage).rl.steps for stage in ("r1_zero", "rl_1", "rl_2", "student_rl")] == [3] * 4
    assert [config.for_stage(stage).rl.lr for stage in ("r1_zero", "rl_1", "rl_2")] == [1e-6, 2e-6, 1e-6]


def test_sections_of_a_stage_on_the_command_line() -> None:
    argv = ["--stages.rl_1.loss.clip_high", "0.28", "--stages.rl_1.rewards.math.language", "[[0, 0], [5, 1]]"]
    view = parse(argv).config.for_stage("rl_1")
    assert (view.loss.clip_low, view.loss.clip_high) == (10.0, 0.28)
    assert view.rewards["math"]["language"] == ((0, 0.0), (5, 1.0))


def test_short_forms() -> None:
    argv = ["--recipe", "smollm2-zero", "--model", "/m", "--data", "d.jsonl", "--run", "out/here", "--dry-run"]
    invocation = parse(argv)
    config = invocation.config
    assert (config.model.path, config.data.source, config.data.file) == ("/m", "file", "d.jsonl")
    assert (config.run.dir, config.run.name, invocation.dry_run) == ("out/here", "smollm2-zero", True)


@pytest.mark.parametrize(
    ("argv", "section", "key", "value"),
    [
        (["--rl.lr", "[[0, 1e-6], [4, 2e-6]]"], "rl", "lr", ((0, 1e-6), (4, 2e-6))),
        (["--rl.lr", "1"], "rl", "lr", 1.0),
        (["--rl.top_p", ".5"], "rl", "top_p", 0.5),
        (["--rl.steps", "1e3"], "rl", "steps", 1000),
        (["--run.name", "3"], "run", "name", "3"),
        (["--run.name", '"a b"'], "run", "name", "a b"),
        (["--run.name", "true"], "run", "name", "true"),
        (["--run.tensorboard", "false"], "run", "tensorboard", False),
        (["--loss.kl", "k2"], "loss", "kl", "k2"),
        (["--pipeline.stages", "base, r1_zero"], "pipeline", "stages", ("base", "r1_zero")),
        (["--pipeline.stages", '["base"]'], "pipeline", "stages", ("base",)),
    ],
)
def test_values_are_toml_with_text_as_the_fall_back(argv: list[str], section: str, key: str, value: object) -> None:
    read = getattr(getattr(parse(argv).config, section), key)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--rl.group_sise 8", "did you mean rl.group_size"),
        ("--group_size 8", "did you mean --rl.group_size"),
        ("--rll.lr 1", "did you mean rl.lr"),
        ("--rl.clip_low 1", "did you mean loss.clip_low"),
        ("--stages.rl_1.clip_low 1", "did you mean stages.rl_1.loss.clip_low"),
        ("--stages.rl1.lr 1", "did you mean stages.rl_1"),
        ("--stages.rl_1.run.seed 1", "belongs to the whole run"),
        ("--stages.rl_1.model.template chat", "belongs to the whole run"),
        ("--stages.rl_1.data.num_dev 8", "belongs to the whole run"),
        ("--stages.rl_1 1", "stages.STAGE.KEY"),
        ("--rewards.math 1", "rewards.math.accuracy"),
        ("--rewards.math.acuracy 1", "no reward rewards.math.acuracy; the rewards are accuracy"),
        ("--recipe tinny", "recipe 'tinny' does not exist; give one of distill-llama3.1-8b"),
        ("--rl.lr", "needs a value"),
        ("--rl.lr --dry-run", "needs a value"),
        ("--rl.lr 1 --rl.lr 2", "given twice: '1' and '2'"),
        ("--rl.lr 1 --stages.rl_1.lr 1 --stages.rl_1.rl.lr 2", "the same option"),
        ("tiny", "'tiny' is not an option"),
        ("--rl.steps many", "rl.steps = 'many' must be a whole number; for example 10400"),
        ("--rl.steps 1.5", "must be a whole number"),
        ("--rl.steps [[0,1]]", "not a schedule"),
        ("--rl.steps true", "must be a whole number"),
        ("--rl.lr nan", "must be a number"),
        ("--rl.lr -1", "rl.lr = -1.0 must be >= 0"),
        ("--rl.temperature 0", "rl.temperature = 0.0 must be > 0"),
        ("--rl.temperature [[0,1],[5,0]]", "rl.temperature = 0.0 must be > 0"),
        ("--evaluation.temperature 0", "must be > 0"),
        ("--rl.top_p 1.5", "must be > 0 <= 1"),
        ("--rl.max_tokens [[1,2]]", "starts at step 0"),
        ("--rl.max_tokens [[0,2],[0,3]]", "the steps of a schedule rise"),
        ("--run.tensorboard yes", "must be true or false"),
        ("--loss.kl weighted_k2", "must be one of none, k2, k3, weighted_k3; did you mean weighted_k3?"),
        ("--rl.group_size 1", "group_size = 1: the advantage of a group of one is always 0; give at least 2"),
        ("--rl.prompts_per_step 0", "no prompts at step 0"),
        ("--rollout.rows 20", "multiple of 16"),
        ("--rl.dev_problems 999", "exceeds data.num_dev = 256"),
        ("--rewards.math.accuracy 0 --rewards.math.format 0", "every reward weight is 0"),
        ("--pipeline.stages base,r1_zeroo", "'r1_zeroo' does not exist"),
        ("--pipeline.stages base,rl_1", "rl_1 reads the result of sft_1"),
        ("--pipeline.stages base,distill", "or give stages.distill.files to learn from"),
        ("--pipeline.stages base,distill --sft.files {a=1} --sft.general_share 0.5", "set it to 0, and give general"),
        ("--pipeline.stages base,distill --sft.files {a=1} --sft.steps 0", "steps = 0 counts the result of rejection"),
        ("--pipeline.stages base,base", "names base 2 times"),
        ("--pipeline.stages r1_zero,base", "out of order"),
        ("--pipeline.stages []", "is empty"),
        ("--pipeline.stages base,r1_zero --rewards.math.safe 1", "come from the stage reward_models"),
        (
            "--rewards.math.helpful [[0,0],[9,1]]",
            "stages.r1_zero: rewards ['helpful'] come from the stage reward_models, which runs after it; set their "
            "weights to 0 here (stages.r1_zero.rewards.math.helpful = 0), or give them to a later stage alone",
        ),
        ("--rewards.math.judge 1", "a judge needs both"),
        ("--model /m", "data.source = 'tiny' is written for the embedded models"),
        ("--model.student /m", "model.student = '/m'"),
        ("--data d.jsonl", "knows only the words of the embedded data"),
        ("--model.gguf_file x.gguf", "do not apply"),
        ("--sft.files {a=0}", "a table of files and weights above 0"),
        ("--data.fields 3", "must be a table of texts"),
        ("--data.preset gsm8k", "data.preset is set but data.source = 'tiny' reads none"),
        ("--data.eval_files a", "data.eval_files is set but data.source = 'tiny' does not use it"),
        ("--data.file d.jsonl", "set data.source = 'file'"),
        ("--recipe r1", "model.path is empty"),
        ("--recipe r1 --model /m", "needs data.file"),
        ("--recipe r1 --model /m --data d.jsonl", "model.student is empty"),
        ("--recipe smollm2-zero --model /m --data.num_train 0", "reasoning-gym has no end"),
        ("--recipe smollm2-zero --model /m --data.gym_tasks {}", "at least one"),
        ("--data.gym_tasks 3", "a table of tasks"),
    ],
)
def test_bad_input_is_refused_with_the_fix(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(line.split())
    assert message in str(error.value)


def test_a_loss_that_policy_loss_refuses_names_stage_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: Config, step: int) -> None:
        if step >= 5:
            raise ValueError("kl_coef = 0.5 is too much")

    monkeypatch.setattr(Config, "policy_loss", refuse)
    with pytest.raises(ConfigError, match=r"stages\.rl_1\.loss at step 5: kl_coef = 0\.5"):
        parse(["--stages.rl_1.loss.kl_coef", "[[0, 0.1], [5, 0.5]]"])


def test_help_does_not_check_the_rest() -> None:
    assert parse(["--help"]).wants_help
    assert parse(["-h", "--dry-run"]).wants_help


def test_help_shows_every_option_with_unit_default_and_source() -> None:
    text = help_text()
    for keys in KEYS.values():
        for key in keys.values():
            assert f"--{key.path} {key.type_name}\n" in text
    words = " ".join(text.split())
    assert (
        "--rl.reference_refresh_steps INT reference := policy every so many steps; 0: never [steps]; default 400, "
        "tiny 10; must be >= 0; source: R1: R1-Zero" in words
    )
    for name in recipe_names():
        assert f"\n  {name} " in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_a_recipe_file_extends_another(tmp_path: Path) -> None:
    write(tmp_path / "middle.toml", 'extends = "tiny"\n[rl]\nsteps = 7\nlr = 1e-4\n')
    path = write(tmp_path / "mine.toml", 'extends = "middle.toml"\n[rl]\nlr = 2e-4\n[stages.rl_1]\nsteps = 9\n')
    config = parse(["--recipe", path]).config
    assert (config.run.name, config.run.dir) == ("mine", "runs/mine")
    assert (config.rl.steps, config.rl.lr, config.rl.group_size) == (7, 2e-4, 8)
    assert (config.for_stage("rl_1").rl.steps, config.for_stage("rl_1").loss.clip_low) == (9, 10.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[rl]\nlr = \n", "is not TOML"),
        ('extends = "bad.toml"\n', "extends itself"),
        ('extends = "nothing"\n', "recipe 'nothing' does not exist"),
        ("extends = 3\n", "extends = 3 must be a name"),
        ("[rk]\nlr = 1\n", "did you mean [rl]"),
        ("lr = 1\n", "unknown key lr: did you mean rl.lr"),
        ("[rl]\nlearning_rate = 1\n", "unknown key rl.learning_rate"),
        ("[rl]\nlr = 'x'\n", "rl.lr = 'x' must be a number"),
        ("[stages.rl_1]\nlr = 1\nrl = { lr = 2 }\n", "is set twice"),
        ("[stages.rl_4]\nlr = 1\n", "stages.rl_4: did you mean stages.rl_"),
    ],
)
def test_bad_recipes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.toml", text)
    with pytest.raises(ConfigError) as error:
        parse(["--recipe", path])
    assert message in str(error.value)


def test_differing_keys_leave_out_what_does_not_change_the_run() -> None:
    a = parse([]).config
    b = parse(["--run", "elsewhere", "--run.log_every_steps", "5", "--run.tensorboard", "false"]).config
    assert differing_keys(a, b) == [] == differing_engine(a, b)
    zero = parse(["--distributed.engine", "deepspeed", "--distributed.zero_stage", "1"]).config
    assert differing_keys(a, zero) == []  # any engine reads what another has saved
    assert differing_engine(a, zero) == ["distributed.engine", "distributed.zero_stage"]
    c = parse(["--run.seed", "1", "--stages.rl_1.temperature", "0.9", "--rewards.math.format", "0.3"]).config
    assert differing_keys(a, c) == ["rewards.math.format", "run.seed", "stages.rl_1.rl.temperature"]


def test_reading_a_recipe_changes_nothing() -> None:
    first = read_recipe("tiny")
    parse(["--rl.lr", "1"])
    assert read_recipe("tiny") == first


@given(
    name=st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1),
    lr=st.floats(0, 1e6),
    pieces=st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), unique_by=lambda piece: piece[0]),
)
def test_config_toml_is_exact(name: str, lr: float, pieces: list[tuple[int, int]]) -> None:
    config = parse([]).config
    run, rl = replace(config.run, name=name), replace(config.rl, lr=lr, max_tokens=((0, 7), *sorted(pieces)))
    config = replace(config, run=run, rl=rl)
    assert tomllib.loads(to_toml(config))["run"]["name"] == name
    assert build(flatten(config)) == config
    assert tomllib.loads(to_toml(config))["rl"]["lr"] == lr


@pytest.mark.parametrize(
    ("student", "rate"),
    [  # the paper's table of distillation: learning rate by student; each falls to a tenth
        ("qwen2.5-1.5b", 1e-4),
        ("qwen2.5-7b", 8e-5),
        ("qwen2.5-14b", 7e-5),
        ("qwen2.5-32b", 6e-5),
        ("llama3.1-8b", 5e-5),
        ("llama3.3-70b", 2e-5),
    ],
)
def test_distillation_has_the_papers_numbers(student: str, rate: float) -> None:
    sft = parse(["--recipe", f"distill-{student}"]).config.for_stage("distill").sft
    assert (sft.lr, sft.lr_final, sft.batch_size) == (rate, pytest.approx(rate / 10), 64)
    assert round(sft.steps * 64 / 93_733, 2) == 2.0  # epochs of the paper's 2 to 3


def test_large_recipes_have_the_papers_numbers() -> None:
    whole = parse(["--recipe", "r1-deepseek-v3"]).config
    zero = whole.for_stage("r1_zero").rl
    assert (zero.steps, zero.prompts_per_step, zero.group_size, zero.updates_per_rollout) == (10_400, 32, 16, 16)
    assert (zero.lr, zero.reference_refresh_steps, whole.loss.kl_coef) == (3e-6, 400, 0.001)
    assert zero.max_tokens == ((0, 32_768), (8_200, 65_536))
    assert whole.for_stage("rl_1").loss.clip_low == 10.0
    last = whole.for_stage("rl_2").rl
    assert (last.steps, last.temperature) == (1_700, 0.7)
    small = parse(["--recipe", "r1-zero-qwen2.5-32b"]).config.for_stage("r1_zero").rl
    assert (small.lr, small.steps, small.max_tokens) == (2e-6, 10_000, 32_768)
    assert (small.prompts_per_step, small.group_size) == (32, 16)
