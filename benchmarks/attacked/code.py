"""Files that carry code: pickles, configs with code beside them, templates, tags of YAML. None of it may run."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch

from maskgym import manifest
from maskgym.agents.common.checkpoints import read_checkpoint
from maskgym.aliases import JsonObject
from maskgym.benchmarks.attacked import runs
from maskgym.benchmarks.attacked.harness import Broken, Case, Stage, told
from maskgym.data.readers.refcoco import read_pickle
from maskgym.experiments import cli
from maskgym.experiments.wiring import run_folder
from maskgym.policies.text.mllm import TINY, LanguagePolicy
from maskgym.segmenters.weights import read_state

EVIL = "import pathlib\npathlib.Path({!r}).touch()\nclass Evil: pass\nEvil.from_pretrained = Evil\n"


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, act: Callable, *given: object) -> None:
        self.act, self.given = act, given

    def __reduce__(self) -> tuple[Callable, tuple[object, ...]]:
        return self.act, self.given


def payloads(sentinel: Path) -> dict[str, object]:
    """Build objects that make a file when they are unpickled."""
    touch, code = f"touch {sentinel}", f"open({str(sentinel)!r}, 'w').close()"
    inner = pickle.dumps(Payload(os.system, touch))
    return {
        "os.system": Payload(os.system, touch),
        "exec": Payload(builtins.exec, code),
        "eval": Payload(builtins.eval, f"__import__('os').system({touch!r})"),
        "subprocess": Payload(subprocess.call, ["touch", str(sentinel)]),
        "open": Payload(open, str(sentinel), "w"),
        "a pickle in a pickle": Payload(pickle.loads, inner),
        "torch.load": Payload(torch.load, str(sentinel)),
        "mkdir": Payload(os.mkdir, str(sentinel)),
        "a state that is set": OrderedDict(a=Payload(os.mkdir, str(sentinel))),
        "in a list": [1, [Payload(os.system, touch)]],
        "as a key": {("x", 1): Payload(os.system, touch)},
    }


def _plain(value: object, protocol: int) -> bytes:
    return pickle.dumps(value, protocol)


def _torch(value: object, zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"weights": torch.zeros(2), "update": 1, "agent": value}, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _archive(value: object) -> bytes:
    """Write what looks like PyTorch's archive with a pickle at its place."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(value))
        archive.writestr("x/version", "3")
        archive.writestr("x/byteorder", "little")
    return stream.getvalue()


CONTAINERS: dict[str, Callable[[object], bytes]] = {
    "protocol 0": lambda value: _plain(value, 0),
    "protocol 2": lambda value: _plain(value, 2),
    "protocol 5": lambda value: _plain(value, 5),
    "torch": lambda value: _torch(value, True),
    "torch, old form": lambda value: _torch(value, False),
    "archive": _archive,
}
Read = Callable[[Stage, bytes, Path], str]  # puts bytes at a place, reads it as a user would, returns what told


def _written(stage: Stage, content: bytes, name: str) -> Path:
    folder = stage.empty()
    folder.mkdir()
    (folder / name).write_bytes(content)
    return folder / name


def _in_run(kind: str, name: str, again: str) -> Read:
    """Read a file of a run: by resuming the stopped run, or by evaluating the finished one."""

    def read(stage: Stage, content: bytes, sentinel: Path) -> str:
        folder = stage.copied(runs.stopped(stage, kind) if again == "resume" else runs.finished(stage, kind))
        file = folder / run_folder.CHECKPOINTS / name
        file.write_bytes(content)
        if (there := file.parent / manifest.NAME).exists():
            step = json.loads(there.read_text())["step"]
            there.unlink()
            manifest.write(file.parent, step)
        if again == "resume":
            return runs.command(cli.main, "run", f"resume={folder}")[2]
        return runs.command(cli.main, "evaluate", str(folder))[2]

    return read


def _shard(stage: Stage, content: bytes, sentinel: Path) -> str:
    file = _written(stage, content, "pytorch_model-00001.bin")
    index = file.with_name("pytorch_model.bin.index.json")
    index.write_text(json.dumps({"weight_map": {"x": file.name}}))
    return told(lambda: read_state(index))


def _model_bin(stage: Stage, content: bytes, sentinel: Path) -> str:
    folder = stage.copied(TINY)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    return told(lambda: LanguagePolicy(folder).model)


def _adapter(stage: Stage, content: bytes, sentinel: Path) -> str:
    folder = stage.copied(TINY)
    (folder / "adapter_model.bin").write_bytes(content)
    described = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
    described["auto_mapping"] = {"base_model_class": "Evil", "parent_library": "evil"}
    (folder / "adapter_config.json").write_text(json.dumps({**described, "base_model_name_or_path": str(folder)}))
    (folder / "evil.py").write_text(EVIL.format(str(sentinel)))
    return told(lambda: LanguagePolicy(folder).model)


PLACES: dict[str, Read] = {
    "a checkpoint": lambda stage, content, sentinel: told(lambda: read_checkpoint(_written(stage, content, "x.pt"))),
    "weights .pt": lambda stage, content, sentinel: told(lambda: read_state(_written(stage, content, "x.pt"))),
    "weights .bin": lambda stage, content, sentinel: told(lambda: read_state(_written(stage, content, "x.bin"))),
    "weights .safetensors": lambda stage, content, sentinel: told(
        lambda: read_state(_written(stage, content, "x.safetensors"))
    ),
    "a shard": _shard,
    "a model's pytorch_model.bin": _model_bin,
    "an adapter": _adapter,
    "clicks.pt": _in_run("ppo", "clicks.pt", "resume"),
    "policy.pt": _in_run("ppo", "policy/policy.pt", "evaluate"),
    "masks.pt": _in_run("usersal_plus", "masks.pt", "resume"),
    "optimizer.pt": _in_run("text", "checkpoint-1/optimizer.pt", "resume"),
    "scheduler.pt": _in_run("text", "checkpoint-1/scheduler.pt", "resume"),
    "rng_state.pth": _in_run("text", "checkpoint-1/rng_state.pth", "resume"),
    "training_args.bin": _in_run("text", "checkpoint-1/training_args.bin", "resume"),
    "cgpo_state_0.pt": _in_run("text", "checkpoint-1/cgpo_state_0.pt", "resume"),
}
OF_TEXT = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "cgpo_state_0.pt")
NEEDS_RUN = {"clicks.pt": "ppo", "policy.pt": "ppo", "masks.pt": "usersal_plus", **dict.fromkeys(OF_TEXT, "text")}
UNUSED = ("training_args.bin", "an adapter")  # nothing reads them, so nothing need be told
TEMPLATES = (
    "{{ cycler.__init__.__globals__.os.system('touch SENTINEL') }}",
    "{{ self.__init__.__globals__.__builtins__.open('SENTINEL', 'w') }}",
    "{{ lipsum.__globals__['os'].popen('touch SENTINEL').read() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('SENTINEL', 'w') }}",
    "{{ strftime_now.__globals__['datetime'] }}{{ tojson.__globals__ }}",
    "{% for one in range(10**12) %}x{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{{ 'x' * 10**7 }}{% if",
)


def _json(name: str, **changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / name
        known: JsonObject = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**known, **changes}))

    return edit


def _template(text: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        sentinel = str(folder.parent / "sentinel")
        (folder / "chat_template.jinja").write_text(text.replace("SENTINEL", sentinel))

    return edit


def _generate(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")


FOLDERS: dict[str, Callable[[Path], None]] = {
    "auto_map of the config": _json("config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}),
    "auto_map of another model": _json("config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"}),
    "auto_map of the processor": _json("processor_config.json", auto_map={"AutoProcessor": "evil.Evil"}),
    "another processor": _json(
        "processor_config.json", processor_class="Evil", auto_map={"AutoProcessor": "evil.Evil"}
    ),
    "auto_map of the images": _json("preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"}),
    "auto_map of the tokenizer": _json("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    "another tokenizer": _json(
        "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]}
    ),
    "auto_map of generation": _json("generation_config.json", auto_map={"AutoConfig": "evil.Evil"}, custom="evil"),
    "own generation": _generate,
    "attention from a hub": _json("config.json", attn_implementation="evil/kernel", _attn_implementation="evil/kernel"),
    "quantization": _json("config.json", quantization_config={"quant_method": "evil", "modules": ["evil.Evil"]}),
    "architectures": _json("config.json", architectures=["evil.Evil"], custom_pipelines={"x": {"impl": "evil.Evil"}}),
    **{f"template {number}": _template(text) for number, text in enumerate(TEMPLATES)},
}


def carried_code(stage: Stage) -> Case:
    """Prepare: a pickle at a place that is read, or a folder of a model with code beside its files."""
    places = {name: read for name, read in PLACES.items() if NEEDS_RUN.get(name) in (None, *stage.kinds)}
    ways = [*places, *FOLDERS]

    def case(chance: random.Random, number: int) -> str:
        sentinel = stage.empty("sentinel")
        way = ways[number % len(ways)]
        if way in FOLDERS:
            stage.label, line = way, _of_folder(stage, FOLDERS[way])
            harmful = False
        else:
            what, container = chance.choice(list(payloads(sentinel))), chance.choice(list(CONTAINERS))
            stage.label, harmful = f"{what} as {container} in {way}", way not in UNUSED
            line = places[way](stage, CONTAINERS[container](payloads(sentinel)[what]), sentinel)
        if sentinel.exists():
            raise Broken("its code ran")
        if harmful and not line:
            raise Broken("it was not told")
        return line

    return case


def _of_folder(stage: Stage, edit: Callable[[Path], None]) -> str:
    folder = stage.copied(TINY)
    (folder / "evil.py").write_text(EVIL.format(str(folder.parent / "sentinel")))
    (folder / "__init__.py").touch()
    edit(folder)

    def read() -> None:
        policy = LanguagePolicy(folder)
        assert policy.prefilled is not None and policy.model is not None

    return told(read)


PLAIN = [{"ref_id": 1, "ann_id": 10, "image_id": 1, "split": "train", "sentences": [{"sent": "a cup"}]}]


def pickled_expressions(stage: Stage) -> Case:
    """Prepare: a pickle of expressions with code in it, or with damaged bytes; an undamaged one is read."""

    def case(chance: random.Random, number: int) -> str:
        sentinel, protocol = stage.empty("sentinel"), chance.choice([0, 1, 2, 3, 4, 5])
        names = list(payloads(sentinel))
        if number % 2 == 0:
            stage.label = f"{names[number // 2 % len(names)]}, protocol {protocol}"
            content = pickle.dumps([*PLAIN, payloads(sentinel)[names[number // 2 % len(names)]]], protocol)
        else:
            content = _damaged_pickle(chance, pickle.dumps(PLAIN, protocol))
            stage.label = f"damaged, protocol {protocol}"
        file = _written(stage, content, "refs(unc).p")
        line = told(lambda: read_pickle(file))
        if sentinel.exists():
            raise Broken("its code ran")
        if number % 2 == 0 and not line:
            raise Broken("it was read")
        return line

    return case


def _damaged_pickle(chance: random.Random, content: bytes) -> bytes:
    raw = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    return bytes(raw[: chance.randrange(1, len(raw) + 1)])


def _bomb(depth: int = 30) -> str:
    """Write lists of ten aliases each of the list before: few bytes, and more values than any memory holds."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, depth)]
    return "\n".join(lines) + "\n"


TAGS: dict[str, str] = {
    "apply": "seed: !!python/object/apply:os.system ['touch SENTINEL']\n",
    "apply, new": "seed: !!python/object/new:os.system ['touch SENTINEL']\n",
    "name": "seed: !!python/name:os.system\n",
    "module": "seed: !!python/module:evil\n",
    "object": "seed: !!python/object:builtins.Exception {}\n",
    "tuple": "seed: !!python/tuple [1, 2]\n",
    "own tag": "seed: !evil 1\n",
    "interpolation": "out: ${oc.env:PATH}\nseed: ${seed}\n",
    "many digits": f"seed: {'9' * 5000}\n",
    "aliases": _bomb(),
    "aliases as a group": f"{_bomb()}algo: *a29\n",
    "nested": f"seed: {'[' * 100_000}\n",
    "a date out of range": "seed: 2020-99-99\n",
    "a key that is a list": "? [1, 2]\n: 3\n",
    "binary": "seed: !!binary '@@@'\n",
    "a cycle": "algo: &a {name: *a}\n",
}


def tagged_yaml(stage: Stage) -> Case:
    """Prepare: a stored config, or a file of a study, with tags, aliases or values that no config has."""
    config = (runs.finished(stage, stage.kinds[0]) / run_folder.CONFIG).read_text()

    def case(chance: random.Random, number: int) -> str:
        sentinel, name = stage.empty("sentinel"), list(TAGS)[number % len(TAGS)]
        text = TAGS[name].replace("SENTINEL", str(sentinel))
        keys = [line.partition(":")[0] for line in text.splitlines() if line[:1].isalpha()]
        kept = "".join(f"{block}" for block in _blocks(config) if block.partition(":")[0] not in keys)
        stage.label = name
        stored = _written(stage, (kept + text).encode(), run_folder.CONFIG)
        lines = [runs.command(cli.main, "run", f"resume={stored.parent}")[2]]
        plan = stored.with_name("plan.yaml")
        plan.write_text(text)
        lines.append(runs.command(cli.main, "study", str(plan))[2])
        if sentinel.exists():
            raise Broken("its code ran")
        if not all(lines):
            raise Broken(f"told: {[bool(line) for line in lines]} by the stored config and by a study")
        return lines[0]

    return case


def _blocks(config: str) -> list[str]:
    """Split YAML into its blocks of one key each."""
    blocks: list[str] = []
    for line in config.splitlines(keepends=True):
        if line[:1] in (" ", "-") and blocks:
            blocks[-1] += line
        else:
            blocks.append(line)
    return blocks
