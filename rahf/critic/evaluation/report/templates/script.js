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
