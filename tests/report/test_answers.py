"""The page of an evaluation: what stands in it, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from answer_folders import answer, evaluation, large, verdict
from browser import Browser, driven, measured
from datafiles import row, write
from drivekd.report.answers import write_answers
from drivekd.report.page import write_page

NASTY = "</script><script>document.title='x'</script><img src=x onerror=\"document.title='owned'\">"
#: changes a field as a person does, and reads what is shown
PLAY = """
  const form = document.getElementById("filter");
  const set = (name, value) => {
    form.elements[name].value = value;
    form.elements[name].dispatchEvent(new Event("input", {bubbles: true}));
  };
  const count = () => document.getElementById("count").textContent;
  const rows = () => [...document.querySelectorAll("#rows .answer")];
  const key = name => document.activeElement.dispatchEvent(
    new KeyboardEvent("keydown", {key: name, bubbles: true}));
"""
COUNT = 2000
SCORE = {"n": 667, "accuracy": 25.0, "low": 20.0, "high": 31.0, "scenes": 20}
SCORES = {
    "capabilities": dict.fromkeys(("perception", "reasoning", "planning"), SCORE),
    "average": SCORE,
}


class Data(HTMLParser):
    """The elements of a page, and the data that its script reads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.inside, self.text = False, ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = ("type", "application/json") in attrs

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""

    @property
    def questions(self) -> Any:
        return json.loads(self.text)["questions"]


def test_text_of_files_never_becomes_markup(tmp_path: Path) -> None:
    nasty = answer(reply=NASTY, expected=NASTY, question=NASTY, template=NASTY, scene=NASTY)
    folder = evaluation(tmp_path / "e", [nasty], model=NASTY)
    write(folder / "verdicts.jsonl", [verdict(total=None, reason=NASTY, sheet=NASTY)])
    found = Data(write_answers(folder))
    assert found.tags.count("script") == 2 and "img" not in found.tags
    (question,) = found.questions
    assert question["replies"][0]["reply"] == question["question"] == NASTY


def test_the_page_carries_its_script_by_hash_and_names_no_address(tmp_path: Path) -> None:
    text = write_answers(evaluation(tmp_path / "e", [answer()])).read_text(encoding="utf-8")
    assert "default-src 'none'; img-src 'self' file:;" in text and "script-src 'sha256-" in text
    assert re.findall(r"(?:src|href|action)=", text.split("</style>")[1].split("<script")[0]) == []
    assert "http" not in text.split("</style>")[0].replace("http-equiv", "")


def test_the_folder_of_an_evaluation_gets_this_page(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "e", [answer()], max_new_tokens=32)
    path = write_page(folder)
    assert path == folder / "report.html" and "Answers of world:student" in path.read_text()
    text = " ".join(path.read_text(encoding="utf-8").split())
    assert "<dt>max new tokens</dt><dd>32</dd>" in text and "model script:x</dd>" in text
    assert "No scores:" in text
    write(folder / "scores.json", SCORES)
    assert "20.0 – 31.0" in write_page(folder).read_text(encoding="utf-8")


def test_data_that_are_gone_leave_a_notice(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "e", [answer()])
    assert "No pictures" not in write_answers(folder).read_text(encoding="utf-8")
    (tmp_path / "data/a.jsonl").rename(tmp_path / "data/b.jsonl")
    path = write_answers(folder)
    assert "No pictures" in path.read_text() and "no data file" in path.read_text()
    assert [q["view"] for q in Data(path).questions] == [None]


@pytest.mark.parametrize("about", [{}, {"judge": "x", "root": 3, "data": ["a"], "format": 1}])
def test_an_evaluation_that_says_little_has_a_page(tmp_path: Path, about: dict[str, Any]) -> None:
    folder = evaluation(tmp_path / "e", [answer()])
    write(folder / "evaluation.json", about)
    assert "Answers of a model" in write_answers(folder).read_text(encoding="utf-8")


def test_pictures_are_not_shown_beside_another_question(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "e", [answer(), answer("q1")])
    write(tmp_path / "data/a.jsonl", [row("<image>Who?", id="q0"), row("<image>Where?", id="q1")])
    assert [q["view"] for q in Data(write_answers(folder)).questions] == [None, 0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("answers.jsonl", "{}\n", r"answers\.jsonl, row 1: expected an answer, with id"),
        ("answers.jsonl", "3\n", r"answers\.jsonl, line 1: expected a JSON object, got int"),
        ("answers.jsonl", "", r"no answers\.jsonl with an answer"),
        ("answers.jsonl", "{\n", r"answers\.jsonl, line 1: is not JSON"),
        ("evaluation.json", "[]", r"evaluation\.json: expected a JSON object"),
        ("evaluation.json", '{"judge": {"criteria": {"a": [1]}}}', r"judge\.criteria must map"),
        ("verdicts.jsonl", '{"id": 1}\n', r"verdicts\.jsonl, row 1: expected a verdict"),
        ("black/answers.jsonl", "{}\n", r"black/answers\.jsonl, row 1"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    folder = evaluation(tmp_path / "e", [answer()])
    (folder / "black").mkdir()
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        write_answers(folder)


def test_half_a_character_and_strange_numbers_do_not_end_it(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "e", [answer(reply="\ud800")], model="\ud800")
    write(folder / "verdicts.jsonl", [verdict(total=float("nan"), scores=[float("inf"), "x"])])
    much = {"planning": {"accuracy": "much"}}
    write(folder / "scores.json", {"capabilities": much, "average": 3})
    path = write_answers(folder)
    assert "Answers of ?" in path.read_text(encoding="utf-8")
    (given,) = Data(path).questions[0]["replies"][0]["verdicts"]
    assert given["total"] is None and given["scores"] == [None, None]


# ---- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an evaluation with 2,000 questions about six pictures each."""
    folder = large(tmp_path_factory.mktemp("large") / "e", COUNT, SCORES)
    # In a process of its own: with every annotation checked it takes ten times as long.
    command = [sys.executable, "-m", "drivekd", "report", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.mark.system
def test_filters_show_what_they_say(page: Path, chromium: Browser) -> None:
    steps = """
      const found = {all: count()};
      const alone = (name, value) => {
        set(name, value);
        const shown = count();
        set(name, "");
        return shown;
      };
      found.planning = alone("capability", "planning");
      found.future = alone("template", "future");
      found.right = alone("outcome", "right");
      found.unscored = alone("outcome", "unscored");
      found.same = alone("control", "=black");
      found.other = alone("control", "!black");
      found.words = alone("text", "NUMBER 17:");
      found.low = alone("low", "100");
      set("low", "10"); set("high", "19");
      found.range = count();
      set("capability", "planning"); set("outcome", "right");
      found.both = count();
      found.address = location.hash;
      set("text", "no such words");
      found.none = [count(), document.querySelector("#rows .missing").textContent];
      document.getElementById("clear").click();
      found.cleared = [count(), location.hash, rows().length];
      set("order", "low");
      found.lowest = rows()[0].querySelector(".points strong").textContent;
      set("order", "high");
      found.highest = rows()[0].querySelector(".points strong").textContent;
      set("order", "wrong");
      found.wrong = rows()[0].querySelector(".talk .verdict").textContent;
      return found;
    """
    found = driven(page, PLAY + steps, chromium)
    scored = [(n, n % 101) for n in range(COUNT) if n % 50]
    within = [n for n, total in scored if 10 <= total <= 19]
    both = [n for n in within if n % 3 == 2 and n % 4 == 0]
    expected = {
        "all": COUNT,
        "planning": len(range(2, COUNT, 3)),
        "future": len(range(1, COUNT, 3)),
        "right": COUNT // 4,
        "unscored": COUNT // 50,
        "same": COUNT // 10,
        "other": COUNT - COUNT // 10,
        "words": 1,
        "low": len([n for n, total in scored if total == 100]),
        "range": len(within),
        "both": len(both),
    }
    assert {name: found[name] for name in expected} == {
        name: f"{n} of {COUNT} questions" for name, n in expected.items()
    }
    assert found["address"] == "#capability=planning&outcome=right&low=10&high=19"
    assert found["none"] == [f"0 of {COUNT} questions", "No question fits. Clear shows them all."]
    assert found["cleared"] == [f"{COUNT} of {COUNT} questions", "", 20]
    assert (found["lowest"], found["highest"], found["wrong"]) == ("0", "100", "✗ wrong")


@pytest.mark.system
def test_an_address_holds_the_view(page: Path, chromium: Browser) -> None:
    shown = "return [count(), form.elements.order.value, form.elements.template.value];"
    address = "#capability=planning&text=it+is+3&order=high&template=nonsense"
    found = driven(page, PLAY + shown, chromium, address=address)
    words = [n for n in range(2, COUNT, 3) if n % 7 == 3 or (n % 4 and n % 5 == 3)]
    assert found == [f"{len(words)} of {COUNT} questions", "high", ""]


@pytest.mark.system
def test_two_thousand_answers_stay_responsive(page: Path, chromium: Browser) -> None:
    """From a change to the finished layout [ms]; the median, for the machine does other things."""
    steps = """
      const took = [];
      const changes = [
        ["capability", "planning"], ["capability", ""], ["text", "it is 3"], ["text", ""],
        ["order", "low"], ["outcome", "wrong"], ["outcome", ""],
      ];
      for (const [name, value] of changes) {
        const started = performance.now();
        set(name, value);
        void document.body.offsetHeight;
        took.push(performance.now() - started);
      }
      return took.sort((a, b) => a - b);
    """
    took = driven(page, PLAY + steps, chromium)
    assert took[0] > 0 and took[len(took) // 2] < 200, took


@pytest.mark.system
def test_keys_move_and_draw_what_is_needed(page: Path, chromium: Browser) -> None:
    steps = """
      const here = () => rows().indexOf(document.activeElement);
      key("j"); key("j"); key("k"); key("j");
      const found = [here(), rows().length];
      for (let i = 0; i < 25; i++) key("j");
      found.push(here(), rows().length >= 40);
      const top = document.activeElement.getBoundingClientRect().top;
      const under = document.getElementById("bar").getBoundingClientRect().bottom;
      const clear = scrollY > 1000 && top > under - 1 && top < under + 40;
      form.elements.text.focus();
      form.elements.text.dispatchEvent(new KeyboardEvent("keydown", {key: "k", bubbles: true}));
      return [...found, document.activeElement.name, clear];
    """
    assert driven(page, PLAY + steps, chromium) == [1, 20, 26, True, "text", True]


@pytest.mark.system
def test_pictures_with_what_is_named_in_them(page: Path, chromium: Browser) -> None:
    steps = """
      const row = rows()[1], looks = [...row.querySelectorAll(".look")];
      await Promise.all(looks.map(look => look.firstChild.decode()));
      const place = (look, role) => {
        const at = look.querySelector(`.${role} .shape`).getBoundingClientRect();
        const all = look.querySelector("img").getBoundingClientRect();
        const [x, y] = [at.x + at.width / 2, at.y + at.height / 2];
        return [(x - all.x) / all.width, (y - all.y) / all.height];
      };
      const small = looks[1].offsetWidth;
      looks[1].click();
      const large = looks[1].offsetWidth;
      const front = place(looks[1], "question");
      looks[1].click();
      return {
        cameras: [...row.querySelectorAll("figcaption")].map(each => each.textContent),
        sizes: looks.map(look => look.firstChild.naturalWidth),
        front, back: place(looks[4], "reply"),
        marks: row.querySelectorAll(".mark").length,
        grown: large > 2 * small && looks[1].offsetWidth === small,
        tags: [...row.querySelectorAll(".tag")].map(each => each.textContent),
        fetched: performance.getEntriesByType("resource").map(each => each.name),
        talk: row.querySelector(".talk").innerText.replaceAll("\\n", " | "),
      };
    """
    found = driven(page, PLAY + steps, chromium, "--virtual-time-budget=20000")
    assert found["cameras"] == [
        "front left", "front", "front right", "back left", "back", "back right",
    ]  # fmt: skip
    assert found["sizes"] == [320] * 6
    assert found["front"] == pytest.approx([0.4, 0.6], abs=0.01)
    assert found["back"] == pytest.approx([0.5, 0.5], abs=0.01)
    assert found["fetched"] == []  # files on disk are not in this list
    assert found["marks"] == 2 and found["grown"]
    assert found["tags"] == ["c1 front 0.4000, 0.6000", "c1 back 0.5000, 0.5000"]
    assert "✗ wrong" in found["talk"] and "action 30 of 40" in found["talk"]
    assert "Control: black | Nothing." in found["talk"]


@pytest.mark.system
def test_the_policy_keeps_the_network_and_other_scripts_out(page: Path, chromium: Browser) -> None:
    steps = """
      const kept = [];
      addEventListener("securitypolicyviolation", e => kept.push(e.violatedDirective));
      const image = new Image();
      image.src = "http://127.0.0.1:9/x.png";
      await fetch("http://127.0.0.1:9/").catch(() => {});
      const made = document.createElement("div");
      made.innerHTML = "<img src=x onerror=\\"document.title='x'\\">";
      document.body.append(made);
      await new Promise(done => setTimeout(done, 500));
      return [kept.sort(), document.title];
    """
    kept, title = driven(page, steps, chromium, "--virtual-time-budget=20000")
    assert kept == ["connect-src", "img-src", "script-src-attr"]
    assert title == "Answers of world:student"


@pytest.mark.system
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_its_window(page: Path, chromium: Browser, width: int) -> None:
    found = measured(page, width, chromium)
    assert (found["width"], found["needed"]) == (width, width)
    assert found["sections"] == ["scores", "answers"] and found["images"] == 6 * 20
    assert found["fetched"] == []


@pytest.mark.system
def test_several_runs_and_nasty_replies_in_the_browser(tmp_path: Path, chromium: Browser) -> None:
    again = answer(reply="There.", run=1)
    folder = evaluation(tmp_path / "e", [answer(reply=NASTY), again, answer("q1", NASTY)])
    write(folder / "verdicts.jsonl", [verdict(total=None), verdict(answer_run=1)])
    (tmp_path / "data/a.jpg").unlink()
    steps = """
      const found = [count(), document.title, document.querySelectorAll("main img").length];
      found.push(rows()[0].querySelector(".gone").textContent);
      found.push([...rows()[0].querySelectorAll("dt")].map(each => each.textContent));
      found.push(rows()[0].querySelector("dd.aside, dd .aside").textContent);
      set("outcome", "some");
      return [...found, count(), form.elements.control.closest("label").checkVisibility()];
    """
    assert driven(write_answers(folder), PLAY + steps, chromium) == [
        "2 of 2 questions",
        "Answers of world:student",
        0,
        "picture not found",
        ["Reference", "Reply, run 0", "Judge", "Reply, run 1", "Judge"],
        "not scored: the judge's reply could not be read: no total",
        "1 of 2 questions",
        False,
    ]
