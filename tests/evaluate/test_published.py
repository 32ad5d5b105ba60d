from __future__ import annotations

import pytest

from drivekd.evaluate.published import OTHER_JUDGE, notice, rows, table


def test_the_averages_of_the_main_table_are_those_of_its_columns() -> None:
    main = [row for row in rows(None) if row.table == "main"]
    assert len(main) == 17
    for row in main:
        parts = [row.figures[name] or 0.0 for name in ("perception", "reasoning", "planning")]
        assert row.figures["average"] == pytest.approx(sum(parts) / 3, abs=0.011), row.model


def test_tables_agree_where_they_say_the_same() -> None:
    named = {(row.table, row.model): row.figures for row in rows(None)}
    parts = ("perception", "reasoning", "planning")
    for one, other in (
        (("main", "Drive-KD InternVL3-1B multi"), ("ablation", "multi + AGP")),
        (("main", "Drive-KD InternVL3-1B single"), ("ablation", "single")),
        (("main", "Drive-KD InternVL3-1B multi"), ("teachers", "8B teaches 1B")),
    ):
        assert [named[one][p] for p in parts] == [named[other][p] for p in parts]
    assert len({row.table for row in rows(None)}) == 6
    human = named["drivebench_clean", "Human"]
    assert (human["perception"], human["prediction"], human["behavior"]) == (47.67, None, 69.51)


@pytest.mark.parametrize("judge", ["DeepSeek-V3.2", "deepseek-ai/DeepSeek-V3.2", "deepseek_v3.2"])
def test_the_same_judge_by_another_spelling(judge: str) -> None:
    for row in rows(judge):
        other = row.table.startswith("drivebench")
        assert row.notice.startswith(OTHER_JUDGE) == other
    assert "may be others" in notice(judge, "DeepSeek-V3.2")


@pytest.mark.parametrize("judge", ["DeepSeek-V3", "DeepSeek-V3.2-Exp", "gpt-4o", "deepseek-chat"])
def test_any_other_judge_is_not_comparable(judge: str) -> None:
    assert all(row.notice.startswith(OTHER_JUDGE) for row in rows(judge))


def test_a_name_that_moves_is_told() -> None:
    assert notice("deepseek-chat", "DeepSeek-V3.2") == (
        "other judge: not comparable (deepseek-chat names another model over time)"
    )
    assert notice("gpt-4o", "DeepSeek-V3.2") == OTHER_JUDGE
    assert "not comparable" in notice(None, "DeepSeek-V3.2")


def test_the_table_shows_titles_and_notices() -> None:
    text = table(rows("gpt-4o"))
    assert text.count(OTHER_JUDGE) == 6
    assert "arXiv 2601.21288" in text and "arXiv 2501.04003" in text
    assert "GPT-5.1" in text and "45.56" in text
    assert "None" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
