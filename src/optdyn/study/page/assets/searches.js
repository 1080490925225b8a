"use strict";
/* Every combination that a search tried: learning rate against a decay constant, by meta-objective. */
(() => {
  const { colour, draw, logAxis, text } = optdyn.charts;
  const COLOUR_RANGE = 100;
  const SYMBOLS = { alpha: "α", beta: "β", gamma: "γ", beta1: "β₁", beta2: "β₂" };
  const ZERO = "0".charCodeAt(0);
  const symbol = (name) => SYMBOLS[name] ?? name;

  /* What there is to look at: a search and the decay constant to draw it against. */
  function views(searches) {
    return searches.flatMap((search) => Object.keys(search.axes).filter((name) => name !== "alpha")
      .map((decay) => ({ search, decay, title: `${search.title}: α and ${symbol(decay)}` })));
  }

  /* The hyperparameters of one row, by name. */
  function combination({ axes, index }, row) {
    return Object.fromEntries(Object.entries(axes).map(([name, values], i) => [name, values[index[i].charCodeAt(row) - ZERO]]));
  }

  function describe(search, row) {
    return Object.entries(combination(search, row)).map(([name, value]) => `${symbol(name)} = ${text(value)}`);
  }

  /* Draw a view, without what is worse than `worst` times the best (null: all); returns how many it shows. */
  function drawSearch({ search, decay, title }, worst) {
    const { score } = search;
    const best = Math.min(...score.filter((value) => value !== null));
    const rows = score.map((_, row) => row);
    const finite = rows.filter((row) => score[row] !== null && (worst === null || score[row] <= worst * best))
      .sort((a, b) => score[b] - score[a]);
    const diverged = worst === null ? rows.filter((row) => score[row] === null) : [];
    draw("searches-chart", () => {
      const trace = (name, chosen, options) => {
        const found = chosen.map((row) => combination(search, row));
        return {
          name, mode: "markers", x: found.map((one) => one.alpha), y: found.map((one) => 1 - one[decay]),
          customdata: chosen,
          text: chosen.map((row) => describe(search, row).join("<br>")
            + `<br>meta-objective ${score[row] === null ? "diverged" : text(score[row])}`),
          hovertemplate: "%{text}<extra></extra>", ...options,
        };
      };
      const top = Math.log10(COLOUR_RANGE * best);
      return {
        title: `${title}, ${finite.length + diverged.length} combinations`,
        words: `Best meta-objective ${text(best)}.`,
        traces: [
          trace("diverged", diverged, { showlegend: diverged.length > 0, marker: { symbol: "x-thin", size: 5, line: { width: 1, color: colour("--faint") } } }),
          trace("tried", finite, {
            showlegend: false,
            marker: {
              size: 6, color: finite.map((row) => Math.log10(score[row])), colorscale: "Viridis",
              line: { width: 0.5, color: colour("--rim") }, // or the best vanish on a dark page
              cmin: Math.log10(best), cmax: top,
              colorbar: {
                title: { text: "meta-objective", side: "right" }, thickness: 12, outlinewidth: 0,
                tickvals: [0, 0.5, 1, 1.5, 2].map((power) => Math.log10(best) + power),
                ticktext: [1, 10 ** 0.5, 10, 10 ** 1.5, 100].map((factor) => text(best * factor, 3)),
              },
            },
          }),
          trace("selected as best", [search.best], {
            marker: { symbol: "star", size: 18, color: colour("--gold"), line: { color: colour("--ink"), width: 1 } },
          }),
        ],
        layout: {
          uirevision: title, xaxis: logAxis("learning rate α"), yaxis: logAxis(`1 − ${symbol(decay)}`),
          legend: { orientation: "h", y: -0.15, yanchor: "top", x: 0 },
        },
      };
    });
    return finite.length + diverged.length;
  }

  Object.assign(window.optdyn, { searches: { describe, drawSearch, views } });
})();
