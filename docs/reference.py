"""MkDocs hook: adds the pages that come from code (environments, parts, options, API) and resolves links.

Every build makes, plays and draws the environments, and reads registries, comments of ``experiments/conf`` and
docstrings, so that these pages never go stale.
"""

from __future__ import annotations

import ast
import html
import inspect
import logging
import posixpath
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import cache, partial
from pathlib import Path
from textwrap import dedent

import gymnasium as gym
import numpy as np
import yaml
from episodes import CAPTIONS, environments, episode, first_row, make, png, strip
from gymnasium import spaces
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from maskgym import agents, data, policies, rewards, segmenters
from maskgym.agents.base import Agent
from maskgym.aliases import Config, Settings
from maskgym.data.published import PUBLISHED, make_published
from maskgym.envs.base import SampleVectorEnv
from maskgym.errors import UserError
from maskgym.experiments.wiring.composition import CONF, folders, groups, option
from maskgym.registry import Registry
from maskgym.rewards import Reward

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "build" / "package" / "maskgym"  # what mkdocstrings reads: see mkdocs.yml
# Pages written elsewhere in the repository; a folder stands for the page that describes it.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "tutorials/examples.md",
    "examples": "tutorials/examples.md",
}
# These are in the order of reading; other pages of the same folder follow.
TUTORIALS = (
    *("first_run", "your_own_parts", "your_own_algorithm", "examples", "your_own_checkpoint", "sweep", "scale"),
    "paper_table",
)
GUIDES = (
    "for_newcomers",
    "commands",
    "parts",
    "rewards",
    "evaluation",
    "levels",
    "benchmark",
    "board",
    "scaling",
    "integrations",
    "reward_audit",
    "papers",
    "architecture",
    "contributing",
    "log",
)
CONFIG = "config"  # the root file of options
PageContent = str | bytes
NavItem = str | dict[str, str] | dict[str, list["NavItem"]]  # as in the navigation of mkdocs.yml
REGISTRIES: dict[str, tuple[str, str, dict[str, Callable[[], tuple[str, ...]]]]] = {  # page: title, group, arguments
    "data": ("Data sets", "data", {"dataset": data.names}),
    "segmenters": ("Segmenters", "segmenter", {"segmenter": segmenters.names, "attention": segmenters.attention_names}),
    "rewards": ("Rewards", "reward", {"reward": rewards.names}),
    "policies": (
        "Policies",
        "policy",
        {"policy": policies.names, "backbone": policies.backbone_names, "encoder": policies.need_encoder_names},
    ),
    "agents": ("Algorithms", "algo", {"algo": agents.names}),
}
LINK = re.compile(
    r"(?P<code>^[ ]*```.*?^[ ]*```|`[^`\n]+`)|"
    r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<to>[^()\s]+)\)",
    re.MULTILINE | re.DOTALL,
)
log = logging.getLogger(f"mkdocs.hooks.{__name__}")


def on_startup(command: str, dirty: bool) -> None:
    """Copy the packages to where mkdocstrings reads them, because the root also holds virtual environments."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    for file in [*ROOT.glob("*.py"), *(path for folder in _packages() for path in folder.rglob("*.py"))]:
        copy = PACKAGE / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        # Griffe knows this section as "Examples" only.
        copy.write_text(re.sub(r"(?m)^( +)Example:$", r"\1Examples:", file.read_text(encoding="utf-8")), "utf-8")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every page that is not written in ``docs/``, and set the navigation."""
    pages: dict[str, PageContent] = {
        uri: (ROOT / place).read_text(encoding="utf-8") for place, uri in ELSEWHERE.items() if place.endswith(".md")
    }
    pages |= {**environment_pages(), **part_pages(), **option_pages(), **api_pages()}
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    config.nav = navigation([file.src_uri for file in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change links to files of the repository into links to the pages of the site, and drop badges of other hosts."""
    uri = page.file.src_uri
    markdown = re.sub(r"(?m)^!\[[^]]*\]\(https://[^)]*\)\n", "", markdown)
    origins = {uri: place for place, uri in reversed(ELSEWHERE.items())}
    if uri not in origins and page.file.abs_src_path is None:
        return markdown  # Generated pages link to pages already.
    return relink(markdown, origins.get(uri, f"docs/{uri}"), uri, files)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link full names in the library, such as ``maskgym.data.Sample``, to the API pages."""
    name = r"(maskgym(?:\.\w+)+)"
    return re.sub(rf"<code>{name}</code>", r'<autoref identifier="\1" optional><code>\1</code></autoref>', content)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Label the search dialog for screen readers, because Material does not."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')


def relink(markdown: str, origin: str, uri: str, files: Files) -> str:
    """Change relative links to pages of the site, or to plain text where the site has no such page.

    Args:
        markdown: Text of the page.
        origin: Path of the page in the repository.
        uri: Path of the page in the site.
        files: Files of the site.
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
    """Compute the path that the site would give to a file of the repository."""
    if place in ELSEWHERE:
        return ELSEWHERE[place]
    if place.endswith(".py"):
        return f"api/{place.removesuffix('.py').replace('__init__', 'index')}.md"
    return place.removeprefix("docs/")


def navigation(uris: Sequence[str]) -> list[NavItem]:
    """Build the navigation of all pages, as it would stand in mkdocs.yml."""

    def pages(folder: str, first: Sequence[str] = ()) -> list[str]:
        names = {uri.rpartition("/")[2].removesuffix(".md"): uri for uri in uris if posixpath.dirname(uri) == folder}
        order = ["index", *first, *sorted(names)]
        return [names[name] for name in dict.fromkeys(order) if name in names and names[name] != "index.md"]

    api: dict[str, list[NavItem]] = {}
    for folder in sorted({posixpath.dirname(uri) for uri in uris if uri.startswith("api/")}):
        # The label is the name of the module, where MkDocs would capitalise it.
        api[folder] = [uri if uri.endswith("index.md") else {Path(uri).stem: uri} for uri in pages(folder)]
        if folder != "api":
            api[posixpath.dirname(folder)].append({posixpath.basename(folder): api[folder]})
    return [
        {"Home": "index.md"},
        {"Tutorials": pages("tutorials", TUTORIALS)},
        {"Guides": pages("", GUIDES)},
        {"Environments": pages("environments", [id.partition("/")[2] for id in environments()])},
        {"Parts": [*pages("parts", list(REGISTRIES)), {"Options": pages("options")}]},
        {"API": api["api"]},
        {"Results": pages("results")},
        {"Reproduce": pages("reproduce")},
    ]


# Environments


def environment_pages() -> dict[str, PageContent]:
    """Build a page with two pictures for each environment, and the page that shows them all."""
    pages: dict[str, PageContent] = {}
    cards = []
    for id in environments():
        name = id.partition("/")[2]
        frames, quality = episode(id)
        pages[f"environments/{name}.png"] = png(strip(frames))
        pages[f"environments/{name}-small.png"] = png(first_row(frames[-1]))
        pages[f"environments/{name}.md"] = environment_page(id, len(frames), quality)
        cards.append(
            f'<div class="card" markdown>\n\n[![A rendered episode of {name}]({name}-small.png)]({name}.md)\n\n'
            f"**[{name}]({name}.md)**\n\nThe agent answers with {CAPTIONS[name]}.\n\n</div>\n"
        )
    pages["environments/index.md"] = (
        "# Environments\n\n`import maskgym` registers them with Gymnasium under `maskgym/`. The pictures are "
        'episodes, drawn by `render()`.\n\n<div class="cards" markdown>\n\n' + "\n".join(cards) + "\n</div>\n"
    )
    return pages


def environment_page(id: str, pictures: int, quality: float) -> str:
    """Build the page of one environment; ``quality`` is the last IoU of the episode in its picture."""
    name, env = id.partition("/")[2], make(id)
    kind = env.vector_class
    tables = {
        "Observation Space": spaces_table(env.observation_space),
        "Action Space": spaces_table(env.action_space),
        "Reward": reward_table(env.vector.reward),
        "Arguments": arguments_table(kind, gym.spec(id).kwargs),
    }
    sections = {title: as_list(text) for title, text in sections_of(kind).items() if title != "Raises"}
    sections["Arguments"] = ""  # its text is in the table
    parts = [
        f"# {name}",
        f"`{id}`: the agent answers with {CAPTIONS[name]}.",
        f"![A rendered episode of {name}: image, predicted masks and ground truth]({name}.png)",
        f"An episode of the training split, as `render()` draws it{' after some of its steps' * (pictures > 1)}. The "
        f"actions are made with the ground truth at hand; the IoU of the last mask is {quality:.2f}.",
        f"## Make it\n\n```python\nimport gymnasium as gym\nimport maskgym  # registers the environments\n\n"
        f'env = gym.make("{id}", render_mode="rgb_array")\n'
        f'many = gym.make_vec("{id}", num_envs=8, vectorization_mode="vector_entry_point")\n```',
        commands(id),
        *(f"## {title}\n\n{tables.get(title, '')}\n\n{text}" for title, text in sections.items()),
        f"The classes: `{kind.__module__}.{type(env).__name__}`, `{kind.__module__}.{kind.__name__}`.",
    ]
    return "\n\n".join(parts) + "\n"


def sections_of(kind: type) -> dict[str, str]:
    """Split the docstring of a class into its sections by title."""
    _, *parts = re.split(r"(?m)^([A-Z][A-Za-z, ]+):$", inspect.getdoc(kind) or "")
    return {title: dedent(text).strip() for title, text in zip(parts[::2], parts[1::2], strict=True)}


def as_list(text: str) -> str:
    """Change lines of the form ``name: meaning`` to items of a list, and link names of other environments."""
    named = re.sub(r"(?m)^([a-z_]\w*): ", r"\n- `\1`: ", text)
    others = {gym.spec(id).name: id.partition("/")[2] for id in environments()}
    return re.sub(
        rf"(?<![\w`/.])({'|'.join(others)})(?![\w`])", lambda name: f"[{name[0]}]({others[name[0]]}.md)", named
    )


def spaces_table(space: spaces.Space) -> str:
    """Build a table of a space, or of each field of a dictionary of spaces."""
    fields = space.spaces.items() if isinstance(space, spaces.Dict) else [("", space)]
    rows = [
        (code(name), code(type(one).__name__), code(one.shape or ""), code(np.dtype(one.dtype).name), span_of(one))
        for name, one in fields
    ]
    return table(("field", "space", "shape", "dtype", "range"), rows)


def span_of(space: spaces.Space) -> str:
    """Describe the values that a space holds."""
    if isinstance(space, spaces.Box):
        return f"{space.low.min():g} to {space.high.max():g}"
    if isinstance(space, spaces.MultiDiscrete):
        return ", ".join(f"0 to {count - 1}" for count in space.nvec)
    if isinstance(space, spaces.Discrete):
        return f"{space.start} to {int(space.start) + int(space.n) - 1}"
    if isinstance(space, spaces.Text):
        return f"up to {space.max_length:,} characters"
    return ""


def reward_table(reward: Reward) -> str:
    """Build a table of the terms of the default reward with their weights and ranges."""
    rows = [
        (code(term.name), f"{weight:g}", span(term.range))
        for term, weight in zip(reward.terms, reward.weights, strict=True)
    ]
    return f"The default, in {span(reward.range)}, is the weighted sum of\n\n{table(('term', 'weight', 'range'), rows)}"


def arguments_table(kind: type[SampleVectorEnv], given: Settings) -> str:
    """Build a table of the arguments of an environment, including inherited ones, with their defaults.

    Args:
        kind: Class of the vector environment.
        given: Arguments that its registration fixes.
    """
    said: dict[str, str] = {}
    defaults: Config = {}
    for one in inspect.getmro(kind):
        own = dict(re.findall(r"(?m)^(\w+): (.*(?:\n +.*)*)", sections_of(one).get("Arguments", "")))
        said = {**own, **said}
        parameters = inspect.signature(one).parameters.values()
        defaults = {p.name: p.default for p in parameters} | defaults
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    defaults = {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
    shown = {name: value.value if isinstance(value, Enum) else value for name, value in (defaults | given).items()}
    rows = [(code(name), code(repr(shown[name])), said[name]) for name in defaults]
    return table(("argument", "default", "meaning"), rows)


def commands(id: str) -> str:
    """Build the block of commands that train on an environment, for each option of ``env`` that has it."""
    lines = []
    for name in sorted(groups()["env"], key=lambda name: len(option("env", name)["gym_ids"])):  # its own option first
        if id in option("env", name)["gym_ids"].values():
            fit = (algo for algo, kind in algorithms() if kind.learns and takes(kind, name))
            algorithm = next(algo for algo in fit if short_name(name, algo) == algo)
            lines.append(f"maskgym run env={name} algo={algorithm}")
    return "```bash\n" + "\n".join(lines) + "\n```"


# Parts


def part_pages() -> dict[str, PageContent]:
    """Build a page per kind of part from its registries."""
    pages: dict[str, PageContent] = {}
    for file, (title, group, registries) in REGISTRIES.items():
        heads = [f"## `{argument}`\n\n" * (len(registries) > 1) for argument in registries]
        tables = [head + parts_table(group, names) for head, names in zip(heads, registries.values(), strict=True)]
        pages[f"parts/{file}.md"] = f"# {title}\n\n" + "\n\n".join(tables) + pairs() * (file == "agents")
    return pages


def parts_table(group: str, names: Callable[[], tuple[str, ...]]) -> str:
    """Build a table of every name of a registry with its meaning, its class, and for rewards the range."""
    registry: Registry = names.__self__  # type: ignore[attr-defined]
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
        row = [code(name), plain(said) if isinstance(made, partial) and said else first]
        row.append(link_to(kind, code(kind.__name__)))
        rows.append([*row, reward_range(made)] if group == "reward" else row)
    return table(("name", "meaning", "made by", "range")[: len(rows[0])], rows)


def link_to(kind: Callable, text: str) -> str:
    """Link a text to a class or function of the library; what has no page stays plain text."""
    public = kind.__module__.startswith("maskgym.") and not kind.__name__.startswith("_")
    return f"[{text}][{kind.__module__}.{kind.__qualname__}]" if public else text


def reward_range(made: Callable[..., Reward]) -> str:
    """Describe the range of a reward, if its arguments have defaults."""
    if any(p.default is p.empty for p in inspect.signature(made).parameters.values()):
        return "depends on its arguments"
    return span(made().range)


@cache
def algorithms() -> tuple[tuple[str, type[Agent]], ...]:
    """List the agents that can be imported here, by name."""
    found = []
    for name in agents.names():
        try:
            kind = agents.get(name)
        except UserError:  # an extra is not installed
            continue
        if isinstance(kind, type) and issubclass(kind, Agent):
            found.append((name, kind))
    return tuple(found)


def takes(agent: type[Agent], env: str) -> bool:
    """Check whether an agent supports every task of an environment."""
    return set(option("env", env)["gym_ids"]) <= set(agent.tasks)


def short_name(env: str, name: str) -> str:
    """Return the value of ``algo=`` that selects an agent in an environment."""
    return {form: short for short, form in option("env", env).get("algo_aliases", {}).items()}.get(name, name)


def pairs() -> str:
    """Build a table of which values of ``algo=`` work in which environments, with links to the agents."""
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


def option_pages() -> dict[str, PageContent]:
    """Build a page per group of options, and one for the keys of the root file, from the comments of the files."""
    root = [key for key in keys_in(CONF / f"{CONFIG}.yaml") if not key[0].startswith("defaults")]
    listed = "\n".join(f"- [{group}]({group}.md): {', '.join(map(code, names))}" for group, names in groups().items())
    pages: dict[str, PageContent] = {
        "options/index.md": "# Options\n\nA run is described by `key=value` arguments: `maskgym run env=sis seed=1 "
        "evaluation.samples=64`. It takes one option of each of these groups:\n\n"
        f"{listed}\n\nKeys outside the groups:\n\n{keys_table('', root)}\n"
    }
    for group, names in groups().items():
        sections = [option_section(group, name) for name in names]
        start = f"# {group}\n\nThe options of `{group}=…`; a key is set as in `{group}.KEY=VALUE`.\n\n"
        pages[f"options/{group}.md"] = start + "\n".join(sections)
    return pages


def option_section(group: str, name: str) -> str:
    """Build the section of one option with its keys."""
    keys = keys_of(group, name)
    parents = [parent for parent in option(group, name).get("defaults", []) if parent != "_self_"]
    said = "".join(text for key, _, text in keys if key == "name")
    rest = [key for key in keys if key[0] not in ("name", "defaults")]
    text = f"## `{group}={name}`\n\n" + f"{plain(said)}\n\n" * bool(said)
    text += "".join(f"It has the keys of [`{group}={one}`](#{group}{one}).\n\n" for one in parents)
    return text + keys_table(f"{group}.", rest) * bool(rest) + "\n"


def keys_table(prefix: str, keys: Iterable[tuple[str, str, str]]) -> str:
    """Build a table of keys with their defaults and comments."""
    rows = [(code(prefix + key), code(default), plain(said)) for key, default, said in keys if default or said]
    return table(("key", "default", "meaning"), rows)


def keys_of(group: str, name: str) -> list[tuple[str, str, str]]:
    """List each key of an option with its default and its comment; empty if there is no such option."""
    files = [folder / group / f"{name}.yaml" for folder in folders()]
    return next((keys_in(file) for file in files if file.is_file()), [])


def keys_in(file: Path) -> list[tuple[str, str, str]]:
    """List each key of a YAML file with its default as written and its comment; nested keys have dots."""
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


def api_pages() -> dict[str, PageContent]:
    """Build a page per module, filled by mkdocstrings; the page of a package also lists its modules."""
    pages: dict[str, PageContent] = {}
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
    """List the public functions and classes that a file defines, without those that it imports."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, kinds)]
    return [node.name for node in nodes if not node.name.startswith("_")]


def modules_table(folder: Path, name: str) -> str:
    """Build a table of the modules and packages of a folder with the first line of each docstring."""
    rows = []
    for file in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        place = file.relative_to(folder)
        if place.name != "__init__.py" or place.parent.name:
            first = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
            page = page_of(place.as_posix()).removeprefix("api/")
            rows.append((f"[`{name}.{place.parts[0].removesuffix('.py')}`]({page})", first))
    return table(("module", "contents"), rows)


# Markdown


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Build a table of cells in Markdown; line ends and bars in cells are escaped."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(value: object) -> str:
    """Format a value as code; an empty value stays empty."""
    return f"`{value}`" if str(value) else ""


def plain(text: str) -> str:
    """Escape text so that only code in backticks is markup."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        part if part[:1] == "`" else re.sub(r"([\\*_\[\]{}])", r"\\\1", html.escape(part, quote=False))
        for part in parts
    )


def span(ends: tuple[float, float]) -> str:
    """Describe a range."""
    return f"{ends[0]:g} to {ends[1]:g}"


def _packages() -> list[Path]:
    """List the folders of the library."""
    return [path.parent for path in ROOT.glob("*/__init__.py")]
