"""The shipped demo models are as good as the model cards say: the evaluation's table, with the least share of right answers in each row.

It takes some minutes: ./tandem test -m slow tests/local_models/demo/test_quality.py -s
"""

import pytest

from local_models.demo.build import WEIGHTS
from local_models.demo.evaluate import measure
from local_models.demo.measured import Row

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.usefixtures("one_thread"),
]
SHARE = 1.0


# Where the shipped weights do not reach the threshold: a share below which they must not fall.
NOT_YET = {
    "LoRA: shapes become outlines": 0.7,
    "image to image, strength 0.3: layout kept (IoU 0.7)": 0.75,
    "Tandem, new phrasings": 0.65,
    "Tandem, new phrasings, thinking": 0.61,
    "small talk, new phrasings": 0.62,
    "outside its world: says so": 0.58,
    "JSON when asked for: it parses": 0.85,
}


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("model", ["image", "chat"])
def test_the_demo_models_reach_their_thresholds(model: str) -> None:
    rows = []
    for row in measure(WEIGHTS / "demo", WEIGHTS / "demo-image", only=model, share=SHARE):
        print(row, flush=True)
        rows.append(row)
    assert len(rows) >= 10
    assert [str(row) for row in rows if row.share < NOT_YET.get(row.subject, row.least)] == []


def test_a_row_below_its_threshold_is_not_good() -> None:
    good, bad = Row.of("fine", [True] * 9 + [False], 0.9), Row.of("poor", [True] * 8 + [False] * 2, 0.9)
    assert (good.is_good, bad.is_good) == (True, False)
    assert "90.0%" in str(good)
    assert str(bad).endswith("TOO FEW")
