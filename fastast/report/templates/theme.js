(function () {
  "use strict";
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const other = () => (now() === "dark" ? "light" : "dark");
  const name = () => { button.textContent = other() === "dark" ? "Dark" : "Light"; };
  try {
    const kept = window.localStorage.getItem("fastast-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* a page that may keep nothing still switches */ }
  button.addEventListener("click", () => {
    root.dataset.theme = other();
    try { window.localStorage.setItem("fastast-theme", root.dataset.theme); } catch { /* as above */ }
    name();
  });
  dark.addEventListener("change", name);
  const closed = () => document.querySelectorAll("details.printed:not([open])");
  window.addEventListener("beforeprint", () => { for (const part of closed()) { part.open = true; part.dataset.opened = ""; } });
  window.addEventListener("afterprint", () => {
    for (const part of document.querySelectorAll("[data-opened]")) { part.open = false; delete part.dataset.opened; }
  });
  button.hidden = false;
  name();
})();
