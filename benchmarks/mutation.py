"""Mutation run over the mathematical core: mutmut's operators, tried in one warm process.

    python -m benchmarks.mutation [MODULE ...] [--sample 20] [--seed 0] [--seconds 12] [--again]
        [--blind]

`mutmut run` forks from a process that has imported everything, but leaves decorated functions and
class bodies as they are, and offers survivors the whole suite, which takes too long here. This
runner takes mutmut's operators, draws a sample per module, and gives each mutant the tests that
reach its line, examples in docstrings included, those of its module first, a case of each before a
second, the fastest first, until one fails or its time is up.
What tests reach, and all verdicts, are kept in ``build/mutation``: delete it after a change to the
code, which must not change meanwhile either; after a change to tests, ``--again`` will do. To
measure first what tests reach takes a run of them all; ``--blind``, only those are tried that are
known to be about a module, as if each of them reached all of its lines.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import libcst as cst
import pytest
from hypothesis import Phase, settings
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).parents[1]
MODULES = {
    "scoresde": "blocks endpoint_solver equation estimator fixed_step noise precision reverse "
    "selection solver",
    "scoresde/internals": "copies derivatives snapshot",
    "scoresde/objectives": "parametrization time_distribution weighting",
    "scoresde/sampling": "batches cache churn descent discontinuities grid sampler tape",
    "scoresde/schedules": "cosine edm learned log_linear rectified_flow schedule ve vp",
    "scoresde/sdes": "clock cox_ingersoll_ross denoised_reverse diagonal diagonal_coefficients "
    "fronts geometric_brownian reading sde sde_coefficients",
    "scoresde/bases": "basis dct haar identity joint missing_values moments packed pca spatial "
    "wavelet",
    "scoresde/likelihood": "density distribution exact quadrature traces variational",
    "scoresde/conditioning": "composition conditional masks observation rollout stacked",
    "scoresde/inference": "coordinates parameter_estimators posterior",
    "scoresde/phase_space": "coefficients diffusion dynamics flow langevin mixing rotation steps",
    "scoresde/planning": "draft independent_gaussian optimised_grid plan warped_clock",
    "scoresde/data": "dequantization",
    "scoresde/training": "post_hoc",
    "scoresde/app": "evaluation",
    "solvers": "adaptive euler exponential heun langevin recommendation rungekutta sra",
    "estimators": "denoising guidance kernel_free mismatch mixture multiscale prediction sliced "
    "times transition_matching truncated",
}
CORE = [f"{folder}/{name}" for folder, names in MODULES.items() for name in names.split()]
ELSEWHERE = {
    **dict.fromkeys(("euler", "heun", "langevin", "rungekutta", "sra"), ("orders", "between")),
    **dict.fromkeys(MODULES["scoresde/schedules"].split(), ("schedules", "diagonal")),
    **dict.fromkeys(MODULES["scoresde/bases"].split(), ("laws",)),
    **dict.fromkeys(MODULES["scoresde/phase_space"].split(), ("phase_sde", "dynamics")),
    **dict.fromkeys(MODULES["scoresde/planning"].split(), ("planning",)),
    **dict.fromkeys(
        ("cox_ingersoll_ross", "geometric_brownian", "sliced", "transition_matching"),
        ("kernel_free",),
    ),
    "basis": ("laws", "likely_mistakes", "conformance"),
    "batches": ("sample_batches", "likely_mistakes", "solver"),
    "blocks": ("diagonal", "solver"),
    "churn": ("solver", "no_noise"),
    "coefficients": ("phase_sde",),
    "conditional": ("conditioning", "compositions"),
    "copies": ("constants", "cache"),
    "denoised_reverse": ("diagonal", "phase_sde", "sde", "reverse", "no_noise"),
    "density": ("exact", "quadrature", "distribution", "derivatives"),
    "denoising": ("stages", "times", "width_at_entry", "prior_mean"),
    "descent": ("solver", "sample_batches", "sampler", "cache"),
    "diagonal": ("sde",),
    "diagonal_coefficients": ("diagonal", "sde", "reverse", "no_noise", "quadrature", "reads"),
    "discontinuities": ("grid", "between", "diagonal"),
    "endpoint_solver": ("solver", "adapters"),
    "equation": ("sde", "diagonal", "reverse", "adapters", "exponential"),
    "estimator": ("wrappers", "parametrization", "dtypes", "no_noise", "undefined"),
    "exact": ("errors", "memory", "distribution"),
    "exponential": ("orders", "cross", "between", "limiting"),
    "fixed_step": ("solver", "loop", "orders"),
    "parameter_estimators": ("several",),
    "grid": ("between", "diagonal"),
    "masks": ("conditioning", "compositions"),
    "observation": ("conditioning", "compositions"),
    "multiscale": ("stages", "budget"),
    "noise": ("default_generator", "sample_batches"),
    "packed": ("laws", "multiscale", "conformance"),
    "parametrization": ("no_noise",),
    "precision": ("constants", "dtypes", "reading"),
    "prediction": ("denoising", "network_adapter", "dtypes"),
    "quadrature": ("exact", "errors"),
    "reading": ("reads", "diagonal"),
    "reverse": ("sde", "diagonal", "adapters", "between"),
    "sde": ("diagonal", "reverse"),
    "sde_coefficients": ("sde", "reverse", "diagonal", "adapters", "between"),
    "sampler": ("cache",),
    "selection": ("conditioning", "compositions", "wrappers"),
    "stacked": ("composition",),
    "snapshot": ("cache", "sampler"),
    "solver": ("modes", "empty", "loop", "cross"),
    "steps": ("phase_steps", "phase_sde"),
    "tape": ("sampler", "cache"),
    "traces": ("exact",),
    "variational": ("prior_mean", "multiscale"),
}
"""Test files of what has none of its own name, or more than one."""


GENERAL = ("bad_input", "arguments")
"""Test files about every module: tried after its examples, as they are fast."""


def _named(path: str) -> str:
    """What a file of tests is about."""
    return Path(path).stem.removeprefix("test_")


_ABOUT = {
    *itertools.chain.from_iterable(names.split() for names in MODULES.values()),
    *itertools.chain.from_iterable(ELSEWHERE.values()),
    *(*GENERAL, "conformance", "defaults", "dtypes", "reads"),
}
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))
TESTS = [f"{module}.py" for module in CORE] + [
    name
    for name in FILES
    if _named(name) in _ABOUT or Path(name).parent.name in ("solvers", "bases")
]


def own_tests(modules: Iterable[str]) -> list[str]:
    """Examples of modules, and the tests that are known to be about them: files."""
    about = {known for module in modules for known in _about(module)}
    return [f"{module}.py" for module in modules] + [v for v in FILES if _named(v) in about]


def _about(module: str) -> tuple[str, ...]:
    name = Path(module).name
    return name, *ELSEWHERE.get(name, ()), *GENERAL  # in the order in which they are tried


CHECKS = ("instance", "look_up", "whole", "real", "choice", "validator", "TypeVar", "cast", "zip")
"""Calls that are no mathematics: they refuse bad input or speak to the type checker."""
STATE = ROOT / "build" / "mutation"
"""Which test reaches which lines, and the verdicts so far."""


class Mutant(NamedTuple):
    """One changed expression."""

    module: str
    lines: tuple[int, int]
    column: int
    before: str
    after: str
    source: str
    warm: bool

    def __str__(self) -> str:
        """Where it is, and what has become of it."""
        return f"{self.module}.py:{self.lines[0]}:{self.column}  {self.before}  ->  {self.after}"


class Finder(cst.CSTVisitor):
    """Every change that mutmut would make, but to text, types and messages."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[cst.CSTNode, cst.CSTNode, CodeRange, bool]] = []
        self.bodies: set[cst.CSTNode] = set()
        self.depth = 0
        self.unchanged: set[cst.CSTNode] = set()

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Collects the changes of a node."""
        text = cst.BaseString | cst.FormattedString | cst.ConcatenatedString
        if node in self.unchanged or isinstance(
            node, text | cst.Annotation | cst.Decorator | cst.Raise | cst.Import | cst.ImportFrom
        ):
            return False
        self.depth += node in self.bodies
        if isinstance(node, cst.FunctionDef):
            self.bodies.add(node.body)
            return node.name.value != "__repr__"
        if isinstance(node, cst.If) and _name(node.test) == "TYPE_CHECKING":
            return False
        name = _name(node.func) if isinstance(node, cst.Call) else ""
        if name in CHECKS or (isinstance(node, cst.Assign | cst.AnnAssign) and _is_text(node)):
            return False
        if name == "expect":
            self.unchanged.update(node.args[1:])
            return True
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                where = self.get_metadata(PositionProvider, node, None)
                for after in operator(node) if where else ():
                    self.changes.append((node, after, where, self.depth > 0))
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        """Leaves the body of a function."""
        self.depth -= node in self.bodies


def _name(node: cst.CSTNode) -> str:
    return node.value if isinstance(node, cst.Name) else ""


def _is_text(node: Any) -> bool:
    return isinstance(node.value, cst.SimpleString | cst.FormattedString | cst.ConcatenatedString)


def mutants(module: str, sample: int, seed: int) -> tuple[int, list[Mutant]]:
    """How many mutants a module has, and some of them."""
    path = ROOT / f"{module}.py"
    wrapper = MetadataWrapper(cst.parse_module(path.read_text()))
    finder = Finder()
    wrapper.visit(finder)
    code = wrapper.module.code_for_node
    order = list(range(len(finder.changes)))
    random.Random(f"{seed} {module}").shuffle(order)
    drawn = sorted(order[:sample])
    collected = []
    for before, after, where, inside in (finder.changes[i] for i in drawn):
        source = wrapper.module.deep_replace(before, after).code
        lines, column = (where.start.line, where.end.line), where.start.column
        old, new = (" ".join(code(v).split()) for v in (before, after))
        try:
            warm = inside and _swaps(str(path), source) is not None
        except SyntaxError:
            continue
        collected.append(Mutant(module, lines, column, old, new, source, warm))
    return len(finder.changes), collected


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _swaps(path: str, source: str) -> dict[CodeType, CodeType] | None:
    """The code of every function before and after; none if more than functions changed."""
    old, new = (list(_codes(compile(s, path, "exec"))) for s in (Path(path).read_text(), source))
    if [c.co_qualname for c in old] != [c.co_qualname for c in new]:
        return None
    if any(a.co_freevars != b.co_freevars for a, b in zip(old, new, strict=True)):
        return None
    return dict(zip(old, new, strict=True))


class Loop:
    """Replaces pytest's loop: every mutant in a process of its own, forked after collection."""

    def __init__(self, tried: list[Mutant], seconds: float, report: Callable[[Mutant, str], None]):
        self.tried, self.seconds, self.report = tried, seconds, report
        known = STATE / "reach.json"
        self.reach = json.loads(known.read_text()) if known.exists() else {}

    def pytest_sessionstart(self) -> None:
        """Counterexamples need not be small."""
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutation", settings.get_profile("scoresde"), phases=phases)
        settings.load_profile("mutation")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Tries them."""
        gc.unfreeze()  # what is frozen, as tests do with what they have collected, is not listed
        functions = [f for f in gc.get_objects() if isinstance(f, FunctionType)]
        gc.freeze()
        for mutant in self.tried:
            self.report(mutant, self.verdict(mutant, session, functions))
        return True

    def chosen(self, mutant: Mutant, items: list[pytest.Item]) -> list[pytest.Item]:
        """Tests that reach a mutant: of its module first, one case of each before a second."""
        touched = set(range(mutant.lines[0], mutant.lines[1] + 1))
        name, costs = Path(mutant.module).name, {}
        own = (f"{name}.py", *(f"test_{known}.py" for known in _about(mutant.module)))
        cases = Counter[str]()
        # what runs on import is reached by all tests of the module
        for narrow in (True, False) if mutant.warm else (False,):
            for item in items:
                cost, reached = self.reach.get(item.nodeid, (2.0, {mutant.module: [*touched]}))
                here = reached.get(mutant.module, ())
                if touched.intersection(here) if narrow else here:
                    cases[test := item.nodeid.split("[")[0]] += 1
                    place = own.index(item.path.name) if item.path.name in own else len(own)
                    costs[item] = (place, cases[test], cost)
            if costs:
                break
        return sorted(costs, key=lambda item: costs[item])

    def verdict(self, mutant: Mutant, session: pytest.Session, functions: list[Any]) -> str:
        """The test that fails, ``timeout``, or ``survived`` and how many tests."""
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            if mutant.warm:
                path = str(ROOT / f"{mutant.module}.py")
                swaps = _swaps(path, mutant.source)
                for f in functions:
                    if f.__code__.co_filename == path and f.__code__ in swaps:
                        f.__code__ = swaps[f.__code__]
            os.write(write, self.attempt(session, self.chosen(mutant, session.items)).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        return said or "timeout"

    def attempt(self, session: pytest.Session, items: list[pytest.Item]) -> str:
        """Runs tests until one fails."""
        if session.testsfailed:
            return "collection"  # it cannot even be imported
        start = time.process_time()
        for count, (item, following) in enumerate(itertools.pairwise([*items, None])):
            if time.process_time() - start > self.seconds:
                return f"survived {count} of {len(items)} tests"
            cost = self.reach.get(item.nodeid, (20.0,))[0]
            signal.setitimer(signal.ITIMER_PROF, 5 + 5 * cost)  # ends a process that hangs
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                return item.nodeid
        return f"survived {len(items)} of {len(items)} tests"


class Mutated(SourceFileLoader):
    """Imports a module in its changed form."""

    def __init__(self, mutant: Mutant):
        self.mutant = mutant
        super().__init__(mutant.module.replace("/", "."), str(ROOT / f"{mutant.module}.py"))

    def get_code(self, fullname: str) -> CodeType:
        """The changed code."""
        return compile(self.mutant.source, self.path, "exec")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Only of this module."""
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)


class Reach:
    """Records which lines of the core each test runs, and how long it takes."""

    def __init__(self) -> None:
        from coverage import Coverage

        files = [str(ROOT / f"{module}.py") for module in CORE]
        self.coverage = Coverage(data_file=None, include=files, config_file=False)
        self.costs: dict[str, float] = {}
        self.unsound: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """One test."""
        self.coverage.start()
        self.coverage.switch_context(item.nodeid)
        start, failed = time.process_time(), item.session.testsfailed
        result = yield
        self.costs[item.nodeid] = time.process_time() - start
        if item.session.testsfailed > failed:  # what fails anyhow tells nothing
            self.unsound.add(item.nodeid)
        self.coverage.stop()
        return result

    def pytest_sessionfinish(self) -> None:
        """Writes the table."""
        reached: dict[str, Any] = {name: (cost, {}) for name, cost in self.costs.items()}
        for module in CORE:
            lines = self.coverage.get_data().contexts_by_lineno(str(ROOT / f"{module}.py"))
            for line, names in lines.items():
                for name in {*names} - {"", *self.unsound}:
                    reached[name][1].setdefault(module, []).append(line)
        (STATE / "reach.json").write_text(json.dumps(reached))


def pytest_in_a_child(
    plugin: object, tests: Iterable[str] = TESTS, mutated: Mutant | None = None
) -> None:
    """A session in a process forked from this one, which has imported no code of ours."""
    child = os.fork()
    if not child:
        if mutated:
            sys.meta_path.insert(0, Mutated(mutated))
        options = ["-v", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=no"]
        options += ["--disable-warnings", "--no-header", "--doctest-modules"]
        # modules with examples would be rewritten, from what they were before
        options += ["--assert=plain"]
        os._exit(int(pytest.main([*options, *tests], plugins=[plugin])))
    os.waitpid(child, 0)


def main() -> None:
    """See ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", default=CORE, help="such as solvers/heun")
    parser.add_argument("--sample", type=int, default=20, help="mutants of a module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=12.0, help="tests of a mutant, CPU time")
    parser.add_argument("--again", action="store_true", help="try what survived once more")
    parser.add_argument(
        "--blind",
        action="store_true",
        help="tests about a module, not those that reach it",
    )
    arguments = parser.parse_args()
    os.chdir(ROOT)
    for name in ("pyro.distributions", "scipy.stats", "sklearn.mixture", "torchdiffeq", "torchsde"):
        importlib.import_module(name)
    STATE.mkdir(parents=True, exist_ok=True)
    if not arguments.blind and not (STATE / "reach.json").exists():
        pytest_in_a_child(Reach())
    journal = STATE / "verdicts.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    verdicts: dict[str, str] = dict(map(json.loads, lines))

    def report(mutant: Mutant, verdict: str) -> None:
        with journal.open("a") as file:
            print(json.dumps([str(mutant), verdict]), file=file, flush=True)
        print(f"{verdict[:70]:70}  {mutant}", flush=True)

    totals, drawn = {}, {}
    for module in arguments.modules:
        totals[module], drawn[module] = mutants(module, arguments.sample, arguments.seed)
    todo = [
        mutant
        for mutant in itertools.chain.from_iterable(drawn.values())
        if str(mutant) not in verdicts
        or (arguments.again and verdicts[str(mutant)].startswith("survived"))
    ]
    if warm := [m for m in todo if m.warm]:
        tests = own_tests(dict.fromkeys(m.module for m in warm)) if arguments.blind else TESTS
        pytest_in_a_child(Loop(warm, arguments.seconds, report), tests)
    for mutant in (m for m in todo if not m.warm):
        tests = own_tests([mutant.module]) if arguments.blind else TESTS
        pytest_in_a_child(Loop([mutant], arguments.seconds, report), tests, mutant)

    verdicts = dict(map(json.loads, journal.read_text().splitlines()))
    alive = {}
    for module, tried in drawn.items():
        alive[module] = [m for m in tried if verdicts.get(str(m), "survived").startswith("surv")]
        print(f"{module:28} {totals[module]:5} {len(tried):4} {len(tried) - len(alive[module]):4}")
    count, left = sum(map(len, drawn.values())), sum(map(len, alive.values()))
    print(f"{'':28} {sum(totals.values()):5} {count:4} {count - left:4}  {1 - left / count:.1%}")
    for mutant in itertools.chain.from_iterable(alive.values()):
        print(mutant)


if __name__ == "__main__":
    main()
