from __future__ import annotations

import hashlib
import inspect

import gymnasium as gym
import pytest
import yaml
from gymnasium.envs.registration import load_env_creator

from maskgym import agents, data, policies, rewards, segmenters
from maskgym.agents.text.language import LanguageAgent
from maskgym.agents.text.training import METHODS
from maskgym.data.published import PUBLISHED
from maskgym.errors import UserError
from maskgym.experiments.grids.runner import config_of
from maskgym.experiments.wiring import composition
from maskgym.policies.text.mllm import LanguagePolicy

GROUPS = composition.groups()
REGISTRIES = {"algo": agents, "data": data, "policy": policies, "segmenter": segmenters, "reward": rewards}
READ_BY_THE_RUN = {
    "algo": {"updates", "rationales", "default_parts", "default_hint"},
    "data": {"rationales", "parts", "workers"},
    "env": {"gym_ids", "default_batch_size", "default_parts", "algo_aliases", "task", "recalibration", "attention"}
    | {"held_out_group_size", "train_samples_per", "level"},
}


@pytest.mark.parametrize("env", GROUPS["env"])
def test_an_environment_composes_with_its_own_algorithms(env):
    aliases = composition.compose([f"env={env}"])["env"].get("algo_aliases", {})
    for algo, form in {"random": "random", **aliases}.items():
        config = composition.compose([f"env={env}", f"algo={algo}"])
        assert (config["env"]["name"], config["algo"]["name"]) == (env, composition.option("algo", form)["name"])
        assert set(config) == set(composition.root_keys()) - {"budget"}


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_is_named_after_its_file_or_its_base_and_its_keys_are_documented_arguments(group):
    for option in GROUPS[group]:
        text = (composition.CONF / group / f"{option}.yaml").read_text()
        given = yaml.safe_load(text)
        assert given["name"] in (option, *given.get("defaults", ()))
        assert len(text.splitlines()) <= 40, option
        bare = ("name:", "  ", "gym_ids:", "defaults:")
        assert [line for line in text.splitlines() if "#" not in line and not line.startswith(bare)] == [], option
        settings = composition.compose([f"{group}={option}"])[group]
        if accepted := arguments_of(group, option, settings):
            assert set(settings) - {"name"} - READ_BY_THE_RUN.get(group, set()) <= accepted, option


@pytest.mark.parametrize(
    "env", [name for name in GROUPS["env"] if name.rpartition("_")[0] in GROUPS["env"] and name != "user_need_point"]
)
def test_a_level_is_the_same_by_its_name_and_by_its_id(env):
    base, config = (composition.compose([f"env={name}"]) for name in (env.rpartition("_")[0], env))
    (gym_id,) = config["env"]["gym_ids"].values()
    given = gym.spec(gym_id).kwargs
    assert given.get("dataset", {}).get("level", "easy") == config["data"].get("level", "easy")
    for part in ("reward", "segmenter"):
        assert given.get(part, base[part]["name"]) == config[part]["name"]
    for key in ("task", "horizon", "patch_size"):
        if key in base["env"]:
            assert given.get(key, base["env"][key]) == config["env"][key]


def arguments_of(group, option, settings) -> set[str]:
    """Return the arguments of the parts that an option makes, of their parents and of the configs they hand on to."""
    if group == "env":
        kinds = [load_env_creator(gym.spec(name).vector_entry_point) for name in settings["gym_ids"].values()]
        return set().union(*(inspect.signature(owner.__init__).parameters for kind in kinds for owner in kind.__mro__))
    if group not in REGISTRIES:
        return set()
    name = PUBLISHED[option].reader if group == "data" and option in PUBLISHED else settings["name"]
    target = REGISTRIES[group].names.__self__.get(name)
    accepted = set(inspect.signature(target).parameters)
    if "arguments" in accepted:  # policies hand on to one class
        accepted |= set(inspect.signature(LanguagePolicy).parameters)
    if "settings" in accepted:  # agents hand on to their parent, and those of text to TRL's config
        accepted |= set().union(*(inspect.signature(kind).parameters for kind in target.__mro__[:-1]))
        if issubclass(target, LanguageAgent):
            methods = [METHODS[target.method], *([METHODS["ablated_cgpo"]] if target.method == "cgpo" else [])]
            accepted |= {name for method in methods for name in method.config.__dataclass_fields__}
    return accepted


def test_the_options_are_the_registered_names():
    assert {composition.option("algo", option)["name"] for option in GROUPS["algo"]} == set(agents.names())
    assert set(GROUPS["data"]) == set(data.names())
    assert set(GROUPS["policy"]) == set(policies.names())
    assert set(GROUPS["segmenter"]) == set(segmenters.names())
    assert set(GROUPS["reward"]) == set(rewards.names())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["env=nope"], "unknown env 'nope': expected one of cosod, point_prompt, point_prompt_crowd, "),
        (["algo=pppo"], "unknown algo 'pppo': expected one of cgpo, cgpo_clicks, cgpo_levels, cgpo_masks, chat_model,"),
        (["sedd=1"], "unknown key 'sedd': expected one of algo, data, env"),
        (["+sedd=1"], "unknown key 'sedd': expected one of algo, data, env"),
        (["hydra.run.dir=x"], "unknown key 'hydra.run.dir': expected one of algo"),
        (["algo=random", "algo.rate=1"], "unknown key 'algo.rate': algo=random has updates"),
        (["env.image_size.side=1"], "unknown key 'env.image_size.side'"),
        (["seed=0,1"], "argument 'seed=0,1': several values need -m"),
        (["seed"], "argument 'seed': expected key=value"),
        (["=1"], "argument '=1': expected key=value"),
        (["~env"], "argument '~env': expected key=value"),
        (["seed=${nope}"], "Interpolation key 'nope' not found"),
    ],
)
def test_what_cannot_be_composed_is_told_in_one_line(arguments, expected):
    with pytest.raises(UserError) as caught:
        composition.compose(arguments)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_keep_their_types_and_added_keys_arrive():
    config = composition.compose(["seed=3", "+data.group=[a,b]", "algo.learning_rate=1e-5", "data.size=null"])
    assert config["seed"] == 3
    assert config["data"]["group"] == ["a", "b"]
    assert config["algo"]["learning_rate"] == 1e-5
    assert config["data"]["size"] is None


def test_the_batch_follows_the_environment_unless_it_is_given():
    assert composition.compose(["env=sis"])["algo"]["batch_size"] == 128
    assert composition.compose(["env=cosod"])["algo"]["batch_size"] == 64
    assert composition.compose(["env=cosod", "algo.batch_size=8"])["algo"]["batch_size"] == 8


@pytest.mark.parametrize("path", ["~/photos", "a=b", "my photos (old)", "it's {this", "/plain/path.d", "a,b}"])
def test_a_path_is_taken_as_it_is(path):
    assert composition.compose(["data=coco", f"data.root={path}"])["data"]["root"] == path


def test_the_same_name_means_another_agent_where_the_environment_says_so():
    for env, expected in (("sis", "grpo"), ("point_prompt", "grpo_clicks")):
        assert composition.compose([f"env={env}", "algo=grpo"])["algo"]["name"] == expected


def test_expand_lists_every_combination_in_order():
    rows = composition.expand(["env=sod,sis", "algo=random", "seed=0,1"])
    assert rows == [
        ["env=sod", "algo=random", "seed=0"],
        ["env=sod", "algo=random", "seed=1"],
        ["env=sis", "algo=random", "seed=0"],
        ["env=sis", "algo=random", "seed=1"],
    ]


def test_a_config_comes_back_from_its_text(tmp_path):
    config = composition.compose(["env=saliency", "data=coco", "data.root=ü"])
    (tmp_path / "config.yaml").write_text(composition.dump(config), encoding="utf-8")
    assert composition.load(tmp_path / "config.yaml") == config


def test_a_switch_that_is_null_takes_true_and_false():
    for word, value in (("true", True), ("false", False), ("null", None)):
        assert composition.compose(["data=grefcoco", f"data.no_target={word}"])["data"]["no_target"] is value
    with pytest.raises(UserError, match="data.no_target=3: expected true or false"):
        composition.compose(["data=grefcoco", "data.no_target=3"])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("env", 3, "env=3: expected names and values"),
        ("algo.name", 3, "algo={.*}: expected names and values"),
        ("algo", {"name": "cgpo"}, "has no key 'algo.updates'"),
        ("algo.updates", "x", "algo.updates=x: expected a whole number, such as 40"),
        ("algo.learning_rate", [1], r"algo.learning_rate=\[1\]: expected a number"),
        ("env.gym_ids", "x", "env.gym_ids=x: expected names and values"),
        ("evaluation", [], r"evaluation=\[\]: expected names and values"),
        ("evaluation.samples", "1", "evaluation.samples=1: expected a whole number"),
        ("evaluation", {"split": "test"}, "has no key 'evaluation.samples'"),
    ],
)
def test_a_stored_config_with_a_value_of_another_kind_is_named(tmp_path, key, value, expected):
    config = composition.compose([])
    *path, last = key.split(".")
    composition.look_up(config, path)[last] = value
    (tmp_path / "config.yaml").write_text(composition.dump(config))
    with pytest.raises(UserError, match=rf"config\.yaml: {expected}"):
        composition.load(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("+logger.group=x", "unknown key 'logger.group': logger=csv has no keys"),
        ("++scale.address=x", "unknown key 'scale.address': scale=local has no keys"),
        ("+evaluation.size=1", "unknown key 'evaluation.size': evaluation has split, samples, every, pictures"),
    ],
)
def test_a_key_that_nothing_would_read_is_refused(argument, expected):
    with pytest.raises(UserError, match=expected):
        composition.compose([argument])


@pytest.mark.parametrize("text", ["", "[1", "seed: 1", "- 1", "a: !!python/object:os.system {}", "[" * 100_000])
def test_a_file_that_is_no_config_of_a_run_is_named(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: "):
        composition.load(file)


def test_an_environment_brings_its_parts_unless_others_are_named():
    config = composition.compose(["env=point_prompt", "algo=ppo"])
    assert [config[group]["name"] for group in ("policy", "segmenter", "reward")] == [
        "point_actor_critic",
        "sam_tiny",
        "foreground_hit",
    ]
    config = composition.compose(["env=point_prompt", "algo=ppo", "reward=delta_iou", "policy.layers=1"])
    assert config["reward"]["name"] == "delta_iou" and config["policy"]["layers"] == 1
    with pytest.raises(UserError, match=r"policy\.layers=x: expected a whole number, such as 2"):
        composition.compose(["env=point_prompt", "algo=ppo", "policy.layers=x"])


def test_an_algorithm_brings_its_parts_before_the_environment_and_after_an_argument():
    chosen = [["algo=usersal_plus"], ["algo=usersal"], ["algo=grpo_masks"], ["env=point_prompt", "algo=usersal"]]
    names = [composition.compose(arguments)["policy"]["name"] for arguments in chosen]
    assert names == ["usersal_plus", "usersal", "usersal_plus", "usersal"]
    config = composition.compose(["env=point_prompt", "algo=usersal", "policy=point_actor_critic"])
    assert config["policy"]["name"] == "point_actor_critic" and config["segmenter"]["name"] == "sam_tiny"
    config = composition.compose(["algo=usersal_plus", "policy.backbone.name=swin", "policy.siamese=linear"])
    assert config["policy"]["backbone"] == {"name": "swin"} and config["policy"]["siamese"] == "linear"
    with pytest.raises(UserError, match=r"policy\.tokens=x: expected a whole number, such as 4"):
        composition.compose(["algo=usersal", "policy.tokens=x"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "cb28e4b4194de1a4"),
        ("env=cosod algo=grpo", "dc7210e81ff25016"),
        ("env=saliency algo=spo", "b904daa2d3f46e8f"),
        ("env=sod algo=random", "bfad6311825a0efc"),
        ("env=point_prompt algo=ppo", "c2317b4ce4a60a46"),
        ("env=point_prompt algo=grpo", "464b5c757d4ec6ae"),
        ("env=point_prompt algo=cgpo_clicks reward=delta_iou", "5e894fa3be19b4b1"),
    ],
)
def test_a_config_that_runs_are_named_by_stays_as_it_is(arguments, expected):
    text = composition.dump(config_of(tuple(arguments.split())))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == expected


def test_the_root_file_only_lists_choices():
    root = yaml.safe_load((composition.CONF / "config.yaml").read_text())
    assert {next(iter(entry)) for entry in root["defaults"] if isinstance(entry, dict)} == set(GROUPS)


@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("MASKGYM_UPDATES", "algo.updates"),
        ("MASKGYM_BATCH", "algo.batch_size"),
        ("MASKGYM_SAMPLES", "evaluation.samples"),
    ],
)
def test_runs_can_be_made_short_from_outside(monkeypatch, variable, key):
    group, name = key.split(".")
    monkeypatch.setenv(variable, "2")
    assert composition.compose(["env=sis", f"{key}=7"])[group][name] == 2
    assert composition.compose(["env=sis", f"{key}=1"])[group][name] == 1
    assert name in composition.compose(["env=point_prompt", "algo=ppo"])[group] or name == "batch_size"
    monkeypatch.setenv(variable, "two")
    with pytest.raises(UserError, match=f"{variable}=two: expected a whole number"):
        composition.compose(["env=sis"])


@pytest.mark.parametrize(
    ("arguments", "task"),
    [
        (["env=point_prompt"], "sod"),
        (["env=point_prompt", "data=duts"], "sod"),
        (["env=point_prompt", "data=sbu", "env.text=category"], "shadow"),
        (["env=point_prompt", "data=voc2012"], "semantic"),
        (["env=point_prompt", "data=sbu", "env.task=sod"], "sod"),  # asked for by name
        (["env=point_prompt", "data=folder", "env.task=glass"], "glass"),
        (["env=point_prompt", "data=ilso"], "sod"),  # the union of its instances
        (["env=user_need", "data=usersod"], "need"),
        (["env=user_need", "data=duts"], "need"),  # which its reader refuses
    ],
)
def test_the_task_of_a_published_data_set_stands(arguments, task):
    assert composition.compose(arguments)["env"]["task"] == task


def test_an_evaluation_changes_keys_of_the_runs_own_parts():
    """The environment's default policy, which has other keys, is not the run's."""
    config = composition.compose(["env=user_need", "algo=usersal", "data=hf"])
    changed = composition.change(config, ["policy.skip_empty_need=false"])
    assert changed["policy"] == {**config["policy"], "skip_empty_need": False} != config["policy"]
    with pytest.raises(UserError, match=r"unknown key 'policy\.x': policy=usersal has "):
        composition.change(config, ["policy.x=1"])


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["env=user_need", "algo=usersal"], "decay_epoch", 3),
        (["env=point_prompt", "algo=ppo"], "gamma", 0.5),
        (["env=point_prompt", "algo=grpo"], "images", 2),  # grpo_clicks
    ],
)
def test_an_evaluation_changes_keys_of_the_runs_own_algorithm(arguments, key, value):
    config = composition.compose(arguments)
    changed = composition.change(config, [f"algo.{key}={value}"])
    assert changed["algo"] == {**config["algo"], key: value} != config["algo"]
    with pytest.raises(UserError, match=rf"unknown key 'algo\.x': algo={config['algo']['name']} has "):
        composition.change(config, ["algo.x=1"])


def test_an_evaluation_of_a_run_with_a_part_of_the_users_own_takes_changes():
    config = composition.compose(["env=sis", "reward.name=mine:Tidy", "+reward.weight=2"])
    changed = composition.change(config, ["env.image_size=70", "+reward.weight=3"])
    assert changed["reward"] == {**config["reward"], "weight": 3} and changed["env"]["image_size"] == 70


def test_a_run_that_is_scored_on_a_published_data_set_takes_its_task():
    config = composition.compose(["env=point_prompt"])
    assert composition.change(config, ["data=sbu", "data.root=x"])["env"]["task"] == "shadow"
    assert composition.change(config, ["data=sbu", "env.task=sod"])["env"]["task"] == "sod"
    chosen = composition.compose(["env=point_prompt", "data=sbu", "env.task=sod"])
    assert composition.change(chosen, ["env.horizon=3"])["env"]["task"] == "sod"


def test_an_option_that_is_not_listed_reads_no_file(tmp_path):
    (tmp_path / "x.yaml").write_text("name: x")
    for name in (f"{tmp_path}/x", "../env/sod", "x\0"):  # as the config of a stranger may name it
        assert composition.option("algo", name) == {}
