"""Plugins, through distributions made up on the path."""

import functools
import sys
import warnings
from collections import OrderedDict

import distributions
import pytest
from forks import forked, needs_fork

from scoresde import plugins


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Returns ``install(distribution, entries, source, group)``: a distribution and its module."""
    modules = set(sys.modules)

    def install(name, entries, source="class A: pass\n", group="scoresde.solvers", folder="site"):
        root = tmp_path / folder
        distributions.write(root, name, group, entries, source)
        if str(root) not in sys.path:
            monkeypatch.syspath_prepend(str(root))
        plugins.refresh()

    yield install
    for module in set(sys.modules) - modules:
        if module.endswith("_plugin"):
            del sys.modules[module]
    monkeypatch.undo()
    plugins.refresh()


def test_a_plugin_is_listed_without_import_and_loaded_by_name(install):
    install("stranger", "euler = stranger_plugin:A")
    record = plugins.available("solvers")["euler"]
    assert record == plugins.Plugin("euler", "solvers", "stranger_plugin:A", "stranger", "1.0")
    assert "stranger_plugin" not in sys.modules
    assert plugins.get("solvers", "euler") is sys.modules["stranger_plugin"].A


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_groups_are_apart(install, group):
    install("stranger", "only-here = stranger_plugin:A", group=f"scoresde.{group}")
    assert [g for g in plugins.GROUPS if "only-here" in plugins.available(g)] == [group]


def test_listing_is_cached_until_refreshed(install, monkeypatch):
    install("stranger", "first = stranger_plugin:A")
    plugins.available("solvers").clear()
    assert "first" in plugins.available("solvers"), "callers must not share the cache"
    with monkeypatch.context() as patch:
        patch.setattr(plugins.metadata, "distributions", lambda: pytest.fail("scanned again"))
        plugins.available("sdes")
    monkeypatch.setattr(plugins.metadata, "distributions", lambda: iter(()))
    plugins.refresh()
    assert plugins.available("solvers") == {}


def test_import_paths_need_no_plugin():
    get = functools.partial(plugins.get, "sdes", imports=True)
    assert get("collections:OrderedDict") is OrderedDict
    assert get("collections:OrderedDict.fromkeys") == OrderedDict.fromkeys


def test_import_paths_import_nothing_unless_allowed(install):
    install("stranger", "a = stranger_plugin:A")
    with pytest.raises(plugins.UnknownPlugin, match=r"'stranger_plugin:A' is an import path"):
        plugins.get("solvers", "stranger_plugin:A")
    assert "stranger_plugin" not in sys.modules


@pytest.mark.parametrize("path", ["no_such_module:A", "collections:NoSuch", "collections:", ":A"])
def test_bad_import_paths(path):
    with pytest.raises(plugins.PluginError, match=path):
        plugins.get("sdes", path, imports=True)


@pytest.mark.parametrize("call", [plugins.available, plugins.check, lambda g: plugins.get(g, "a")])
def test_unknown_group_lists_groups(call):
    with pytest.raises(ValueError, match=r"'solver'.*did you mean 'solvers'.*schedules"):
        call("solver")


def test_unknown_name_lists_installed_and_nearest(install):
    install("stranger", "my-euler = stranger_plugin:A\nother-one = stranger_plugin:A")
    with pytest.raises(plugins.UnknownPlugin, match=r"did you mean 'my-euler'.*other-one") as info:
        plugins.get("solvers", "my-eular")
    assert isinstance(info.value, LookupError)


@pytest.mark.parametrize(
    "source",
    [
        "import no_such",
        "raise RuntimeError('x')",
        "exit(1)",
        "exit(0)",
        "",
        "def :",
        "raise BaseException('x')",
        "raise GeneratorExit",
        "class E(BaseException):\n def __str__(self): raise E\nraise E",
    ],
)
def test_a_broken_plugin_is_named_and_harms_no_other(install, source):
    install("broken", "bad = broken_plugin:A", source)
    install("stranger", "good = stranger_plugin:A")
    assert {"bad", "good"} <= plugins.available("solvers").keys()
    assert plugins.get("solvers", "good").__name__ == "A"
    with pytest.raises(plugins.PluginError, match=r"'bad' of broken 1.0") as info:
        plugins.get("solvers", "bad")
    cause = info.value.__cause__
    assert cause is not None
    assert type(cause).__name__ in str(info.value)


def test_ctrl_c_at_import_stops(install):
    install("broken", "bad = broken_plugin:A", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        plugins.get("solvers", "bad")


def hidden_by(folder):
    """Asks for a built-in solver as if none of them had been imported."""
    sys.path.insert(0, str(folder))
    for module in [name for name in sys.modules if name.partition(".")[0] == "solvers"]:
        del sys.modules[module]
    assert plugins.get("schedules", "vp").__name__ == "VP"
    with pytest.raises(plugins.PluginError) as info:
        plugins.get("solvers", "ddim")
    print(info.value)


@needs_fork
@pytest.mark.parametrize("name", ["solvers.py", "solvers/__init__.py"])
def test_a_module_of_the_user_s_that_hides_the_package(tmp_path, name):
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("raise SystemExit('imported')")
    done = forked(hidden_by, tmp_path)
    assert f"{own} hides the package 'solvers' that belongs to scoresde; rename it" in done.stdout


@pytest.mark.parametrize("on_the_path", [True, False])
def test_where_a_module_was_sought(tmp_path, monkeypatch, on_the_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["" if on_the_path else "/", *sys.path[1:]])
    said = "is on the path and has no" if on_the_path else r"is not on the path: PYTHONPATH=\."
    with pytest.raises(plugins.PluginError, match=f"No module named 'mynet'; .*{tmp_path}, {said}"):
        plugins.get("networks", "mynet:Net", imports=True)


def test_a_path_without_a_colon():
    with pytest.raises(plugins.UnknownPlugin, match=r"no plugin 'mynet.Net' .*package.module:Name"):
        plugins.get("networks", "mynet.Net", imports=True)


def test_check_returns_and_warns_of_what_fails(install):
    install("broken", "bad = broken_plugin:A\nworse = broken_plugin:B", "1 / 0")
    install("stranger", "good = stranger_plugin:A")
    with pytest.warns(UserWarning, match="ZeroDivisionError") as caught:
        failed = plugins.check("solvers")
    assert {"bad", "worse"} <= failed.keys()
    assert "good" not in failed
    assert sum("of broken 1.0" in str(w.message) for w in caught) == 2


@pytest.mark.parametrize(
    ("names", "winner"),
    [(["zebra", "aardvark"], "aardvark"), (["aardvark", "scoresde"], "scoresde")],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_of_two_with_one_name_the_builtin_or_first_wins(install, names, winner, reverse):
    for name in reversed(names) if reverse else names:
        install(name, f"twice = {name}_plugin:A")
    with pytest.warns(UserWarning, match="'twice'") as caught:
        assert plugins.available("solvers")["twice"].distribution == winner
    message = next(str(w.message) for w in caught if "'twice'" in str(w.message))
    assert all(name in message for name in names)


def test_one_distribution_twice_on_the_path_is_no_duplicate(install):
    install("stranger", "a = stranger_plugin:Old", folder="old")
    install("stranger", "a = stranger_plugin:A", folder="new")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plugins.available("solvers")["a"].value == "stranger_plugin:A"


def test_an_unreadable_distribution_is_skipped(install):
    install("garbled", "no equals sign")
    install("stranger", "good = stranger_plugin:A")
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert "good" in plugins.available("solvers")
