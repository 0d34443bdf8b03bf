"use strict";
(() => {
  const root = document.documentElement, get = (id) => document.getElementById(id);
  root.classList.add("js");
  const theme = get("theme"), system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const showTheme = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", "Switch to " + (isDark() ? "light" : "dark") + " colours");
  };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; showTheme(); });
  system.addEventListener("change", showTheme);
  showTheme();

  const gallery = get("gallery");
  if (!gallery) return;
  const controls = get("controls"), left = get("left"), right = get("right"), dialog = get("large");
  const items = [...gallery.children];
  controls.hidden = false;

  const setHalf = (item, half, side) => {
    const number = item.dataset.number, pictures = item.dataset.pictures.split(",");
    const box = item.querySelector(".side." + half), picture = pictures[side];
    const frame = box.querySelector(".frame");
    frame.className = "frame" + (picture === "" ? "" : " f" + number + "-" + picture);
    frame.querySelector(".pic").className = "pic" + (picture === "" ? "" : " p" + number + "-" + picture);
    [0, 1].forEach((kind) => {
      frame.querySelector(".k" + kind).className = "map k" + kind + " m" + number + "-" + side + "-" + kind;
    });
    box.querySelector(".missing").hidden = picture !== "";
    item.querySelector(".tag." + half).textContent = left.options[side].textContent;
  };
  const show = (item) => {
    const one = Number(left.value), other = right.value === "" ? -1 : Number(right.value);
    item.querySelector(".stage").classList.toggle("single", other < 0 || other === one);
    setHalf(item, "l", one);
    if (other >= 0) setHalf(item, "r", other);
    item.querySelectorAll("[data-side]").forEach((node) => {
      const side = Number(node.dataset.side);
      node.hidden = side !== one && side !== other;
    });
  };
  const showAll = () => items.forEach(show);
  [left, right].forEach((select) => select.addEventListener("change", showAll));
  get("swap").addEventListener("click", () => {
    if (right.value === "") return;
    [left.value, right.value] = [right.value, left.value];
    showAll();
  });
  document.querySelectorAll("[data-map]").forEach((box) => box.addEventListener("change", () =>
    root.classList.toggle("hide" + box.dataset.map, !box.checked)));
  get("strength").addEventListener("input", (event) => root.style.setProperty("--strength", event.target.value));

  const order = get("order"), way = get("way"), search = get("search"), top = get("top"), shown = get("shown");
  const value = (item) => {
    const text = order.value === "" ? "" : item.dataset.values.split(",")[Number(order.value)];
    return text === "" ? null : Number(text);
  };
  const arrange = () => {
    const place = (item) => Number(item.dataset.order), descending = way.getAttribute("aria-pressed") === "true";
    const sorted = [...items].sort((a, b) => {
      if (order.value === "") return place(a) - place(b);
      const x = value(a), y = value(b);
      if (x === null || y === null) return (x === null) - (y === null) || place(a) - place(b);
      return (descending ? y - x : x - y) || place(a) - place(b);
    });
    const words = search.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    const fits = (item) => words.every((word) => item.dataset.text.includes(word));
    const matching = sorted.filter(fits);
    const visible = new Set(matching.slice(0, Math.ceil(matching.length * Number(top.value) / 100)));
    items.forEach((item) => { item.hidden = !visible.has(item); });
    gallery.append(...sorted);
    shown.textContent = visible.size + " of " + items.length + " shown";
    get("share").textContent = top.value + "%";
  };
  items.forEach((item) => { item.dataset.text = item.dataset.text.toLocaleLowerCase(); });
  way.addEventListener("click", () => {
    const pressed = way.getAttribute("aria-pressed") !== "true";
    way.setAttribute("aria-pressed", String(pressed));
    way.textContent = pressed ? "high first" : "low first";
    arrange();
  });
  order.addEventListener("change", arrange);
  [search, top].forEach((input) => input.addEventListener("input", arrange));

  const divide = (event) => {
    if (event.target.classList.contains("cut")) {
      event.target.closest(".stage").style.setProperty("--cut", event.target.value + "%");
    }
  };
  [gallery, dialog].forEach((node) => node.addEventListener("input", divide));
  gallery.addEventListener("click", (event) => {
    const button = event.target.closest(".enlarge");
    if (!button) return;
    const copy = button.closest(".item").cloneNode(true);
    const close = copy.querySelector(".enlarge");
    close.textContent = "Close";
    close.addEventListener("click", () => dialog.close());
    dialog.replaceChildren(copy);
    dialog.showModal();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => dialog.replaceChildren());
  showAll();
  arrange();
})();
