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
(others, or the ground truth, were shown before) and ``picture``. An action is a text, [patch, label], a patch
where others label clicks, or COCO's run-length code of a mask over the observed square.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from threading import Lock

import numpy as np
from gymnasium.vector import VectorEnv

from maskgym import agents, files
from maskgym.agents.base import Action, Agent
from maskgym.agents.base import Chooser as Policy
from maskgym.aliases import Config, Json, JsonObject, Observations
from maskgym.chat.asker import to_png
from maskgym.data import SPLITS, Sample
from maskgym.envs.base import SampleVectorEnv, info_of, unwrap
from maskgym.envs.rendering import PALETTE
from maskgym.errors import UserError, one_line
from maskgym.experiments.evaluation.rollout import first_rows
from maskgym.experiments.evaluation.trajectories import EPISODES
from maskgym.experiments.web import local_server as pages
from maskgym.experiments.web.kinds import Episode, Kind, Step, TextKind, kind_of, picture, shown_runs
from maskgym.experiments.wiring import build, composition, run_folder
from maskgym.experiments.wiring.command import Parser

PAGE = Path(__file__).with_name("play.html")
PICTURES, LOCK = "pictures", ".episodes.lock"
LARGEST_BODY = 2_000_000  # bytes of a request
LONGEST = 10**9  # seconds of an episode; what a page states beyond is no time
REFERENCES = {  # agents that need no training: what they are called here, and how they do it
    "oracle": ("Oracle", "it knows the truth"),
    "referring": ("Segmenter", "the need taken as a phrase"),
}
# Maps the number of steps so far and the observations of one sub-environment to an action; None ends the episode.
Chooser = Callable[[int, Observations], Action | None]


class Journal:
    """Finished episodes in a folder: one line each in a file that is written atomically, and a picture each.

    Several players, in threads or processes, may save into one folder: they wait for each other.

    Args:
        folder: Created with the first episode; an existing one is continued.

    Raises:
        UserError: If the file does not hold episodes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / EPISODES
        self._lines()

    def add(self, row: JsonObject, picture: np.ndarray) -> None:
        """Add an episode and its picture, uint8 (H, W, 3).

        Raises:
            UserError: If it cannot be written.
        """
        try:
            with files.locked(self.folder / LOCK):
                lines = self._lines()
                name = f"{PICTURES}/{len(lines) + 1:04d}.png"
                files.write(self.folder / name, to_png(picture))
                line = run_folder.to_json({**row, "picture": name}).encode()
                files.write(self.file, b"".join(one + b"\n" for one in (*lines, line)), flush=True)
        except OSError as error:
            raise UserError(f"{self.file}: not saved: {error.strerror}") from error

    def _lines(self) -> list[bytes]:
        """Read the lines; a last line that was interrupted is left out."""
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
    """Answer the page: samples, outcomes of actions, and what others do on the same sample.

    An episode is its sample and its actions. The page sends both, and each request plays them from the start, so the
    game keeps no episode, undoing sends fewer actions, and two windows do not disturb each other.

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
        self,
        config: JsonObject,
        parts: build.Parts,
        journal: Journal,
        policy: Agent | None = None,
        title: str = "",
    ) -> None:
        env = {**config["env"], "num_envs": 1, "render_mode": "rgb_array"}
        self.config: Config = {**config, "env": env}
        self.tasks, self.journal = tuple(env["gym_ids"]), journal
        self._parts, self._policy, self._title = parts, policy, title
        self._envs: dict[tuple[str, str], VectorEnv] = {}
        self._sample = lru_cache(maxsize=16)(self._read)
        self._busy = Lock()  # Environments and networks are not thread-safe.
        self.split = self._first_split(config["evaluation"]["split"])

    def start(self) -> JsonObject:
        """Return the data that is the same for all samples."""
        return {
            "env": self.config["env"]["name"],
            "tasks": self.tasks,
            "splits": SPLITS,
            "split": self.split,
            "palette": PALETTE.tolist(),
            "out": str(self.journal.file),
        }

    def show(self, given: JsonObject) -> JsonObject:
        """Start an episode on a sample.

        Raises:
            UserError: If there is no such sample.
        """
        with self._busy:
            task, split, index = self._place(given)
            env, sample = self._env(task, split), self._sample(task, split, index)
            kind = kind_of(env)
            return {
                "count": unwrap(env, SampleVectorEnv).num_samples,
                "key": sample.key,
                "kind": kind.name,
                "images": [picture(image) for image in sample.images],
                "asks": kind.asks(sample),
                "others": self._others(task, kind, sample),
                **kind.rules(),
                "outcome": outcome(kind, sample, self._play(env, index, repeating([]))),
            }

    def check(self, given: JsonObject) -> JsonObject:
        """Check the form of a text without its masks.

        Raises:
            UserError: If it is no text, or too long.
        """
        with self._busy:
            task, split, index = self._place(given)
            kind, sample = kind_of(self._env(task, split)), self._sample(task, split, index)
        if not isinstance(kind, TextKind):
            raise UserError("an answer: expected an environment of text")
        return kind.describe(kind.read(given.get("text"), sample), sample)

    def step(self, given: JsonObject) -> JsonObject:
        """Play actions from the start of the episode; a finished episode is saved.

        Raises:
            UserError: If an action is invalid.
        """
        with self._busy:
            task, split, index = self._place(given)
            env, sample = self._env(task, split), self._sample(task, split, index)
            kind, asked = kind_of(env), given.get("actions")
            if not isinstance(asked, list):
                raise UserError("actions: expected a list")
            most = unwrap(env, SampleVectorEnv).horizon
            if len(asked) > most:
                raise UserError(f"{len(asked)} actions: the episode is over after {most}")
            actions = [kind.read(one, sample) for one in asked]
            episode = self._play(env, index, repeating(actions))
            if len(episode.steps) < len(actions):
                raise UserError(f"{len(actions)} actions: the episode is over after {len(episode.steps)}")
            found = outcome(kind, sample, episode)
            if episode.ended:
                row = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "seconds": _seconds(given.get("seconds"))}
                row |= {"env": self.config["env"]["name"], "task": task, "data": self.config["data"]["name"]}
                row |= {"split": split, "index": index, **_row(kind, sample, episode)}
                (drawn,) = unwrap(env, SampleVectorEnv).render() or ()
                found["fault"] = self._save({**row, "peeked": given.get("peeked") is True}, drawn)
            return found

    def against(self, given: JsonObject) -> JsonObject:
        """Play the sample by another player: ``truth``, ``reference`` or ``policy``.

        Raises:
            UserError: If there is no such player.
        """
        with self._busy:
            task, split, index = self._place(given)
            env, sample = self._env(task, split), self._sample(task, split, index)
            kind, who = kind_of(env), given.get("who")
            if who not in [other["who"] for other in self._others(task, kind, sample)]:
                raise UserError(f"who {repr(who)[:80]}: nobody of this name plays here")
            if who == "truth":
                return {"masks": shown_runs(kind.ground_truth(sample)), "steps": []}
            rationale = kind.rationale(sample)
            if who == "reference" and rationale is not None:
                choose = repeating([rationale])
            else:
                agent = self._policy if who == "policy" else self._reference(task, env)
                assert agent is not None  # `_others` lists the policy only if there is one
                choose = chooser(agent, env)
            return outcome(kind, sample, self._play(env, index, choose))

    def _play(self, env: VectorEnv, index: int, choose: Chooser) -> Episode:
        """Play a sample from its start, with the same seed each time, whoever plays."""
        seen, _ = env.reset(seed=self.config["seed"], options={"index": index})
        steps: list[Step] = []
        ended = ""
        while not ended and (action := choose(len(steps), seen)) is not None:
            seen, values, terminated, truncated, infos = env.step([action])
            ended = "terminated" if terminated[0] else "truncated" if truncated[0] else ""
            steps.append(Step.of(action, float(values[0]), info_of(infos, 0)))
        return Episode(first_rows(seen, 1)[0], tuple(steps), ended)

    def _others(self, task: str, kind: Kind, sample: Sample) -> list[dict[str, str]]:
        """List the other players of a sample with their names."""
        found: dict[str, tuple[str, str]] = {}
        if isinstance(kind, TextKind):
            found |= {"reference": ("Rationale", "that of the data")} if sample.rationale else {}
        elif name := self._reference_name(task):
            found |= {"reference": REFERENCES[name]}
        found |= {} if self._policy is None else {"policy": ("Trained policy", self._title)}
        found |= {"truth": ("Truth", "")}
        return [{"who": who, "title": title, "note": note} for who, (title, note) in found.items()]

    def _reference_name(self, task: str) -> str | None:
        return next((name for name in REFERENCES if task in agents.get(name).tasks), None)

    def _reference(self, task: str, env: VectorEnv) -> Agent:
        name = self._reference_name(task)
        assert name is not None  # else nobody could ask
        segmenter = {"segmenter": self._parts["segmenter"]} if name == "referring" else {}
        return agents.make(name, env=env, **segmenter)

    def _save(self, row: JsonObject, picture: np.ndarray) -> str:
        """Save an episode; return the error, if any, because the outcome is shown even if it cannot be saved."""
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

    def _env(self, task: str, split: str) -> VectorEnv:
        if (task, split) not in self._envs:
            self._envs[task, split] = build.make_env(self.config, task, split, self._parts)
        return self._envs[task, split]

    def _read(self, task: str, split: str, index: int) -> Sample:
        return unwrap(self._env(task, split), SampleVectorEnv).dataset[index]

    def _place(self, given: JsonObject) -> tuple[str, str, int]:
        task, split, index = given.get("task"), given.get("split"), given.get("index")
        if not isinstance(task, str) or task not in self.tasks or not isinstance(split, str) or split not in SPLITS:
            raise UserError(
                f"task {repr(task)[:80]}, split {repr(split)[:80]}: expected one of {', '.join((*self.tasks, *SPLITS))}"
            )
        count = unwrap(self._env(task, split), SampleVectorEnv).num_samples
        if type(index) is not int or not 0 <= index < count:
            raise UserError(f"sample {repr(index)[:80]}: the {split} split has samples 0 to {count - 1}")
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
    goes_to = one_line(f"episodes go to {game.journal.file}")
    try:
        pages.serve(
            partial(make_app, game),
            given.host,
            given.port,
            lambda address: print(f"{address}   (Ctrl-C ends)\n{goes_to}", flush=True),
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


def repeating(actions: Sequence[Action]) -> Chooser:
    """Build a chooser that replays these actions."""
    return lambda step, seen: actions[step] if step < len(actions) else None


def chooser(agent: Agent, env: VectorEnv) -> Chooser:
    """Build the greedy chooser of an agent; a searching agent searches when the first action is asked for."""

    @cache
    def begin() -> Policy:
        return agent.begin(env, 1)

    return lambda step, seen: begin()(step, seen)[0]


def outcome(kind: Kind, sample: Sample, episode: Episode) -> JsonObject:
    """Describe an episode for the page; the ground truth is part of it once the episode is over."""
    found: JsonObject = {
        "steps": [{"reward": s.reward, "terms": s.terms, "iou": s.iou, **s.facts} for s in episode.steps],
        "reward": sum(step.reward for step in episode.steps),
        "ended": episode.ended,
        "masks": shown_runs(kind.masks(episode.steps)),
        **kind.details(sample, episode),
    }
    return found | ({"truth": shown_runs(kind.ground_truth(sample))} if episode.ended else {})


def _row(kind: Kind, sample: Sample, episode: Episode) -> JsonObject:
    """Build the saved row of an episode."""
    return {
        "key": sample.key,
        "asks": kind.asks(sample),
        "actions": [kind.to_json(step.action) for step in episode.steps],
        "rewards": [step.reward for step in episode.steps],
        "terms": [step.terms for step in episode.steps],
        "iou": [step.iou for step in episode.steps],
        "reward": sum(step.reward for step in episode.steps),
        "ended": episode.ended,
    }


def _seconds(given: Json) -> float | None:
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 <= given <= LONGEST:
        return None
    return round(float(given), 2)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
