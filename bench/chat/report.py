"""What was measured, for people: the table, the ratios to the others, what must hold, and the section of docs/performance.md.

Pure: results in, text and numbers out. What is `added` is the difference to the direct connection in the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.chat.results import BUSY, Measured, Requests, Results, Streams, Times

Row = list[str]
Figure = Callable[[Measured, Measured | None], float | None]
BEGIN, END = "<!-- bench chat: begin, written by `./tandem bench chat --write` -->", "<!-- bench chat: end -->"
PLOT = "performance-chat.svg"
_NONE = "–"
_BEHIND_US = 1_000_000


@dataclass(frozen=True)
class Column:
    """One figure of an entrant. of: the figure, given the entrant and the direct connection; None where there is none.

    shown: how it is written. ratio: what Tandem's share of it says, or empty where a ratio says nothing.
    """

    title: str
    of: Figure
    shown: Callable[[float], str]
    ratio: str = ""


def _per_s(entrant: Measured, direct: Measured | None) -> float | None:
    return None if entrant.requests is None else entrant.requests.per_s


def _request_cpu(entrant: Measured, direct: Measured | None) -> float | None:
    return None if entrant.requests is None else entrant.requests.cpu_us


def _token_cpu(run: Callable[[Measured], Streams | None]) -> Figure:
    def of(entrant: Measured, direct: Measured | None) -> float | None:
        streams = run(entrant)
        return None if streams is None else streams.cpu_us

    return of


def _added(times: Callable[[Measured], Times | None], pick: Callable[[Times], float]) -> Figure:
    """In microseconds, over the direct connection."""

    def of(entrant: Measured, direct: Measured | None) -> float | None:
        own, floor = times(entrant), None if direct is None else times(direct)
        return None if own is None or floor is None or entrant.name == "direct" else pick(own) - pick(floor)

    return of


def _answer(entrant: Measured) -> Times | None:
    run: Requests | None = entrant.alone
    return None if run is None else run.answer


def _first(entrant: Measured) -> Times | None:
    return None if entrant.first is None else entrant.first.first


def _gap(pick: Callable[[Times], float]) -> Figure:
    """As it is: the direct connection's own row shows what of it is the load's."""

    def of(entrant: Measured, direct: Measured | None) -> float | None:
        return None if entrant.dense is None or entrant.dense.gap is None else pick(entrant.dense.gap)

    return of


def _astray(entrant: Measured, direct: Measured | None) -> float | None:
    return None if entrant.dense is None else entrant.dense.lost + entrant.dense.reordered


def _memory(entrant: Measured, direct: Measured | None) -> float | None:
    return entrant.memory_mb


def _p50(times: Times) -> float:
    return times.p50_us


def _p99(times: Times) -> float:
    return times.p99_us


def _max(times: Times) -> float:
    return times.max_us


def _us(value: float) -> str:
    return f"{value:,.0f} µs" if abs(value) >= 100 else f"{value:.1f} µs"


def _ms(value: float) -> str:
    return f"{value / 1000:,.1f} ms" if abs(value) >= 10_000 else f"{value / 1000:.2f} ms"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


PER_S = Column("requests/s", _per_s, _whole, "requests/s")
REQUEST_CPU = Column("CPU a request", _request_cpu, _us, "CPU a request")
TOKEN_CPU = Column("CPU a token, 100 streams", _token_cpu(lambda entrant: entrant.hundred), _us, "CPU a token, 100 streams")
MANY_CPU = Column("CPU a token, 500 streams", _token_cpu(lambda entrant: entrant.many), _us, "CPU a token, 500 streams")
FIRST_P50 = Column("first token, added p50", _added(_first, _p50), _ms)
FIRST_P99 = Column("first token, added p99", _added(_first, _p99), _ms)
GAP_P99 = Column("gap, added p99", _gap(_p99), _ms)
ASTRAY = Column("lost or reordered", _astray, _whole)
COLUMNS = (
    PER_S,
    REQUEST_CPU,
    Column("added p50", _added(_answer, _p50), _ms),
    Column("added p99", _added(_answer, _p99), _ms),
    FIRST_P50,
    FIRST_P99,
    TOKEN_CPU,
    MANY_CPU,
    GAP_P99,
    Column("gap, added max", _gap(_max), _ms),
    ASTRAY,
    Column("memory", _memory, lambda value: f"{value:,.0f} MB", "memory"),
)


# --- tables --------------------------------------------------------------------------------------------------------------------------


def table(results: Results) -> tuple[Row, list[Row]]:
    """Heads and rows, one for each figure: entrants stand side by side. An asterisk: it could not keep up, see `notes`."""
    direct = results.entrant("direct")
    heads = ["", *(entrant.title for entrant in results.entrants)]
    return heads, [[column.title, *(_cell(column, entrant, direct) for entrant in results.entrants)] for column in COLUMNS]


def _cell(column: Column, entrant: Measured, direct: Measured | None) -> str:
    value = column.of(entrant, direct)
    if value is None:
        return _NONE
    run = {TOKEN_CPU: entrant.hundred, MANY_CPU: entrant.many, GAP_P99: entrant.dense}.get(column)
    return column.shown(value) + (" *" if run is not None and not _kept_up(run) else "")


def _kept_up(run: Streams) -> bool:
    """Everything came, and no more than the odd token came far behind its time."""
    return run.late == 0 and (run.delay is None or run.delay.p99_us < _BEHIND_US)


def ratios(results: Results) -> tuple[Row, list[Row]]:
    """Tandem's figure divided by each other's; empty rows where Tandem was not measured."""
    tandem = results.entrant("tandem")
    others = [entrant for entrant in results.entrants if entrant.name not in ("tandem", "direct")]
    heads = ["Tandem ÷", *(entrant.title for entrant in others)]
    if tandem is None:
        return heads, []
    columns = [column for column in COLUMNS if column.ratio]
    return heads, [[column.ratio, *(_ratio(column, tandem, other) for other in others)] for column in columns]


def _ratio(column: Column, tandem: Measured, other: Measured) -> str:
    ratio = _divided(column, tandem, other)
    if ratio is None:
        return _NONE
    return f"{ratio:.3f}" if ratio < 0.1 else f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def _divided(column: Column, tandem: Measured, other: Measured | None) -> float | None:
    own, others = column.of(tandem, None), None if other is None else column.of(other, None)
    return None if own is None or not others else own / others


def notes(results: Results) -> list[str]:
    """What a reader of the table must know, one sentence each."""
    said = []
    if results.machine.load_average > BUSY:
        said.append(f"The machine was busy (load average {results.machine.load_average:.1f}): these figures say nothing.")
    if results.machine.shared_core:
        said.append("Everything ran on one core: these figures say nothing.")
    for entrant in results.entrants:
        if entrant.problem is not None:
            said.append(f"{entrant.title}: {entrant.problem}.")
        for run in (entrant.hundred, entrant.many, entrant.dense):
            if run is not None and not _kept_up(run):
                said.append(_behind(entrant.title, run))
    return said


def _behind(title: str, run: Streams) -> str:
    behind = "" if run.delay is None else f", 1 in 100 tokens came more than {run.delay.p99_us / 1e6:.1f} s behind its time"
    never = f", {run.late:,} of {run.late + run.lost + run.tokens:,} had not come when the load stopped waiting" if run.late else ""
    return f"* {title} could not keep up with {run.connections} streams{behind}{never}."


# --- what must hold ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """text: what must hold, with its limit. value: what was measured, None where it was not. held: None likewise."""

    text: str
    value: float | None
    held: bool | None


def targets(results: Results) -> list[Target]:
    """What Tandem's chat path is held to; each against the others of the same call."""
    tandem, direct = results.entrant("tandem"), results.entrant("direct")
    if tandem is None:
        return []
    router, aiohttp, litellm = (results.entrant(name) for name in ("vllm-router", "aiohttp", "litellm"))
    dense, own = tandem.dense, (tandem, direct)
    first_p50, first_p99, gap_p99 = FIRST_P50.of(*own), FIRST_P99.of(*own), GAP_P99.of(*own)
    return [
        _at_least("requests/s ÷ vllm-router", _divided(PER_S, tandem, router), 0.7),
        _at_least("requests/s ÷ ASGI + aiohttp", _divided(PER_S, tandem, aiohttp), 1.8),
        _at_least("requests/s ÷ LiteLLM proxy", _divided(PER_S, tandem, litellm), 100),
        _at_most("CPU a token ÷ vllm-router", _divided(TOKEN_CPU, tandem, router), 1.1),
        _at_most("CPU a token ÷ ASGI + aiohttp", _divided(TOKEN_CPU, tandem, aiohttp), 0.75),
        _at_most("tokens lost, reordered or late, 512 streams", None if dense is None else dense.lost + dense.reordered + dense.late, 0),
        _at_most("added gap p99 in ms, 512 streams", None if gap_p99 is None else gap_p99 / 1000, 10),
        _at_most("added first-token time p50 in ms", None if first_p50 is None else first_p50 / 1000, 1),
        _at_most("added first-token time p99 in ms", None if first_p99 is None else first_p99 / 1000, 3),
    ]


def _at_least(text: str, value: float | None, limit: float) -> Target:
    return Target(f"{text} ≥ {limit:g}", value, None if value is None else value >= limit)


def _at_most(text: str, value: float | None, limit: float) -> Target:
    return Target(f"{text} ≤ {limit:g}", value, None if value is None else value <= limit)


def target_rows(results: Results) -> tuple[Row, list[Row]]:
    verdicts = {True: "holds", False: "missed", None: "not measured"}
    rows = [[target.text, _NONE if target.value is None else f"{target.value:,.2f}", verdicts[target.held]] for target in targets(results)]
    return ["must hold", "measured", ""], rows


# --- docs/performance.md -------------------------------------------------------------------------------------------------------------


def section(results: Results) -> str:
    """The section of docs/performance.md, between its marks."""
    plan, machine = results.plan, results.machine
    parts = [
        BEGIN,
        "## The chat path beside others",
        f"`./tandem bench chat`, {results.when[:10]}, {machine.cpu}, Python {machine.python}. The gateway alone on one core; the load and"
        " the upstream, both in C, on another. `direct` is the load on the upstream without a gateway: the ceiling of the measurement.",
        f"![Requests a second and CPU for a streamed token]({PLOT})",
        _markdown(*table(results)),
        f"Requests: {plan.connections} connections, not streamed, {plan.seconds:g} s. Added p50 and p99: one request at a time, less the"
        f" direct connection's. First token: one stream at a time, likewise. CPU a token: {plan.hundred} and {plan.many}, the requests"
        f" themselves included. Gaps, lost and reordered: {plan.dense}; a gap is what the time between two tokens grew by on the way."
        " Memory: resident, after all of it.",
        _markdown(*ratios(results)),
        _markdown(*target_rows(results)),
        "\n".join("- " + note.replace("*", "\\*") for note in notes(results)),
        "Versions: " + (", ".join(f"{entrant.title} {entrant.version}" for entrant in results.entrants if entrant.version) or _NONE) + ".",
        END,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(heads: Row, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def with_section(document: str, text: str) -> str:
    """The document with this section in the place of the one before; at its end where there was none."""
    before, begins, rest = document.partition(BEGIN)
    if not begins:
        return f"{document.rstrip()}\n\n{text}"
    _, ends, after = rest.partition(END + "\n")
    if not ends:
        raise ValueError(f"the document has {BEGIN!r} without {END!r}")
    return before + text + after
