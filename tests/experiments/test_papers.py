"""The published tables, the page that says what of each paper is where, and the commands and files on all pages."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from maskgym.experiments.cli import COMMANDS
from maskgym.experiments.grids import gate
from maskgym.experiments.wiring import composition

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "papers"
PAPERS = ("alignsam", "saliency_r1", "usersod")
TASKS = {"sod", "sis", "cosod", "blur", "shadow", "glass", "semantic", "need", "ranking"}
DATA_SETS = {
    *("duts", "ecssd", "pascal_s", "dut_omron", "hku_is", "ilso", "sis10k", "soc", "cocoseg", "coca", "cosal2015"),
    *("cosod3k", "cuhk_blur", "sbu", "msd", "voc2012", "usersod", "refcoco", "refcoco_plus", "assr", "salmon"),
}
PARTITIONS = {"refcoco": {"val", "testA", "testB"}, "refcoco_plus": {"val", "testA", "testB"}}
MEASURES = {
    *("s_measure", "e_mean", "e_max", "e_adaptive", "f_mean", "f_max", "f_adaptive", "weighted_f", "mae", "iou"),
    *("ber_mean", "ber_pooled", "ap50", "ap70", "sor", "sa_sor", "miou", "class_iou"),
}
VOC = {
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
}
# The first and the last row of every table, read off the papers by eye.
ENDS = {
    "saliency_r1": {
        "1-sod": (["SFT", 0.890, 0.929, 0.906, 0.046], ["Unified Training", 0.935, 0.968, 0.952, 0.022]),
        "1-sis": (["SFT", 0.683, 0.711], ["Unified Training", 0.902, 0.922]),
        "1-cosod": (["SFT", 0.853, 0.897, 0.861, 0.057], ["Unified Training", 0.907, 0.950, 0.912, 0.030]),
        "3-sod": (["Gemini-2.5-Pro", 0.898, 0.929, 0.894, 0.047], ["Saliency-R1(Ours)", 0.935, 0.968, 0.952, 0.022]),
        "3-sis": (["Gemini-2.5-Pro", 0.632, 0.673], ["Saliency-R1(Ours)", 0.902, 0.922]),
        "3-cosod": (["Gemini-2.5-Pro", 0.868, 0.911, 0.858, 0.045], ["Saliency-R1(Ours)", 0.907, 0.950, 0.912, 0.030]),
        "4-sod": (
            ["VST", 0.850, 0.888, 0.800, 0.058, 0.932, 0.964, 0.944, 0.033, 0.873, 0.920, 0.871, 0.060],
            ["Saliency-R1(Ours)", 0.864, 0.907, 0.833, 0.049, 0.935, 0.968, 0.952, 0.022, 0.887, 0.935, 0.891, 0.042],
        ),
        "4-sis": (
            ["S4Net", 0.636, 0.867, 0.670, 0.833, 0.420, 0.646],
            ["Saliency-R1(Ours)", 0.902, 0.922, 0.843, 0.870, 0.714, 0.745],
        ),
        "4-cosod": (
            ["GCoNet+", 0.738, 0.814, 0.637, 0.081, 0.881, 0.926, 0.891, 0.055, 0.843, 0.901, 0.834, 0.061],
            ["Saliency-R1(Ours)", 0.899, 0.946, 0.871, 0.023, 0.928, 0.965, 0.942, 0.024, 0.907, 0.950, 0.912, 0.030],
        ),
    },
    "alignsam": {
        "2-blur": (["SAMed", 55.44, 71.68], ["Ours-w/o MSI", 46.92, 67.02]),
        "2-shadow": (["SAMed", 17.24, 42.84], ["Ours-w/o MSI", 18.65, 42.91]),
        "2-glass": (["SAMed", 41.35, 52.67], ["Ours-w/o MSI", 35.86, 47.95]),
        "2-sod": (["SAMed", 76.41], ["Ours-w/o MSI", 68.59]),
        "2-sod-mae": (["SAMed", 0.104], ["Ours-w/o MSI", 0.134]),
        "3": (
            ["MSA", 47.12, 31.56, 41.05, 56.47, 60.65, 19.79, 55.95, 38.81, 33.97, 60.38, 61.99],
            ["Ours-w/o SRM", 27.73, 19.78, 27.42, 30.33, 39.29, 14.08, 29.16, 24.91, 30.39, 31.32, 29.02],
        ),
        "4-blur": (["Implicit Branch", 68.47], ["Explicit Branch", 47.98]),
        "4-shadow": (["Implicit Branch", 19.40], ["Explicit Branch", 30.78]),
        "4-glass": (["Implicit Branch", 45.44], ["Explicit Branch", 25.72]),
        "4-sod": (["Implicit Branch", 78.21], ["Explicit Branch", 69.31]),
        "4-semantic": (["Implicit Branch", 46.03], ["Explicit Branch", 62.09]),
        "5": (["T = 1", 32.59, 42.55, 54.69, 74.59], ["T = 20", 48.70, 66.54, 74.00, 86.13]),
    },
    "usersod": {
        "1": (["SegCLIP", 0.214, 0.431, 0.395, 0.538], ["Usersal+", 0.049, 0.840, 0.913, 0.870]),
        "2": (
            [
                *("MDiff", 0.030, 0.936, 0.950, 0.930, 0.027, 0.904, 0.912, 0.906),
                *(0.031, 0.907, 0.938, 0.929, 0.058, 0.858, 0.803, 0.865),
            ],
            [
                *("Usersal+", 0.020, 0.957, 0.956, 0.958, 0.021, 0.957, 0.972, 0.948),
                *(0.021, 0.966, 0.969, 0.941, 0.045, 0.941, 0.965, 0.941),
            ],
        ),
        "3": (
            ["IRSR", 0.625, 0.734, 0.091, 0.439, 0.708, 0.053],
            ["SeqRank*", 0.734, 0.857, 0.059, 0.412, 0.716, 0.041],
        ),
        "4": (["CGFormer", 78.70, 71.00], ["Usersal+", 78.72, 73.56]),
        "5-sod": (["Base", 0.033, 0.902, 0.918, 0.932], ["MPL + SME + SC + AIA + AL + MS", 0.021, 0.957, 0.972, 0.948]),
        "5-need": (["Base", *[None] * 4], ["MPL + SME + SC + AIA + AL + MS", 0.049, 0.840, 0.913, 0.870]),
        "6-sod": (["DifSOD", 0.024, 0.955, 0.961, 0.945], ["VST*", 0.020, 0.957, 0.956, 0.958]),
        "6-need": (["DifSOD", *[None] * 4], ["VST*", 0.049, 0.840, 0.913, 0.870]),
        "7-sod": (["BERT", 0.096, 0.958, 0.954, 0.958], ["FLIP", 0.020, 0.957, 0.956, 0.958]),
        "7-need": (["BERT", 0.109, 0.704, 0.796, 0.782], ["FLIP", 0.049, 0.840, 0.913, 0.870]),
        "8-sod": (["FC*", 0.096, 0.958, 0.954, 0.958], ["Swin*", 0.020, 0.957, 0.956, 0.958]),
        "8-need": (["FC*", 0.109, 0.704, 0.796, 0.782], ["Swin*", 0.049, 0.840, 0.913, 0.870]),
    },
}
ROWS = {  # in each table, in the order above
    "saliency_r1": (10, 10, 10, 11, 11, 11, 4, 5, 5),
    "alignsam": (8, 8, 8, 8, 8, 8, 2, 2, 2, 2, 2, 5),
    "usersod": (18, 10, 8, 10, 6, 6, 6, 6, 6, 6, 4, 4),
}


@functools.cache
def read(paper):
    return yaml.safe_load((FOLDER / f"{paper}.yaml").read_text(encoding="utf-8"))


TABLES = [(paper, name) for paper in PAPERS for name in ENDS[paper]]


def test_there_is_one_file_a_paper_with_the_tables_listed_here():
    assert {file.stem for file in FOLDER.iterdir()} == set(PAPERS)
    for paper in PAPERS:
        content = read(paper)
        assert set(content) == {"title", "preset", "tables"}
        assert content["preset"] == paper and content["title"]
        assert list(content["tables"]) == list(ENDS[paper])
        assert tuple(len(table["rows"]) for table in content["tables"].values()) == ROWS[paper]


@pytest.mark.parametrize(("paper", "name"), TABLES)
def test_a_table_has_our_names_and_whole_rows(paper, name):
    table = read(paper)["tables"][name]
    assert set(table) - {"scale", "notes"} == {"caption", "task", "columns", "rows"}
    assert table["task"] in TASKS and isinstance(table["caption"], str)
    assert table.get("scale", 100) == 100
    columns = [tuple(column) for column in table["columns"]]
    assert len(set(columns)) == len(columns)
    for data_set, measure in columns:
        base, _, partition = data_set.partition("/")
        assert base in DATA_SETS and (not partition or partition in PARTITIONS[base]), data_set
        base, _, label = measure.partition("/")
        assert base in MEASURES and (not label or (base == "class_iou" and label in VOC)), measure
    methods = [row[0] for row in table["rows"]]
    assert len(set(methods)) == len(methods)
    for row in table["rows"]:
        assert isinstance(row[0], str) and len(row) == 1 + len(columns), row
        for (_, measure), value in zip(columns, row[1:], strict=True):
            lowest = -1 if measure == "sa_sor" else 0
            assert value is None or lowest <= value <= table.get("scale", 1), (row[0], value)


@pytest.mark.parametrize(("paper", "name"), TABLES)
def test_the_first_and_the_last_row_are_the_papers(paper, name):
    rows = read(paper)["tables"][name]["rows"]
    assert (rows[0], rows[-1]) == ENDS[paper][name]


def test_percentages_have_a_scale_and_fractions_have_none():
    for paper, name in TABLES:
        table = read(paper)["tables"][name]
        largest = max(value for row in table["rows"] for value in row[1:] if value is not None)
        assert (largest > 1) == ("scale" in table), (paper, name)


def test_tables_agree_where_the_papers_repeat_themselves():
    tables = read("saliency_r1")["tables"]
    ours = {name: tables[name]["rows"][-1][1:] for name in tables}
    assert ours["1-sod"] == ours["3-sod"] == ours["4-sod"][4:8]
    assert ours["1-sis"] == ours["3-sis"] == ours["4-sis"][:2]
    assert ours["1-cosod"] == ours["3-cosod"] == ours["4-cosod"][8:]
    tables = read("alignsam")["tables"]
    assert tables["5"]["rows"][3][1:] == tables["3"]["rows"][5][2:6]  # T = 15, Ours
    for name, branch in (("blur", 0), ("shadow", 1), ("glass", 0), ("sod", 0)):
        assert tables[f"4-{name}"]["rows"][branch][1] == tables[f"2-{name}"]["rows"][4][1]
    tables = read("usersod")["tables"]
    best = [0.049, 0.840, 0.913, 0.870]
    assert all(tables[name]["rows"][-1][1:] == best for name in ("1", "5-need", "6-need", "7-need", "8-need"))


# The page.

PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
CODE = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
READ = [file for file in sorted((ROOT / "docs").rglob("*.md")) if file.parent.name != "tutorials"]  # those are run
PAGES = {file: file.read_text(encoding="utf-8") for file in READ}
BLOCKS = [
    (file.name, *found) for file, text in PAGES.items() for found in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
]
BASH = "".join(text for _, language, text in BLOCKS if language == "bash").replace("\\\n", " ")
LINES = [line.partition("  #")[0].strip() for line in BASH.splitlines()] + CODE
FILES = [code for code in CODE if re.fullmatch(r"[\w./-]+\.(py|yaml|md|json)", code)]
PLACES = re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", PAGE)


def defined(body, prefix=""):
    """Return the names that statements define, those in classes after the class and by themselves."""
    names = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names |= {f"{prefix}{node.name}", node.name}
        if isinstance(node, ast.ClassDef):
            names |= defined(node.body, f"{node.name}.")
    return names


def keys_of(group):
    """Return every key of a group's options, nested ones by their path."""

    def walk(values, path=()):
        for name, value in values.items():
            yield ".".join((*path, name))
            if isinstance(value, dict):
                yield from walk(value, (*path, name))

    files = (composition.CONF / group).glob("*.yaml")
    return {key for file in files for key in walk(yaml.safe_load(file.read_text(encoding="utf-8")))}


def test_the_files_and_functions_of_the_page_are_there():
    assert [file for file in FILES if not (ROOT / file).is_file()] == []
    unknown = []
    for file, names in PLACES:
        known = defined(ast.parse((ROOT / file).read_text(encoding="utf-8")).body)
        unknown += [f"{name} in {file}" for name in re.findall(r"[\w.]+", names) if name not in known]
    assert unknown == []
    assert len(set(FILES)) > 60 and len(set(PLACES)) > 60


def test_the_keys_of_the_page_are_there():
    groups, roots = composition.groups(), composition.root_keys()
    keys = {name: keys_of(name) for name in groups}
    found = 0
    for code in CODE:
        match = re.fullmatch(r"\+?(\w+)((?:\.\w+)*)(?:=(\S+))?", code)
        if not match or match[1] not in roots:
            continue
        group, path, value = match[1], match[2][1:], match[3]
        found += 1
        if path:
            assert path in keys[group], code
        elif value and group in groups:
            assert value in (*groups[group], "random"), code
    assert found > 80


def runs():
    for line in LINES:
        if line.startswith(("python experiments/run.py ", "maskgym run ")) and "resume=" not in line:
            words = shlex.split(line)[2:]
            yield " ".join(word for word in words if "=" in word)


@pytest.mark.parametrize("arguments", sorted(filter(None, set(runs()))))
def test_a_run_of_a_page_composes(arguments):
    for row in composition.expand(shlex.split(arguments)):
        assert composition.compose(row)["env"]["name"]


def test_the_other_commands_of_the_pages_exist():
    lists = {"study": "studies", "benchmark": "matrices", "sweep": "sweeps"}
    found = set()
    for line in LINES:
        script = re.match(r"python ((?:experiments|benchmarks)/\w+\.py)(?: (\w+))?", line)
        if script:
            assert (ROOT / script[1]).is_file(), line
            kind = Path(script[1]).stem
            if kind in lists:
                assert (ROOT / "experiments" / lists[kind] / f"{script[2]}.yaml").is_file(), line
            found.add(script[1])
        if line.startswith("maskgym "):
            words = tuple(line.split()[1:])
            if words[0] in lists and not words[1].endswith(".yaml") and words[:2] != ("benchmark", gate.NAME):
                name = words[1].removeprefix("protocol=")
                assert (ROOT / "experiments" / lists[words[0]] / f"{name}.yaml").is_file(), line
            assert any(words[: len(command)] == command for command in COMMANDS), line
            found.add("maskgym")
    assert found >= {"experiments/run.py", "maskgym"}


@pytest.mark.parametrize(("page", "text"), [(page, text) for page, language, text in BLOCKS if language == "yaml"])
def test_yaml_of_a_page_can_be_read(page, text):
    assert isinstance(yaml.safe_load(text), dict)


def test_commands_of_the_pages_are_such():
    for page, language, text in BLOCKS:
        if language == "bash":
            done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{page}: {done.stderr}"


def test_every_study_and_matrix_is_on_the_page():
    named = set(re.findall(r"maskgym (?:study|benchmark) (\w+)", PAGE)) | {
        "click_settings",
        "learning_rates",
        "usersod_fine",
        "refer",
        "maskgym_v0",
        "text_settings",
    }
    stems = {file.stem for folder in ("studies", "matrices") for file in (ROOT / "experiments" / folder).glob("*.yaml")}
    assert stems <= named


def test_every_equation_of_the_papers_is_on_the_page():
    parts = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    for part, last in zip(parts, (24, 13, 5), strict=True):
        section = part.partition("### Equations")[2].partition("\n### ")[0]
        named = set()
        for cell in re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE):
            for listed in re.findall(r"Eq\. ([\d, –]+)", cell):
                for first, end in re.findall(r"(\d+)(?:–(\d+))?", listed):
                    named |= set(range(int(first), int(end or first) + 1))
        assert named == set(range(1, last + 1)), part.partition("\n")[0]
