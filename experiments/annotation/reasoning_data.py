r"""Write rationales to imitate: output-to-reasoning (Saliency-R1, sections 3.2.1 and supplement 9).

    maskgym data reason DIR --data coco --task sis --model NAME --server http://localhost:8000/v1 \
        data.root=PHOTOS segmenter=evf_sam segmenter.checkpoint=FOLDER train_samples=2467

A model sees each photo with and without its ground-truth masks, and writes the reasoning from the one to the other. Its
answer must have the form of an answer, and its descriptions, segmented by themselves, must find the ground truth; if
not, the model is told the fault and tries again. Without --server the model is one of transformers on this machine.

    DIR/rationales.jsonl    one row per sample: key, task, images, instruction, rationale, score, attempts, tokens
    DIR/rejected.jsonl      rejected samples, with the reason and the last answer
    DIR/summary.json        counts, mean score, reasons, tokens and their price
    DIR/images/             the photos, as the rows name them
    DIR/answers/            every answer by the content of its question, so that no question is asked twice

The same command continues after an interruption. data.rationales=DIR/rationales.jsonl trains on the rows.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from tqdm import tqdm

from maskgym import files
from maskgym.aliases import Config, JsonObject
from maskgym.chat.asker import Asker, ChatModel, Refused, Reply, Unreachable, count_tokens, to_png
from maskgym.data import Dataset, Sample
from maskgym.data.rationales import read_rows
from maskgym.envs.base import unwrap
from maskgym.envs.instructions import instruction
from maskgym.envs.reasoning import ReasoningVectorEnv
from maskgym.errors import UserError, one_line
from maskgym.experiments.annotation import paper_prompts
from maskgym.experiments.annotation import reasoning_prompts as prompts
from maskgym.experiments.annotation.needs.project import digest
from maskgym.experiments.wiring import command, composition, run_folder
from maskgym.rewards import Answer, Transition, format_answer, parse

RATIONALES, REJECTED, SUMMARY, SETTINGS = "rationales.jsonl", "rejected.jsonl", "summary.json", "settings.json"
IMAGES, ANSWERS = "images", "answers"
TASKS = ("sod", "sis", "cosod")
PROMPTS = ("maskgym", "paper")
PRINTED = ("accepted", "rejected", "score", "answers", "input_tokens", "output_tokens", "price")  # of the summary
SILENT = 3  # samples in a row without an answer, after which the server counts as gone
MAX_TOKENS = 2048  # of an answer
SETTABLE = (
    "data.",
    "segmenter",
    "env.group_size=",
    "train_samples=",
    "seed=",
)  # keys of a run's config
FIELDS: dict[str, dict[str, type]] = {RATIONALES: {"score": float}, REJECTED: {"reason": str}}  # that the summary reads
NOT_KEPT = ("device", "batch_size", "base_url")  # settings that may change from command to command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``maskgym data reason``; return the exit status: 2 for invalid arguments, 130 after an interruption."""
    return command.status(_main, arguments, "interrupted: the same command goes on")


@dataclass(frozen=True)
class Written:
    """Outcome of one sample.

    Attributes:
        accepted: Whether the row belongs to ``rationales.jsonl`` rather than to ``rejected.jsonl``.
        row: The row.
        pictures: Images of an accepted sample as PNG, by their path in the folder.
        refused: Whether the model refused to answer.
    """

    accepted: bool
    row: JsonObject
    pictures: Mapping[str, bytes]
    refused: bool = False


class Author:
    """Let a model write the rationales of samples, and check that they are worth imitating.

    Args:
        env: Environment of the task, whose segmenter and reward, the correctness, judge the descriptions.
        asker: Asker of the model.
        attempts: Largest number of answers per sample.
        threshold: Minimum correctness.
        largest: Longest side of the pictures, pixels.
        prompt: ``maskgym`` for our prompt, ``paper`` for those of Saliency-R1.
    """

    def __init__(
        self,
        env: ReasoningVectorEnv,
        asker: Asker,
        attempts: int,
        threshold: float,
        largest: int,
        prompt: str = "maskgym",
    ) -> None:
        self.task, self.segmenter, self.reward = env.task, env.segmenter, env.reward
        self.asker, self.attempts, self.threshold, self.largest = asker, attempts, threshold, largest
        self.question = paper_prompts.question if prompt == "paper" else prompts.question
        self.restore = paper_prompts.restore if prompt == "paper" else None
        self._segmenting = Lock()

    def write(self, sample: Sample, start: int = 0) -> Written:
        """Ask until an answer passes, and build the row of the sample.

        Args:
            sample: Sample of the task.
            start: Number of stored answers to skip as unusable.

        Raises:
            Unreachable: If no answer arrived.
            UserError: If no question can be answered.
        """
        first = self.question(sample, self.task, self.largest)
        parts, replies, score, fault, text = first, list[Reply](), 0.0, "nothing was asked", ""
        for number in range(start, start + self.attempts):
            try:
                replies.append(self.asker.ask(parts, number))
                text = replies[-1].text
                answer = parse(self.restore(text, self.task) if self.restore else text, self.task)
                score, found = self._judge(sample, answer)
            except (Refused, Unscorable) as error:  # other answers would not help
                fault = str(error)
                break
            if found is None:
                return self._accepted(sample, answer, score, start, replies)
            fault, parts = found, [*first, prompts.again(text, found)]
        row = {"key": sample.key, "task": self.task, "reason": fault, "score": round(score, 4), "answer": text}
        return Written(False, row | _spent(start, replies), {}, refused=not replies)

    def _accepted(self, sample: Sample, answer: Answer, score: float, start: int, replies: Sequence[Reply]) -> Written:
        names = [f"{IMAGES}/{_file_name(sample.key)}-{number}.png" for number in range(1, len(sample.images) + 1)]
        row = {
            "key": sample.key,
            "task": self.task,
            "images": names,
            "instruction": instruction(self.task),
            "rationale": format_answer((answer.think or "").strip(), answer.expressions, self.task),
            "score": round(score, 4),
        }
        pictures = {name: to_png(image, self.largest) for name, image in zip(names, sample.images, strict=True)}
        return Written(True, row | _spent(start, replies), pictures)

    def _judge(self, sample: Sample, answer: Answer) -> tuple[float, str | None]:
        """Compute the correctness of an answer, 0 if its form is wrong, and its fault, if any.

        Raises:
            Unscorable: If the sample cannot be scored with any answer.
        """
        fault = prompts.fault_of(answer, self.task)
        if fault is not None:
            return 0.0, fault
        with self._segmenting:
            found = self.segmenter.segment(list(sample.images), [answer.expressions] * len(sample.images))
        masks = tuple(probabilities > 0.5 for probabilities in found)
        try:
            values, _ = self.reward([Transition(self.task, sample, answer.text, masks, answer=answer)])
        except UserError as error:
            raise Unscorable(str(error)) from error
        score = float(values[0])
        if score >= self.threshold:
            return score, None
        fault = (
            f"segmented by themselves, your descriptions score {score:.2f} of 1, expected at least {self.threshold:g}"
        )
        if self.task == "sis":
            fault += f"; {len(answer.expressions)} descriptions of {len(sample.masks[0])} marked instances"
        nothing = [
            expression
            for place, expression in enumerate(answer.expressions)
            if not any(mask[place].any() for mask in masks)
        ]
        return score, fault + (f"; nothing was found by {', '.join(map(repr, nothing))}" if nothing else "")


class Unscorable(Exception):
    """Raised if a sample cannot be scored."""


class Rows:
    """JSON Lines by key: each line is flushed to disk when appended, and the last line of a key counts.

    Args:
        file: Path of the file; a line that a crash truncated is removed.

    Raises:
        UserError: If a whole line is no row.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.by_key: dict[str, JsonObject] = {}
        for number, row in read_rows(file) if files.whole_lines(file) else ():
            kinds = {"key": str, "attempts": int, **FIELDS.get(file.name, {})}
            if not all(isinstance(row.get(name), kind) for name, kind in kinds.items()):
                raise UserError(f"{file}: line {number}: expected a row with its {', '.join(kinds)}")
            self.by_key[row["key"]] = row

    def add(self, row: JsonObject) -> None:
        """Append a row."""
        files.append(self.file, run_folder.to_json(row))
        self.by_key[row["key"]] = row

    def leave_out(self, keys: Iterable[str]) -> None:
        """Rewrite the file with one line per key and without some keys, if that changes it."""
        gone = set(keys)
        self.by_key = {key: row for key, row in self.by_key.items() if key not in gone}
        content = "".join(f"{run_folder.to_json(row)}\n" for row in self.by_key.values()).encode()
        if (self.file.read_bytes() if self.file.exists() else b"") != content:
            files.write(self.file, content)


def write_all(folder: Path, dataset: Dataset, author: Author, jobs: int = 1, retry: bool = False) -> str | None:
    """Write the missing rows of a folder, one for every sample of a data set.

    Args:
        folder: An existing folder.
        dataset: Data set of the author's task.
        author: Author of the rationales.
        jobs: Number of samples processed at a time.
        retry: Whether to ask about rejected samples again.

    Returns:
        Reason why samples have no answer, or None.

    Raises:
        UserError: If the server is gone, or a sample cannot be read; finished rows are kept.
    """
    accepted, rejected = Rows(folder / RATIONALES), Rows(folder / REJECTED)

    def work(index: int) -> Written | Unreachable | None:
        sample = dataset[index]
        before = rejected.by_key.get(sample.key)
        if sample.key in accepted.by_key or (before is not None and not retry):
            return None
        try:
            return author.write(sample, before["attempts"] if before else 0)
        except Unreachable as error:
            return error
        except UserError:
            author.asker.stopping.set()  # set in this thread, before it begins another sample
            raise

    silent, unanswered = 0, list[Unreachable]()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for written in _bar(pool.map(work, range(len(dataset))), len(dataset), accepted, rejected):
                if isinstance(written, Unreachable):
                    unanswered.append(written)
                elif written is not None:
                    for name, png in written.pictures.items():
                        run_folder.write(folder / name, png)
                    (accepted if written.accepted else rejected).add(written.row)
                lost = _lost(written)
                silent = silent + 1 if lost else 0
                if silent >= SILENT:
                    raise UserError(f"{SILENT} samples in a row got no answer ({lost}): the same command goes on")
        except BaseException:
            author.asker.stopping.set()  # pending answers are still stored
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            rejected.leave_out(accepted.by_key)
    return f"{len(unanswered)} samples got no answer ({unanswered[0]})" if unanswered else None


def summarise(folder: Path, samples: int, prices: Sequence[float] | None = None) -> JsonObject:
    """Count the rationales and compute their cost.

    Args:
        folder: Folder of the rationales.
        samples: Number of samples in the data set.
        prices: Prices per million input and output tokens, or None.
    """
    accepted, rejected = (list(Rows(folder / name).by_key.values()) for name in (RATIONALES, REJECTED))
    return {
        "samples": samples,
        "accepted": len(accepted),
        "rejected": len(rejected),
        "score": round(float(np.mean([row["score"] for row in accepted])), 4) if accepted else None,
        "attempts": round(float(np.mean([row["attempts"] for row in accepted])), 2) if accepted else None,
        "reasons": dict(Counter(re.sub(r"\d[\d.]*", "…", row["reason"])[:80] for row in rejected).most_common()),
        **count_tokens(folder / ANSWERS, prices),
    }


def _main(arguments: Sequence[str]) -> None:
    given = _parser().parse_intermixed_args(arguments)
    _check(given)
    chosen = [f"env={given.task}", "algo=random", "reward=correctness", f"data={given.data}"]
    config = composition.compose([*chosen, *given.settings])
    config["env"]["num_envs"] = 1
    from maskgym.experiments.wiring import build

    chat = _make_chat(given)
    made = build.make_env(config, given.task, given.split, build.make_parts(config), part="sft")
    env = unwrap(made, ReasoningVectorEnv)
    folder = given.folder.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.alone(folder, "reason"):
            left, found = _write(folder, given, config, chat, env)
    except OSError as error:  # such as a full disk
        raise UserError(f"{error.filename or folder}: cannot be written: {error.strerror}") from error
    printed = [f"{found[name]} {name.replace('_', ' ')}" for name in PRINTED if found[name] is not None]
    print(one_line(f"{folder / RATIONALES}: {', '.join(printed)}"))
    if left is not None:
        raise UserError(f"{left}: the same command goes on")


def _write(
    folder: Path, given: Namespace, config: Config, chat: ChatModel, env: ReasoningVectorEnv
) -> tuple[str | None, JsonObject]:
    """Write the missing rows; return the reason why some are still missing, or None, and the summary."""
    _remember(folder, given, config, chat)
    asker = Asker(chat, folder / ANSWERS, given.retries, given.pause)
    author = Author(env, asker, given.attempts, given.threshold, given.largest, given.prompt)
    try:
        left = write_all(folder, env.dataset, author, given.jobs if given.server else 1, given.retry)
    finally:
        found = summarise(folder, len(env.dataset), given.prices)
        run_folder.write_json(folder / SUMMARY, found)
    return left, found


def _check(given: Namespace) -> None:
    values = vars(given)
    minima = {"attempts": 1, "jobs": 1, "largest": 28, "max_tokens": 1, "retries": 0, "pause": 0, "timeout": 0}
    for name, least in minima.items():
        if not values[name] >= least:
            raise UserError(f"--{name.replace('_', '-')} {values[name]}: expected at least {least}")
    if not 0 <= given.threshold <= 1:
        raise UserError(f"--threshold {given.threshold}: expected 0 to 1")
    for name in ("key_variable", "request"):
        if values[name] is not None and given.server is None:
            raise UserError(f"--{name.replace('_', '-')}: is for a server: expected --server URL too")
    for setting in given.settings:
        if not setting.startswith(SETTABLE):
            raise UserError(f"'{setting}': expected key=value of {', '.join(key.rstrip('.=') for key in SETTABLE)}")


def _make_chat(given: Namespace) -> ChatModel:
    if given.server is None:
        from maskgym.chat.local import LocalChat

        return LocalChat(given.model, given.device, given.max_tokens, given.temperature or 0.0)
    from maskgym.chat.server import ChatServer

    try:
        more = json.loads(given.request or "{}")
    except ValueError as error:
        raise UserError(f"--request {given.request}: no JSON: {error}") from error
    if not isinstance(more, dict):
        raise UserError(f"--request {given.request}: expected a JSON object")
    options = {"max_tokens": given.max_tokens, "temperature": given.temperature, **more}
    return ChatServer(given.model, given.server, given.key_variable, given.timeout, options)


def _remember(folder: Path, given: Namespace, config: Config, chat: ChatModel) -> None:
    """Store the settings of the rows, so that one file holds only rows of the same settings.

    Raises:
        UserError: If the folder holds rows of other settings, or other things.
    """
    now = {name: vars(given)[name] for name in ("task", "split", "threshold", "largest", "prompt")}
    now |= {name: config[name] for name in ("data", "segmenter", "train_samples", "seed")}
    now |= {"group_size": config["env"].get("group_size"), "model": chat.settings}
    now = json.loads(json.dumps(now), object_hook=_kept)
    file = folder / SETTINGS
    if not file.exists() and any(path.name[0] != "." for path in folder.iterdir()):
        raise UserError(f"{folder}: holds other things: expected a new folder, or one with a {SETTINGS}")
    if not any((folder / name).exists() for name in (RATIONALES, REJECTED)):
        return run_folder.write_json(file, now)
    before = run_folder.read_json(file)
    for name, value in now.items():
        old = before.get(name) if isinstance(before, dict) else None
        if old != value:
            raise UserError(f"{folder}: its rows were made with {name} {old}, not {value}: choose another folder")
    return None


def _kept(settings: JsonObject) -> JsonObject:
    return {name: value for name, value in settings.items() if name not in NOT_KEPT}


def _lost(written: Written | Unreachable | None) -> str | None:
    """Find the reason for a missing answer; None if there is an answer."""
    if isinstance(written, Unreachable):
        return str(written)
    return written.row["reason"] if written is not None and written.refused else None


def _bar(
    found: Iterable[Written | Unreachable | None], total: int, accepted: Rows, rejected: Rows
) -> Iterator[Written | Unreachable | None]:
    with tqdm(total=total, desc="reason", unit="sample", disable=None) as bar:
        for one in found:
            yield one
            bar.update()
            bar.set_postfix(accepted=len(accepted.by_key), rejected=len(rejected.by_key))


def _spent(start: int, replies: Sequence[Reply]) -> JsonObject:
    """Build the cost fields of a row."""
    read, written = sum(reply.input_tokens for reply in replies), sum(reply.output_tokens for reply in replies)
    by = {"model": replies[-1].model, "at": replies[-1].at} if replies else {}
    return {"attempts": start + len(replies), "tokens": {"input": read, "output": written}, **by}


def _file_name(key: str) -> str:
    """Build a file name for the pictures of a sample: readable, and unique by its end."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', key)[-60:]}-{digest(key)[:10]}"


def _parser() -> command.Parser:
    parser = command.Parser(prog="maskgym data reason", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="output folder; created if absent")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="of data, segmenter, train_samples, seed, as in `maskgym run`",
    )
    parser.add_argument("--data", default="scenes", help="reader (%(default)s)")
    parser.add_argument("--task", choices=TASKS, default="sis", help="(%(default)s)")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="train", help="(%(default)s)")
    told = "our prompt, or Saliency-R1's own (supplement 9) (%(default)s)"
    parser.add_argument("--prompt", choices=PROMPTS, default="maskgym", help=told)
    parser.add_argument("--retry", action="store_true", help="ask about rejected samples again")
    judged = parser.add_argument_group("acceptance")
    judged.add_argument("--threshold", type=float, default=0.7, help="minimum correctness (%(default)s)")
    judged.add_argument("--attempts", type=int, default=3, help="maximal answers per sample (%(default)s)")
    model = parser.add_argument_group("model")
    model.add_argument("--model", required=True, help="name on the server; otherwise a folder or hub name")
    model.add_argument("--server", metavar="URL", help="OpenAI-compatible server, such as http://localhost:8000/v1")
    model.add_argument("--key-variable", metavar="NAME", help="environment variable with its key (OPENAI_API_KEY)")
    model.add_argument("--request", metavar="JSON", help='further request options, such as {"reasoning_effort": "low"}')
    model.add_argument("--largest", type=int, default=1024, help="longest side of a picture, pixels (%(default)s)")
    model.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="maximal tokens per answer (%(default)s)")
    model.add_argument("--temperature", type=float, help="sampling temperature; default: the server's, else greedy")
    model.add_argument("--jobs", type=int, default=4, help="simultaneous samples, with a server (%(default)s)")
    model.add_argument("--retries", type=int, default=4, help="retries per question without an answer (%(default)s)")
    model.add_argument(
        "--pause", type=float, default=1.0, help="seconds before the first retry, doubled later (%(default)s)"
    )
    model.add_argument("--timeout", type=float, default=120.0, help="maximal seconds per answer (%(default)s)")
    model.add_argument("--device", help="PyTorch device of a model on this machine")
    model.add_argument("--prices", type=float, nargs=2, metavar=("READ", "WRITTEN"), help="prices per million tokens")
    return parser
