"""`tandem bench`: parse, measure, print. The figures mean something on a machine that does nothing else.

Exit codes: 0 everything asked for was measured, 1 an entrant could not be, 2 nothing can be measured here, 130 Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from bench.chat.entrants import ROOT, Entrant, entrants
from bench.chat.errors import CannotBench
from bench.chat.results import BUSY, Machine, Plan, Results, from_json, to_json

if TYPE_CHECKING:
    from bench.chat.report import Row
    from gateway.terminal import Terminal

_QUICK = Plan(seconds=2, grace_s=5)
_PIPE_WIDTH = 160  # characters, where nobody says how wide a line may be


def run(arguments: list[str]) -> int:
    """Run `tandem bench ARGUMENTS`. Returns the exit code."""
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _chat(options)
    except CannotBench as error:
        print(f"tandem: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="tandem bench", description="Measure Tandem beside others, on a machine that does nothing else.")
    commands = top.add_subparsers(title="benches", metavar="BENCH", required=True)
    chat = commands.add_parser(
        "chat",
        help="the chat path: requests a second, CPU for a token, what is added to each",
        description="The same load through a direct connection, two bare pass-throughs, Tandem, vllm-router and the LiteLLM proxy.",
    )
    names = [entrant.name for entrant in entrants()]
    chat.add_argument("--only", metavar="NAME", action="append", choices=names, help=f"only this one; may be repeated: {', '.join(names)}")
    chat.add_argument("--peers", choices=["all", "none"], default="all", help="whether the gateways of others take part (default: all)")
    chat.add_argument("--seconds", metavar="N", type=_seconds, help="length of each run (default: 10)")
    chat.add_argument("--quick", action="store_true", help="runs of 2 seconds: shows that everything works, measures nothing")
    chat.add_argument("--write", action="store_true", help="put the results into docs/performance.md, and the plot beside it")
    chat.add_argument("--results", metavar="FILE", type=Path, help="where the results go as JSON (default: in the cache, by date)")
    chat.add_argument("--show", metavar="FILE", type=Path, help="measure nothing, show (or --write) the results in FILE")
    chat.add_argument("--cache", metavar="DIR", type=Path, help="for programs and peers (default: ~/.cache/tandem/bench)")
    return top


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.5 <= seconds <= 600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.5 to 600")
    return seconds


def _chat(options: argparse.Namespace) -> int:
    partial = options.only or options.peers == "none" or options.quick
    if options.write and partial and not options.show:
        raise CannotBench("--write needs all entrants and whole runs: leave out --only, --peers none and --quick")
    results = _read(options.show) if options.show else _measure(options)
    _print(results)
    if options.write:
        _write(results)
    return 1 if any(entrant.problem for entrant in results.entrants) else 0


def _read(path: Path) -> Results:
    try:
        return from_json(path.read_text())
    except OSError as error:
        raise CannotBench(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CannotBench(f"{path} does not hold results of this bench: {str(error).splitlines()[0]}") from error


def _measure(options: argparse.Namespace) -> Results:
    from bench.chat.measuring import Bench, measure
    from bench.chat.processes import choose_cores, on_core
    from bench.chat.programs import build
    from gateway.terminal import open_terminal

    cache = (options.cache or _default_cache()).absolute()
    plan = _QUICK if options.quick else Plan()
    if options.seconds is not None:
        plan = dataclasses.replace(plan, seconds=options.seconds)
    programs = build(cache)
    cores = choose_cores(os.sched_getaffinity(0))
    results = Results(time.strftime("%Y-%m-%dT%H:%M:%S%z"), _machine(cores.shared), plan)
    with open_terminal() as terminal, on_core(cores.load):
        _introduce(terminal, results)
        bench = Bench(programs, cores, cache, plan, terminal.say, terminal.busy)
        for entrant in _chosen(options.only, options.peers == "all"):
            measured = measure(entrant, bench)
            results.entrants.append(measured)
            terminal.say(f"{entrant.title}: {'not measured' if measured.requests is None else 'measured'}, {_problem(measured.problem)}")
    path: Path = options.results or cache / "results" / f"chat-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(results))
    print(f"results: {path}")
    return results


def _problem(problem: str | None) -> str:
    return "without a problem" if problem is None else problem


def _chosen(only: Sequence[str] | None, with_peers: bool) -> list[Entrant]:
    return [entrant for entrant in entrants() if (entrant.name in only if only else with_peers or not entrant.peer)]


def _introduce(terminal: Terminal, results: Results) -> None:
    machine = results.machine
    terminal.say(f"{machine.cpu}, {machine.cores} cores, Python {machine.python}; runs of {results.plan.seconds:g} s")
    if machine.load_average > BUSY:
        terminal.say(f"this machine is busy (load average {machine.load_average:.1f}): the figures will say nothing")
    if machine.shared_core:
        terminal.say("there is one core for everything: the figures will say nothing")


def _machine(shared_core: bool) -> Machine:
    return Machine(_cpu_model(), len(os.sched_getaffinity(0)), platform.python_version(), round(os.getloadavg()[0], 2), shared_core)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tandem" / "bench"


def _print(results: Results) -> None:
    from rich.console import Console

    from bench.chat import report

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    for heads, rows in (report.table(results), report.ratios(results), report.target_rows(results)):
        if rows:
            console.print(_rich_table(heads, rows))
    for note in report.notes(results):
        console.print(note, markup=False)


def _rich_table(heads: Row, rows: Sequence[Row]) -> object:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _write(results: Results) -> None:
    from bench.chat import plot, report

    page = ROOT / "docs" / "performance.md"
    page.write_text(report.with_section(page.read_text(), report.section(results)))
    (page.parent / report.PLOT).write_text(plot.draw(results))
    print(f"written: {page} and {report.PLOT} beside it")
