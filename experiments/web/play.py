"""``maskgym play``: play an environment in a browser, beside an oracle or a trained policy on the same sample.

    maskgym play                                    # salient instances, in words
    maskgym play env=point_prompt                   # clicks
    maskgym play env=user_need data=coco data.root=DIR
    maskgym play --run RUN_DIR                      # as that run, beside its trained policy

The arguments are those of `maskgym run`. Clicks carry the label that you give them, unless the run, or
env.label_source=…, says who labels them.

OUT/episodes.jsonl gets one line for each episode that is played to its end, OUT/pictures what the environment draws of
it. Lines have ``time``, ``seconds``, ``env``, ``task``, ``data``, ``split``, ``index``, ``key``, ``asks`` (what was
asked for), ``actions``, ``rewards``, ``terms`` and ``iou`` (a step each), ``reward``, ``ended``, ``peeked``
(others, or the truth, could be seen before) and ``picture``. An action is a text, [patch, label], a patch where others
label clicks, or COCO's run-length code of a mask over the observed square.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from PIL import Image

from maskgym import agents
from maskgym.aliases import Config
from maskgym.chat.asker import data_url, to_png
from maskgym.data import SPLITS, Sample
from maskgym.data.run_lengths import decode_counts, encode, runs
from maskgym.data.sample import CATEGORIES
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.envs.letterbox import fitted_size
from maskgym.envs.rendering import PALETTE
from maskgym.errors import UserError
from maskgym.experiments.evaluation import rollout
from maskgym.experiments.evaluation.rollout import first_rows
from maskgym.experiments.evaluation.trajectories import EPISODES
from maskgym.experiments.web import local_server as pages
from maskgym.experiments.wiring import build, composition, run_folder
from maskgym.experiments.wiring.command import Parser
from maskgym.rewards import parse, without_reasoning
from maskgym.rewards.answers import TAGS

PAGE = Path(__file__).with_name("play.html")
PICTURES = "pictures"
MOST_TEXT, LARGEST_BODY = 20_000, 2_000_000  # characters of an answer; bytes of a request
LARGEST = 1024  # pixels of a side that is shown: larger images are made smaller, and their masks likewise
REFERENCES = {  # agents that need no training: what they are called here, and how they do it
    "oracle": ("Oracle", "it knows the truth"),
    "referring": ("Segmenter", "the need taken as a phrase"),
}
# What an answer in words holds, by task: what to begin with, and what its tags mean.
FORMS = {
    "sod": (
        "<rg></rg>",
        (
            ("<rg>…</rg>", "a phrase for a salient region; as many as there are"),
            ("<rg>[semantic] dog</rg>", "a bare category: all that belongs to it"),
        ),
    ),
    "sis": ("<ins></ins>", (("<ins>…</ins>", "a phrase for one salient instance, told apart by place or looks"),)),
    "cosod": ("<rg>[semantic] </rg>", (("<rg>[semantic] …</rg>", "the one category that all images share; once"),)),
}
# Called with the number of steps so far and the observations of one sub-environment: an action, None for no more.
Chooser = Callable[[int, Any], Any]


@dataclass(frozen=True)
class Step:
    """One step: its action, reward and outcome.

    Attributes:
        action: Action that the environment received.
        reward, terms: The reward, and the values of its terms by name.
        iou: Of the mask, of all expressions together, or with the object that is scored.
        masks: For each image bool (m, H, W).
        facts: Of clicks ``patch``, ``label`` and ``repeated``, of ranking ``found``.
    """

    action: Any
    reward: float
    terms: dict[str, float]
    iou: float
    masks: tuple[np.ndarray, ...]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Episode:
    """An episode, to its end or not.

    Attributes:
        observation: Observation after the last step.
        steps: Steps so far.
        ended: ``terminated``, ``truncated``, or empty where it goes on.
    """

    observation: dict[str, Any]
    steps: tuple[Step, ...]
    ended: str


class Journal:
    """Finished episodes in a folder: one line each in a file that is written whole, and a picture.

    Args:
        folder: Made with the first episode; one that is there is continued.

    Raises:
        UserError: If the file does not hold episodes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / EPISODES
        self._lines()

    def add(self, row: Mapping[str, Any], picture: np.ndarray) -> None:
        """Add an episode and its picture, uint8 (H, W, 3).

        Raises:
            UserError: If it cannot be written.
        """
        lines = self._lines()
        name = f"{PICTURES}/{len(lines) + 1:04d}.png"
        try:
            run_folder.write(self.folder / name, to_png(picture))
            line = run_folder.to_json({**row, "picture": name}).encode()
            run_folder.write(self.file, b"".join(one + b"\n" for one in (*lines, line)))
        except OSError as error:
            raise UserError(f"{self.file}: not saved: {error.strerror}") from error

    def _lines(self) -> list[bytes]:
        """Return the lines that are there; a last one that was cut short, by another program's end, is left out."""
        try:
            *whole, last = self.file.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{self.file}: cannot be read: {error.strerror}") from error
        for number, line in enumerate(whole, start=1):
            if not _is_object(line):
                raise UserError(f"{self.file}: line {number} is no episode: choose another --out")
        return [*whole, last] if _is_object(last) else whole


class Game:
    """What the page asks for: samples, what actions lead to, and what others do on the same sample.

    An episode is its sample and its actions: the page sends both, and it is played from its start each time. So nothing
    of it is kept here, undoing is playing less, and two windows do not disturb each other.

    Args:
        config: Config of a run; the training settings are ignored.
        parts: Shared parts of the environments.
        journal: Journal of finished episodes.
        policy: The trained agent, or None.
        title: Name of the agent.

    Raises:
        UserError: If the environment cannot be made, or takes actions that are neither texts, clicks nor masks.
    """

    def __init__(
        self, config: dict[str, Any], parts: Mapping[str, Any], journal: Journal, policy: Any = None, title: str = ""
    ) -> None:
        env = {**config["env"], "num_envs": 1, "render_mode": "rgb_array"}
        self.config: Config = {**config, "env": env}
        self.tasks, self.journal = tuple(env["gym_ids"]), journal
        self._parts, self._policy, self._title = parts, policy, title
        self._envs: dict[tuple[str, str], Any] = {}
        self._sample = lru_cache(maxsize=16)(self._read)
        self._busy = Lock()  # Environments and networks are not thread-safe.
        self.split = self._first_split(config["evaluation"]["split"])

    def start(self) -> dict[str, Any]:
        """Return the data that is the same for all samples."""
        return {
            "env": self.config["env"]["name"],
            "tasks": self.tasks,
            "splits": SPLITS,
            "split": self.split,
            "palette": PALETTE.tolist(),
            "out": str(self.journal.file),
        }

    def show(self, given: dict[str, Any]) -> dict[str, Any]:
        """Start an episode on a sample.

        Raises:
            UserError: If there is no such sample.
        """
        with self._busy:
            task, split, index = self._place(given)
            env, sample = self._env(task, split), self._sample(task, split, index)
            episode = self._play(env, index, repeating([]))
            return {
                "count": env.unwrapped.num_samples,
                "key": sample.key,
                "kind": kind_of(env),
                "images": [_picture(image) for image in sample.images],
                "asks": _asks(env, sample),
                "others": self._others(task, env, sample),
                **_rules(env),
                "outcome": self._outcome(env, sample, episode),
            }

    def check(self, given: dict[str, Any]) -> dict[str, Any]:
        """Check the form of a text without its masks.

        Raises:
            UserError: If it is no text, or too long.
        """
        with self._busy:
            env = self._env(*self._place(given)[:2])
        return describe_text(_text(given.get("text")), env)

    def step(self, given: dict[str, Any]) -> dict[str, Any]:
        """Play actions from the start of the episode; a finished episode is saved.

        Raises:
            UserError: If an action cannot be taken.
        """
        with self._busy:
            task, split, index = self._place(given)
            env, sample = self._env(task, split), self._sample(task, split, index)
            actions = _actions(given.get("actions"), env, sample)
            episode = self._play(env, index, repeating(actions))
            if len(episode.steps) < len(actions):
                raise UserError(f"{len(actions)} actions: the episode is over after {len(episode.steps)}")
            outcome = self._outcome(env, sample, episode)
            if episode.ended:
                row = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "seconds": _seconds(given.get("seconds"))}
                row |= {"env": self.config["env"]["name"], "task": task, "data": self.config["data"]["name"]}
                row |= {"split": split, "index": index, **_row(env, sample, episode)}
                outcome["fault"] = self._save(row | {"peeked": given.get("peeked") is True}, env.render()[0])
            return outcome

    def against(self, given: dict[str, Any]) -> dict[str, Any]:
        """Play the sample by another player: ``truth``, ``reference`` or ``policy``.

        Raises:
            UserError: If there is no such other.
        """
        with self._busy:
            task, split, index = self._place(given)
            env, sample = self._env(task, split), self._sample(task, split, index)
            who = given.get("who")
            if who not in [other["who"] for other in self._others(task, env, sample)]:
                raise UserError(f"who {who!r}: nobody of this name plays here")
            if who == "truth":
                return {"masks": _all_runs(_truth(env, sample)), "steps": []}
            if who == "policy":
                choose = chooser(self._policy, env)
            elif kind_of(env) == "text":
                choose = repeating([_rationale(env, sample)])
            else:
                choose = chooser(self._reference(task, env), env)
            return self._outcome(env, sample, self._play(env, index, choose))

    def _play(self, env: Any, index: int, choose: Chooser) -> Episode:
        """Play a sample from its start: chance is the same each time, whoever plays."""
        seen, _ = env.reset(seed=self.config["seed"], options={"index": index})
        steps: list[Step] = []
        ended = ""
        while not ended and (action := choose(len(steps), seen)) is not None:
            seen, values, terminated, truncated, infos = env.step([action])
            ended = "terminated" if terminated[0] else "truncated" if truncated[0] else ""
            steps.append(_step(action, float(values[0]), infos))
        return Episode(first_rows(seen, 1)[0], tuple(steps), ended)

    def _outcome(self, env: Any, sample: Sample, episode: Episode) -> dict[str, Any]:
        """Build the page's view of an episode."""
        kind, steps = kind_of(env), episode.steps
        found: dict[str, Any] = {
            "steps": [{"reward": s.reward, "terms": s.terms, "iou": s.iou, **s.facts} for s in steps],
            "reward": sum(step.reward for step in steps),
            "ended": episode.ended,
            "masks": _all_runs(_masks(env, episode)),
        }
        if kind == "text" and steps:
            found["answer"] = describe_text(steps[-1].action, env)
        if kind == "clicks":  # prompts are the clicks that the episode began with, in shares of the image
            (state,) = env.unwrapped.get_state()
            points = (state.points[: len(state.labels) - len(steps)] / env.unwrapped.image_size).tolist()
            found["prompts"] = [[*point, int(label)] for point, label in zip(points, state.labels, strict=False)]
        if kind == "masks":  # what is left to find; the padding is nothing to draw on
            height, width = fitted_size(sample.images[0].shape, env.unwrapped.image_size)
            found["now"] = _picture(episode.observation["image"][:height, :width], shrink=False)
        if episode.ended:
            found["truth"] = _all_runs(_truth(env, sample))
        return found

    def _others(self, task: str, env: Any, sample: Sample) -> list[dict[str, str]]:
        """List the other players of a sample with their names."""
        found: dict[str, tuple[str, str]] = {}
        if kind_of(env) == "text":
            found |= {"reference": ("Rationale", "that of the data")} if sample.rationale else {}
        elif name := self._reference_name(task):
            found |= {"reference": REFERENCES[name]}
        found |= {} if self._policy is None else {"policy": ("Trained policy", self._title)}
        found |= {"truth": ("Truth", "")}
        return [{"who": who, "title": title, "note": note} for who, (title, note) in found.items()]

    def _reference_name(self, task: str) -> str | None:
        return next((name for name in REFERENCES if task in agents.get(name).tasks), None)

    def _reference(self, task: str, env: Any) -> Any:
        name = self._reference_name(task)
        assert name is not None  # else nobody could ask
        segmenter = {"segmenter": self._parts["segmenter"]} if name == "referring" else {}
        return agents.make(name, env=env, **segmenter)

    def _save(self, row: Mapping[str, Any], picture: np.ndarray) -> str:
        """Save an episode; return what went wrong, if anything: the outcome is shown all the same."""
        try:
            self.journal.add(row, picture)
        except UserError as error:
            return str(error)
        return ""

    def _first_split(self, wanted: str) -> str:
        """Return the split to begin with: the one to be evaluated on, or, where a small data set lacks it, another."""
        faults = []
        for split in dict.fromkeys((wanted, *reversed(SPLITS))):
            try:
                kind_of(self._env(self.tasks[0], split))
                return split
            except UserError as error:
                faults.append(error)
        raise faults[0]

    def _env(self, task: str, split: str) -> Any:
        if (task, split) not in self._envs:
            self._envs[task, split] = build.make_env(self.config, task, split, self._parts)
        return self._envs[task, split]

    def _read(self, task: str, split: str, index: int) -> Sample:
        return self._env(task, split).unwrapped.dataset[index]

    def _place(self, given: Mapping[str, Any]) -> tuple[str, str, int]:
        task, split, index = given.get("task"), given.get("split"), given.get("index")
        if not isinstance(task, str) or task not in self.tasks or not isinstance(split, str) or split not in SPLITS:
            raise UserError(f"task {task!r}, split {split!r}: expected one of {', '.join((*self.tasks, *SPLITS))}")
        count = self._env(task, split).unwrapped.num_samples
        if type(index) is not int or not 0 <= index < count:
            raise UserError(f"sample {index!r}: the {split} split has samples 0 to {count - 1}")
        return task, split, index


def main(arguments: Sequence[str]) -> int:
    """Play an environment in a browser, beside an oracle or the trained policy of a run."""
    parser = Parser(prog="maskgym play", description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="as of maskgym run, such as env=point_prompt")
    parser.add_argument("--run", type=Path, metavar="RUN_DIR", help="a finished run: its environment and its policy")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where episodes go (runs/play/ENV-TIME)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="anything but this machine's own asks for a token (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    given = parser.parse_intermixed_args(arguments)
    game = open_game(given.settings, given.run, given.out)
    try:
        pages.serve(
            partial(make_app, game),
            given.host,
            given.port,
            lambda address: print(f"{address}   (Ctrl-C ends)\nepisodes go to {game.journal.file}", flush=True),
        )
    except KeyboardInterrupt:
        print("\nended")
    return 0


def open_game(settings: Sequence[str], folder: Path | None = None, out: Path | None = None) -> Game:
    """Build the game of the arguments.

    Args:
        settings: ``key=value``, as of a run; with a folder, what is to be different from it.
        folder: Folder of a finished run whose policy plays along.
        out: Folder for episodes.

    Raises:
        UserError: If an argument cannot be used, or the run is not finished.
    """
    policy, title, parts = None, "", None
    if folder is None:
        config = composition.compose(settings)
        chosen = any(one.startswith("env.label_source=") for one in settings)
        if config["env"].get("label_source") == "srm" and not chosen:
            config["env"]["label_source"] = "policy"  # what would label clicks has learned nothing: the person does
    else:
        built = build.trained(folder, settings)
        config, policy, parts = built.config, built.agent, built.parts
        title = f"{config['algo']['name']}, {folder.resolve().name}"
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written: {error.strerror}") from error
    journal = Journal(out or Path("runs", "play", f"{config['env']['name']}-{time.strftime('%Y%m%d-%H%M%S')}"))
    return Game(config, parts or build.make_parts(config), journal, policy, title)


def make_app(game: Game, hosts: Sequence[str] = pages.LOCAL, token: str | None = None) -> pages.Starlette:
    """Return the application of a game; hosts and token are those of `pages.make_app`."""
    return pages.make_app(
        PAGE,
        reading={"/api/start": game.start},
        changing={
            "/api/show": game.show,
            "/api/check": game.check,
            "/api/step": game.step,
            "/api/against": game.against,
        },
        hosts=hosts,
        token=token,
        largest_body=LARGEST_BODY,
    )


def kind_of(env: VectorEnv) -> str:
    """Return the kind of actions: ``text``, ``clicks`` or ``masks``."""
    return unwrap(env, SampleVectorEnv).action_kind


def repeating(actions: Sequence[Any]) -> Chooser:
    """Build a chooser that replays these actions."""
    return lambda step, seen: actions[step] if step < len(actions) else None


def chooser(agent: Any, env: Any) -> Chooser:
    """Build the greedy chooser of an agent; a searching agent searches when the first action is asked for."""

    @cache
    def begin() -> rollout.Chooser:
        return agent.begin(env, 1)

    return lambda step, seen: begin()(step, seen)[0]


def describe_text(text: str, env: Any) -> dict[str, Any]:
    """Describe how an answer is parsed.

    Returns:
        ``text``; ``findings``, pairs of whether it is right and what it is; ``expressions``; ``tagged``. Of a task
        whose answers have a form of their own, ``findings`` is empty.
    """
    base = env.unwrapped
    task, reasoning = getattr(base, "task", ""), getattr(base, "reasoning", True)
    if task not in TAGS:
        return {"text": text, "findings": [], "expressions": [], "tagged": False}
    answer, tag = parse(text, task, reasoning), TAGS[task]
    findings = [_block(text, name) for name in (("think", "answer") if reasoning else ("answer",))]
    if all(right for right, _ in findings) and not answer.structured:
        findings.append((False, "<think> goes before <answer>"))
    form = "one <rg>[semantic] …</rg>" if task == "cosod" else f"<{tag}>…</{tag}>, once or more"
    count = len(answer.expressions)
    said = f"{count} expression{'s' * (count != 1)}" if count else f"inside <answer>, nothing but {form}"
    findings.append((answer.tagged, said))
    return {"text": text, "findings": findings, "expressions": list(answer.expressions), "tagged": answer.tagged}


def _block(text: str, name: str) -> tuple[bool, str]:
    """Return whether a block is there, as `parse` wants it, and what it is or should be."""
    opened, closed = text.count(f"<{name}>"), text.count(f"</{name}>")
    if opened == closed == 1 and text.index(f"<{name}>") < text.index(f"</{name}>"):
        return True, f"one <{name}> block"
    return False, f"<{name}> and </{name}> once each, in this order: there are {opened} and {closed}"


def _rules(env: Any) -> dict[str, Any]:
    """Build the environment's action rules for the page."""
    base, kind = env.unwrapped, kind_of(env)
    if kind == "clicks":
        own = base.label_source == "policy"
        labels = "" if own else base.label_source
        return {"grid": base.grid, "most": base.horizon, "labels": labels, "repeats": base.allow_repeated_clicks}
    if kind == "masks":
        return {"most": getattr(base, "steps", 1)}
    task = getattr(base, "task", "")
    if task not in FORMS:
        return {"most": MOST_TEXT, "tag": "", "skeleton": "", "help": []}
    inside, tags = FORMS[task]
    blocks = [("<answer>…</answer>", "holds these, and nothing else")]
    if getattr(base, "reasoning", True):
        blocks = [("<think>…</think>", "how you come to it: anything, even nothing"), *blocks]
    skeleton = f"{'<think></think>' if len(blocks) > 1 else ''}<answer>{inside}</answer>"
    return {"most": MOST_TEXT, "tag": TAGS[task], "skeleton": skeleton, "help": [*blocks, *tags]}


def _asks(env: Any, sample: Sample) -> str:
    """Describe the request in words."""
    base, kind = env.unwrapped, kind_of(env)
    if kind == "text":
        return getattr(base, "instruction", "")
    if sample.need and getattr(base, "need", True):
        return sample.need
    if kind == "masks":
        return "the most salient object that is left" if hasattr(base, "steps") else "what is salient"
    return CATEGORIES.get(base.task) or sample.category or "what is salient"


def _rationale(env: Any, sample: Sample) -> str:
    assert sample.rationale is not None  # else nobody could ask
    return sample.rationale if getattr(env.unwrapped, "reasoning", True) else without_reasoning(sample.rationale)


def _step(action: Any, reward: float, infos: Mapping[str, Any]) -> Step:
    """Build the record of one step of one sub-environment."""
    terms = {name: float(values[0]) for name, values in infos["reward_terms"].items() if name[0] != "_"}
    facts = {name: infos[name][0].item() for name in ("label", "repeated", "found") if name in infos}
    if "point" in infos:
        facts["patch"] = int(np.ravel(action)[0])
    return Step(action, reward, terms, float(infos["iou"][0]), tuple(infos["masks"][0]), facts)


def _masks(env: Any, episode: Episode) -> tuple[np.ndarray, ...]:
    """Return what an episode came to, for each image bool (m, H, W): of masks those that say anything, in order."""
    kind, steps = kind_of(env), episode.steps
    if kind == "clicks":  # at the start that of the first prompts
        return tuple(mask[None] for mask, _ in env.unwrapped.masks_and_targets())
    if not steps:
        return ()
    if kind == "text":
        return steps[-1].masks
    drawn = [step.masks[0] for step in steps if step.masks[0].any()]
    return (np.concatenate(drawn or [steps[0].masks[0][:0]]),)


def _truth(env: Any, sample: Sample) -> tuple[np.ndarray, ...]:
    """Return the ground-truth masks of each image; those of a ranking in its order."""
    if kind_of(env) != "masks" or sample.ranks is None:
        return sample.masks
    return tuple(
        masks[np.argsort(-ranks, kind="stable")] for masks, ranks in zip(sample.masks, sample.ranks, strict=True)
    )


def _row(env: Any, sample: Sample, episode: Episode) -> dict[str, Any]:
    """Build the saved row of an episode."""
    steps = episode.steps
    return {
        "key": sample.key,
        "asks": _asks(env, sample),
        "actions": [_as_json(step.action) for step in steps],
        "rewards": [step.reward for step in steps],
        "terms": [step.terms for step in steps],
        "iou": [step.iou for step in steps],
        "reward": sum(step.reward for step in steps),
        "ended": episode.ended,
    }


def _as_json(action: Any) -> Any:
    return encode(action > 0.5) if isinstance(action, np.ndarray) and action.ndim == 2 else action


def _actions(given: Any, env: Any, sample: Sample) -> list[Any]:
    """Convert the page's actions to the environment's.

    Raises:
        UserError: If they are none of its kind.
    """
    kind, base = kind_of(env), env.unwrapped
    if not isinstance(given, list):
        raise UserError("actions: expected a list")
    if kind == "text":
        return [_text(one) for one in given]
    if kind == "clicks":
        return [_click(one, base) for one in given]
    return [_drawn(one, sample.images[0].shape, base.image_size) for one in given]


def _text(given: Any) -> str:
    if not isinstance(given, str) or len(given) > MOST_TEXT:
        raise UserError(f"an answer: expected a text of at most {MOST_TEXT} characters")
    return given


def _click(given: Any, base: Any) -> Any:
    """Return a click; the label that comes with it counts where the agent labels."""
    fits = isinstance(given, list) and len(given) == 2 and all(type(number) is int for number in given)
    if not fits or not 0 <= given[0] < base.grid**2 or given[1] not in (0, 1):
        raise UserError(f"a click: expected a patch from 0 to {base.grid**2 - 1} and a label 0 or 1")
    return tuple(given) if base.label_source == "policy" else given[0]


def _drawn(given: Any, shape: Sequence[int], side: int) -> np.ndarray:
    """Return a mask float32 (S, S) from run lengths over the part of the square that shows the image."""
    height, width = fitted_size(tuple(shape), side)
    mask = np.zeros((side, side), np.float32)
    if not isinstance(given, list) or not all(type(length) is int for length in given):
        raise UserError("a mask: expected run lengths")
    try:
        mask[:height, :width] = decode_counts(given, (height, width))
    except (ValueError, OverflowError) as error:
        raise UserError(f"a mask: expected run lengths of {width}x{height} pixels") from error
    return mask


def _seconds(given: Any) -> float | None:
    fits = type(given) in (int, float) and math.isfinite(given) and given >= 0
    return round(float(given), 2) if fits else None


def _picture(image: np.ndarray, shrink: bool = True) -> dict[str, Any]:
    """Return uint8 (H, W, 3) as the page shows it: a URL that holds it, and its size."""
    height, width = _shown_size(image.shape) if shrink else image.shape[:2]
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return {"url": data_url(to_png(resized)), "height": height, "width": width}


def _shown_size(shape: Sequence[int]) -> tuple[int, int]:
    return fitted_size(tuple(shape), min(LARGEST, max(shape[:2])))


def _all_runs(masks: Sequence[np.ndarray]) -> list[list[list[int]]]:
    """Return the run lengths, as shown, of each mask of each image."""
    return [[runs(_nearest(mask)) for mask in rows] for rows in masks]


def _nearest(mask: np.ndarray) -> np.ndarray:
    """Return bool (H, W) at the size that is shown."""
    rows, columns = (
        np.arange(shown) * side // shown for shown, side in zip(_shown_size(mask.shape), mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
