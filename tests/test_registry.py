from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from maskgym import registry
from maskgym.errors import UserError
from maskgym.registry import Registry


class Square:
    def __init__(self, side: int = 1) -> None:
        self.side = side


@pytest.fixture
def shapes():
    shapes = Registry("shape")
    shapes.register("square", Square)
    return shapes


def test_a_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)


def test_make_passes_the_arguments_on(shapes):
    assert shapes.make("square").side == 1
    assert shapes.make("square", side=3).side == 3


def test_get_returns_the_target_itself(shapes):
    assert shapes.get("square") is Square


def test_register_as_a_decorator_leaves_the_class_as_it_is(shapes):
    @shapes.register("circle")
    class Circle:
        pass

    assert isinstance(shapes.make("circle"), Circle)


def test_a_name_can_fix_arguments(shapes):
    shapes.register("big", Square, side=9)
    assert shapes.make("big").side == 9 and shapes.make("big", side=2).side == 2


class Oblong(Square):
    def __init__(self, length: int, **settings: int) -> None:
        super().__init__(**settings)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("square", {"colour": 1}, "unknown key 'colour': shape 'square' does not take it"),
        ("big", {"colour": 1}, "unknown key 'colour': shape 'big' does not take it"),
        ("oblong", {"length": 1, "colour": 1}, "unknown key 'colour': shape 'oblong' does not take it"),
        ("oblong", {"side": 1}, "missing key 'length': shape 'oblong' needs it"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(shapes, name, arguments, expected):
    shapes.register("oblong", Oblong)
    shapes.register("big", Square, side=9)
    with pytest.raises(UserError) as caught:
        shapes.make(name, **arguments)
    assert str(caught.value) == expected
    assert shapes.make("oblong", length=2, side=4).side == 4


def test_names_are_sorted(shapes):
    shapes.register("circle", Square)
    assert shapes.names() == ("circle", "square")


def test_a_second_entry_is_refused_and_the_first_stays(shapes):
    with pytest.raises(ValueError, match="shape 'square' is registered already"):
        shapes.register("square", int)
    assert shapes.get("square") is Square


def test_a_string_is_imported_when_first_used_and_once(tmp_path, monkeypatch, shapes):
    module = tmp_path / "lazy_shapes.py"
    module.write_text("class Disc:\n    pass\n")
    shapes.register("disc", "lazy_shapes:Disc")  # not importable yet
    assert shapes.names() == ("disc", "square")
    monkeypatch.syspath_prepend(tmp_path)
    disc = shapes.get("disc")
    assert disc.__module__ == "lazy_shapes"
    assert shapes.get("disc") is disc


def test_a_string_that_cannot_be_imported_is_a_fault_of_ours(shapes):
    shapes.register("lost", "maskgym.no_such_module:Lost")
    with pytest.raises(ModuleNotFoundError):
        shapes.get("lost")


def test_an_unknown_name_is_answered_with_all_the_closest_first(shapes):
    shapes.register("circle", Square)
    with pytest.raises(UserError, match=r"^unknown shape 'squares': expected one of square, circle$"):
        shapes.make("squares")


def test_an_unknown_name_close_to_none_is_answered_with_all(shapes):
    shapes.register("circle", Square)
    with pytest.raises(UserError, match=r"^unknown shape 'xyz': expected one of circle, square$"):
        shapes.get("xyz")


def test_registries_are_apart(shapes):
    assert Registry("colour").names() == ()
    assert shapes.names() == ("square",)


@pytest.mark.parametrize("content", ["1 / 0", "import no_such_library", "raise SystemExit(3)", "def f(:"])
def test_a_plugin_that_cannot_be_imported_is_named_each_time(tmp_path, monkeypatch, shapes, content):
    (tmp_path / "broken_plugin.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("mine", "broken_plugin", group)])
    monkeypatch.setattr(registry, "_plugins_loaded", False)
    for _ in range(2):
        with pytest.raises(UserError, match=r"^plugin 'mine' \(broken_plugin\): \w+: .*uninstall it$"):
            shapes.get("square")


@pytest.mark.parametrize("use", [lambda shapes: shapes.names(), lambda shapes: shapes.make("plugged")])
def test_plugins_are_loaded_at_first_use_and_once(tmp_path, monkeypatch, use):
    plugin = tmp_path / "shapes_plugin.py"
    plugin.write_text("import host\nhost.shapes.register('plugged', dict)\n")
    host = tmp_path / "host.py"
    host.write_text("from maskgym.registry import Registry\nshapes = Registry('shape')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("shapes_plugin", "host"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    asked = []

    def entry_points(group):
        asked.append(group)
        return [EntryPoint("shapes", "shapes_plugin", group)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(registry, "_plugins_loaded", False)
    import host

    assert asked == []
    use(host.shapes)
    assert host.shapes.names() == ("plugged",)
    assert asked == ["maskgym.plugins"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("no_such_plugin:Part", "ModuleNotFoundError: No module named 'no_such_plugin'"),
        ("json:Part", "AttributeError: module 'json' has no attribute 'Part'"),
    ],
)
def test_a_plugins_string_that_leads_nowhere_names_the_part(shapes, target, expected):
    shapes.register("lost", target)
    with pytest.raises(UserError) as caught:
        shapes.make("lost")
    assert str(caught.value) == f"shape 'lost': its target {target} cannot be imported: {expected}"


def test_a_broken_plugin_is_named_each_time(tmp_path, monkeypatch, shapes):
    (tmp_path / "broken_plugin.py").write_text("raise ZeroDivisionError('no\\nluck')\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugin = EntryPoint("mine", "broken_plugin", registry.PLUGIN_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [plugin])
    monkeypatch.setattr(registry, "_plugins_loaded", False)
    for ask in (shapes.names, lambda: shapes.get("square")):
        with pytest.raises(UserError, match=r"^plugin 'mine' \(broken_plugin\): ZeroDivisionError: no luck: mend or"):
            ask()
