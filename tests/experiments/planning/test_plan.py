"""Plans of runs: what each setting changes, and mistakes in one line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maskgym.experiments import cli
from maskgym.experiments.planning import memory, plan, seconds, text
from maskgym.experiments.planning.devices import DEVICES
from maskgym.experiments.planning.models import published
from maskgym.experiments.planning.work import Work
from maskgym.experiments.wiring import composition

LARGE = ("env=sod", "policy=qwen2_5_vl_7b", "segmenter=evf_sam", "env.image_size=448", "algo.max_new_tokens=768")
EIGHT = ("scale=ray", "scale.num_workers=8", "scale.use_gpu=true")
WHOLE = ("policy.lora_rank=null", "policy.dtype=float32", "+algo.bf16=true")


def planned(*arguments: str, gpu: str = "h100", answer: int | None = None) -> plan.Plan:
    return plan.of_run(composition.compose([*LARGE, *arguments]), gpu, answer)


def test_more_workers_take_fewer_hours_and_less_memory_each():
    one, eight = planned(), planned(*EIGHT)
    assert eight.update < one.update and eight.evaluation < one.evaluation and eight.run < one.run
    assert eight.memory.total < one.memory.total
    assert [found.works["sod"].answers for found in (one, eight)] == [128, 16]


def test_adapters_take_less_memory_than_all_weights():
    adapted, whole = planned(), planned(*WHOLE)
    assert sum(adapted.memory.held.values()) < sum(whole.memory.held.values()) / 6
    assert adapted.memory.total < whole.memory.total
    assert whole.memory.held["weights"] == 4 * 8_292_166_656
    assert whole.memory.held["moments"] == whole.model.trained * 4 * 4  # CGPO: two optimizers, each with a pair
    assert "moments" in adapted.memory.held and adapted.memory.held["moments"] == adapted.model.trained * 4 * 5
    assert text.verdict(adapted).startswith(("fits", "does not fit: algo.micro_batch_size"))
    assert "policy.lora_rank=16 trains adapters" in text.verdict(whole)


def test_the_algorithm_decides_what_is_kept_and_computed():
    found = {
        algo: planned(f"algo={algo}", *more).works["sod"]
        for algo, more in {
            **dict.fromkeys(("sft", "cgpo", "grpo", "dr_grpo", "dapo", "gspo", "rloo", "spo"), ()),
        }.items()
    }
    assert {algo: work.scorings for algo, work in found.items() if work.scorings} == {"grpo": 1, "rloo": 2}
    assert {algo: work.pairs for algo, work in found.items() if work.pairs > 1} == {"cgpo": 2}
    assert {algo: work.supervised for algo, work in found.items() if work.supervised} == {"sft": 1.0, "cgpo": 0.4}
    assert {algo: work.prompts for algo, work in found.items() if algo in ("cgpo", "grpo", "spo")} == {
        **{"cgpo": 128, "grpo": 16, "spo": 128}
    }
    assert not any(work.reference for work in found.values())
    whole = planned("algo=grpo", *WHOLE)
    assert whole.works["sod"].reference and whole.memory.held["reference model"] == whole.memory.held["weights"]
    assert planned("algo=cgpo", "algo.isr_shared_optimizer=true").works["sod"].pairs == 1
    assert planned("algo=grpo", "algo.num_iterations=2").works["sod"].scorings == 2


def test_a_supervised_update_generates_nothing():
    (sft,), (cgpo,) = planned("algo=sft").updates, planned("algo=cgpo").updates
    assert sft.generation == sft.segmenter == 0 and sft.update == cgpo.supervised == cgpo.training
    assert cgpo.update == pytest.approx(0.6 * cgpo.sampled + 0.4 * cgpo.supervised)


def test_each_setting_has_its_effect():
    plain = planned()
    assert planned(answer=100).update < plain.update and planned(answer=100).memory == plain.memory
    assert planned("algo.max_new_tokens=1024").memory.total > plain.memory.total
    assert planned("env.image_size=896").memory.total > plain.memory.total
    assert planned("algo.micro_batch_size=1").memory.total < plain.memory.total
    assert planned("+algo.gradient_checkpointing=false").memory.total > plain.memory.total
    assert planned("algo.updates=80").run - plain.run == pytest.approx(40 * plain.update)
    assert planned("evaluation.samples=512").evaluation == pytest.approx(2 * plain.evaluation)
    assert planned("evaluation.every=10").evaluations == 2 + 3 and planned("algo.updates=0").evaluations == 1
    assert planned("policy=qwen2_5_vl_3b").update < plain.update
    assert planned(gpu="a100").update > plain.update and planned(gpu="H100").update == plain.update
    assert "segmenter" not in planned(*EIGHT, "scale.reward_actors=2").memory.held
    whole = planned("algo=grpo", *WHOLE, *EIGHT), planned("algo=grpo", *WHOLE, *EIGHT, "+algo.fsdp=true")
    assert whole[1].memory.held["moments"] == whole[0].memory.held["moments"] / 8


def test_tasks_take_turns_and_groups_have_several_images():
    found = planned("env=saliency", "env.group_size=8")
    assert [work.images for work in found.works.values()] == [1, 1, 8]
    assert found.update == pytest.approx(sum(one.update for one in found.updates) / 3)
    largest = memory.of_worker(found.model, found.works["cosod"], found.device, found.segmenter)
    assert found.memory == largest


def test_an_evaluation_may_generate_more_answers_than_an_update():
    few, many = (planned("algo.batch_size=4", f"env.num_envs={count}").memory for count in (4, 64))
    assert many.phases["generation"] > 10 * few.phases["generation"] and many.held == few.held
    assert planned("algo=sft", "evaluation.samples=0").memory.phases["generation"] == 0


def test_auto_takes_the_most_answers_that_fit():
    found = planned("algo.micro_batch_size=auto")
    (work,) = found.works.values()
    assert 1 < work.in_pass < 128 and found.memory.total < found.device.memory
    more = memory.of_worker(found.model, replace(work, in_pass=128), found.device, found.segmenter)
    assert more.total > found.device.memory


def test_bytes_of_a_worker_are_those_on_paper():
    model, work = published("3b"), Work(answers=2, in_pass=2)
    found = memory.of_worker(model, work, DEVICES["a100"], None)
    assert found.held["weights"] == 2 * 3_754_622_976
    assert found.held["moments"] == 29_933_568 * 4 * 3  # weights and one pair of moments
    tokens = 150 + 256 + 400
    assert memory.cache(model, work) == 2 * tokens * 36 * 2 * 2 * 128 * 2
    kept, layer = tokens * 36 * 2048 * 2, tokens * ((4 * 2048 + 3 * 11008) * 2 + (8 * 2048 + 11008) * 4)
    head, pixels = 4 * 800 * 32768 * 4, 2 * 1024 * 1176 * 4
    assert memory.training(model, work, True, 2) == 2 * (kept + layer) + head + pixels


def test_an_output_layer_that_is_slower_counts_by_itself():
    device, model, work = DEVICES["a100"], published("3b"), Work(answers=2, scorings=1)
    slow = replace(device, head_flops=device.flops / 10)
    head = 2 * model.head * 400 * 2 / device.flops  # a pass over both answers
    assert seconds.training(model, work, slow) - seconds.training(model, work, device) == pytest.approx(27 * head)
    assert seconds.scoring(model, work, slow) - seconds.scoring(model, work, device) == pytest.approx(9 * head)


def test_without_a_gpu_freed_memory_counts_up_to_what_is_kept():
    model, plain = published("3b"), DEVICES["a100"]
    few, many = (memory.of_worker(model, Work(one, in_pass=one), replace(plain, gpu=False), None) for one in (1, 8))
    assert many.held["freed"] == 512 * 2**20 and "freed" not in memory.of_worker(model, Work(), plain, None).held
    assert few.held["freed"] == min(512 * 2**20, max(few.phases.values()))


def test_the_command_prints_both_tables_and_what_they_rest_on(capsys):
    assert cli.main(["plan", *LARGE, *EIGHT, "--gpu", "h100"]) == 0
    printed = capsys.readouterr().out
    counts = "8,292,166,656 parameters, 40,370,176 trained (adapters of rank 16), bfloat16"
    for words in (counts, "8 workers, each on H100"):
        assert words in printed
    for line in ("weights  ", "segmenter  ", "generation  ", "an update, on average", "It assumes:", "(assumed)"):
        assert line in printed
    assert "fits" in printed and "989 TFLOP/s" in printed


def test_this_machine_is_measured(capsys):
    assert cli.main(["plan", "env=sod", "algo=cgpo", "algo.batch_size=4", "--answer", "8"]) == 0
    printed = capsys.readouterr().out
    assert "2,147,776 parameters, 803,840 trained (no adapters), float32" in printed
    assert "measured here, in float32" in printed and "tokens of text and" in printed  # counted by its tokenizer


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gpu", "b200"], "--gpu b200: expected one of a100, h100"),
        (["--gpu", "h100", "--answer", "0"], "--answer 0: expected at least 1"),
        (["env=point_prompt", "algo=ppo"], "algo=ppo: maskgym plan covers algorithms that train on answers in text"),
        (["algo=random"], "algo=random: maskgym plan covers"),
        (["policy=none"], "policy=none: maskgym plan counts language models"),
        (["policy=qwen2_5_vl"], "policy.path is not set"),
        (["policy=qwen2_5_vl", "policy.path=/nowhere"], "policy.path=/nowhere: no such folder"),
        (["policy=qwen2_5_vl_7b", "policy.lora_rank=null"], "policy.dtype=bfloat16 with policy.lora_rank=null"),
        (["algo.micro_batch_size=7"], "algo.micro_batch_size=7: expected a divisor of a worker's 128 answers"),
        (["scale=ray", "scale.num_workers=7"], "algo.batch_size=128: expected a multiple of the 7 workers"),
        (["algo=grpo", "algo.group_size=7"], "algo.group_size=7: expected a divisor of batch_size=128"),
        (["algo=grpo", "+algo.use_vllm=true"], "algo.use_vllm=true: maskgym plan knows"),
        (["+algo.fsdp=true"], "algo.fsdp: supervised steps"),
        (["+algo.nonsense=1"], "unknown setting algo.nonsense"),
        (["env=mars"], "unknown env 'mars'"),
        (["segmenter=evf_sam", "segmenter.checkpoint=/tmp"], "/tmp/config.json: no such file"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, expected):
    gpu = [] if "--gpu" in arguments else ["--gpu", "h100"]
    assert cli.main(["plan", *arguments, *gpu]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line


def test_a_segmenter_that_is_not_counted_is_told(capsys):
    assert cli.main(["plan", "env=sod", "segmenter=clipseg", "--gpu", "h100"]) == 0
    printed = capsys.readouterr().out
    assert "segmenter=clipseg" in printed and printed.count("not counted") == 2
