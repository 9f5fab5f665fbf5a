"""`tandem keys` as a person meets it, and a running gateway that takes notice."""

from __future__ import annotations

import http.client
import json
import time
from pathlib import Path

import pytest

from gateway.cli import count, money
from tests.gateway.test_cli import ADDRESS, one_line, running, tandem


def keys(folder: Path, *arguments: str) -> str:
    result = tandem(folder, "keys", *arguments, "--data-dir", "data")
    assert result.returncode == 0, result.stderr
    return result.stdout


def status_with(port: int, key: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})
        return connection.getresponse().status
    finally:
        connection.close()


def becomes(port: int, key: str, status: int) -> bool:
    """Whether a request with this key gets this status before long."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if status_with(port, key) == status:
            return True
        time.sleep(0.05)
    return False


def test_a_key_is_printed_once_listed_and_revoked(tmp_path: Path) -> None:
    made = tandem(
        tmp_path, "keys", "create", "--name", "laptop", "--models", "demo, open*", "--expires", "30d", "--rpm", "60", "--tpm", "1000",
        "--concurrent", "4", "--budget-day", "2.5", "--budget-month", "50", "--data-dir", "data",
    )  # fmt: skip
    plain = made.stdout.strip()
    assert made.stdout == f"{plain}\n"
    assert plain.startswith("sk-tandem-")
    assert "shown this once" in made.stderr
    assert plain not in made.stderr
    (entry,) = json.loads(keys(tmp_path, "list", "--json"))
    assert (entry["name"], entry["state"], entry["models"], entry["admin"]) == ("laptop", "active", ["demo", "open*"], False)
    assert entry["expires_at"] - entry["created_at"] == 30 * 86_400
    assert entry["limits"] == {
        "requests_per_minute": 60,
        "tokens_per_minute": 1000,
        "concurrent_requests": 4,
        "budget_usd_per_day": 2.5,
        "budget_usd_per_month": 50,
    }
    keys(tmp_path, "create", "--name", "other", "--admin")
    assert keys(tmp_path, "revoke", entry["id"]) == f"{entry['id']} (laptop) is revoked\n"
    listed = keys(tmp_path, "list")
    assert keys(tmp_path) == listed
    head, first, second = listed.splitlines()
    assert head.split() == ["ID", "NAME", "STATE", "CREATED", "EXPIRES", "MODELS", "LIMITS"]
    assert first.split()[:3] == [entry["id"], "laptop", "revoked"]
    assert first.endswith("budget_usd_per_day=2.5, budget_usd_per_month=50")
    assert second.split()[1:4] == ["other", "active,", "admin"]
    assert second.split()[-3:] == ["never", "all", "none"]
    assert plain not in listed


def test_no_keys_yet(tmp_path: Path) -> None:
    assert keys(tmp_path, "list") == "no managed keys; make one with `tandem keys create --name NAME`\n"
    assert keys(tmp_path, "list", "--json") == "[]\n"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["revoke", "key_1"], "has the id 'key_1'; `tandem keys list` shows them"),
        (["create", "--name", ""], "--name '': use 1 to 64 printable characters"),
        (["create", "--name", "a", "--models", "a b"], "--models 'a b': write names as `tandem models` lists them"),
        (["create", "--name", "a", "--models", "a,"], "--models ''"),
        (["create", "--name", "a", "--expires", "soon"], "--expires: 'soon' is no time; write days or hours"),
        (["create", "--name", "a", "--expires", "2020-01-01"], "--expires: '2020-01-01' is past"),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    assert said in one_line(tandem(tmp_path, "keys", *arguments))


@pytest.mark.parametrize("arguments", [["list"], ["create", "--name", "a"], ["revoke", "key_1"]])
def test_a_broken_file_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "keys.json").write_text("{}")
    line = one_line(tandem(tmp_path, "keys", "--data-dir", str(tmp_path), *arguments))
    assert line == f"cannot use the keys in {tmp_path}/keys.json (version: Field required); correct the file, or restore an older copy"


def test_a_running_gateway_takes_new_keys_and_refuses_revoked_ones(tmp_path: Path) -> None:
    with running(tmp_path, "serve", "--port", "0", "--data-dir", "data") as command:
        port = int(ADDRESS.findall(command.read_until("Ctrl-C"))[-1])
        plain = keys(tmp_path, "create", "--name", "late").strip()
        assert becomes(port, plain, 200)
        (entry,) = json.loads(keys(tmp_path, "list", "--json"))
        keys(tmp_path, "revoke", entry["id"])
        assert becomes(port, plain, 401)
        assert status_with(port, (tmp_path / "data" / "api_key").read_text().strip()) == 200


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_a_limit_is_a_whole_number_above_zero(text: str) -> None:
    with pytest.raises(Exception, match="use a whole number above 0"):
        count(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e999", "much"])
def test_a_budget_is_an_amount_above_zero(text: str) -> None:
    with pytest.raises(Exception, match="use a number of US dollars above 0"):
        money(text)
