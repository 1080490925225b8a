"use strict";
/* Charts of one stage of meta-training: eigenvalues, modes as momentum, losses, and where it lies. */
(() => {
  const { axis, colour, draw, line, logAxis, logRange, text } = optdyn.charts;
  const { groups } = optdyn.modal;
  const SHORTEST_TIMESCALE = 0.2;
  const SMALLEST_RATE = 1e-6;
  const KINDS = [["kept", "--kept"], ["not kept", "--full"]];

  /* The modes of a stage as a reader would have them: one for a pair, the strongest first. */
  function modesOf(stage) {
    return groups(stage).map(([j, partner], place) => {
      const [b, c] = [stage.beta[0][j], stage.beta[1][j]];
      const [p, q] = [stage.alpha[0][j], stage.alpha[1][j]];
      const size = Math.hypot(b, c);
      const mode = {
        place, b, c, pair: partner !== undefined, rate: Math.hypot(p, q), negative: p < 0,
        timescale: -1 / Math.log(size), gain: stage.gain[j],
      };
      const beta = mode.pair ? `${text(b)} ± ${text(c, 3)}i` : text(b);
      mode.label = `mode ${place + 1}: β = ${beta}, |α| = ${text(mode.rate, 3)}, `
        + `${text(mode.timescale, 3)} steps, gain ${text(mode.gain, 3)}`;
      return mode;
    });
  }

  /* One trace of the kept modes and one of the others; `at` gives a mode's points. */
  function modeTraces(stage, kept, at) {
    const modes = modesOf(stage);
    return KINDS.map(([name, ink], other) => {
      const chosen = modes.filter((mode) => kept.has(mode.place) !== Boolean(other));
      const points = chosen.flatMap((mode) => at(mode).map((point) => ({ mode, point })));
      return {
        name, mode: "markers",
        x: points.map(({ point }) => point[0]), y: points.map(({ point }) => point[1]),
        customdata: points.map(({ mode }) => mode.place),
        text: points.map(({ mode }) => mode.label.replaceAll(", ", "<br>")),
        hovertemplate: "%{text}<extra></extra>",
        marker: {
          size: other ? 8 : 10, symbol: points.map(({ mode }) => (mode.pair ? "square" : "circle")),
          color: other ? "rgba(0,0,0,0)" : colour(ink), line: { color: colour(ink), width: 1.5 },
        },
      };
    });
  }

  function eigenvalues(stage, kept, view, onClick) {
    draw("eigenvalues", () => {
      const angles = Array.from({ length: 181 }, (_, i) => (i * Math.PI) / 90);
      const near = view === "near";
      return {
        onClick, title: `Eigenvalues β at meta-step ${stage.meta_step}`,
        words: `${stage.beta[0].length} eigenvalues; the strongest at ${text(stage.beta[0][0])}.`,
        traces: [
          {
            name: "unit circle", x: angles.map(Math.cos), y: angles.map(Math.sin), mode: "lines",
            hoverinfo: "skip", showlegend: false, line: { color: colour("--faint"), width: 1 },
          },
          ...modeTraces(stage, kept, ({ b, c, pair }) => (pair ? [[b, c], [b, -c]] : [[b, c]])),
        ],
        layout: {
          uirevision: view,
          xaxis: axis("real part", { constrain: "domain", range: near ? [0.6, 1.1] : [-1.15, 1.15] }),
          yaxis: axis("imaginary part", {
            constrain: "domain",
            range: near ? [-0.25, 0.25] : [-1.15, 1.15], scaleanchor: "x",
          }),
        },
      };
    });
  }

  function rates(analysis, stage, kept, onClick) {
    draw("rates", () => {
      const shown = ({ rate, timescale }) => rate > SMALLEST_RATE && timescale > SHORTEST_TIMESCALE;
      const all = analysis.stages.flatMap(modesOf).filter(shown);
      const known = [["best tuned momentum", analysis.tuned, "star", "--gold"],
        ["optimal in theory", analysis.theory, "star-open", "--gold"]].filter(([, point]) => point);
      const timescale = ({ beta }) => -1 / Math.log(beta);
      return {
        onClick, title: "Each mode as momentum",
        words: `${modesOf(stage).filter(shown).length} modes by learning rate and timescale.`,
        traces: [
          ...modeTraces(stage, kept, (mode) => (shown(mode) ? [[mode.rate, mode.timescale]] : [])),
          ...known.map(([name, point, symbol, ink]) => ({
            name, x: [point.alpha], y: [timescale(point)], mode: "markers",
            hovertemplate: `${name}<br>α = %{x:.4g}<br>timescale %{y:.4g} steps<extra></extra>`,
            marker: { size: 15, symbol, color: colour(ink), line: { color: colour(symbol === "star" ? "--ink" : ink), width: symbol === "star" ? 1 : 2 } },
          })),
        ],
        layout: {
          xaxis: logAxis("learning rate |α|", {
            range: logRange([...all.map((m) => m.rate), ...known.map(([, p]) => p.alpha)]),
          }),
          yaxis: logAxis("timescale −1/ln|β| (steps)", {
            range: logRange([...all.map((m) => m.timescale), ...known.map(([, p]) => timescale(p))]),
          }),
        },
      };
    });
  }

  /* `kept`: the curve of the modes chosen and what to call it; `whole`: of the same problems, if other. */
  function losses(analysis, stage, kept, whole) {
    draw("loss-curves", () => {
      const finite = (curve) => curve.map((loss) => (Number.isFinite(loss) ? loss : null));
      const full = whole === undefined ? stage.full : whole;
      const others = whole === undefined
        ? [line("the strongest mode alone", stage.one_mode, "--one", { line: { dash: "dash" } }),
          line("best tuned momentum", analysis.tuned_curve, "--tuned", { line: { dash: "dot" } })]
        : [];
      const levels = whole === undefined
        ? analysis.stages.flatMap((each) => each.full).concat(analysis.tuned_curve) : full;
      const highest = 3 * Math.max(full[0], kept && Number.isFinite(kept.curve[0]) ? kept.curve[0] : 0);
      const shown = levels.filter((loss) => loss !== null && loss <= highest);
      return {
        title: "Loss of the full and the reduced optimizer",
        words: `Final loss: full ${text(full.at(-1))}`
          + (kept ? `, ${kept.name} ${text(kept.curve.at(-1))}.` : "."),
        traces: [
          line("learned optimizer", full, "--full"), ...others,
          ...(kept ? [line(kept.name, finite(kept.curve), "--kept")] : []),
        ],
        layout: {
          xaxis: axis("step"),
          yaxis: logAxis(analysis.relative ? "loss / first loss" : "loss", {
            range: logRange([...shown, highest]),
          }),
        },
      };
    });
  }

  function trainingCurve(analysis, stage) {
    draw("training-curve", () => {
      const { meta_step: x, meta_objective: y } = analysis.training;
      return {
        title: "Where this stage lies",
        words: `Meta-objective ${text(stage.meta_objective)} at meta-step ${stage.meta_step}.`,
        traces: [
          {
            name: "analysed checkpoints", x: x.map((step) => step + 1), y, mode: "lines+markers",
            customdata: x, hovertemplate: "meta-step %{customdata}: %{y:.4g}<extra></extra>",
            line: { color: colour("--full"), width: 1.5 }, marker: { size: 4 },
          },
          {
            name: "best tuned momentum", x: [x[0] + 1, x.at(-1) + 1],
            y: Array(2).fill(analysis.tuned.meta_objective), mode: "lines", hoverinfo: "name",
            line: { color: colour("--tuned"), dash: "dot" },
          },
          {
            name: "this stage", x: [stage.meta_step + 1], y: [stage.meta_objective],
            mode: "markers", hoverinfo: "skip", marker: { size: 14, color: colour("--kept") },
          },
        ],
        layout: {
          xaxis: logAxis("meta-step + 1", { range: logRange(x.map((step) => step + 1)) }),
          yaxis: logAxis("meta-objective", { range: logRange([...y, analysis.tuned.meta_objective]) }),
        },
      };
    });
  }

  Object.assign(window.optdyn, { training: { eigenvalues, losses, modesOf, rates, trainingCurve } });
})();
