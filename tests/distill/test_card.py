"""The model card and the summary at the end of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import metadata_load
from markdown_it import MarkdownIt

import runs
from drivekd.distill.saving import card, summary
from drivekd.distill.saving.trainer_state import State
from drivekd.distill.train import train
from drivekd.recipe import parse

NASTY = "a|b `c` ``` <script>x</script>\n# [d](e) *f* --- '\" \\"


def state(**changes: Any) -> State:
    raw = {
        "name": NASTY,
        "student": f"org/{NASTY}",
        "output_dir": f"out/{NASTY}",
        "data": {"train": "t", "eval": [f"v {NASTY}", "w.jsonl"], "root": "r r"},
        "capabilities": {
            NASTY: {"teacher": NASTY, "student_layers": "first", "signal": "full"},
        },
    }
    lines = [
        {"step": 1, "loss/ce": 2.5, f"loss/attn/{NASTY}": 0.25, "lr": 1e-3},
        {"step": 4, "loss/ce": 1.5, "lr": 1e-5},
        {"step": 4, "eval/loss/ce": 1.75},
    ]
    who = {NASTY: {"source": NASTY, "sha256": "0123456789abcdef" * 4, "dtype": "float32"}}
    recipe = parse(raw).model_dump(mode="json")
    more = {"log_history": lines, "seconds": 8.0, "questions": 20, "epoch": 2.0, **changes}
    return State(4, 4, recipe, who, {"samples": "data"}, "f" * 64, ["w"], **more)


def rendered(text: str) -> list[Any]:
    """The tokens of the card's Markdown without the header, inline ones too."""
    body = text.split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    return [*tokens, *(inner for token in tokens for inner in token.children or ())]


def test_nothing_that_a_user_named_is_read_as_markdown() -> None:
    text = card.text(state(), Path(f"out/{NASTY}/final"), {NASTY: 3, "none": 1}, 2)
    tokens = rendered(text)
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "html_inline", "link_open", "em_open", "image"}
    codes = [token.content for token in tokens if token.type == "code_inline"]
    assert codes.count(" ".join(NASTY.split())) >= 4
    assert sum(token.type == "heading_open" for token in tokens) == 5
    assert sum(token.type == "table_open" for token in tokens) == 2
    blocks = [token for token in tokens if token.type == "fence"]
    assert [block.info for block in blocks] == ["yaml", "python", "sh"]
    assert yaml.safe_load(blocks[0].content) == state().recipe


def test_the_header_is_what_the_hub_reads_and_invents_no_licence(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(card.text(state(), Path("out/final"), {}, 0))
    header = metadata_load(path)
    assert header == {
        "base_model": f"org/{NASTY}",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["drivekd", "autonomous-driving", "knowledge-distillation"],
    }


def test_it_says_what_was_trained_on_what() -> None:
    judged = state(best_metric=1.25, best_global_step=2)
    text = card.text(judged, Path("out/final"), {"planning": 3, "none": 1}, 2)
    for row in (
        "| training samples, `planning` | 3 |",
        "| held-out samples | 2 |",
        "| optimizer steps | 4 of 4 |",
        "| last `loss/ce` | 1.5 |",
        "| last `eval/loss/ce` | 1.75 |",
        "| least `eval/loss/ce` of what was saved | 1.25 after step 2 |",
        "| weights | those after step 2 |",
    ):
        assert row in text
    assert "0123456789ab |" in text
    assert "not a driving system" in text
    assert "its language model was trained, not its embeddings." in text
    tied = replace(state(), trained=["model.language_model.embed_tokens.weight"])
    assert "with tied input embeddings" in card.text(tied, Path("o/final"), {}, 0)


def test_one_command_for_each_held_out_file() -> None:
    recipe = state().recipe
    first, second = card.evaluation_commands(recipe, Path("out/a b/final"))
    assert second == (
        "drivekd evaluate --model 'out/a b/final' --data w.jsonl --root 'r r' "
        "--out 'out/a b/evaluation-final-2'"
    )
    assert first.endswith("-1'")
    blind = {**recipe, "data": {**recipe["data"], "images": "grey"}}
    assert "--images grey --out" in card.evaluation_commands(blind, Path("o/final"))[0]
    for held_out in ([], [{"path": "O/N", "split": "val"}]):  # the command scores files
        none = {**recipe, "data": {**recipe["data"], "eval": held_out}}
        assert card.evaluation_commands(none, Path("o/final")) == [
            "drivekd evaluate --model o/final --data QUESTIONS.jsonl --out o/evaluation-final"
        ]


def test_a_run_leaves_a_card_and_a_summary(tmp_path: Path) -> None:
    data = runs.write_data(tmp_path / "data")
    other = runs.write_data(tmp_path / "other", scenes=1, first=3)
    settings = {"max_steps": 3, "save_steps": 2}
    recipe = runs.recipe(data, tmp_path / "run", data={"eval": [str(other)]}, train=settings)
    final = train(recipe, student=runs.tiny_student(), teachers=runs.tiny_teachers())
    for folder, steps in ((final, 3), (final.parent / "checkpoint-2", 2)):
        text = (folder / "README.md").read_text()
        assert f"| optimizer steps | {steps} of 3 |" in text
        assert "| training samples, `perception` | 6 |" in text
        assert "| last `loss/attn/planning` | " in text
        assert f"drivekd evaluate --model {folder} --data {other} --out" in text
        assert f"folder = {str(folder)!r}" in text
    said = summary.text(final).splitlines()
    assert said[0].split() == ["steps", "3", "(1.5", "epochs)"]
    names = [line.split()[0] for line in said[: said.index("")]]
    losses = ["loss/ce", *(f"loss/attn/{c}" for c in runs.CAPABILITIES), "eval/loss/ce"]
    assert set(losses) | {"time", "samples/s", "checkpoints"} <= set(names)
    first, last = (f"{line['loss/ce']:.4g}" for line in runs.lines(final.parent)[:4:3])
    assert any(line.split()[1:] == [first, "→", last] for line in said if "loss/ce" in line)
    assert said[-1].strip().startswith(f"drivekd evaluate --model {final} --data {other} --out")
    with pytest.raises(ValueError, match="not a checkpoint"):
        summary.text(tmp_path)


def test_a_run_that_was_logged_once_shows_no_course(tmp_path: Path) -> None:
    settings = {"max_steps": 2, "logging_steps": 10}
    data = runs.write_data(tmp_path / "data")
    recipe = runs.recipe(data, tmp_path / "run", capabilities={}, train=settings)
    said = summary.text(train(recipe, student=runs.tiny_student()))
    (loss,) = (f"{line['loss/ce']:.4g}" for line in runs.lines(tmp_path / "run"))
    assert f"loss/ce        {loss}\n" in said
    assert "→" not in said
