"""The package as it is installed: what it holds, what it needs, and what importing it costs."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTPUTS = {"build", "dist", "results", "runs"}  # ignored by git
EXTRAS = ("dig", "play", "ray", "tensorboard", "wandb")  # imported where they are used
# Needed at run time by packages that do not ask for them: see setup.cfg.
INDIRECT = {"protobuf", "sentencepiece", "torchvision"}


def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def folders(*parts: str) -> list[Path]:
    visible = [path for path in ROOT.joinpath(*parts).iterdir() if path.is_dir() and path.name[0] not in "._"]
    return [path for path in visible if path.name not in OUTPUTS and not path.name.endswith(".egg-info")]


def library_files(pattern: str) -> list[Path]:
    """List the files of the library, without tests, benchmarks and docs."""
    packages = [folder for folder in folders() if (folder / "__init__.py").exists()]
    return sorted([*ROOT.glob(pattern), *(path for folder in packages for path in folder.rglob(pattern))])


def requirements(section: str, key: str) -> set[str]:
    return {re.split(r"[^\w-]", line)[0] for line in config()[section][key].split("\n") if line}


def imported_names(path: Path) -> set[str]:
    """Return the first names of everything that a file imports when it runs, wherever in the file."""
    names, nodes = set(), list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    typing = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {inner for node in typing for inner in ast.walk(node)}
    for node in [node for node in nodes if node not in skipped]:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def run_python(*arguments: str, **options) -> str:
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


def test_setup_cfg_lists_the_packages_of_the_tree():
    in_tree = {".".join(("maskgym", *file.relative_to(ROOT).parent.parts)) for file in library_files("__init__.py")}
    assert set(config()["options"]["packages"].split()) == in_tree


def test_everything_imported_is_required_and_the_other_way_round():
    distributions = packages_distributions()
    third_party = set().union(*map(imported_names, library_files("*.py"))) - set(sys.stdlib_module_names) - {"maskgym"}
    required = requirements("options", "install_requires")
    optional = set().union(*(requirements("options.extras_require", name) for name in EXTRAS))
    found = {name: distributions.get(name, [name]) for name in third_party}  # an extra's may not be installed
    imported = {distribution.lower().replace("_", "-") for names in found.values() for distribution in names}
    assert imported - optional <= required, "imported, but absent once installed"
    assert required - INDIRECT <= imported, "required, but nothing imports it"


def test_the_extra_all_holds_every_other_extra():
    extras = set(config()["options.extras_require"])
    every = config()["options.extras_require"]["all"].split()
    assert set(every) == {f"maskgym[{name}]" for name in extras - {"all"}}


def test_importing_the_package_imports_no_heavy_library():
    code = "import sys, gymnasium; before = set(sys.modules); import maskgym; print(*set(sys.modules) - before)"
    added = {name.partition(".")[0] for name in run_python("-c", code).split()}
    assert added <= {"maskgym", *sys.stdlib_module_names}


def test_nothing_at_the_root_or_among_the_scripts_hides_a_library():
    scripts = [*ROOT.glob("*.py"), *ROOT.glob("experiments/*.py"), *ROOT.glob("benchmarks/*.py")]
    names = {path.stem for path in [*scripts, *folders(), *folders("experiments")]} - {"__init__"}
    assert "run" in names or "pretrain" in names
    # sys.path begins with the folder of the script, and Ray puts that folder first on the path of its workers.
    # The library arch, of all things, installs a package examples; a folder without __init__.py gives way to it.
    assert not (names - {"examples"}) & {*packages_distributions(), *sys.stdlib_module_names}
    assert not list(ROOT.glob("examples/*.py"))


def test_every_benchmark_runs_when_it_is_called():
    for path in ROOT.glob("benchmarks/*.py"):
        assert 'if __name__ == "__main__":' in path.read_text(), path.name


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of a plain install, from a wheel that was built of a copy of the tree."""
    source, target = tmp_path_factory.mktemp("source") / "clone", tmp_path_factory.mktemp("installed")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", *OUTPUTS)
    shutil.copytree(ROOT, source, ignore=ignored)
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target)]
    run_python(*build, str(source))
    (wheel,) = target.glob("maskgym-*.whl")
    zipfile.ZipFile(wheel).extractall(target)  # what installing a pure wheel comes to
    return target


@pytest.mark.e2e
def test_the_wheel_holds_every_file_of_the_library_and_nothing_else(installed):
    suffixes = {".py", ".yaml", ".html", ".j2", ".json", ".jinja", ".safetensors", ".txt", ".typed", ".gz"}
    # Of files beside the packages, such as requirements of one's own, only modules belong to the root package.
    expected = {
        path.relative_to(ROOT)
        for path in library_files("*")
        if path.suffix in suffixes and (path.parent != ROOT or path.suffix in {".py", ".typed"})
    }
    found = {path.relative_to(installed / "maskgym") for path in (installed / "maskgym").rglob("*") if path.is_file()}
    assert found == expected
    assert any(path.suffix == ".yaml" for path in found)


@pytest.mark.e2e
def test_the_wheel_is_small(installed):
    (wheel,) = installed.glob("maskgym-*.whl")
    assert 1e6 < wheel.stat().st_size < 2.4e7  # bytes; the bundled models are most of it


def other_pythons() -> list[str]:
    """List the interpreters of other versions that setup.cfg claims, on the path or of pyenv, one per version."""
    found: dict[str, str] = {}
    places = [Path(folder) for folder in os.get_exec_path()] + sorted(Path.home().glob(".pyenv/versions/*/bin"))
    for place in places:
        for python in place.glob("python3.1[123]"):
            asked = subprocess.run([python, "-c", "import sys; print(sys.version_info[1])"], capture_output=True)
            if asked.returncode == 0 and asked.stdout.strip() != str(sys.version_info[1]).encode():
                found.setdefault(asked.stdout.decode().strip(), str(python))
    return list(found.values())


@pytest.mark.e2e
def test_other_pythons_install_and_compile_the_wheel(installed, tmp_path):
    """Without its requirements, which are gigabytes: `.ci/wheel` installs these too, and tries what it installed."""
    (wheel,) = installed.glob("maskgym-*.whl")
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no other Python here")
    for python in pythons:
        target = tmp_path / Path(python).name
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, env={**os.environ, "PIP_NO_INDEX": "1"})
        compiled = subprocess.run([python, "-m", "compileall", "-q", str(target)], capture_output=True, text=True)
        assert compiled.returncode == 0, compiled.stdout


@pytest.mark.e2e(seconds=80)
def test_the_wheel_works_from_another_folder(installed, tmp_path):
    """Load every part that has a name, and run tests, against the wheel alone."""
    everything = (
        "import maskgym, importlib\n"
        f"assert maskgym.__file__.startswith({str(installed)!r}), maskgym.__file__\n"
        "for kind in ('agents', 'data', 'policies', 'rewards', 'segmenters'):\n"
        "    part = importlib.import_module(f'maskgym.{kind}')\n"
        "    for name in part.names(): part.names.__self__.get(name)  # the registry\n"
        "import maskgym.experiments.cli\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    tried = run_python(str(ROOT / ".ci" / "smoke.py"), str(installed), cwd=tmp_path, env=environment)
    assert tried.endswith("22 environments, one run: ok\n")
    shutil.copytree(ROOT / "tests" / "rewards", tmp_path / "rewards")
    run_python("-c", everything, cwd=tmp_path, env=environment)
    output = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", "rewards", cwd=tmp_path, env=environment)
    assert re.search(r"\d+ passed", output)


def test_the_architecture_page_has_a_line_for_every_folder_of_the_library():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([\w/]+)/` \|", page, re.MULTILINE))
    folders = {path.parent.relative_to(ROOT).as_posix() for path in library_files("*.py")} - {"."}
    assert folders <= named
    assert {name for name in named if not (ROOT / name).is_dir()} == set()


def test_imports_go_one_way():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
