"""The parameters of GET /v1/usage: their defaults, and a clear error for each mistake."""

from __future__ import annotations

import pytest
from starlette.datastructures import QueryParams

from gateway.errors import GatewayError
from gateway.usage_query import MAX_TIME, UsageQuery, parameters, parse
from tests.gateway.usage_records import DAY, NOON

NOW = int(NOON)


def test_nothing_asked_is_the_last_thirty_days_by_day() -> None:
    query = parse(QueryParams(""), NOON + 0.5)
    assert query == UsageQuery(start_time=NOW + 1 - 30 * DAY, end_time=NOW + 1, bucket_width="1d", group_by=[])


def test_a_beginning_counts_from_the_end() -> None:
    assert parse(QueryParams(f"end_time={40 * DAY}"), NOON).start_time == 10 * DAY
    assert parse(QueryParams("end_time=5"), NOON).start_time == 0


@pytest.mark.parametrize("asked", ["group_by=model", "group_by[]=model", "group_by%5B%5D=model"])
def test_groups_may_be_written_in_each_way_of_the_sdks(asked: str) -> None:
    assert parse(QueryParams(asked), NOON).group_by == ["model"]


@pytest.mark.parametrize(
    ("asked", "param", "message"),
    [
        ("start_time=yesterday", "start_time", "start_time: Input should be a valid integer"),
        ("end_time=tomorrow", "end_time", "end_time: Input should be a valid integer"),
        ("start_time=-1", "start_time", "greater than or equal to 0"),
        (f"end_time={MAX_TIME + 1}", "end_time", f"less than or equal to {MAX_TIME}"),
        (f"end_time={'9' * 400}", "end_time", "end_time: "),
        ("end_time=²", "end_time", "end_time: "),
        ("start_time=20&end_time=20", "start_time", "start_time 20 is not before end_time 20"),
        (f"start_time={NOW + 60}", "start_time", f"start_time {NOW + 60} is not before end_time {NOW + 1}"),
        ("start_time=0", "start_time", "are more than 366, the most for bucket_width 1d; ask for less, or for bucket_width=all"),
        ("bucket_width=1h", "bucket_width", "bucket_width: Input should be '1d' or 'all' (got '1h')"),
        ("group_by=key", "group_by[0]", "group_by[0]: Input should be 'model' (got 'key')"),
        ("key_id=other", "key_id", "the field 'key_id' is not known; the parameters are start_time, end_time, bucket_width, group_by"),
        ("start_time=1&start_time=2", "start_time", "start_time is given 2 times; give it once"),
    ],
)
def test_a_mistake_is_named(asked: str, param: str, message: str) -> None:
    with pytest.raises(GatewayError) as caught:
        parse(QueryParams(asked), NOON)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert message in caught.value.message
    assert len(caught.value.message) < 400


def test_all_time_may_be_asked_for_in_one_bucket() -> None:
    assert parse(QueryParams("start_time=0&bucket_width=all"), NOON).start_time == 0


def test_the_description_has_every_parameter_and_requires_none() -> None:
    described = parameters()
    assert [parameter["name"] for parameter in described] == list(UsageQuery.model_fields)
    assert all(parameter["description"] and not parameter["required"] for parameter in described)
    assert described[2]["schema"]["enum"] == ["1d", "all"]
