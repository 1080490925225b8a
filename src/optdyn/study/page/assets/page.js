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

/* A link to what is folded away opens it, in browsers that do not themselves; so does printing. */
(() => {
  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    target?.scrollIntoView();
  }
  window.addEventListener("hashchange", reveal);
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link?.hash === location.hash) reveal(); // followed again: there is no change to hear of
  });
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("#claims details").forEach((fold) => { fold.open = true; });
  });
  if (location.hash) reveal();
})();
