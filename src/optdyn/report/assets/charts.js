"use strict";
/* What all charts share: colours from the page's style, axes, and one way to draw. */
(() => {
  const CONFIG = { displayModeBar: false, responsive: true };
  const PAPER_WIDTH = 620;
  const drawn = new Map();
  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  let printing = false;

  /* The value that a custom property such as "--ink" has now. */
  function colour(name) {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  }

  /* An axis with a title; `options` as Plotly has them. */
  function axis(title, options = {}) {
    return {
      title: { text: title, standoff: 8 }, automargin: true, gridcolor: colour("--line"),
      linecolor: colour("--faint"), zerolinecolor: colour("--line"), exponentformat: "power",
      ...options,
    };
  }

  function logAxis(title, options = {}) {
    return axis(title, { type: "log", dtick: options.range && span(options.range) < 1.3 ? undefined : 1, ...options });
  }

  const span = ([low, high]) => high - low;

  /* A range of log10 that holds the finite positive `values`, with a margin. */
  function logRange(values, margin = 0.05) {
    const logs = values.filter((v) => v !== null && v > 0 && Number.isFinite(v)).map(Math.log10);
    if (!logs.length) return undefined;
    const [low, high] = [Math.min(...logs), Math.max(...logs)];
    const room = Math.max(margin * (high - low), 0.05);
    return [low - room, high + room];
  }

  /*
   * Draw a chart in the element called `id`. `make` returns its traces, layout and a
   * description in words; it is kept, and called again when colours change.
   */
  function draw(id, make) {
    drawn.set(id, make);
    const element = document.getElementById(id);
    const { traces, layout, title, words } = make();
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
  }

  function redraw() {
    drawn.forEach((make, id) => {
      if (document.getElementById(id).offsetParent !== null) draw(id, make);
    });
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
  window.addEventListener("beforeprint", () => { printing = true; redraw(); });
  window.addEventListener("afterprint", () => { printing = false; redraw(); });
  Object.assign(window.optdyn, { charts: { colour, axis, logAxis, logRange, draw, line, text } });
})();
