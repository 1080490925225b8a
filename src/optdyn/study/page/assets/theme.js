"use strict";
/* Light or dark by choice, else as the system is set. Others listen for "themechange". */
(() => {
  const changed = () => document.dispatchEvent(new Event("themechange"));
  document.getElementById("theme").addEventListener("change", (event) => {
    document.documentElement.dataset.theme = event.target.value;
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
})();
