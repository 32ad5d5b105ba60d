from __future__ import annotations

from drivekd.data.check.balance import Balance
from drivekd.data.sample import Message, Sample


def sample(answer: str | None, template: str | None = "t", capability: str | None = "c") -> Sample:
    turns = [Message("user", "?")] + ([] if answer is None else [Message("assistant", answer)])
    return Sample("", tuple(turns), {}, capability, template)


def test_the_most_frequent_answer_of_each_template() -> None:
    balance = Balance()
    for answer in ("No.", "no", "Yes.", None):
        balance.add(sample(answer))
    balance.add(sample("Red", None, None))
    assert balance.majorities() == [
        {"template": "t", "rows": 3, "answer": "no", "share": 2 / 3},
        {"template": "(none)", "rows": 1, "answer": "red", "share": 1.0},
    ]
    assert balance.capabilities == {"c": 4, "(none)": 1}


def test_counts_stay_bounded() -> None:
    balance = Balance()
    for number in range(2000):
        balance.add(sample(f"answer {number}" if number % 2 else "often", f"t{number % 1000}"))
    assert len(balance.templates) == 501
    assert balance.templates["(others)"].total() == 1000
    many = Balance()
    for number in range(1000):
        many.add(sample(f"{number} " + "x" * 1000 if number % 4 else "often"))
    (row,) = many.majorities()
    assert (row["answer"], row["share"], len(many.templates["t"])) == ("often", 0.25, 301)


def test_an_answer_that_is_called_like_the_rest() -> None:
    balance = Balance()
    balance.add(sample("(others)"))
    assert balance.majorities()[0]["share"] == 0
