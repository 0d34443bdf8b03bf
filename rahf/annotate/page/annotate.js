"use strict";
// The page of an annotator. Whatever the person does is first kept on this device, then sent; what the server has not
// confirmed is sent again with the same id. Texts of the server are only ever set as text, never as HTML.

const $ = (id) => document.getElementById(id);
const KINDS = ["points_implausible", "points_misaligned"];
const NAMES = { points_implausible: "implausible", points_misaligned: "misaligned" };
const SIGNS = { points_implausible: "I", points_misaligned: "M" };
const RADIUS = 1 / 20; // of the picture's height: the disc that a mark stands for
const AUTOSAVE = 700; // milliseconds after the last change
const IDLE = 60; // seconds without input after which time does not count as looking
const TIMEOUT = 15000;
const PATIENCE = 3000; // milliseconds that a critic's marks are waited for

let me = null;
let items = new Map(); // pictures by number
let order = []; // numbers in the order in which they were given
let at = -1; // position in `order`
let kind = KINDS[0];
let view = { scale: 1, x: 0, y: 0 };
let cross = null; // {x, y} in pixels of the picture, for the keyboard
let selected = null; // {kind, index}
let blobs = new Map();
let autosaveTimer = null;
let flushing = false;
let flushTimer = null;
let delay = 1000;
let online = true;
let problem = "";
let lastInput = Date.now();
let flushedWaiters = [];

// ---- Server

class Offline extends Error {}
class Refusal extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function api(method, path, tree) {
  const headers = {};
  if (method === "POST") headers["Content-Type"] = "application/json";
  if (me && me.form_token) headers["X-Form-Token"] = me.form_token;
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), TIMEOUT);
  let response;
  try {
    response = await fetch(path, {
      method, headers, body: tree === undefined ? undefined : JSON.stringify(tree), signal: stop.signal,
      credentials: "same-origin", cache: "no-store",
    });
    if (response.status >= 500) throw new Offline("the server is not ready");
    const answer = await response.json();
    setOnline(true);
    if (!response.ok) throw new Refusal(response.status, answer.error || "refused");
    return answer;
  } catch (error) {
    if (error instanceof Refusal) throw error;
    setOnline(false); // no answer, or half of one: it may have been stored, so it is sent again under the same id
    throw new Offline(String(error));
  } finally {
    clearTimeout(timer);
  }
}

function setOnline(value) {
  online = value;
  showState();
}

// ---- This device

function key(...parts) { return ["rahf", me.pseudonym, ...parts].join(":"); }

function put(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch (error) {
    say("This device has no room to keep answers. Stay on this page until everything is saved.");
    return false;
  }
}

function get(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch (error) {
    return null;
  }
}

function keysOf(...parts) {
  const start = key(...parts) + ":";
  return Object.keys(localStorage).filter((name) => name.startsWith(start)).sort();
}

function keepItem(item) {
  put(key("item", item.id), item);
}

const memory = new Map(); // saves that this device could not keep

function waitingSaves() { return [...keysOf("save"), ...memory.keys()].sort(); }
function readSave(name) { return memory.get(name) || get(name); }
function dropSave(name) { memory.delete(name); localStorage.removeItem(name); }

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// ---- Saving

let inFlight = null;

function queueSave(item, changes = {}) {
  clearTimeout(autosaveTimer);
  item.revision += 1;
  Object.assign(item, { complete: item.complete, skip_reason: null }, changes);
  const save = {
    save_id: newId(), picture: item.id, revision: item.revision, seconds: Math.round(item.seconds * 10) / 10,
    complete: item.complete, answer: item.answer, skip_reason: item.skip_reason,
  };
  if (item.premarks) save.accepted = item.premarks.accepted;
  const name = key("save", String(Date.now()).padStart(15, "0") + "-" + String(item.revision).padStart(8, "0"), save.save_id);
  if (!put(name, save)) memory.set(name, save);
  // What this save replaces need not be sent, unless it is on its way: then both are stored, in order of revision.
  for (const other of waitingSaves()) {
    if (other !== name && other !== inFlight && readSave(other).picture === item.id) dropSave(other);
  }
  item.dirty = false;
  keepItem(item);
  flush();
}

function changed(item) {
  item.dirty = true;
  keepItem(item); // a reload before the autosave loses nothing
  clearTimeout(autosaveTimer);
  autosaveTimer = setTimeout(() => { if (item.dirty) queueSave(item); }, AUTOSAVE);
  showState();
}

async function flush() {
  if (flushing || !me) return;
  flushing = true;
  clearTimeout(flushTimer);
  showState();
  try {
    for (let name = waitingSaves()[0]; name; name = waitingSaves()[0]) {
      const save = readSave(name);
      if (!save) { dropSave(name); continue; }
      inFlight = name;
      if (!me.form_token) await refreshMe();
      let receipt;
      try {
        receipt = await api("POST", "/api/saves", save);
      } catch (error) {
        if (error instanceof Refusal && error.status === 403) { // the session is another one: ask for its token once
          await refreshMe();
          receipt = await api("POST", "/api/saves", save);
        } else {
          throw error;
        }
      }
      dropSave(name);
      received(save, receipt);
      delay = 1000;
    }
    problem = "";
  } catch (error) {
    if (error instanceof Refusal && error.status === 401) {
      problem = "Your session has ended. Open your link again; your answers are kept on this device.";
    } else if (error instanceof Refusal && error.status !== 429) {
      const save = readSave(inFlight);
      put(key("refused", save.save_id), save);
      dropSave(inFlight);
      problem = "The server did not accept the last change: " + error.message;
      delay = 100;
    }
    flushTimer = setTimeout(flush, delay);
    delay = Math.min(delay * 2, 20000);
  } finally {
    inFlight = null;
    flushing = false;
    showState();
    if (!waitingSaves().length) for (const resolve of flushedWaiters.splice(0)) resolve();
  }
}

async function refreshMe() {
  const answer = await api("GET", "/api/me");
  if (answer.pseudonym !== me.pseudonym) throw new Refusal(401, "somebody else has come in");
  me = answer;
}

function received(save, receipt) {
  const item = items.get(save.picture);
  if (!item) return;
  if (receipt.feedback) item.feedback = receipt.feedback;
  if (!receipt.current && !receipt.repeated && item.revision === save.revision) {
    say("A newer answer to this picture was saved from another window; load the page again to see it.");
  }
  if (save.complete) item.state = "answered";
  if (save.skip_reason) item.state = "skipped";
  keepItem(item);
  if (item === current() && receipt.feedback) showFeedback(item);
}

function showState() {
  if (!me) return;
  const waiting = waitingSaves().length;
  const dirty = [...items.values()].some((item) => item.dirty);
  const state = $("state");
  let text, look;
  if (problem) {
    [text, look] = [problem, "refused"];
  } else if (waiting && !online) {
    [text, look] = [`No connection: ${waiting} change${waiting > 1 ? "s" : ""} kept on this device, not yet on the server`, "waiting"];
  } else if (waiting || dirty) {
    [text, look] = ["Saving…", "waiting"];
  } else if (!online) {
    [text, look] = ["No connection. Everything so far is saved", "waiting"];
  } else {
    [text, look] = ["Saved", "saved"];
  }
  if (state.textContent !== text) state.textContent = text;
  state.className = look;
}

// ---- Items

function current() { return items.get(order[at]); }

function emptyAnswer(item) {
  return { points_implausible: [], points_misaligned: [], scores: {}, word_labels: Array(item.words).fill(1) };
}

function adopt(item) {
  const local = items.get(item.id) || get(key("item", item.id));
  // What was changed here and has not been confirmed is newer than what the server says.
  const ours = local && (local.dirty || local.revision > item.revision);
  const merged = ours ? { ...item, answer: local.answer, revision: local.revision, complete: local.complete,
    skip_reason: local.skip_reason, seconds: Math.max(local.seconds, item.seconds), dirty: local.dirty } : { ...item, dirty: false };
  if (ours && local.premarks) merged.premarks = local.premarks;
  merged.answer = merged.answer || emptyAnswer(item);
  if (!merged.answer.word_labels) merged.answer.word_labels = Array(item.words).fill(1);
  if (ours && merged.complete) merged.state = "answered";
  if (ours && merged.skip_reason) merged.state = "skipped";
  merged.past = local && local.past ? local.past : [];
  merged.future = [];
  items.set(item.id, merged);
  if (!order.includes(item.id)) order.push(item.id);
  keepItem(merged);
  put(key("order"), order);
  preload(merged);
  return merged;
}

async function preload(item) {
  if (blobs.has(item.id)) return blobs.get(item.id);
  const promise = fetch(`/pictures/${item.id}`, { credentials: "same-origin" }).then(async (response) => {
    if (!response.ok) throw new Error("picture");
    return URL.createObjectURL(await response.blob());
  });
  blobs.set(item.id, promise);
  promise.catch(() => blobs.delete(item.id));
  return promise;
}

async function moreWork() {
  const answer = await api("POST", "/api/work", {});
  for (const item of answer.items) adopt(item);
  Object.assign(me, answer.progress);
  put("rahf:me", { ...me, form_token: "" });
  return answer;
}

function open_(position) { // unfinished pictures from a position on
  for (let i = position; i < order.length; i++) {
    const item = items.get(order[i]);
    if (item && item.state === "leased" && !item.complete && !item.skip_reason) return i;
  }
  return -1;
}

async function show(position) {
  const old = current();
  if (old && old.dirty) queueSave(old);
  const number = order[position];
  if (number === undefined) return;
  if (!items.has(number)) {
    try {
      adopt(await api("GET", `/api/items/${number}`));
    } catch (error) {
      say(error instanceof Offline ? "This picture cannot be loaded without a connection." : error.message);
      return;
    }
  }
  at = position;
  put(key("at"), number);
  const item = current();
  [selected, cross] = [null, null];
  section("work");
  $("problem").textContent = "";
  const image = $("picture");
  image.removeAttribute("src");
  $("canvas").style.width = item.width + "px";
  $("canvas").style.height = item.height + "px";
  fit();
  render();
  scalesOf(item);
  showFeedback(item);
  showPremarks(item);
  try {
    const url = await preload(item);
    if (current() === item) image.src = url;
  } catch (error) {
    say("The picture cannot be loaded just now. It is tried again when the connection is back.");
  }
}

async function goOn() {
  const next = open_(0);
  if (next >= 0) await show(next);
  let answer = null;
  const ahead = order.filter((number) => { const i = items.get(number); return i && i.state === "leased" && !i.complete && !i.skip_reason; });
  if (ahead.length < 3) {
    try {
      answer = await moreWork();
    } catch (error) {
      if (next < 0) say(error instanceof Offline ? "No connection. New pictures come when it is back." : error.message);
    }
  }
  if (next < 0) {
    const found = open_(0);
    if (found >= 0) await show(found);
    else if (answer) finished(answer);
    else if (at >= 0) render();
  }
}

function finished(answer) {
  section("done");
  const waiting = waitingSaves().length;
  $("done-title").textContent = me.answered ? "All done. Thank you!" : "Nothing to do at the moment";
  $("done-back").hidden = !order.length;
  $("done-text").textContent = !me.answered ? "All pictures are taken or answered. Some may come back: ask again later." : `You have answered ${me.answered} pictures` + (waiting ? `; ${waiting} are still being sent.` : ".");
  $("code-line").hidden = !answer.completion_code;
  $("code").textContent = answer.completion_code || "";
  showProgress();
}

function section(name) {
  for (const id of ["gate", "done", "work"]) $(id).hidden = id !== name;
}

// ---- Changing an answer

function edit(change) {
  const item = current();
  const before = JSON.stringify(item.answer);
  change(item.answer);
  if (JSON.stringify(item.answer) === before) return;
  item.past.push(before);
  if (item.past.length > 200) item.past.shift();
  item.future = [];
  changed(item);
  render();
}

function step(from, to) {
  const item = current();
  if (!item || !item[from].length) return;
  item[to].push(JSON.stringify(item.answer));
  item.answer = JSON.parse(item[from].pop());
  selected = null;
  changed(item);
  render();
  scalesOf(item);
}

const round = (value) => Math.round(value * 100) / 100;
const clamp = (value, most) => round(Math.min(Math.max(value, 0), most));

function addMark(name, x, y) {
  const item = current();
  if (x < 0 || y < 0 || x > item.width || y > item.height) return;
  edit((answer) => answer[name].push([round(x), round(y)]));
  selected = { kind: name, index: item.answer[name].length - 1 };
  render();
}

function removeMark(mark) {
  edit((answer) => answer[mark.kind].splice(mark.index, 1));
  selected = null;
  render();
}

function nearest(x, y) {
  const item = current();
  let best = null, distance = Infinity;
  for (const name of KINDS) {
    item.answer[name].forEach(([a, b], index) => {
      const d = Math.hypot(a - x, b - y);
      if (d < distance) [best, distance] = [{ kind: name, index }, d];
    });
  }
  return distance < 3 * RADIUS * item.height ? best : null;
}

// ---- Drawing

function render() {
  const item = current();
  if (!item) return;
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.focus : null;
  drawMarks(item);
  drawWords(item);
  $("undo").disabled = !item.past.length;
  $("redo").disabled = !item.future.length;
  $("previous").disabled = at <= 0;
  $("next").disabled = at >= order.length - 1;
  $("training-note").hidden = !item.training || Boolean(item.feedback);
  $("finish").textContent = (item.feedback || item.premarks) && item.complete && !item.dirty ? "Next picture" : item.complete ? "Save and next" : "Finish and next";
  drawCross();
  showProgress();
  if (focused) {
    const again = document.querySelector(`[data-focus="${CSS.escape(focused)}"]`);
    if (again && document.activeElement !== again) again.focus({ preventScroll: true });
  }
}

function drawMarks(item) {
  const holder = $("marks"), list = $("mark-list");
  holder.replaceChildren();
  list.replaceChildren();
  const size = 2 * RADIUS * item.height;
  const add = (name, index, x, y, extra) => {
    const mark = document.createElement("button");
    mark.type = "button";
    mark.className = `mark ${name} ${extra}`;
    mark.style.left = x + "px";
    mark.style.top = y + "px";
    mark.style.width = mark.style.height = size + "px";
    mark.style.fontSize = size * 0.4 + "px";
    mark.textContent = SIGNS[name];
    holder.append(mark);
    return mark;
  };
  for (const name of KINDS) {
    item.answer[name].forEach(([x, y], index) => {
      const isSelected = selected && selected.kind === name && selected.index === index;
      const mark = add(name, index, x, y, isSelected ? "selected" : "");
      mark.dataset.kind = name;
      mark.dataset.index = index;
      mark.dataset.focus = `${name}-${index}`;
      mark.setAttribute("aria-label", `${NAMES[name]} place ${index + 1} at ${Math.round(x)}, ${Math.round(y)}. Arrows move it, Delete removes it.`);
      const entry = document.createElement("li");
      const remove = document.createElement("button");
      remove.type = "button";
      remove.textContent = `${SIGNS[name]} ${Math.round(x)}, ${Math.round(y)} ✕`;
      remove.setAttribute("aria-label", `Remove ${NAMES[name]} place ${index + 1} at ${Math.round(x)}, ${Math.round(y)}`);
      remove.addEventListener("click", () => removeMark({ kind: name, index }));
      entry.append(remove);
      list.append(entry);
    });
    if (item.feedback && item.complete) {
      for (const [x, y] of item.feedback.answer[name]) add(name, 0, x, y, "expected").tabIndex = -1;
    }
  }
  if (item.premarks && item.complete) {
    let number = 0;
    for (const name of KINDS) {
      for (const [x, y] of item.premarks.marks[name]) {
        const mark = add(name, 0, x, y, "premark");
        mark.tabIndex = -1;
        mark.textContent = number += 1;
        mark.setAttribute("aria-hidden", "true"); // the list beside the picture says it
      }
    }
  }
  if (!list.children.length) {
    const entry = document.createElement("li");
    entry.className = "small";
    entry.textContent = "none: nothing is wrong";
    list.append(entry);
  }
}

function drawWords(item) {
  const holder = $("prompt");
  holder.replaceChildren();
  for (const [text, word] of item.pieces) {
    if (word === null) { holder.append(text); continue; }
    const button = document.createElement("button");
    button.type = "button";
    button.className = "word";
    button.textContent = text;
    button.dataset.focus = `word-${word}`;
    const wrong = item.answer.word_labels[word] === 0;
    button.setAttribute("aria-pressed", String(wrong));
    button.addEventListener("click", () => edit((answer) => { answer.word_labels[word] = wrong ? 1 : 0; }));
    holder.append(button);
  }
}

function buildScales() {
  for (const scale of me.scales) {
    const field = document.createElement("fieldset");
    field.dataset.score = scale.name;
    const legend = document.createElement("legend");
    legend.textContent = scale.question;
    const steps = document.createElement("div");
    steps.className = "steps";
    scale.anchors.forEach((anchor, index) => {
      const label = document.createElement("label"), input = document.createElement("input"), number = document.createElement("b");
      input.type = "radio";
      input.name = scale.name;
      input.value = index + 1;
      input.addEventListener("change", () => edit((answer) => { answer.scores[scale.name] = index + 1; }));
      number.textContent = index + 1;
      label.append(input, number, anchor);
      steps.append(label);
    });
    field.append(legend, steps);
    field.addEventListener("keydown", (event) => {
      if (!/^[1-5]$/.test(event.key) || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      edit((answer) => { answer.scores[scale.name] = Number(event.key); });
      scalesOf(current());
      const next = field.nextElementSibling;
      (next ? firstInput(next) : $("finish")).focus();
    });
    $("scales").append(field);
  }
}

function firstInput(field) { return field.querySelector("input:checked") || field.querySelector("input"); }

function scalesOf(item) {
  for (const input of $("scales").querySelectorAll("input")) {
    input.checked = item.answer.scores[input.name] === Number(input.value);
  }
}

function showFeedback(item) {
  const box = $("feedback");
  const feedback = item.complete ? item.feedback : null;
  box.hidden = !feedback;
  box.replaceChildren();
  if (!feedback) return;
  const title = document.createElement("strong");
  title.textContent = feedback.remarks.length ? `${feedback.right} of ${feedback.checks} as expected` : "Just as expected";
  box.append(title);
  box.className = feedback.remarks.length ? "note" : "note right";
  if (feedback.explanation) {
    const text = document.createElement("p");
    text.textContent = feedback.explanation;
    box.append(text);
  }
  const list = document.createElement("ul");
  for (const remark of feedback.remarks) {
    const entry = document.createElement("li");
    entry.textContent = remark;
    list.append(entry);
  }
  box.append(list);
  if (feedback.remarks.length) {
    const text = document.createElement("p");
    text.textContent = "The green marks are the expected ones.";
    box.append(text);
  }
  render();
}

function showPremarks(item) {
  const box = $("premarks"), list = $("premark-list");
  const shown = item.complete && item.premarks;
  box.hidden = !shown;
  list.replaceChildren();
  if (!shown) return;
  $("premarks-model").textContent = item.premarks.model;
  let number = 0;
  for (const name of KINDS) {
    item.premarks.marks[name].forEach(([x, y, value], index) => {
      const entry = document.createElement("li"), label = document.createElement("label"), input = document.createElement("input");
      input.type = "checkbox";
      input.checked = (item.premarks.accepted[name] || []).includes(index);
      input.addEventListener("change", () => {
        const accepted = new Set(item.premarks.accepted[name] || []);
        if (input.checked) accepted.add(index); else accepted.delete(index);
        item.premarks.accepted[name] = [...accepted].sort((a, b) => a - b);
        changed(item);
        render();
      });
      label.append(input, ` ${number += 1}: ${NAMES[name]}, at ${Math.round(x)}, ${Math.round(y)} (${Math.round(100 * value)}%)`);
      entry.append(label);
      list.append(entry);
    });
  }
  render();
}

async function askPremarks(item) { // true: there are some, and the person looks at them before going on
  if (!me.premarks || item.training || item.premarks || !online) return false;
  const stored = new Promise((resolve) => { if (waitingSaves().length) flushedWaiters.push(() => resolve(true)); else resolve(true); });
  const late = new Promise((resolve) => setTimeout(() => resolve(false), PATIENCE));
  if (!(await Promise.race([stored, late]))) return false;
  try {
    const answer = await api("POST", "/api/premarks", { picture: item.id });
    if (!answer.premarks) return false;
    item.premarks = answer.premarks;
    keepItem(item);
  } catch (error) {
    return false; // they are an offer: work goes on without them
  }
  if (current() !== item) return true;
  showPremarks(item);
  $("premarks").focus();
  return true;
}

function showProgress() {
  const done = order.map((number) => items.get(number)).filter((item) => item && (item.complete || item.skip_reason)).length;
  const total = me.most ? ` of ${me.most}` : "";
  const answered = Math.max(done, me.answered + me.skipped);
  $("progress").textContent = current() && !$("work").hidden ? `Picture ${at + 1} · ${answered}${total} done` : `${answered}${total} done`;
}

function say(text) { $("problem").textContent = text; }

// ---- View

function fit() {
  const item = current(), stage = $("stage");
  const scale = Math.min(stage.clientWidth / item.width, stage.clientHeight / item.height);
  view = { scale, x: (stage.clientWidth - item.width * scale) / 2, y: (stage.clientHeight - item.height * scale) / 2 };
  applyView();
}

function applyView() {
  $("canvas").style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  $("canvas").style.setProperty("--unit", 1 / view.scale + "px"); // lines of marks are as wide at any zoom
  drawCross();
}

function zoom(factor, x, y) {
  const stage = $("stage"), item = current();
  const least = 0.5 * Math.min(stage.clientWidth / item.width, stage.clientHeight / item.height);
  const scale = Math.min(Math.max(view.scale * factor, least), 40);
  const px = x === undefined ? stage.clientWidth / 2 : x, py = y === undefined ? stage.clientHeight / 2 : y;
  view.x = px - ((px - view.x) * scale) / view.scale;
  view.y = py - ((py - view.y) * scale) / view.scale;
  view.scale = scale;
  applyView();
}

function drawCross() {
  const shown = cross && document.activeElement === $("stage");
  $("crosshair").hidden = !shown;
  if (!shown) return;
  $("crosshair").style.left = view.x + cross.x * view.scale + "px";
  $("crosshair").style.top = view.y + cross.y * view.scale + "px";
}

function place(event) { // in pixels of the stage, and of the picture
  const box = $("stage").getBoundingClientRect();
  const sx = event.clientX - box.left, sy = event.clientY - box.top;
  return { sx, sy, x: (sx - view.x) / view.scale, y: (sy - view.y) / view.scale };
}

// ---- Pointer

const pointers = new Map();
let gesture = null;

function pointerDown(event) {
  const item = current();
  if (!item) return;
  const p = place(event);
  pointers.set(event.pointerId, p);
  $("stage").setPointerCapture(event.pointerId);
  if (pointers.size === 2) {
    const [a, b] = [...pointers.values()];
    gesture = { type: "pinch", distance: Math.hypot(a.sx - b.sx, a.sy - b.sy), moved: true };
    return;
  }
  const mark = event.target.closest(".mark[data-kind]");
  gesture = { type: mark ? "mark" : "picture", start: p, last: p, moved: false, button: event.button,
    mark: mark ? { kind: mark.dataset.kind, index: Number(mark.dataset.index) } : null, before: JSON.stringify(item.answer) };
  if (mark) event.preventDefault();
}

function pointerMove(event) {
  if (!pointers.has(event.pointerId) || !gesture) return;
  const p = place(event), item = current();
  pointers.set(event.pointerId, p);
  if (gesture.type === "pinch") {
    if (pointers.size < 2) return;
    const [a, b] = [...pointers.values()];
    const distance = Math.hypot(a.sx - b.sx, a.sy - b.sy);
    zoom(distance / gesture.distance, (a.sx + b.sx) / 2, (a.sy + b.sy) / 2);
    gesture.distance = distance;
    return;
  }
  if (!gesture.moved && Math.hypot(p.sx - gesture.start.sx, p.sy - gesture.start.sy) < 5) return;
  gesture.moved = true;
  if (gesture.type === "mark") {
    item.answer[gesture.mark.kind][gesture.mark.index] = [clamp(p.x, item.width), clamp(p.y, item.height)];
    selected = gesture.mark;
    drawMarks(item);
  } else {
    view.x += p.sx - gesture.last.sx;
    view.y += p.sy - gesture.last.sy;
    applyView();
  }
  gesture.last = p;
}

function pointerUp(event) {
  pointers.delete(event.pointerId);
  const done = gesture, item = current();
  if (pointers.size) return;
  gesture = null;
  if (!done || !item || done.type === "pinch") return;
  if (event.type === "pointercancel") { item.answer = JSON.parse(done.before); render(); return; }
  if (done.type === "mark" && done.moved) {
    item.past.push(done.before);
    item.future = [];
    changed(item);
    render();
  } else if (done.type === "mark") {
    selected = done.mark;
    render();
    const again = document.querySelector(`[data-focus="${done.mark.kind}-${done.mark.index}"]`);
    if (again) again.focus({ preventScroll: true });
  } else if (!done.moved && (done.button === 0 || done.button === 2)) {
    const other = KINDS[1 - KINDS.indexOf(kind)];
    addMark(done.button === 2 ? other : kind, done.start.x, done.start.y);
  }
}

// ---- Keys

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function stageKey(event) {
  const item = current();
  if (!item || event.ctrlKey || event.altKey || event.metaKey) return;
  const holder = event.target.closest(".mark[data-kind]");
  const mark = holder ? { kind: holder.dataset.kind, index: Number(holder.dataset.index) } : null;
  if (!cross) cross = { x: item.width / 2, y: item.height / 2 };
  const letter = event.key.toLowerCase();
  if (ARROWS[event.key]) {
    const length = (event.shiftKey ? 0.1 : 0.02) * item.height;
    const [dx, dy] = ARROWS[event.key].map((value) => value * length);
    if (mark) {
      edit((answer) => {
        const point = answer[mark.kind][mark.index];
        answer[mark.kind][mark.index] = [clamp(point[0] + dx, item.width), clamp(point[1] + dy, item.height)];
      });
    } else {
      cross = { x: clamp(cross.x + dx, item.width), y: clamp(cross.y + dy, item.height) };
      drawCross();
    }
  } else if (letter === "i" || letter === "m" || (!mark && (event.key === " " || event.key === "Enter"))) {
    addMark(letter === "m" ? KINDS[1] : letter === "i" ? KINDS[0] : kind, cross.x, cross.y);
  } else if (event.key === "Delete" || event.key === "Backspace") {
    const target = mark || nearest(cross.x, cross.y);
    if (target) { removeMark(target); $("stage").focus({ preventScroll: true }); }
  } else if (event.key === "+" || event.key === "=") {
    zoom(1.3, view.x + cross.x * view.scale, view.y + cross.y * view.scale);
  } else if (event.key === "-") {
    zoom(1 / 1.3, view.x + cross.x * view.scale, view.y + cross.y * view.scale);
  } else if (event.key === "0") {
    fit();
  } else {
    return;
  }
  event.preventDefault();
}

function globalKey(event) {
  lastInput = Date.now();
  if (!current() || $("work").hidden || document.querySelector("dialog[open]")) return;
  const letter = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey;
  if (command && letter === "z" && !event.shiftKey) step("past", "future");
  else if (command && (letter === "y" || (letter === "z" && event.shiftKey))) step("future", "past");
  else if (command && event.key === "Enter") finish();
  else if (event.altKey && event.key === "PageUp") show(at - 1);
  else if (event.altKey && event.key === "PageDown") show(at + 1);
  else return;
  event.preventDefault();
}

// ---- Buttons

async function finish() {
  const item = current();
  if (item.complete && (item.feedback || item.premarks) && !item.dirty) { await goOn(); return; }
  const missing = me.scales.filter((scale) => item.answer.scores[scale.name] === undefined);
  if (missing.length) {
    say("Not answered yet: " + missing.map((scale) => scale.question).join(" "));
    firstInput($("scales").querySelector(`[data-score="${missing[0].name}"]`)).focus();
    return;
  }
  say("");
  queueSave(item, { complete: true });
  if (item.training) {
    item.state = "answered";
    if (!online) say("What was expected is shown when the connection is back.");
    await new Promise((resolve) => { if (waitingSaves().length) flushedWaiters.push(resolve); else resolve(); });
    render();
    if (item.feedback) $("feedback").focus();
    return;
  }
  item.state = "answered";
  keepItem(item);
  if (await askPremarks(item)) return;
  await goOn();
  if (!$("work").hidden) $("stage").focus({ preventScroll: true });
}

function skipped(reason) {
  const item = current();
  say("");
  queueSave(item, { complete: false, skip_reason: reason });
  item.state = "skipped";
  keepItem(item);
  goOn();
}

function buildSkip() {
  for (const reason of me.skip_reasons) {
    const label = document.createElement("label"), input = document.createElement("input");
    input.type = "radio";
    input.name = "reason";
    input.value = reason;
    label.append(input, " " + reason);
    $("skip-reasons").append(label);
  }
  $("skip-reasons").querySelector("input").checked = true;
}

function listen() {
  const stage = $("stage");
  stage.addEventListener("pointerdown", pointerDown);
  stage.addEventListener("pointermove", pointerMove);
  stage.addEventListener("pointerup", pointerUp);
  stage.addEventListener("pointercancel", pointerUp);
  stage.addEventListener("contextmenu", (event) => event.preventDefault());
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const p = place(event);
    zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, p.sx, p.sy);
  }, { passive: false });
  stage.addEventListener("keydown", stageKey);
  stage.addEventListener("focus", () => {
    if (!cross && current()) cross = { x: current().width / 2, y: current().height / 2 };
    if (stage.matches(":focus-visible")) drawCross();
  });
  stage.addEventListener("blur", drawCross);
  document.addEventListener("keydown", globalKey);
  document.addEventListener("pointerdown", () => { lastInput = Date.now(); });
  for (const input of document.querySelectorAll("input[name=kind]")) input.addEventListener("change", () => { kind = input.value; });
  $("undo").addEventListener("click", () => step("past", "future"));
  $("redo").addEventListener("click", () => step("future", "past"));
  $("zoom-in").addEventListener("click", () => zoom(1.3));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.3));
  $("zoom-fit").addEventListener("click", fit);
  $("previous").addEventListener("click", () => show(at - 1));
  $("next").addEventListener("click", () => show(at + 1));
  $("finish").addEventListener("click", finish);
  $("scales").addEventListener("submit", (event) => event.preventDefault());
  $("skip-button").addEventListener("click", () => $("skip-dialog").showModal());
  $("skip-dialog").addEventListener("close", () => {
    if ($("skip-dialog").returnValue !== "skip") return;
    const reason = $("skip-reasons").querySelector("input:checked").value, text = $("skip-text").value.trim();
    skipped(reason === "other" && text ? "other: " + text : reason);
    $("skip-text").value = "";
  });
  $("done-back").addEventListener("click", () => show(order.length - 1));
  $("done-more").addEventListener("click", goOn);
  $("leave-button").addEventListener("click", leave);
  window.addEventListener("online", () => { delay = 1000; flush(); });
  window.addEventListener("resize", () => { if (current() && !$("work").hidden) fit(); });
  document.addEventListener("visibilitychange", () => {
    const item = current();
    if (document.visibilityState === "hidden" && item && item.dirty) queueSave(item);
  });
  setInterval(() => {
    const item = current();
    if (item && !$("work").hidden && document.visibilityState === "visible" && Date.now() - lastInput < IDLE * 1000) item.seconds += 0.5;
  }, 500);
  window.addEventListener("beforeunload", (event) => {
    // Answers survive a reload on this device; only where it could not keep them the person must wait.
    if (memory.size) event.preventDefault();
  });
}

async function leave() {
  const item = current();
  if (item && item.dirty) queueSave(item);
  if (waitingSaves().length) { say("Some answers are not on the server yet. They are sent as soon as there is a connection."); return; }
  try {
    await api("POST", "/api/leave", {});
  } catch (error) {
    say(error.message);
    return;
  }
  for (const name of Object.keys(localStorage)) if (name.startsWith("rahf:")) localStorage.removeItem(name);
  if (window.caches) for (const name of await caches.keys()) await caches.delete(name);
  location.replace("/");
}

// ---- Beginning

function credentials() {
  const query = new URLSearchParams(location.search), fragment = new URLSearchParams(location.hash.slice(1));
  const token = fragment.get("token"), study = query.get("study") || fragment.get("study");
  const id = query.get("PROLIFIC_PID") || query.get("workerId") || query.get("participant");
  if (token || study) history.replaceState(null, "", location.pathname); // neither stays in the address line
  return token ? ["/api/enter", { token }] : study && id ? ["/api/join", { study, id }] : null;
}

async function comeIn() {
  const given = credentials();
  try {
    me = given ? await api("POST", ...given) : await api("GET", "/api/me");
  } catch (error) {
    const known = get("rahf:me");
    if (error instanceof Offline && known) { me = known; return true; }
    section("gate");
    if (given) $("gate-text").textContent = error instanceof Offline ? "No connection. Try again in a moment." : "This link is not valid any more, or was copied only in part. Ask for a new one.";
    return false;
  }
  put("rahf:me", { ...me, form_token: "" });
  return true;
}

async function begin() {
  if (!(await comeIn())) return;
  document.title = $("title").textContent = me.title;
  $("leave-button").hidden = false;
  $("admin-link").hidden = me.role !== "administrator";
  buildScales();
  buildSkip();
  listen();
  order = get(key("order")) || [];
  for (const number of order) {
    const item = get(key("item", number));
    if (item) { item.future = []; items.set(number, item); }
  }
  try {
    const history_ = await api("GET", "/api/history");
    order = history_.map((entry) => entry.id);
    for (const number of [...items.keys()]) if (!order.includes(number)) items.delete(number);
    for (const entry of history_) {
      const item = items.get(entry.id);
      if (item && !item.dirty && entry.state !== "leased") item.state = entry.state;
    }
    await moreWork();
  } catch (error) {
    if (!(error instanceof Offline)) say(error.message);
  }
  for (const item of items.values()) if (item.dirty) queueSave(item); // of a page that was closed before its autosave
  for (const item of items.values()) if (item.state === "leased") preload(item).catch(() => {});
  flush();
  const last = order.indexOf(get(key("at"))), unfinished = last >= 0 && items.get(order[last]);
  if (unfinished && unfinished.state === "leased") await show(last);
  else await goOn();
  if (!get(key("instructed"))) { instructions(); put(key("instructed"), true); }
  if ("serviceWorker" in navigator) navigator.serviceWorker.register("/offline.js").catch(() => {});
}

function instructions() {
  $("help").showModal();
  $("help").scrollTop = 0; // the focus is on the button at the end
}

$("help-button").addEventListener("click", instructions);
$("gate-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("gate-token").value.trim();
  location.hash = "token=" + encodeURIComponent(text.includes("token=") ? text.split("token=").pop() : text);
  location.reload();
});
begin();
