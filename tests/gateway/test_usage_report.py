"""`tandem usage`: what a person sees, on real stores and through the real command line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.cli import groups, main, parser
from gateway.startup import CannotStart
from gateway.usage_report import start_time
from gateway.usage_rows import row_of
from gateway.usage_store import FILE, UsageStore
from tests.gateway.postgres import cluster
from tests.gateway.test_cli import environment, one_line, tandem
from tests.gateway.usage_records import DAY, NOON, record

NOW = datetime.now(UTC).timestamp()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with some usage of the last days, and one old request."""
    folder = tmp_path / "data"
    folder.mkdir()
    fill(UsageStore(f"sqlite:///{folder / FILE}"))
    return folder


def fill(store: UsageStore) -> None:
    records = [
        record(at=NOW - 3600),
        record(at=NOW - 3600, model="n", cost_usd=None, usage=None, outcome="failed", first_token_s=None),
        record(at=NOW - 3600, key_id="k2", first_token_s=0.75),
        record(at=NOW - 3 * DAY, key_id="k2"),
        record(at=NOW - 100 * DAY, key_id="k3"),
    ]
    store.insert([row_of(each) for each in records])
    store.close()


def test_a_store_that_is_not_there_yet_is_told_in_one_line_and_not_made(tmp_path: Path) -> None:
    result = tandem(tmp_path, "usage", "--data-dir", "data")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        f"no usage is kept yet: there is nothing at {tmp_path}/data/usage.sqlite; it begins with the first request to the gateway\n"
    )
    assert not (tmp_path / "data").exists()


def test_by_key_and_model_of_the_last_thirty_days(tmp_path: Path, data: Path) -> None:
    result = tandem(tmp_path, "usage", "--data-dir", str(data))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "key  model  requests  failed  prompt  cached  answer     cost  first token",
        "k1   m             1       0     100      10      20  $0.5000      0.250 s",
        "k1   n             1       1       0       0       0  $0.0000            -",
        "k2   m             2       0     200      20      40  $1.0000      0.500 s",
        "all                4       1     300      30      60  $1.5000      0.417 s",
    ]


def test_by_day_since_a_time_of_one_key(tmp_path: Path, data: Path) -> None:
    lines = tandem(tmp_path, "usage", "--data-dir", str(data), "--by", "day", "--since", "7d", "--key", "k2").stdout.splitlines()
    days = [datetime.fromtimestamp(moment, UTC).date().isoformat() for moment in (NOW - 3 * DAY, NOW - 3600)]
    assert [line.split()[:2] for line in lines] == [["day", "requests"], [days[0], "1"], [days[1], "1"], ["all", "2"]]
    (line,) = tandem(tmp_path, "usage", "--data-dir", str(data), "--since", "12h", "--by", "key", "--key", "k2").stdout.splitlines()[1:]
    assert line.split()[:2] == ["k2", "1"]
    everything = tandem(tmp_path, "usage", "--data-dir", str(data), "--since", "all", "--by", "key").stdout.splitlines()
    assert [line.split()[0] for line in everything] == ["key", "k1", "k2", "k3", "all"]


def test_nothing_in_that_time_is_told(tmp_path: Path, data: Path) -> None:
    told = tandem(tmp_path, "usage", "--data-dir", str(data), "--key", "k9", "--since", "7d").stdout
    assert told == "no request of key 'k9' since 7d\n"


def test_as_json(tmp_path: Path, data: Path) -> None:
    result = tandem(tmp_path, "usage", "--data-dir", str(data), "--json", "--by", "key", "--since", "2000-01-01")
    document = json.loads(result.stdout)
    assert document["since"] == 946684800.0
    assert document["by"] == ["key_id"]
    assert [(row["key_id"], row["requests"], row["failures"]) for row in document["rows"]] == [("k1", 2, 1), ("k2", 2, 0), ("k3", 1, 0)]
    assert "model" not in document["rows"][0]
    assert document["total"]["cost_usd"] == 2.0
    nothing = json.loads(tandem(tmp_path, "usage", "--data-dir", "nowhere", "--json").stdout)
    assert (nothing["rows"], nothing["total"]) == ([], None)


def test_days_in_json_are_dates(tmp_path: Path, data: Path) -> None:
    rows = json.loads(tandem(tmp_path, "usage", "--data-dir", str(data), "--json", "--by", "day,model").stdout)["rows"]
    assert rows[0]["day"] == datetime.fromtimestamp(NOW - 3 * DAY, UTC).date().isoformat()
    assert "key_id" not in rows[0]


def test_on_a_terminal_it_is_a_table_with_headings_in_colour(tmp_path: Path, data: Path) -> None:
    command = [sys.executable, "-m", "gateway.cli", "usage", "--data-dir", str(data)]
    screen, terminal = pty.openpty()
    plain = environment(tmp_path, TERM="xterm-256color", COLUMNS="140")
    plain.pop("NO_COLOR")
    result = subprocess.run(command, cwd=tmp_path, env=plain, stdin=subprocess.DEVNULL, stdout=terminal, check=False, timeout=60)
    os.close(terminal)
    shown = os.read(screen, 65536).decode()
    os.close(screen)
    assert result.returncode == 0
    assert "\x1b[1;36mkey" in shown
    assert "$1.5000" in shown


def test_a_model_name_cannot_steer_the_terminal(tmp_path: Path) -> None:
    store = UsageStore(f"sqlite:///{tmp_path / FILE}")
    store.insert([row_of(record(at=NOW - 60, model="\x1b]0;pwned\x07m\n"))])
    store.close()
    shown = tandem(tmp_path, "usage", "--data-dir", str(tmp_path)).stdout
    assert "\x1b" not in shown
    assert "?]0;pwned?m?" in shown


def test_a_store_that_does_not_answer_is_told_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "tandem.yaml").write_text("usage: {url: '${USAGE_URL}'}\n")
    line = one_line(tandem(tmp_path, "usage", USAGE_URL=f"postgresql://tandem:s3cret@/postgres?host={tmp_path}"))
    assert line.startswith("the usage store postgresql://tandem:***@/postgres")
    assert line.endswith("see usage.url in the configuration")
    assert "s3cret" not in line


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with cluster() as own:
        yield own.url


def test_the_report_of_a_postgresql(tmp_path: Path, url: str) -> None:
    (tmp_path / "tandem.yaml").write_text("usage: {url: '${USAGE_URL}'}\n")
    assert tandem(tmp_path, "usage", USAGE_URL=url).stdout.startswith("no usage is kept yet: there is nothing at postgresql://tandem:***@")
    fill(UsageStore(url))
    lines = tandem(tmp_path, "usage", "--by", "key", USAGE_URL=url).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["key", "requests"], ["k1", "2"], ["k2", "2"], ["all", "4"]]


@pytest.mark.parametrize("since", ["yesterday", "7", "0d", "-1d", "2026-13-01", "01.11.2026", ""])
def test_a_time_that_is_none(tmp_path: Path, since: str) -> None:
    line = one_line(tandem(tmp_path, "usage", "--since=" + since)) if since == "yesterday" else None
    assert line in (None, "--since 'yesterday' is no time; write 7d, 12h, a day like 2026-11-01, or all")
    with pytest.raises(CannotStart):
        start_time(since, NOON)


@pytest.mark.parametrize(
    ("since", "start"),
    [("7d", NOON - 7 * DAY), ("12h", NOON - DAY / 2), ("2026-11-20", NOON - DAY / 2), ("all", None), ("999999d", 0.0)],
)
def test_times(since: str, start: float | None) -> None:
    assert start_time(since, NOON) == start


@pytest.mark.parametrize(("text", "named"), [("key,model", ("key_id", "model")), ("day", ("day",)), ("", ())])
def test_groups(text: str, named: tuple[str, ...]) -> None:
    assert groups(text) == named


def test_a_group_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["usage", "--by", "user"])
    assert caught.value.code == 2
    assert "'user' is nothing to sort usage by; use key, model or day" in capsys.readouterr().err


def test_usage_takes_a_data_directory() -> None:
    assert parser().parse_args(["usage", "--data-dir", "d"]).data_dir == Path("d")
