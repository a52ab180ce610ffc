"""The hook of MkDocs that writes what the code says: environments, parts, options, API; and mends links.

Everything is read anew at each build: environments are made, played and drawn, parts come from their registries,
options from the comments of ``experiments/conf``, the API from docstrings. So no page of these can go stale.
"""

from __future__ import annotations

import ast
import html
import inspect
import io
import logging
import posixpath
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from gymnasium import spaces
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from PIL import Image
from scipy.ndimage import gaussian_filter

from maskgym import agents, data, policies, rewards, segmenters
from maskgym.agents.clicks.oracle import OracleAgent
from maskgym.data.published import PUBLISHED, make_published
from maskgym.envs.point import PointPromptEnv
from maskgym.envs.rendering import GAP, PANEL, TITLE
from maskgym.errors import UserError
from maskgym.experiments.wiring.composition import CONF, folders, groups, option
from maskgym.registry import Registry

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "build" / "package" / "maskgym"  # what mkdocstrings reads: see mkdocs.yml
# Pages that are written elsewhere in the repository; the folder stands for what it holds.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "tutorials/examples.md",
    "examples": "tutorials/examples.md",
}
# In the order of reading; others of the same folder follow.
TUTORIALS = ("first_run", "your_own_parts", "examples", "your_own_checkpoint", "sweep", "scale", "paper_table")
PARTS = ("data", "segmenters", "rewards", "policies", "agents")
GUIDES = (
    "commands",
    "evaluation",
    "scaling",
    "integrations",
    "reward_audit",
    "papers",
    "architecture",
    "contributing",
    "log",
)
CONFIG = "config"  # the root file of options
SEED = 7  # of the episodes that are drawn
FRAMES = 4  # most pictures of one episode
WIDEST = 1000  # two pictures beside each other, pixels
LINK = re.compile(
    r"(?P<code>^[ ]*```.*?^[ ]*```|`[^`\n]+`)|"
    r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<to>[^()\s]+)\)",
    re.MULTILINE | re.DOTALL,
)
log = logging.getLogger(f"mkdocs.hooks.{__name__}")


def on_startup(command: str, dirty: bool) -> None:
    """Copy the packages to where mkdocstrings reads them: the root holds much else, its environment included."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    for file in [*ROOT.glob("*.py"), *(path for folder in _packages() for path in folder.rglob("*.py"))]:
        copy = PACKAGE / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        # The only name of this section that Griffe knows.
        copy.write_text(re.sub(r"(?m)^( +)Example:$", r"\1Examples:", file.read_text(encoding="utf-8")), "utf-8")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every page that is not written in ``docs/``, and set the navigation."""
    pages: dict[str, str | bytes] = {
        uri: (ROOT / place).read_text(encoding="utf-8") for place, uri in ELSEWHERE.items() if place.endswith(".md")
    }
    pages |= {**environment_pages(), **part_pages(), **option_pages(), **api_pages()}
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    config.nav = navigation([file.src_uri for file in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to places of the repository into links to what the site has of them."""
    uri = page.file.src_uri
    origins = {uri: place for place, uri in reversed(ELSEWHERE.items())}
    if uri not in origins and page.file.abs_src_path is None:
        return markdown  # written here
    return relink(markdown, origins.get(uri, f"docs/{uri}"), uri, files)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link what names a part of the library in full, such as ``maskgym.data.Sample``."""
    name = r"(maskgym(?:\.\w+)+)"
    return re.sub(rf"<code>{name}</code>", r'<autoref identifier="\1" optional><code>\1</code></autoref>', content)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Name the dialog of the search, which Material leaves without a name."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')


def relink(markdown: str, origin: str, uri: str, files: Files) -> str:
    """Return a page with its relative links changed to pages of the site, and to plain text where it has none.

    Args:
        markdown: The page.
        origin: Where the repository has it.
        uri: Where the site has it.
        files: What the site has.
    """

    def change(match: re.Match[str]) -> str:
        to, text = match["to"], match["text"]
        if match["code"] or re.match(r"[a-z]+:|#", to):
            return match[0]
        path, hash_, anchor = to.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        if not (ROOT / place).exists():
            log.warning("%s has a link to %s, which does not exist", origin, to)
        target = page_of(place)
        text = LINK.sub(change, text)
        if files.get_file_from_path(target) is None:
            return text
        return f"{match['image']}[{text}]({posixpath.relpath(target, posixpath.dirname(uri) or '.')}{hash_}{anchor})"

    return LINK.sub(change, markdown)


def page_of(place: str) -> str:
    """Return where the site would have a file of the repository."""
    if place in ELSEWHERE:
        return ELSEWHERE[place]
    if place.endswith(".py"):
        return f"api/{place.removesuffix('.py').replace('__init__', 'index')}.md"
    return place.removeprefix("docs/")


def navigation(uris: Sequence[str]) -> list[Any]:
    """Return the navigation of pages, as mkdocs.yml would have it."""

    def pages(folder: str, first: Sequence[str] = ()) -> list[Any]:
        names = {uri.rpartition("/")[2].removesuffix(".md"): uri for uri in uris if posixpath.dirname(uri) == folder}
        order = ["index", *first, *sorted(names)]
        return [names[name] for name in dict.fromkeys(order) if name in names and names[name] != "index.md"]

    api: dict[str, list[Any]] = {}
    for folder in sorted({posixpath.dirname(uri) for uri in uris if uri.startswith("api/")}):
        # By the name of the module, where MkDocs would make a title of it.
        api[folder] = [uri if uri.endswith("index.md") else {Path(uri).stem: uri} for uri in pages(folder)]
        if folder != "api":
            api[posixpath.dirname(folder)].append({posixpath.basename(folder): api[folder]})
    return [
        {"Home": "index.md"},
        {"Tutorials": pages("tutorials", TUTORIALS)},
        {"Guides": pages("", GUIDES)},
        {"Environments": pages("environments", [id.partition("/")[2] for id in environments()])},
        {"Parts": [*pages("parts", PARTS), {"Options": pages("options")}]},
        {"API": api["api"]},
        {"Results": pages("results")},
    ]


# Environments


def environment_pages() -> dict[str, str | bytes]:
    """Return a page and two pictures an environment, and the page that shows them all."""
    pages: dict[str, str | bytes] = {}
    cards = []
    for id in environments():
        name = id.partition("/")[2]
        frames, quality = episode(id)
        pages[f"environments/{name}.png"] = png(strip(frames))
        first_row = frames[-1][: TITLE + PANEL + GAP]
        pages[f"environments/{name}-small.png"] = png(Image.fromarray(first_row))
        pages[f"environments/{name}.md"] = environment_page(id, len(frames), quality)
        sees, answers, masks = overview()[id]
        cards.append(
            f'<div class="card" markdown>\n\n[![A rendered episode of {name}]({name}-small.png)]({name}.md)\n\n'
            f"**[{name}]({name}.md)**\n\nThe agent sees {sees}. It answers with {answers}. Masks: {masks}.\n\n</div>\n"
        )
    pages["environments/index.md"] = (
        "# Environments\n\nEach is registered with Gymnasium under `maskgym/`, by `import maskgym`. The pictures are "
        'episodes, drawn by `render()`.\n\n<div class="cards" markdown>\n\n' + "\n".join(cards) + "\n</div>\n"
    )
    return pages


def environments() -> list[str]:
    """Return the ids of our environments, in the order of their registration."""
    return [id for id, spec in gym.registry.items() if spec.namespace == "maskgym"]


@cache
def overview() -> dict[str, list[str]]:
    """Return what the README's table says of each environment: what is seen, the answer, the masks."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(maskgym/.+?)` \| (.+?) \| (.+?) \| (.+?) \|$", readme, re.MULTILINE)
    return {id: said for id, *said in rows}


def environment_page(id: str, pictures: int, quality: float) -> str:
    """Return the page of one environment; ``quality`` is the IoU that the episode in its picture ended with."""
    env: Any = gym.make(id).unwrapped
    name, kind = id.partition("/")[2], env.vector_class
    sections = sections_of(kind)
    sees, answers, masks = overview()[id]
    known = {"Arguments", "Raises", "Version History", "References"}
    read = [
        f"## {title}\n\n{details(title, env)}{as_list(text)}\n"
        for title, text in sections.items()
        if title not in known
    ]
    return "\n".join(
        [
            f"# {name}\n\n`{id}` · the agent sees {sees} · it answers with {answers} · masks: {masks}\n",
            f"![A rendered episode of {name}: the image, the masks that were made and the true ones]({name}.png)\n",
            f"An episode of the training split, as `render()` draws it{' after some of its steps' * (pictures > 1)}. "
            f"The answers are made with the truth at hand; the last mask's IoU is {quality:.2f}.\n",
            f"## Make it\n\n```python\nimport gymnasium as gym\nimport maskgym  # registers the environments\n\n"
            f'env = gym.make("{id}", render_mode="rgb_array")\n'
            f'many = gym.make_vec("{id}", num_envs=8, vectorization_mode="vector_entry_point")\n```\n',
            commands(id),
            *read,
            f"## Arguments\n\n{arguments_table(kind, gym.spec(id).kwargs)}\n",
            *(f"## {title}\n\n{as_list(sections[title])}\n" for title in ("Version History", "References")),
            f"The classes: `{kind.__module__}.{type(env).__name__}`, `{kind.__module__}.{kind.__name__}`.\n",
        ]
    )


def sections_of(kind: type) -> dict[str, str]:
    """Return the sections of a class's docstring by title."""
    _, *parts = re.split(r"(?m)^([A-Z][A-Za-z, ]+):$", inspect.getdoc(kind) or "")
    return {title: dedent(text).strip() for title, text in zip(parts[::2], parts[1::2], strict=True)}


def as_list(text: str) -> str:
    """Return text whose lines of the form ``name: what it is`` are items of a list."""
    named = re.sub(r"(?m)^([a-z_]\w*): ", r"\n- `\1`: ", text)
    others = {gym.spec(id).name: id.partition("/")[2] for id in environments()}
    return re.sub(
        rf"(?<![\w`/.])({'|'.join(others)})(?![\w`])", lambda name: f"[{name[0]}]({others[name[0]]}.md)", named
    )


def details(title: str, env: Any) -> str:
    """Return what the environment itself shows of a section: its spaces, or its reward."""
    if title.startswith("Observation Space"):
        return spaces_table(env.observation_space) + "\n\n"
    if title.startswith("Action Space"):
        return spaces_table(env.action_space) + "\n\n"
    if title == "Reward":
        return reward_table(env.vector.reward) + "\n\n"
    return ""


def spaces_table(space: spaces.Space) -> str:
    """Return a space, or each field of a dictionary of them, as a table."""
    fields = space.spaces.items() if isinstance(space, spaces.Dict) else [("", space)]
    rows = [
        (code(name), code(type(one).__name__), code(one.shape or ""), code(np.dtype(one.dtype).name), span_of(one))
        for name, one in fields
    ]
    return table(("field", "space", "shape", "dtype", "range"), rows)


def span_of(space: spaces.Space) -> str:
    """Return which values a space holds, in words."""
    if isinstance(space, spaces.Box):
        return f"{space.low.min():g} to {space.high.max():g}"
    if isinstance(space, spaces.MultiDiscrete):
        return ", ".join(f"0 to {count - 1}" for count in space.nvec)
    if isinstance(space, spaces.Discrete):
        return f"{space.start} to {int(space.start) + int(space.n) - 1}"
    if isinstance(space, spaces.Text):
        return f"up to {space.max_length:,} characters"
    return ""


def reward_table(reward: Any) -> str:
    """Return the terms of the default reward with their weights and ranges."""
    rows = [
        (code(term.name), f"{weight:g}", span(term.range))
        for term, weight in zip(reward.terms, reward.weights, strict=True)
    ]
    return f"By default from {span(reward.range)}, the weighted sum of\n\n{table(('term', 'weight', 'range'), rows)}"


def arguments_table(kind: type, given: dict[str, Any]) -> str:
    """Return the arguments of an environment's class and of those that it hands the rest to, with defaults."""
    said: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    for one in inspect.getmro(kind):
        own = dict(re.findall(r"(?m)^(\w+): (.*(?:\n +.*)*)", sections_of(one).get("Arguments", "")))
        said = {**own, **said}
        parameters = inspect.signature(one).parameters.values()
        defaults = {p.name: p.default for p in parameters} | defaults
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    rows = [
        (code(name), code(repr(given.get(name, getattr(default, "value", default)))), said[name])
        for name, default in defaults.items()
        if default is not inspect.Parameter.empty
    ]
    return table(("argument", "default", "what it is"), rows)


def commands(id: str) -> str:
    """Return the commands that train on an environment, for each option that has it."""
    lines = []
    for name in sorted(groups()["env"], key=lambda name: len(option("env", name)["gym_ids"])):  # its own first
        if id in option("env", name)["gym_ids"].values():
            fit = (algo for algo, kind in algorithms() if getattr(kind, "learns", True) and takes(kind, name))
            algorithm = next(algo for algo in fit if short_name(name, algo) == algo)
            lines.append(f"maskgym run env={name} algo={algorithm}")
    return "```bash\n" + "\n".join(lines) + "\n```\n"


def episode(id: str) -> tuple[list[np.ndarray], float]:
    """Play one episode well, with the truth at hand; return some of its pictures and the last IoU."""
    kind: Any = gym.envs.registration.load_env_creator(str(gym.spec(id).entry_point))
    clicks = issubclass(kind, PointPromptEnv)
    few: dict[str, Any] = {"initial_prompts": "none", "allow_repeated_clicks": False, "horizon": FRAMES}
    env: Any = gym.make(id, render_mode="rgb_array", disable_env_checker=True, **(few if clicks else {}))
    _, info = env.reset(seed=SEED)
    frames = []
    for action in good_actions(env, info):
        _, _, terminated, truncated, info = env.step(action)
        frames.append(env.render())
        if terminated or truncated:
            break
    chosen = np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int))
    return [frames[i] for i in chosen], info["iou"]


def good_actions(env: gym.Env, info: dict[str, Any]) -> Iterator[Any]:
    """Yield what to answer: the annotator's text, clicks that were searched for, or blurred true masks in order."""
    base: Any = env.unwrapped
    if isinstance(env.action_space, spaces.Text):
        yield info["rationale"]
    elif isinstance(env.action_space, spaces.Box):
        truth = info["target"][0]
        masks = truth[np.argsort(-info["ranks"][0])] if "ranks" in info else truth.any(axis=0)[None]
        yield from (gaussian_filter(mask.astype(np.float32), 1).clip(0, 1) for mask in masks)
    else:
        (state,) = OracleAgent().search(base.vector)
        yield from zip(state.patches, state.labels, strict=True)


def strip(frames: Sequence[np.ndarray]) -> Image.Image:
    """Return pictures below each other, in two columns where they are narrow."""
    height, width = max(frame.shape[0] for frame in frames), max(frame.shape[1] for frame in frames)
    columns = 2 if len(frames) > 1 and 2 * width <= WIDEST else 1
    sheet = Image.new("RGB", (width * columns, height * -(-len(frames) // columns)), "white")
    for number, frame in enumerate(frames):
        sheet.paste(Image.fromarray(frame), (width * (number % columns), height * (number // columns)))
    return sheet


def png(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


# Parts


def part_pages() -> dict[str, str | bytes]:
    """Return a page a kind of part, from its registries."""
    kinds: dict[str, tuple[str, str, dict[str, Callable]]] = {
        "data": ("Data sets", "data", {"dataset": data.names}),
        "segmenters": (
            "Segmenters",
            "segmenter",
            {"segmenter": segmenters.names, "attention": segmenters.attention_names},
        ),
        "rewards": ("Rewards", "reward", {"reward": rewards.names}),
        "policies": (
            "Policies",
            "policy",
            {"policy": policies.names, "backbone": policies.backbone_names, "encoder": policies.need_encoder_names},
        ),
        "agents": ("Algorithms", "algo", {"algo": agents.names}),
    }
    pages: dict[str, str | bytes] = {}
    for file, (title, group, registries) in kinds.items():
        tables = [parts_table(group, list_of) for list_of in registries.values()]
        heads = [f"## `{argument}`\n\n" * (len(registries) > 1) for argument in registries]
        more = pairs() if file == "agents" else ""
        pages[f"parts/{file}.md"] = f"# {title}\n\n" + "\n\n".join(map("".join, zip(heads, tables, strict=True))) + more
    return pages


def parts_table(group: str, list_of: Callable) -> str:
    """Return every name of a registry: what it is, what makes it, and for rewards the range."""
    registry: Registry = list_of.__self__  # type: ignore[attr-defined]
    rows: list[list[str]] = []
    for name in registry.names():
        try:
            made = registry.get(name)
        except UserError as error:  # an extra is not installed
            rows.append([code(name), plain(str(error)), ""])
            continue
        kind = made.func if isinstance(made, partial) else made
        if kind is make_published:
            kind = data.get(PUBLISHED[name].reader)
        said = "".join(text for key, _, text in keys_of(group, name) if key == "name")
        first = " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())
        row = [
            code(name),
            plain(said) if isinstance(made, partial) and said else first,
            link_to(kind, code(kind.__name__)),
        ]
        rows.append([*row, reward_range(made)] if group == "reward" else row)
    return table(("name", "what it is", "made by", "range")[: len(rows[0])], rows)


def link_to(kind: Any, text: str) -> str:
    """Return a text that leads to a class or function of the library; the text alone for what has no page."""
    public = kind.__module__.startswith("maskgym.") and not kind.__name__.startswith("_")
    return f"[{text}][{kind.__module__}.{kind.__qualname__}]" if public else text


def reward_range(made: Callable) -> str:
    """Return the range of a reward, where its arguments have defaults."""
    if any(p.default is p.empty for p in inspect.signature(made).parameters.values()):
        return "by its arguments"
    return span(made().range)


@cache
def algorithms() -> tuple[tuple[str, Any], ...]:
    """Return the agents that can be imported here, by name."""
    found = []
    for name in agents.names():
        try:
            found.append((name, agents.get(name)))
        except UserError:  # an extra is not installed
            continue
    return tuple(found)


def takes(agent: Any, env: str) -> bool:
    """Return whether an agent knows every task of an environment."""
    return set(option("env", env)["gym_ids"]) <= set(agent.tasks)


def short_name(env: str, name: str) -> str:
    """Return what ``algo=`` takes for an agent in an environment."""
    return {form: short for short, form in option("env", env).get("algo_aliases", {}).items()}.get(name, name)


def pairs() -> str:
    """Return which algorithms take which environments, by what ``algo=`` takes, with the agent that it means there."""
    envs = groups()["env"]
    found: dict[str, dict[str, str]] = {}
    for name, kind in algorithms():
        for env in envs:
            if takes(kind, env):
                found.setdefault(short_name(env, name), {})[env] = link_to(kind, "yes")
    rows = [(code(name), *(links.get(env, "") for env in envs)) for name, links in sorted(found.items())]
    heads = ("algo", *map(code, envs))
    return f"\n\n## With which environments\n\n`maskgym run env=… algo=…` takes these pairs.\n\n{table(heads, rows)}"


# Options


def option_pages() -> dict[str, str | bytes]:
    """Return a page a group of options, and one of what the root file has, from the comments of the files."""
    root = [key for key in keys_in(CONF / f"{CONFIG}.yaml") if not key[0].startswith("defaults")]
    listed = "\n".join(f"- [{group}]({group}.md): {', '.join(map(code, names))}" for group, names in groups().items())
    pages: dict[str, str | bytes] = {
        "options/index.md": "# Options\n\nA run is described by `key=value` arguments: `maskgym run env=sis seed=1 "
        "evaluation.samples=64`. Of these groups it takes one option each:\n\n"
        f"{listed}\n\nWhat belongs to no group:\n\n{keys_table('', root)}\n"
    }
    for group, names in groups().items():
        sections = [option_section(group, name) for name in names]
        start = f"# {group}\n\nThe options of `{group}=…`; a key is set as in `{group}.KEY=VALUE`.\n\n"
        pages[f"options/{group}.md"] = start + "\n".join(sections)
    return pages


def option_section(group: str, name: str) -> str:
    """Return what one option says of itself and of its keys."""
    keys = keys_of(group, name)
    parents = [parent for parent in option(group, name).get("defaults", []) if parent != "_self_"]
    said = "".join(text for key, _, text in keys if key == "name")
    rest = [key for key in keys if key[0] not in ("name", "defaults")]
    text = f"## `{group}={name}`\n\n" + f"{plain(said)}\n\n" * bool(said)
    text += "".join(f"Has the keys of [`{group}={one}`](#{group}{one}).\n\n" for one in parents)
    return text + keys_table(f"{group}.", rest) * bool(rest) + "\n"


def keys_table(prefix: str, keys: Iterable[tuple[str, str, str]]) -> str:
    """Return keys with their defaults and comments."""
    rows = [(code(prefix + key), code(default), plain(said)) for key, default, said in keys if default or said]
    return table(("key", "default", "what it is"), rows)


def keys_of(group: str, name: str) -> list[tuple[str, str, str]]:
    """Return each key of an option with its default and its comment; none if there is no such option."""
    files = [folder / group / f"{name}.yaml" for folder in folders()]
    return next((keys_in(file) for file in files if file.is_file()), [])


def keys_in(file: Path) -> list[tuple[str, str, str]]:
    """Return each key of a YAML file, nested ones with dots, with its default as written and its comment."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = []

    def read(node: yaml.MappingNode, prefix: str) -> None:
        for key, value in node.value:
            nested = isinstance(value, yaml.MappingNode) and not value.flow_style
            default = "" if nested else text[value.start_mark.index : value.end_mark.index].strip()
            end = key.end_mark if nested else value.end_mark
            found.append((prefix + key.value, default, lines[end.line][end.column :].partition("#")[2].strip()))
            if nested:
                read(value, f"{prefix}{key.value}.")

    read(yaml.compose(text), "")
    return found


# API


def api_pages() -> dict[str, str | bytes]:
    """Return a page a module, whose docstrings mkdocstrings shows; that of a package lists its modules."""
    pages: dict[str, str | bytes] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        place = file.relative_to(PACKAGE)
        name = ".".join((PACKAGE.name, *place.with_suffix("").parts)).removesuffix(".__init__")
        text = f"::: {name}\n"
        if place.stem == "__init__":
            text += f"    options:\n      members: {own_names(file)}\n\n## Modules\n\n" + modules_table(
                file.parent, name
            )
        pages[page_of(place.as_posix())] = text
    return pages


def own_names(file: Path) -> list[str]:
    """Return the public functions and classes that a file defines: what it imports has its page elsewhere."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, kinds)]
    return [node.name for node in nodes if not node.name.startswith("_")]


def modules_table(folder: Path, name: str) -> str:
    """Return the modules and packages of a folder with the first line of each docstring."""
    rows = []
    for file in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        place = file.relative_to(folder)
        if place.name != "__init__.py" or place.parent.name:
            first = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
            page = page_of(place.as_posix()).removeprefix("api/")
            rows.append((f"[`{name}.{place.parts[0].removesuffix('.py')}`]({page})", first))
    return table(("module", "what it is"), rows)


# Markdown


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already; line ends and bars in them are dealt with."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(value: Any) -> str:
    """Return a value as code; nothing for an empty one."""
    return f"`{value}`" if str(value) else ""


def plain(text: str) -> str:
    """Return text so that nothing but code in backticks is markup."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        part if part[:1] == "`" else re.sub(r"([\\*_\[\]{}])", r"\\\1", html.escape(part, quote=False))
        for part in parts
    )


def span(ends: tuple[float, float]) -> str:
    """Return a range in words."""
    return f"{ends[0]:g} to {ends[1]:g}"


def _packages() -> list[Path]:
    """Return the folders of the library."""
    return [path.parent for path in ROOT.glob("*/__init__.py")]
