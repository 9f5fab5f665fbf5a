"""From results to tables, judgements, the section of the page and the plot: all of it from figures made up here."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree

import pytest

from bench.chat import plot, report
from bench.chat.results import Machine, Measured, Plan, Requests, Results, Streams, Times, from_json, read_requests, to_json

SVG = "{http://www.w3.org/2000/svg}"


def requests(per_s: float, p50_us: float, cpu_us: float | None) -> Requests:
    return Requests(
        connections=1,
        seconds=1,
        begun=1000,
        finished=1000,
        failed=0,
        reconnects=0,
        problem="",
        per_s=per_s,
        answer=Times(1000, p50_us, p50_us * 2, p50_us * 3),
        cpu_s=None if cpu_us is None else cpu_us / 1000,
    )


def streams(cpu_us: float | None, *, first_us: float = 100, gap_us: float = 500, late: int = 0, reordered: int = 0) -> Streams:
    return Streams(
        connections=500,
        seconds=1,
        begun=500,
        finished=500,
        failed=0,
        reconnects=0,
        problem="",
        tokens=1000,
        lost=0,
        reordered=reordered,
        late=late,
        first=Times(10, first_us, first_us * 2, first_us * 3),
        delay=None,
        gap=Times(10, 0, gap_us, gap_us * 2),
        cpu_s=None if cpu_us is None else cpu_us / 1000,
    )


def measured(name: str, per_s: float, cpu_us: float | None, *, first_us: float = 100, memory_mb: float | None = 50) -> Measured:
    return Measured(
        name=name,
        title=name.title(),
        version="1.0" if cpu_us else "",
        requests=requests(per_s, 20, cpu_us),
        alone=requests(per_s, first_us, cpu_us),
        first=streams(cpu_us, first_us=first_us),
        hundred=streams(cpu_us),
        many=streams(cpu_us),
        dense=streams(cpu_us),
        closed_early=0,
        idle_mb=memory_mb,
        memory_mb=memory_mb,
    )


def results(*entrants: Measured, load: float = 0.1) -> Results:
    return Results("2026-11-24T12:00:00+0000", Machine("A CPU", 2, "3.11.7", load, False), Plan(), list(entrants))


@pytest.fixture
def everyone() -> Results:
    return results(
        measured("direct", 80_000, None, first_us=30, memory_mb=None),
        measured("tandem", 15_000, 16, first_us=130),
        measured("vllm-router", 20_000, 16),
        measured("aiohttp", 7_500, 25),
        measured("litellm", 100, 700),
    )


def cells(table: tuple[report.Row, list[report.Row]]) -> dict[str, dict[str, str]]:
    """By row, then by head."""
    heads, rows = table
    return {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows}


def test_the_table_shows_every_figure_of_every_entrant(everyone: Results) -> None:
    table = cells(report.table(everyone))
    assert list(table) == [column.title for column in report.COLUMNS]
    assert table["requests/s"]["Tandem"] == "15,000"
    assert table["CPU a token, 100 streams"]["Litellm"] == "700 µs"
    assert table["memory"]["Tandem"] == "50 MB"
    assert all("–" not in row["Tandem"] for row in table.values())


def test_what_is_added_is_the_difference_to_the_direct_connection(everyone: Results) -> None:
    table = cells(report.table(everyone))
    assert table["added p50"]["Tandem"] == "0.10 ms"
    assert table["first token, added p99"]["Tandem"] == "0.20 ms"
    assert table["added p50"]["Direct"] == "–"
    alone = cells(report.table(results(measured("tandem", 15_000, 16))))
    assert alone["added p50"]["Tandem"] == "–"


def test_an_entrant_that_could_not_be_measured_stays_in_the_table_with_its_reason(everyone: Results) -> None:
    broken = Measured(name="litellm", title="LiteLLM", version="1", problem="cannot be installed (no network)")
    table = cells(report.table(results(*everyone.entrants[:-1], broken)))
    assert {row["LiteLLM"] for row in table.values()} == {"–"}
    assert "LiteLLM: cannot be installed (no network)." in report.notes(results(broken))


def test_an_entrant_that_could_not_keep_up_is_marked(everyone: Results) -> None:
    slow = dataclasses.replace(everyone.entrants[-1], many=streams(700, late=250))
    shown = results(*everyone.entrants[:-1], slow)
    assert cells(report.table(shown))["CPU a token, 500 streams"]["Litellm"] == "700 µs *"
    assert cells(report.table(shown))["CPU a token, 100 streams"]["Litellm"] == "700 µs"
    assert report.notes(shown) == ["* Litellm could not keep up with 500 streams, 250 of 1,250 had not come when the load stopped waiting."]


def test_an_entrant_that_is_far_behind_is_marked_though_everything_came(everyone: Results) -> None:
    tandem = everyone.entrants[1]
    for p99_us, mark in ((999_000, ""), (2_500_000, " *")):
        shown = results(dataclasses.replace(tandem, hundred=dataclasses.replace(streams(16), delay=Times(10, 1, p99_us, p99_us))))
        assert cells(report.table(shown))["CPU a token, 100 streams"]["Tandem"] == f"16.0 µs{mark}"
    assert report.notes(shown) == ["* Tandem could not keep up with 500 streams, 1 in 100 tokens came more than 2.5 s behind its time."]


def test_a_busy_machine_is_said(everyone: Results) -> None:
    assert report.notes(everyone) == []
    assert "load average 2.0" in report.notes(results(*everyone.entrants, load=2))[0]


def test_ratios_are_tandems_figure_divided_by_the_others(everyone: Results) -> None:
    table = cells(report.ratios(everyone))
    assert table["requests/s"] == {"Vllm-Router": "0.75", "Aiohttp": "2.00", "Litellm": "150"}
    assert table["CPU a token, 100 streams"] == {"Vllm-Router": "1.00", "Aiohttp": "0.64", "Litellm": "0.023"}
    assert report.ratios(results(measured("aiohttp", 7_500, 25)))[1] == []


def test_all_targets_are_judged(everyone: Results) -> None:
    assert [target.held for target in report.targets(everyone)] == [True] * 9


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"requests": requests(13_000, 20, 16)}, ["requests/s ÷ vllm-router ≥ 0.7", "requests/s ÷ ASGI + aiohttp ≥ 1.8"]),
        ({"hundred": streams(18)}, ["CPU a token ÷ vllm-router ≤ 1.1"]),
        ({"dense": streams(16, reordered=1)}, ["tokens lost, reordered or late, 512 streams ≤ 0"]),
        ({"dense": streams(16, late=1)}, ["tokens lost, reordered or late, 512 streams ≤ 0"]),
        ({"dense": streams(16, gap_us=10_100)}, ["added gap p99 in ms, 512 streams ≤ 10"]),
        ({"first": streams(16, first_us=1100)}, ["added first-token time p50 in ms ≤ 1"]),
    ],
)
def test_a_missed_target_is_named(everyone: Results, change: dict[str, Requests | Streams], missed: list[str]) -> None:
    worse = dataclasses.replace(everyone.entrants[1], **change)  # type: ignore[arg-type]
    judged = report.targets(results(everyone.entrants[0], worse, *everyone.entrants[2:]))
    assert [target.text for target in judged if target.held is False] == missed


def test_what_was_not_measured_is_not_judged() -> None:
    judged = report.targets(results(measured("tandem", 15_000, 16)))
    assert {target.held for target in judged if "÷" in target.text or "first" in target.text} == {None}
    assert report.targets(results()) == []


def test_results_survive_being_written_and_read(everyone: Results) -> None:
    everyone.entrants.append(Measured(name="broken", title="Broken", version="", problem="no"))
    assert from_json(to_json(everyone)) == everyone
    with pytest.raises(ValueError, match="JSON"):
        from_json("nonsense")


def test_what_the_load_prints_must_be_whole() -> None:
    with pytest.raises(ValueError, match="per_s"):
        read_requests(
            '{"mode":"requests","connections":1,"seconds":1,"begun":1,"finished":1,"failed":0,"reconnects":0,"problem":"","answer":null}'
        )


# --- the page ------------------------------------------------------------------------------------------------------------------------


def test_the_section_says_everything_a_reader_needs(everyone: Results) -> None:
    text = report.section(everyone)
    assert "./tandem bench chat" in text
    assert "2026-11-24" in text
    assert "A CPU" in text
    assert report.PLOT in text
    assert "| requests/s | 80,000 | 15,000 | 20,000 | 7,500 | 100 |" in text
    assert "100 streams at 100 tokens/s" in text
    assert "Vllm-Router 1.0" in text
    slow = dataclasses.replace(everyone.entrants[1], many=streams(16, late=1))
    assert "\n- \\* Tandem could not keep up" in report.section(results(slow))  # unescaped, it would begin a list in the list


def test_the_section_takes_the_place_of_the_one_before_and_nothing_else(everyone: Results) -> None:
    page = "# Performance\n\nText.\n"
    once = report.with_section(page, report.section(everyone))
    assert once.startswith(page)
    assert once.endswith(report.END + "\n")
    more = once + "\n## Tried\n\nThings.\n"
    other = report.section(results(*everyone.entrants[:2]))
    assert report.with_section(more, other) == page + "\n" + other + "\n## Tried\n\nThings.\n"
    assert report.with_section(more, report.section(everyone)) == more


def test_a_section_without_an_end_is_not_guessed(everyone: Results) -> None:
    with pytest.raises(ValueError, match="without"):
        report.with_section(f"# Performance\n\n{report.BEGIN}\n\nText.\n", report.section(everyone))


# --- the plot ------------------------------------------------------------------------------------------------------------------------


def test_the_plot_has_a_bar_and_a_figure_for_each_gateway(everyone: Results) -> None:
    picture = ElementTree.fromstring(plot.draw(everyone))
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    bars = list(picture.iter(f"{SVG}rect"))[1:]  # the first is the background
    assert len(bars) == 8
    assert texts.count("Tandem") == 2
    assert "15,000" in texts
    assert "700 µs" in texts
    assert "Direct" not in texts
    assert len({bar.get("fill") for bar in bars}) == 2


def test_a_bar_out_of_all_proportion_is_cut_and_the_others_stay_visible(everyone: Results) -> None:
    picture = ElementTree.fromstring(plot.draw(everyone))
    assert [path.get("class") for path in picture.iter(f"{SVG}path")] == ["cut"]
    assert plot.scale([16, 16, 25, 700]) == pytest.approx(30)
    assert plot.scale([100, 7_500, 15_000, 20_000]) == 20_000
    assert plot.scale([1, 100]) == 100
    assert plot.scale([]) == 1


def test_names_are_escaped_in_the_plot() -> None:
    odd = dataclasses.replace(measured("tandem", 1, 1), title="<A & B>")
    assert "<A & B>" in [text.text for text in ElementTree.fromstring(plot.draw(results(odd))).iter(f"{SVG}text")]
