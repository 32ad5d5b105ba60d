"""All that an evaluation finds: accuracies, free text, tags, judged scores, controls.

`as_json` is what `scores.json` holds, `table` what people read of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from drivekd.data.cameras import task_of
from drivekd.data.sample import Sample
from drivekd.evaluate import judged, pairs, published, score
from drivekd.evaluate.answers.answer import Answer, options_given
from drivekd.evaluate.judged import JudgedScores
from drivekd.evaluate.pairs import Beside, Given
from drivekd.evaluate.published import PublishedRow
from drivekd.evaluate.reading.metrics import TagMatch, TagScores, normalise, tag_scores, unreadable
from drivekd.evaluate.reading.text_overlap import Overlap, text_overlap, words
from drivekd.evaluate.score import Score, Scores


@dataclass(frozen=True, slots=True)
class Results:
    """What was found of a model.

    Attributes:
        scores: accuracy by capability and template.
        unreadable: by capability, replies to choices, yes and no that say none of them.
        text: overlap with the reference by capability, of all replies to questions with free
            answers.
        tags: of all replies to questions whose reference names objects; None without any.
        judged: None without a judge.
        beside: every mean with its controls.
        published: the paper's main table, where there is a judge.
        unscored: by status, verdicts without a score, those of controls included.
        scenes: whether the data tell them.
    """

    scores: Scores
    unreadable: Mapping[str, int]
    text: Mapping[str, Overlap]
    tags: TagScores | None
    judged: JudgedScores | None
    beside: Sequence[Beside]
    published: Sequence[PublishedRow]
    unscored: Mapping[str, int]
    scenes: bool

    @property
    def missing(self) -> int:
        """Verdicts that the same evaluation asks for again."""
        return sum(self.unscored.get(status, 0) for status in ("transport", "over_budget"))


def results(
    samples: Sequence[Sample],
    model: Given,
    others: Mapping[str, Given],
    judge_model: str | None = None,
) -> Results:
    """Score the answers of a model, and its controls beside them.

    Args:
        samples: the questions.
        model: its answers, with their verdicts where they were judged.
        others: answers of the controls by name, `black` and `majority`; {} for none.
        judge_model: the judge's name, for the notice beside published rows.

    Raises:
        ValueError: answers and verdicts do not fit.
    """
    options = {sample.id: options_given(sample) for sample in samples}
    free = [a for a in model.answers if not options[a.id] and _is_free(a.expected)]
    found = None
    rows: Sequence[PublishedRow] = ()
    if model.verdicts is not None:
        tasks = {sample.id: task_of(sample) for sample in samples}
        found = judged.judged(model.answers, model.verdicts, tasks)
        rows = [row for row in published.rows(judge_model) if row.table == "main"]
    tags = tag_scores([(answer.reply, answer.expected) for answer in model.answers])
    return Results(
        scores=score.score(model.answers),
        unreadable=Counter(
            answer.capability or "no capability"
            for answer in model.answers
            if unreadable(answer.reply, answer.expected, options[answer.id])
        ),
        text=_overlaps(free),
        tags=tags if tags.questions else None,
        judged=found,
        beside=pairs.beside(model, others),
        published=rows,
        unscored=Counter(
            verdict.status
            for side in (model, *others.values())
            for verdict in side.verdicts or ()
            if verdict.status != "scored"
        ),
        scenes=all(answer.scene is not None for answer in model.answers),
    )


def _is_free(expected: str) -> bool:
    return normalise(expected) not in ("yes", "no") and bool(words(expected))


def _overlaps(answers: Sequence[Answer]) -> dict[str, Overlap]:
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.capability or "no capability", []).append(answer)
    return {
        name: text_overlap([a.reply for a in group], [a.expected for a in group])
        for name, group in groups.items()
    }


def as_json(found: Results) -> dict[str, Any]:
    """All of it as plain data under stable keys; what has no score is absent.

    `capabilities`, `templates` (name → S), `average`, `everything` (S), with S = {`n`, `accuracy`,
    `low`, `high`, `scenes`, `standard_error`}; `unreadable` (capability → replies), `text`
    (capability → fields of `Overlap`), `tags`, `judged` (fields of `JudgedScores`), `published`
    (rows of the paper's main table, `notice` among their fields), and `controls`, a list of
    {`measure`: accuracy or judged, `group`: a capability, average or everything, `controls`: {name:
    G}}, with G the fields of `statistics.Difference`, `mine` being the model, and `unscored`
    (status → verdicts, those of controls included).
    """
    rest = {
        "unreadable": dict(found.unreadable),
        "text": {name: asdict(each) for name, each in found.text.items()},
        "tags": None if found.tags is None else _tags(found.tags),
        "judged": None if found.judged is None else judged.as_json(found.judged),
        "published": [asdict(row) for row in found.published],
        "controls": [asdict(row) for row in found.beside],
        "unscored": dict(found.unscored),
    }
    return {**score.as_json(found.scores), **{k: v for k, v in rest.items() if v}}


def table(found: Results) -> str:
    """All of it as lines for people."""
    parts = [_accuracies(found)]
    if found.text:
        parts.append(
            "\n".join(
                [
                    "free text, without options, yes and no",
                    *(_text(*each) for each in found.text.items()),
                ]
            )
        )
    if found.tags is not None:
        parts.append(_named(found.tags))
    if found.judged is not None:
        title = "judged scores, 0 to 100: mean ± standard error, interval"
        parts.append(f"{title}\n{judged.table(found.judged)}")
    if found.unscored:
        parts.append("\n".join(_unscored(found.unscored)))
    if found.beside:
        title = "beside controls: theirs, and what the model has more"
        parts.append(f"{title}\n{pairs.table(found.beside)}")
    if found.published:
        parts.append(published.table(found.published))
    if not found.scenes:
        parts.append(
            "some questions name no scene: each counts as one, and intervals are too narrow"
        )
    return "\n\n".join(parts)


def _accuracies(found: Results) -> str:
    scores = found.scores
    named = [*scores.capabilities.items()]
    if scores.average is not None:
        named.append(("average", scores.average))
    if scores.everything is not None:
        named.append(("all questions", scores.everything))
    named += [(f"  {name}", each) for name, each in scores.templates.items()]
    unread = {**found.unreadable, "all questions": sum(found.unreadable.values())}
    lines = [_line(name, each, unread.get(name, 0)) for name, each in named]
    return "\n".join(["accuracy", *lines])


def _line(name: str, each: Score, unread: int) -> str:
    sure = each.low is not None and each.high is not None
    interval = f"[{each.low:5.1f}, {each.high:5.1f}]" if sure else " " * 14
    note = f", {unread} replies unreadable" if unread else ""
    return f"{name:<24}{each.accuracy:6.1f} %  {interval}  n = {each.n}{note}"


def _tags(scores: TagScores) -> dict[str, Any]:
    def rates(match: TagMatch) -> dict[str, float | None]:
        return {"precision": match.precision, "recall": match.recall, "f1": match.f1}

    cameras = {name: asdict(each) | rates(each) for name, each in scores.cameras.items()}
    overall = asdict(scores.overall) | rates(scores.overall)
    return {"questions": scores.questions, "overall": overall, "cameras": cameras}


def _unscored(counts: Mapping[str, int]) -> Iterator[str]:
    why = {
        "bad_reply": "points could not be read; --retry-unscored asks again",
        "no_sheet": "the question has no capability, so there is no sheet for it",
        "over_budget": "stopped by --max-cost",
        "transport": "the judge gave no reply",
    }
    for status, count in sorted(counts.items()):
        yield f"{count} verdicts without a score: {why[status]}"


def _named(scores: TagScores) -> str:
    match = scores.overall
    rates = (("precision", match.precision), ("recall", match.recall), ("F1", match.f1))
    told = (f"{name} {100 * rate:.1f} %" for name, rate in rates if rate is not None)
    return (
        f"objects in {scores.questions} replies: {match.expected} expected, {match.named} named,"
        f" {match.matched} matched  {'  '.join(told)}"
    )


def _text(name: str, each: Overlap) -> str:
    return (
        f"{name:<24}BLEU-4 {each.bleu[-1]:5.1f}  ROUGE-L {each.rouge_l:5.1f}  CIDEr-D"
        f" {each.cider_d:5.2f}  {each.n} replies"
    )
