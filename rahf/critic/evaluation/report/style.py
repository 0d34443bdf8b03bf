"""Style sheet and script of the HTML report. The page loads nothing from anywhere."""

STYLE = """
:root { color-scheme: light dark; --bg: #f6f7f9; --card: #fff; --ink: #1d2129; --soft: #667085;
  --line: #e3e6ec;
  --accent: #4458c8; --track: #e6e9f0; --hit: #c4242f; --hit-bg: #fde3e3; --false: #3467b5;
  --false-bg: #e1ecfb;
  --missed: #a35c00; --missed-bg: #fdeecd; --c0: #4458c8; --c1: #d9652b; --c2: #2a9d76; --c3: #b23a8e;
  --c4: #8a7a16; --c5: #5d6778; --overlay: .8; --grey: .9; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #14161b; --card: #1d2027; --ink: #e6e8ee; --soft: #98a1b3; --line: #2e323c; --accent: #8ea0ff;
    --track: #2e333f; --hit: #ff9a9a; --hit-bg: #5a1d24; --false: #a5c8ff; --false-bg: #1d3a63;
  --missed: #ffcf85;
    --missed-bg: #54390a; --c0: #8ea0ff; --c1: #ff9a66; --c2: #5fd0a6; --c3: #ee86cb; --c4: #d6c452;
    --c5: #a3acbd; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main, .top { max-width: 1240px; margin: 0 auto; padding: 0 20px; }
.top { padding-top: 28px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 36px 0 12px; }
h3 { font-size: .98rem; margin: 0; }
nav a { margin-right: 16px; color: var(--accent); text-decoration: none; }
nav a:hover { text-decoration: underline; }
.small { color: var(--soft); font-size: .82rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px;
  margin-top: 20px; }
.tile, .card, .example { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 12px 16px; display: grid; align-content: start; }
.tile .where { font-weight: 600; font-size: .88rem; }
.tile .what { color: var(--soft); font-size: .82rem; }
.tile strong { font-size: 1.9rem; line-height: 1.3; font-weight: 650; font-variant-numeric: tabular-nums; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 14px; }
.card { padding: 16px 18px; min-width: 0; }
.card p { margin: 2px 0 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.metrics th, .metrics td { padding: 3px 0 3px 10px; text-align: right; white-space: nowrap;
  font-weight: 400; }
.metrics th:first-child { text-align: left; padding-left: 0; white-space: normal; }
.metrics thead th { color: var(--soft); font-size: .76rem; padding-bottom: 4px; }
.metrics tbody tr { border-top: 1px solid var(--line); }
.metrics .value { font-weight: 650; }
.metrics svg { display: block; margin-left: auto; }
.arrow { color: var(--soft); font-size: .92rem; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
svg .axis { stroke: var(--track); stroke-width: 2; stroke-linecap: round; }
svg .range { stroke: var(--accent); stroke-width: 2.4; opacity: .55; }
svg .dot { fill: var(--accent); }
svg .base { stroke: var(--c1); stroke-width: 2; }
.key { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 0 0 12px; }
.key span { display: inline-flex; align-items: center; gap: 7px; }
.chart { width: 100%; height: auto; display: block; }
.chart .grid { stroke: var(--line); }
.chart text { fill: var(--soft); font-size: 10.5px; font-variant-numeric: tabular-nums; }
.chart polyline { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
.card p.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: .82rem; color: var(--soft);
  margin: 6px 0 0; }
.legend b { color: var(--ink); font-weight: 600; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 4px; }
.c0 { stroke: var(--c0); fill: var(--c0); } .c1 { stroke: var(--c1); fill: var(--c1); }
.c2 { stroke: var(--c2); fill: var(--c2); } .c3 { stroke: var(--c3); fill: var(--c3); }
.c4 { stroke: var(--c4); fill: var(--c4); } .c5 { stroke: var(--c5); fill: var(--c5); }
i.c0 { background: var(--c0); } i.c1 { background: var(--c1); } i.c2 { background: var(--c2); }
i.c3 { background: var(--c3); } i.c4 { background: var(--c4); } i.c5 { background: var(--c5); }
.controls { position: sticky; top: 0; z-index: 5; display: flex; flex-wrap: wrap; gap: 8px 18px;
  align-items: center;
  padding: 10px 0; background: var(--bg); border-bottom: 1px solid var(--line); margin-bottom: 14px; }
.controls label { display: inline-flex; align-items: center; gap: 8px; font-size: .88rem; }
.controls select, .controls button { font: inherit; font-size: .88rem; padding: 5px 12px; border-radius: 8px;
  border: 1px solid var(--line); background: var(--card); color: inherit; cursor: pointer; }
.controls button[aria-pressed=true] { background: var(--accent); border-color: var(--accent);
  color: var(--card); }
.controls input { accent-color: var(--accent); }
.controls input[type=range] { width: 110px; }
.group { display: inline-flex; } .group button { border-radius: 0; margin-left: -1px; }
.group button:first-child { border-radius: 8px 0 0 8px;
  } .group button:last-child { border-radius: 0 8px 8px 0; }
.example { padding: 12px 16px 14px; margin-bottom: 14px; scroll-margin-top: 60px; }
.example header { display: flex; flex-wrap: wrap; gap: 2px 12px; align-items: baseline; margin-bottom: 8px; }
.example code { font-size: .82rem; overflow-wrap: anywhere; }
.rank { font-weight: 650; min-width: 2.2em; }
.strip { display: grid; grid-template-columns: repeat(5, 1fr); gap: 10px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .78rem; color: var(--soft); margin-top: 3px; }
.pic { position: relative; width: 100%; max-height: 80vh; background-size: 100% 100%; border-radius: 7px;
  overflow: hidden; cursor: zoom-in; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.pic img { position: absolute; inset: 0; width: 100%; height: 100%; opacity: var(--overlay); }
.pic .note { position: absolute; left: 6px; bottom: 6px; padding: 1px 8px; border-radius: 9px;
  font-size: .74rem;
  background: rgba(15, 17, 22, .72); color: #fff; }
.pic.map::before { content: ""; position: absolute; inset: 0; backdrop-filter: grayscale(var(--grey)); }
.pic.plain { background-image: none; background-color: var(--track); }
.below { display: grid; grid-template-columns: 1fr minmax(280px, 380px); gap: 10px 32px; margin-top: 12px;
  align-items: start; }
.prompt { display: grid; grid-template-columns: 92px 1fr; margin: 0 0 8px; }
.prompt bdi { overflow-wrap: anywhere; white-space: pre-wrap; }
.who { color: var(--soft); font-size: .82rem; padding-top: 2px; }
.who b { font-weight: 600; color: var(--ink); margin-left: 3px; }
mark { color: inherit; background: none; padding: 0 3px; margin: 0 -1px; border-radius: 4px; }
mark.hit { color: var(--hit); background: var(--hit-bg); box-shadow: inset 0 -2px var(--hit); }
mark.false { color: var(--false); background: var(--false-bg); outline: 1.5px dashed var(--false);
  outline-offset: -1px; }
mark.missed { color: var(--missed); background: var(--missed-bg); outline: 1.5px dotted var(--missed);
  outline-offset: -1px; }
.scores th, .scores td { padding: 2px 0 2px 10px; text-align: right; font-weight: 400; font-size: .86rem; }
.scores th:first-child { text-align: left; padding-left: 0; width: 88px; }
.scores thead th { font-size: .74rem; color: var(--soft); }
.scores .track { width: 100%; } .scores .rated { color: var(--soft); }
.bar { position: relative; height: 8px; border-radius: 4px; background: var(--track); min-width: 60px; }
.bar b { display: block; height: 100%; border-radius: 4px; background: var(--accent); }
.bar i { position: absolute; top: -4px; width: 3px; height: 16px; margin-left: -1.5px; border-radius: 2px;
  background: var(--ink); box-shadow: 0 0 0 1.5px var(--card); }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 22px; margin: 0; font-size: .88rem; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
footer { padding: 18px 0 40px; }
dialog { border: 0; border-radius: 12px; padding: 14px; background: var(--card); color: inherit;
  max-width: 96vw;
  width: min(900px, 96vw); }
dialog::backdrop { background: rgba(8, 10, 14, .75); }
dialog .pic { cursor: zoom-out; max-width: calc(84vh * var(--ratio, 1)); max-height: none; margin: 0 auto; }
dialog figcaption { text-align: center; font-size: .9rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 760px) {
  main, .top { padding-left: 12px; padding-right: 12px; }
  .strip { grid-template-columns: 1fr 1fr; } .strip figure:first-child { grid-column: 1 / -1; }
  .below { grid-template-columns: 1fr; } .prompt { grid-template-columns: 1fr; }
  .metrics .plot { display: none; } .card { padding: 12px 12px; } .controls { position: static; }
  .facts { grid-template-columns: 1fr; } .facts dd { margin-bottom: 6px; } }
@media print { .controls, nav { display: none; } .example, .card { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
(() => {
  const gallery = document.getElementById("gallery"), controls = document.getElementById("controls");
  if (!gallery || !controls) return;
  controls.hidden = false;
  const by = document.getElementById("by"), buttons = [...controls.querySelectorAll("[data-way]")];
  let way = "worst";
  const sort = () => {
    const key = by.value;
    const value = (node) => (node.dataset[key] === undefined ? null : Number(node.dataset[key]));
    const place = (node) => Number(node.dataset.order);
    const nodes = [...gallery.children].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === null || y === null) return (x === null) - (y === null) || place(a) - place(b);
      return (way === "worst" ? y - x : x - y) || place(a) - place(b);
    });
    nodes.forEach((node, i) => { node.querySelector(".rank").textContent = "#" + (i + 1); });
    gallery.append(...nodes);
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.way === way)));
  };
  buttons.forEach((button) => button.addEventListener("click", () => { way = button.dataset.way; sort(); }));
  by.addEventListener("change", sort);
  document.getElementById("strength").addEventListener("input", (event) =>
    document.documentElement.style.setProperty("--overlay", event.target.value));
  document.getElementById("grey").addEventListener("change", (event) =>
    document.documentElement.style.setProperty("--grey", event.target.checked ? ".9" : "0"));
  const dialog = document.getElementById("large");
  const enlarge = (pic) => {
    const copy = pic.parentElement.cloneNode(true);
    dialog.style.setProperty("--ratio", pic.style.aspectRatio);
    dialog.replaceChildren(copy);
    dialog.showModal();
  };
  gallery.addEventListener("click", (event) => {
    const pic = event.target.closest(".pic");
    if (pic) enlarge(pic);
  });
  gallery.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.classList.contains("pic")) enlarge(event.target);
  });
  dialog.addEventListener("click", () => dialog.close());
  sort();
})();
"""
