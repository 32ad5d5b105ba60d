"use strict";
// Filters and shows the answers that stand in the page as data. Text is set as text, never as markup.
(() => {
  const CHUNK = 20;  // answers drawn at once
  // a tag as drivekd.data.tags reads it, or a region token
  const NUMBER = "([-+]?\\d{1,30}(?:\\.\\d{1,30})?(?:[eE][-+]?\\d{1,3})?)";
  const FIELDS = ["([A-Za-z]{1,30}\\d{0,9})", "(\\w{1,60})", NUMBER, NUMBER];
  const TAG = new RegExp(`<${FIELDS.map(field => `\\s{0,9}${field}\\s{0,9}`).join(",")}>|<r\\d{1,9}>`, "g");
  const data = JSON.parse(document.getElementById("data").textContent);
  const [form, list, more, count, bar] =
    ["filter", "rows", "more", "count", "bar"].map(id => document.getElementById(id));
  const judged = data.questions.some(q => q.replies.some(r => r.verdicts.length));
  let shown = [], drawn = 0;

  function make(name, look, ...parts) {
    const made = document.createElement(name);
    if (look) made.className = look;
    made.append(...parts.filter(part => part !== null));
    return made;
  }

  // ---- which answers are shown ----------------------------------------------------------------

  function outcome(q) {
    const right = q.replies.filter(r => r.correct).length;
    return right === q.replies.length ? "right" : right ? "some" : "wrong";
  }

  const words = q => q.words ??= [q.id, q.scene, q.question, q.expected, ...q.replies.map(r => r.reply)]
    .join("\n").toLowerCase();
  const unscored = q => q.replies.some(r => r.verdicts.some(v => v.total === null));

  function fits(q, want) {
    if (want.capability && q.capability !== want.capability) return false;
    if (want.template && q.template !== want.template) return false;
    if (want.outcome === "unscored" ? !unscored(q) : want.outcome && outcome(q) !== want.outcome) return false;
    if (want.low && !(q.score !== null && q.score >= Number(want.low))) return false;
    if (want.high && !(q.score !== null && q.score <= Number(want.high))) return false;
    if (want.control) {
      const [how, name] = [want.control.slice(0, 1), want.control.slice(1)];
      if (!q.controls.some(c => c.name === name && c.same === (how === "="))) return false;
    }
    return !want.text || words(q).includes(want.text.toLowerCase());
  }

  const ORDERS = {
    low: (a, b) => (a.score ?? Infinity) - (b.score ?? Infinity),
    high: (a, b) => (b.score ?? -Infinity) - (a.score ?? -Infinity),
    wrong: (a, b) => rank(a) - rank(b),
  };
  const rank = q => ["wrong", "some", "right"].indexOf(outcome(q));

  function render() {
    const want = Object.fromEntries(new FormData(form));
    shown = data.questions.filter(q => fits(q, want));
    if (ORDERS[want.order]) shown.sort(ORDERS[want.order]);
    count.textContent = `${shown.length} of ${data.questions.length} questions`;
    list.replaceChildren();
    if (!shown.length) list.append(make("p", "missing", "No question fits. Clear shows them all."));
    drawn = 0;
    draw();
  }

  function draw() {
    const next = shown.slice(drawn, drawn + CHUNK);
    list.append(...next.map(article));
    drawn += next.length;
    more.hidden = drawn >= shown.length;
    near.unobserve(more);
    near.observe(more);  // told again where the end is still near
  }

  const near = new IntersectionObserver(
    entries => { if (!more.hidden && entries.some(e => e.isIntersecting)) draw(); },
    {rootMargin: "1200px"},
  );

  // ---- one answer -----------------------------------------------------------------------------

  function article(q) {
    const scene = q.id.startsWith(q.scene) ? "" : q.scene;
    const about = [q.capability, q.template.replaceAll("_", " "), scene, q.id].filter(Boolean).join(" · ");
    const made = make("article", "answer",
      make("p", "about", about), make("h3", "question", ...rich(q.question)), pictures(q));
    made.tabIndex = -1;
    for (const words of q.undrawn) made.append(make("p", "about", `Not drawn: ${words}.`));
    const talk = make("dl", "talk");
    const tell = (label, look, ...parts) => talk.append(make("dt", look, label), make("dd", look, ...parts));
    tell("Reference", "reference", ...rich(q.expected));
    for (const reply of q.replies) {
      const look = q.replies.length > 1 ? "reply turn" : "reply";
      tell(run("Reply", reply.run, q.replies), look, ...rich(reply.reply), " ", verdict(reply.correct));
      for (const each of reply.verdicts) tell(run("Judge", each.run, reply.verdicts), "", points(each));
    }
    for (const each of q.controls)
      tell(`Control: ${each.name}`, "aside", each.reply || "(nothing)", " ", verdict(each.correct));
    made.append(talk);
    return made;
  }

  const run = (label, number, all) => all.length > 1 ? `${label}, run ${number}` : label;

  function verdict(right) {
    return make("span", `verdict ${right ? "right" : "wrong"}`, right ? "✓ right" : "✗ wrong");
  }

  // A text with its object tags as labels; everything that it says is still there.
  function rich(text) {
    const parts = [];
    let end = 0;
    for (const found of text.matchAll(TAG)) {
      parts.push(text.slice(end, found.index));
      const [whole, name, camera, x, y] = found;
      parts.push(name === undefined ? make("span", "region", whole)
        : make("span", "tag", name, " ", make("small", "", `${plain(camera)} ${x}, ${y}`)));
      end = found.index + whole.length;
    }
    parts.push(text.slice(end));
    return text ? parts : [make("span", "none", "(nothing)")];
  }

  const plain = camera => camera.replace(/^CAM_/, "").replaceAll("_", " ").toLowerCase();

  function points(given) {
    if (given.total === null) return make("span", "aside", `not scored: ${given.reason}`);
    const track = make("span", "track", make("i", "band"));
    track.firstChild.style.width = `${Math.min(100, Math.max(0, given.total))}%`;
    const total = make("span", "", make("strong", "", number(given.total)), " of 100");
    const made = make("span", "points", total, track);
    const criteria = data.criteria[given.sheet] ?? [];
    given.scores.forEach((score, i) => {
      const [name, most] = criteria[i] ?? [`criterion ${i + 1}`, null];
      const out = most === null ? "" : ` of ${number(most)}`;
      made.append(make("span", "", `${name} `, make("b", "", number(score)), out));
    });
    return made;
  }

  const number = value => value === null ? "–" : String(Math.round(value * 10) / 10);

  // ---- its pictures ---------------------------------------------------------------------------

  function pictures(q) {
    if (q.view === null)
      return make("p", "missing", "The data file does not have this question any more: no pictures.");
    const tiles = data.views[q.view].map((picture, i) => tile(q, picture, i));
    return make("div", tiles.length > 3 ? "strip" : "strip few", ...tiles);
  }

  function tile(q, [camera, file, width, height], i) {
    const caption = make("figcaption", "", camera);
    if (file === null) return make("figure", "tile", make("div", "gone", "picture not found"), caption);
    const image = make("img");
    const alt = `camera ${camera}`;
    Object.assign(image, {loading: "lazy", decoding: "async", width, height, alt, src: file});
    const look = make("button", "look", image);
    look.type = "button";
    look.setAttribute("aria-expanded", "false");
    look.setAttribute("aria-label", `Enlarge camera ${camera}`);
    const marks = [...q.marks, ...q.replies.flatMap(reply => reply.marks)].filter(each => each[0] === i);
    const distinct = new Map(marks.map(each => [String(each), each]));
    const labels = new Set();
    for (const each of distinct.values()) look.append(mark(each, labels));
    return make("figure", "tile", look, caption);
  }

  function mark([, x, y, name, role], labels) {
    const label = `${name} ${x} ${y}`;
    const side = `${x > 0.7 ? " left" : ""}${y < 0.12 || role === "reply" ? " low" : ""}`;
    const text = labels.has(label) ? null : make("b", "", name);
    const made = make("span", `mark ${role}${side}`, make("i", "shape"), text);
    labels.add(label);
    made.style.left = `${100 * x}%`;
    made.style.top = `${100 * y}%`;
    made.title = `${name}, named in the ${role}`;
    return made;
  }

  list.addEventListener("click", event => {
    const look = event.target.closest(".look");
    if (look) look.setAttribute("aria-expanded", String(look.parentElement.classList.toggle("large")));
  });

  // ---- the form, the address and the keys -----------------------------------------------------

  function offer(name, values) {
    for (const [value, label] of values) {
      const made = make("option", "", label);
      made.value = value;
      form.elements[name].append(made);
    }
  }

  function counted(name) {
    const numbers = new Map();
    for (const q of data.questions) if (q[name]) numbers.set(q[name], (numbers.get(q[name]) ?? 0) + 1);
    return [...numbers].map(([value, n]) => [value, `${value.replaceAll("_", " ")} (${n})`]);
  }

  function prepare() {
    offer("capability", counted("capability"));
    offer("template", counted("template").sort((a, b) => a[1].localeCompare(b[1])));
    offer("outcome", [["right", "right"], ["wrong", "wrong"]]);
    if (data.questions.some(q => q.replies.length > 1)) offer("outcome", [["some", "right in some runs"]]);
    if (data.questions.some(unscored)) offer("outcome", [["unscored", "not scored by the judge"]]);
    for (const name of data.controls)
      offer("control", [[`!${name}`, `not as ${name} says`], [`=${name}`, `as ${name} says`]]);
    if (judged) offer("order", [["low", "fewest points first"], ["high", "most points first"]]);
    const has = {controls: data.controls.length > 0, scores: judged};
    for (const label of form.querySelectorAll("[data-needs]")) label.hidden = !has[label.dataset.needs];
  }

  function fromAddress() {
    const said = new URLSearchParams(location.hash.slice(1));
    for (const field of form.elements) {
      if (!field.name) continue;
      field.value = said.get(field.name) ?? "";
      if (field.selectedIndex === -1) field.value = "";  // an address of another evaluation
    }
    render();
  }

  function changed() {
    const chosen = [...new FormData(form)].filter(([, value]) => value);
    history.replaceState(null, "", `#${new URLSearchParams(chosen)}`);
    render();
    if (list.getBoundingClientRect().top < 0) list.parentElement.scrollIntoView();
  }

  function step(by) {
    const here = [...list.children].indexOf(document.activeElement?.closest(".answer"));
    const next = Math.max(0, here + by);
    if (next >= drawn && !more.hidden) draw();
    const target = list.children[next];
    if (!target) return;
    const over = getComputedStyle(bar).position === "sticky" ? bar.offsetHeight : 0;
    document.documentElement.style.setProperty("--bar", `${over}px`);
    target.focus({preventScroll: true});
    target.scrollIntoView({block: "start"});
  }

  document.addEventListener("keydown", event => {
    const typing = event.target.matches("input, select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") step(1);
    if (event.key === "k") step(-1);
  });
  form.addEventListener("input", changed);
  form.elements.clear.addEventListener("click", () => { form.reset(); changed(); });
  form.addEventListener("submit", event => event.preventDefault());
  more.addEventListener("click", draw);
  addEventListener("hashchange", fromAddress);
  prepare();
  fromAddress();
})();
