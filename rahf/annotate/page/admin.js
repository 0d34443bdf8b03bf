"use strict";
// The page of administrators. Texts are only ever set as text, never as HTML.

const $ = (id) => document.getElementById(id);
const KINDS = ["points_implausible", "points_misaligned"];
const NAMES = { points_implausible: "implausible", points_misaligned: "misaligned" };
const SIGNS = { points_implausible: "I", points_misaligned: "M" };
let me = null;
let page = 0;

async function api(method, path, tree) {
  const headers = method === "POST" ? { "Content-Type": "application/json" } : {};
  if (me) headers["X-Form-Token"] = me.form_token;
  const response = await fetch(path, { method, headers, body: tree && JSON.stringify(tree), credentials: "same-origin", cache: "no-store" });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || String(response.status));
  return answer;
}

function make(tag, text, look) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  if (look) element.className = look;
  return element;
}

function button(text, action, label) {
  const element = make("button", text);
  element.type = "button";
  if (label) element.setAttribute("aria-label", label);
  element.addEventListener("click", () => guarded(action));
  return element;
}

function row(...cells) {
  const line = make("tr");
  for (const cell of cells) {
    const element = make("td", undefined, typeof cell === "number" ? "number" : "");
    if (cell instanceof Node) element.append(cell); else element.textContent = cell === null || cell === undefined ? "–" : cell;
    line.append(element);
  }
  return line;
}

const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));

async function guarded(action) {
  try {
    $("state").textContent = "";
    $("state").className = "";
    await action();
  } catch (error) {
    $("state").textContent = error.message;
    $("state").className = "refused";
  }
}

async function overview() {
  const tree = await api("GET", "/api/admin/overview");
  $("title").textContent = `${tree.title}: administration`;
  const facts = $("facts");
  facts.replaceChildren();
  const work = tree.counts.work || { pictures: 0, answers: 0, wanted: 0, finished: 0, set_aside: 0 };
  const entries = [["pictures", work.pictures], ["answers", `${work.answers} of ${work.wanted}`], ["finished pictures", work.finished],
    ["disputed", tree.disputed], ["set aside", work.set_aside], ["gold", (tree.counts.gold || {}).pictures || 0], ["training", (tree.counts.training || {}).pictures || 0]];
  for (const [name, value] of entries) {
    const fact = make("div", name);
    fact.prepend(make("b", value));
    facts.append(fact);
  }
  $("people").replaceChildren(...tree.people.map((one) => {
    const actions = make("div", undefined, "buttons");
    actions.append(button("Quality", () => person(one.pseudonym), `Quality of ${one.pseudonym}`));
    actions.append(button("New link", async () => link((await api("POST", "/api/admin/renew", { pseudonym: one.pseudonym })).token, one.role), `New link for ${one.pseudonym}`));
    if (one.active && one.pseudonym !== me.pseudonym) {
      actions.append(button("Keep out", async () => { await api("POST", "/api/admin/deactivate", { pseudonym: one.pseudonym }); await overview(); }, `Keep ${one.pseudonym} out`));
    }
    return row(one.pseudonym, one.active ? one.label : `${one.label} (kept out)`, one.role, one.answers, one.mean_seconds === null ? "–" : Number(one.mean_seconds.toFixed(1)), actions);
  }));
}

function link(token, role) {
  const box = $("link");
  box.hidden = false;
  box.replaceChildren(make("strong", "This link is shown once: "), make("code", `${location.origin}/${role === "administrator" ? "admin" : ""}#token=${token}`));
}

async function person(pseudonym) {
  const tree = await api("GET", `/api/admin/people/${encodeURIComponent(pseudonym)}`);
  const box = $("person");
  box.replaceChildren(make("h3", `${tree.pseudonym} (${tree.label}), newest ${tree.answers} answers`));
  const facts = make("div", undefined, "facts");
  const entries = [["gold right", tree.gold.right === null ? "–" : `${Math.round(100 * tree.gold.right)}% of ${tree.gold.pictures}`],
    ["median seconds", number(tree.median_seconds, 1)], ["under 5 seconds", tree.quick === null ? "–" : `${Math.round(100 * tree.quick)}%`],
    ["drift, steps", number(tree.drift)], ["word kappa", number(tree.words && tree.words.kappa)]];
  for (const [name, value] of entries) {
    const fact = make("div", name);
    fact.prepend(make("b", value));
    facts.append(fact);
  }
  box.append(facts);
  if (tree.scores) {
    const table = make("table"), head = make("tr");
    for (const name of ["Score", "Alpha with the others", "Mean above the others"]) head.append(make("th", name));
    table.append(head);
    for (const [name, score] of Object.entries(tree.scores)) table.append(row(name, number(score.alpha), number(score.bias)));
    for (const [name, marks] of Object.entries(tree.marks)) table.append(row(`${name} marks`, `Dice ${number(marks.dice)}`, ""));
    box.append(table);
  }
  box.focus();
}

async function agreement() {
  const tree = await api("GET", "/api/admin/agreement");
  const box = $("agreement");
  box.replaceChildren(make("p", `${tree.answers} answers to ${tree.pictures} pictures`));
  const table = make("table"), head = make("tr");
  for (const name of ["Score", "Krippendorff's alpha", "Equal", "At most one step", "Difference of 0, 1, 2, 3, 4 steps"]) head.append(make("th", name));
  table.append(head);
  for (const [name, score] of Object.entries(tree.scores)) {
    table.append(row(name, number(score.alpha), number(score.equal), number(score.within_one_step), score.max_difference.join(", ")));
  }
  table.append(row("words", `kappa ${number(tree.words.kappa)}`, "", "", ""));
  for (const [name, marks] of Object.entries(tree.marks)) table.append(row(`${name} marks`, `IoU ${number(marks.iou)}, Dice ${number(marks.dice)}`, "", "", ""));
  box.append(table);
}

async function disputed() {
  const rows = await api("GET", `/api/admin/disputed?page=${page}`);
  $("page-back").disabled = page === 0;
  $("page-on").disabled = rows.length < 30;
  $("disputed").replaceChildren(...rows.map((one) =>
    row(one.uid, one.prompt, number(4 * one.dispute, 0) + " steps", one.answered, button("Look", () => judge(one.id), `Look at ${one.uid}`))));
  if (!rows.length) $("disputed").append(row("none", "", "", "", ""));
}

async function aside() {
  const rows = await api("GET", "/api/admin/set-aside");
  $("aside").replaceChildren(...rows.map((one) => row(one.uid, one.prompt, one.reasons.join("; "))));
  if (!rows.length) $("aside").append(row("none", "", ""));
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor((sorted.length - 1) / 2)];
}

function firstDecision(tree, answers) { // what a computer can propose: median scores, majority of words, no marks
  const words = tree.pieces.filter((piece) => piece[1] !== null).length;
  const decision = { points_implausible: [], points_misaligned: [], scores: {}, word_labels: [] };
  for (const name of Object.keys(answers[0].scores)) decision.scores[name] = median(answers.map((one) => one.scores[name]));
  for (let i = 0; i < words; i++) decision.word_labels.push(2 * answers.filter((one) => one.word_labels[i]).length >= answers.length ? 1 : 0);
  return decision;
}

async function judge(id) {
  const tree = await api("GET", `/api/admin/pictures/${id}`);
  const people = Object.keys(tree.answers), answers = Object.values(tree.answers);
  const decision = tree.decision || firstDecision(tree, answers);
  const shown = new Set(people);
  const box = $("judged");
  box.replaceChildren(make("h3", tree.uid));
  const grid = make("div", undefined, "judged"), left = make("div"), right = make("div");
  const stage = make("div"), image = make("img"), marks = make("div");
  stage.style.position = "relative";
  image.src = `/pictures/${id}`;
  image.alt = "The disputed picture with everybody's marks";
  image.style.width = "100%";
  image.style.display = "block";
  stage.append(image, marks);
  const draw = () => {
    marks.replaceChildren();
    const size = (name, x, y, sign, look, label, action) => {
      const mark = button(sign, action, label);
      mark.className = `mark ${name} ${look}`;
      mark.style.left = `${(100 * x) / tree.width}%`;
      mark.style.top = `${(100 * y) / tree.height}%`;
      mark.style.width = `${(10 * tree.height) / tree.width}%`;
      mark.style.height = "10%";
      marks.append(mark);
    };
    people.forEach((who, index) => {
      if (!shown.has(who)) return;
      for (const name of KINDS) {
        for (const [x, y] of tree.answers[who][name]) {
          const at = decision[name].findIndex(([a, b]) => a === x && b === y);
          size(name, x, y, SIGNS[name] + (index + 1), at >= 0 ? "others kept" : "others", `${NAMES[name]} mark of person ${index + 1}, ${at >= 0 ? "in" : "not in"} the decision`, () => {
            if (at >= 0) decision[name].splice(at, 1); else decision[name].push([x, y]);
            draw();
          });
        }
      }
    });
  };
  draw();
  left.append(stage, make("p", "Choose a mark to take it into the decision.", "small"));
  people.forEach((who, index) => {
    const label = make("label"), input = make("input");
    input.type = "checkbox";
    input.checked = true;
    input.addEventListener("change", () => { if (input.checked) shown.add(who); else shown.delete(who); draw(); });
    label.append(input, ` person ${index + 1}: ${who} `);
    left.append(label);
  });
  const words = make("p");
  words.id = "prompt";
  const drawWords = () => {
    words.replaceChildren();
    for (const [text, word] of tree.pieces) {
      if (word === null) { words.append(text); continue; }
      const votes = answers.filter((one) => one.word_labels[word] === 0).length;
      const element = button(votes ? `${text} (${votes})` : text, () => { decision.word_labels[word] = 1 - decision.word_labels[word]; drawWords(); });
      element.className = "word";
      element.setAttribute("aria-pressed", String(decision.word_labels[word] === 0));
      words.append(element);
    }
  };
  drawWords();
  const table = make("table"), head = make("tr");
  for (const name of ["Score", ...people.map((_, index) => `Person ${index + 1}`), "Decision"]) head.append(make("th", name));
  table.append(head);
  for (const name of Object.keys(decision.scores)) {
    const select = make("select");
    select.setAttribute("aria-label", `Decision on ${name}`);
    for (let value = 1; value <= 5; value++) select.append(make("option", value));
    select.value = decision.scores[name];
    select.addEventListener("change", () => { decision.scores[name] = Number(select.value); });
    table.append(row(name, ...answers.map((one) => one.scores[name]), select));
  }
  const save = button(tree.decision ? "Change the decision" : "Decide", async () => {
    await api("POST", "/api/admin/decisions", { picture: id, answer: decision });
    $("state").textContent = "The decision is saved";
    await disputed();
    box.replaceChildren();
  });
  save.className = "primary";
  right.append(make("h3", "Prompt, with votes against words"), words, table, save);
  grid.append(left, right);
  box.append(grid);
  box.focus();
}

async function begin() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) history.replaceState(null, "", location.pathname);
  try {
    me = token ? await api("POST", "/api/enter", { token }) : await api("GET", "/api/me");
    if (me.role !== "administrator") throw new Error("not an administrator");
  } catch (error) {
    $("gate").hidden = false;
    return;
  }
  $("all").hidden = false;
  await guarded(async () => { await overview(); await disputed(); await aside(); });
}

$("reload").addEventListener("click", () => guarded(async () => { await overview(); await disputed(); await aside(); }));
$("agreement-button").addEventListener("click", () => guarded(agreement));
$("page-back").addEventListener("click", () => guarded(async () => { page = Math.max(0, page - 1); await disputed(); }));
$("page-on").addEventListener("click", () => guarded(async () => { page += 1; await disputed(); }));
$("add-form").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(async () => {
    const role = $("add-role").value;
    link((await api("POST", "/api/admin/people", { label: $("add-label").value, role })).token, role);
    $("add-label").value = "";
    await overview();
  });
});
begin();
