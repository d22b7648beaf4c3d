"""Options of the benchmarks of kernels, what they are collected from, and the table at their end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks.gpu_suite.calls import Call
from benchmarks.gpu_suite.contestants import REFERENCE, automatic_choice
from benchmarks.gpu_suite.settings import DTYPES, torch_dtype
from benchmarks.gpu_suite.values import real_arguments
from benchmarks.kernels.calls import NAMES, config_of, image_calls
from benchmarks.kernels.comparison import Outcome, compare
from benchmarks.kernels.contestants import Contestant, contestants
from benchmarks.kernels.rates import Ceilings
from benchmarks.kernels.table import Row, lines
from benchmarks.machine import commit, processor

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


def pytest_addoption(parser: pytest.Parser) -> None:
    on_gpu = torch.cuda.is_available()
    group = parser.getgroup("kernels", "benchmarks of kernels")
    group.addoption("--device", default="cuda" if on_gpu else "cpu", choices=("cpu", "cuda"))
    group.addoption("--model", default="d24" if on_gpu else "varsr-mini", help=NAMES)
    group.addoption("--batches", type=int, nargs="+", default=[1, 8] if on_gpu else [1], help="images a forward pass")
    group.addoption("--dtype", default="fp16" if on_gpu else "fp32", choices=DTYPES)
    group.addoption("--every-call", action="store_true", help="not only an op's first, middle and last")
    group.addoption("--rounds", type=int, default=50, help="interleaved rounds of a call's contestants, at most")
    group.addoption("--most-seconds", type=float, default=1.0, help="of rounds, a call; five rounds are run anyway")


@dataclass(frozen=True)
class Comparison:
    """automatic: the contestant that the engine takes by itself."""

    call: Call
    outcomes: dict[str, Outcome]
    automatic: str


@dataclass
class Session:
    """What the tests of one run share."""

    config: pytest.Config
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return torch.device(self.config.getoption("device"))

    @property
    def dtype(self) -> torch.dtype:
        return torch_dtype(self.config.getoption("dtype"))

    @cached_property
    def calls(self) -> dict[str, Call]:
        get = self.config.getoption
        return image_calls(config_of(get("model")), get("batches"), self.dtype, get("every_call"))

    @cached_property
    def contestants(self) -> dict[str, dict[str, Contestant]]:
        return {name: contestants(call, self.device) for name, call in self.calls.items()}

    @cached_property
    def ceilings(self) -> Ceilings:
        """Measured when first needed."""
        return Ceilings.measured(self.device, self.dtype)

    def compare(self, name: str, selected: set[str], timed: bool) -> Comparison:
        """The selected contestants at the call of that name; only checked unless timed."""
        call, get = self.calls[name], self.config.getoption
        chosen = {name: contestant for name, contestant in self.contestants[name].items() if name in selected}
        rounds = get("rounds") if timed else 0
        automatic = automatic_choice(call, real_arguments(call, self.device))
        return Comparison(call, compare(call, chosen, self.device, rounds, get("most_seconds")), automatic)


KEY = pytest.StashKey[Session]()


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config.option, "every_call"):  # pytest reads options only of folders that it is given
        raise pytest.UsageError("the benchmarks of kernels have options: run pytest benchmarks/kernels, by that name")
    if not config.pluginmanager.has_plugin("benchmark"):
        raise pytest.UsageError("the benchmarks of kernels need pytest-benchmark: run pip install pytest-benchmark")
    config.stash[KEY] = Session(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test a call and contestant; those of a call stand together and share its comparison."""
    session = metafunc.config.stash[KEY]
    cases = [
        pytest.param(call, name, id=f"{call} {name}".replace(" ", "-"))
        for call, found in session.contestants.items()
        for name in found
    ]
    metafunc.parametrize(("comparison", "contestant"), cases, indirect=["comparison"])


@pytest.fixture
def session(pytestconfig: pytest.Config) -> Session:
    return pytestconfig.stash[KEY]


@pytest.fixture
def comparison(request: pytest.FixtureRequest, session: Session, benchmark: BenchmarkFixture) -> Comparison:
    """A call's contestants, compared once: those that were selected, and the reference.

    Nothing is timed with --benchmark-disable, or by pytest-xdist.
    """
    name = request.param
    if name not in session.comparisons:
        selected = {REFERENCE} | {
            str(item.callspec.params["contestant"])
            for item in request.session.items
            if isinstance(item, pytest.Function) and item.callspec.params.get("comparison") == name
        }
        session.comparisons[name] = session.compare(name, selected, benchmark.enabled)
    return session.comparisons[name]


@pytest.hookimpl(optionalhook=True)  # pytest-benchmark's
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What the JSON says of the whole session."""
    session = config.stash[KEY]
    machine_info["varsr_engine"] = {
        "model": config.getoption("model"),
        "dtype": config.getoption("dtype"),
        "device": session.device.type,
        "name": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = config.stash[KEY]
    if not session.rows:
        return
    terminalreporter.section("kernels")
    automatic = {name: comparison.automatic for name, comparison in session.comparisons.items()}
    for line in [*about(session), "", *lines(session.rows, automatic)]:
        terminalreporter.write_line(line)


def about(session: Session) -> Iterator[str]:
    """What was measured, on what, and how to read it."""
    get = session.config.getoption
    threads = f", {torch.get_num_threads()} threads" if session.device.type == "cpu" else ""
    yield f"{get('model')}, {get('dtype')}, {processor()}{threads}, torch {torch.__version__}, commit {commit()}"
    if any(row.seconds for row in session.rows):
        most = session.ceilings
        product, copy = most.flop_per_s / 1e12, most.bytes_per_s / 1e9
        yield f"ceilings of this session: large product {product:.3g} TFLOP/s, large copy {copy:.3g} GB/s"
    yield "checked: ok by the rule of tests/numerics.py; part: less than the op, not compared"
    yield "x eager: how often faster than torch eager within a round, median and quartiles; *: the engine's own choice"
    yield "GB/s, TFLOP/s: least traffic and arithmetic of the op's cost model; data in caches may exceed the copy"
