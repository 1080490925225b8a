"use strict";
/* What all charts share: colours from the page's style, axes, and one way to draw. */
(() => {
  const CONFIG = { displayModeBar: false, responsive: true };
  const PAPER_WIDTH = 620;
  const makers = new Map();
  const near = new Set();
  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  let printing = false;

  /* The value that a custom property such as "--ink" has now. */
  function colour(name) {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  }

  /* Whether charts are as narrow as a telephone's screen. */
  const narrow = () => !printing && innerWidth < 600;

  /* An axis with a title; `options` as Plotly has them. */
  function axis(title, options = {}) {
    return {
      title: { text: title, standoff: 8 }, automargin: true, gridcolor: colour("--line"),
      linecolor: colour("--faint"), zerolinecolor: colour("--line"), exponentformat: "power",
      ...options,
    };
  }

  /* Ticks at powers of ten; on a short range plain numbers, 1, 2 and 5 times them. */
  function logAxis(title, options = {}) {
    const { range } = options;
    if (!range || range[1] - range[0] > 2) {
      return axis(title, { type: "log", dtick: range || !narrow() ? 1 : 2, tickangle: 0, ...options });
    }
    const factors = range[1] - range[0] > 0.3 ? [1, 2, 5] : [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9];
    const values = [];
    for (let power = Math.floor(range[0]); power <= range[1]; power++) {
      values.push(...factors.map((factor) => factor * 10 ** power));
    }
    return axis(title, { type: "log", tickvals: values, ticktext: values.map((value) => text(value)), ...options });
  }

  /* A range of log10 that holds the finite positive `values`, with a margin. */
  function logRange(values, margin = 0.05) {
    const logs = values.filter((v) => v !== null && v > 0 && Number.isFinite(v)).map(Math.log10);
    if (!logs.length) return undefined;
    const [low, high] = [Math.min(...logs), Math.max(...logs)];
    const room = Math.max(margin * (high - low), 0.05);
    return [low - room, high + room];
  }

  /* Charts are drawn when they come near the window: a page opens faster so. */
  const watcher = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
      watcher.unobserve(target);
      near.add(target.id);
      render(target.id);
    });
  }, { rootMargin: "400px" });

  /*
   * Draw a chart in the element called `id`. `make` returns its traces, layout, a description
   * in words and perhaps what a click on a point does; it is kept, and called again when colours change.
   */
  function draw(id, make) {
    makers.set(id, make);
    if (near.has(id)) render(id);
    else watcher.observe(document.getElementById(id));
  }

  function render(id) {
    const element = document.getElementById(id);
    const { traces, layout, title, words, onClick } = makers.get(id)();
    const ink = colour("--ink");
    Plotly.react(element, traces, {
      title: { text: title, font: { size: 14 }, x: 0.02, xanchor: "left" },
      margin: { l: 60, r: 16, t: 40, b: 50 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily },
      legend: { orientation: "h", y: -0.22, yanchor: "top", x: 0, font: { size: 11 } },
      hoverlabel: { bgcolor: colour("--band"), bordercolor: ink, font: { color: ink } },
      uirevision: "kept", hovermode: "closest",
      ...(printing ? { width: PAPER_WIDTH } : { autosize: true }),
      ...layout,
    }, CONFIG);
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", `${title}. ${words}`);
    if (onClick) {
      element.removeAllListeners("plotly_click");
      element.on("plotly_click", onClick);
    }
  }

  function redraw() {
    for (const id of makers.keys()) {
      if ((printing || near.has(id)) && document.getElementById(id).offsetParent !== null) render(id);
    }
  }

  function line(name, y, colourName, options = {}) {
    return {
      name, y, x: y.map((_, step) => step), mode: "lines", hovertemplate: "step %{x}: %{y:.4g}",
      ...options, line: { color: colour(colourName), width: 2, ...options.line },
    };
  }

  /* A number as text, to `digits` significant digits. */
  function text(value, digits = 4) {
    return value === null || !Number.isFinite(value) ? "not finite" : String(Number(value.toPrecision(digits)));
  }

  document.addEventListener("themechange", redraw);
  let theme;
  window.addEventListener("beforeprint", () => {
    theme = document.documentElement.dataset.theme ?? "";
    document.documentElement.dataset.theme = "light"; // paper is white
    printing = true;
    redraw();
  });
  window.addEventListener("afterprint", () => {
    document.documentElement.dataset.theme = theme;
    printing = false;
    redraw();
  });
  Object.assign(window.optdyn, { charts: { colour, axis, logAxis, logRange, draw, line, narrow, text } });
})();
