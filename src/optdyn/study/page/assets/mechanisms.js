"use strict";
/* Charts of the state: where it is, what update it makes of a gradient, and its learning rate. */
(() => {
  const { axis, colour, draw, narrow, text } = optdyn.charts;
  const [EYE_DISTANCE, NARROW_EYE_DISTANCE] = [2.4, 3];

  /* A position on an axis that is linear near zero and logarithmic in |g| beyond `smallest`. */
  const place = (g, smallest) => Math.sign(g) * Math.log10(1 + Math.abs(g) / smallest);

  function stateName(path, index) {
    const step = path.step[index];
    if (step === null) return "h*, the state at rest";
    return step === 0 ? "h₀, the initial state" : `after ${step} steps without gradient`;
  }

  function points(name, rows, options) {
    const [x, y, z] = [0, 1, 2].map((i) => rows.map((row) => row[i]));
    return { type: "scatter3d", name, x, y, z, hoverinfo: "name", ...options };
  }

  function camera(turn, tilt) {
    const [azimuth, height] = [turn, tilt].map((degrees) => (degrees * Math.PI) / 180);
    const distance = narrow() ? NARROW_EYE_DISTANCE : EYE_DISTANCE;
    return {
      eye: {
        x: distance * Math.cos(azimuth) * Math.cos(height),
        y: distance * Math.sin(azimuth) * Math.cos(height),
        z: distance * Math.sin(height),
      },
    };
  }

  function portrait(found, index, turn, tilt) {
    draw("portrait", () => {
      const { portrait: seen, path } = found;
      const part = (i) => `PC ${i + 1} (${Math.round(100 * seen.explained[i])} %)`;
      const sceneAxis = (i) => ({
        ...axis(part(i)), backgroundcolor: "rgba(0,0,0,0)", showspikes: false, nticks: 5,
        title: { text: part(i), font: { size: 11 } }, tickfont: { size: 10 },
      });
      const known = seen.fixed_curve.map((_, i) => i).filter((i) => seen.fixed_curve[i][0] !== null);
      return {
        title: `States at meta-step ${found.meta_step}`,
        words: `Trajectories, fixed points and the chosen state, ${stateName(path, index)}.`,
        traces: [
          ...seen.trajectories.map((rows, i) => points("trajectories on problems", rows, {
            mode: "lines", legendgroup: "trajectories", showlegend: i === 0, opacity: 0.7,
            line: { color: colour("--full"), width: 2 },
          })),
          points("fixed points h*(g)", known.map((i) => seen.fixed_curve[i]), {
            mode: "lines+markers", text: known.map((i) => `h*(g) at g = ${text(seen.gradient[i], 3)}`),
            hoverinfo: "text", line: { color: colour("--one"), width: 3 },
            marker: { size: 3, color: colour("--one") },
          }),
          points("without gradient", path.portrait, {
            mode: "lines+markers", text: path.portrait.map((_, i) => stateName(path, i)),
            hoverinfo: "text", line: { color: colour("--accent"), width: 3 },
            marker: { size: 2.5, color: colour("--accent") },
          }),
          points("h₀", [seen.start], { mode: "markers", marker: { size: 6, symbol: "square", color: colour("--ink") } }),
          points("h*", [seen.rest], { mode: "markers", marker: { size: 6, symbol: "diamond", color: colour("--gold") } }),
          points("the chosen state", [path.portrait[index]], {
            mode: "markers", marker: { size: 9, symbol: "circle-open", color: colour("--kept"), line: { width: 4 } },
          }),
        ],
        layout: {
          margin: { l: 0, r: 0, t: 40, b: 0 },
          legend: { orientation: "h", y: -0.02, yanchor: "top", x: 0, font: { size: 11 } },
          scene: {
            xaxis: sceneAxis(0), yaxis: sceneAxis(1), zaxis: sceneAxis(2),
            camera: camera(turn, tilt), aspectmode: "cube", uirevision: `${turn} ${tilt}`,
          },
        },
      };
    });
  }

  /* Ticks at every second power of ten, both ways, and 0. */
  function gradientTicks(smallest, largest) {
    const powers = [];
    for (let e = Math.ceil(Math.log10(smallest)) + 1; 10 ** e <= largest; e += 2) powers.push(e);
    const values = [...powers.map((e) => -(10 ** e)).reverse(), 0, ...powers.map((e) => 10 ** e)];
    const names = [...powers.map((e) => `−10<sup>${e}</sup>`).reverse(), "0", ...powers.map((e) => `10<sup>${e}</sup>`)];
    return { tickvals: values.map((g) => place(g, smallest)), ticktext: names };
  }

  /* How often gradients of each size were met, as bars to both sides, the highest of height 1. */
  function densityTrace({ edges, count }, smallest) {
    const highest = Math.max(...count, 1);
    const width = Math.log10(edges[1] / edges[0]);
    const bars = count.map((n, i) => [place(Math.sqrt(edges[i] * edges[i + 1]), smallest), n / highest])
      .filter(([, height]) => height > 0);
    return {
      name: "gradients met", type: "bar", yaxis: "y2", hoverinfo: "skip",
      width, x: [...bars.map(([x]) => -x), ...bars.map(([x]) => x)],
      y: [...bars, ...bars].map(([, height]) => height), marker: { color: colour("--line") },
    };
  }

  function update(found, index) {
    draw("update", () => {
      const { path, density } = found;
      const { gradient } = path;
      const smallest = Math.min(...gradient.map(Math.abs));
      const x = gradient.map((g) => place(g, smallest));
      const curve = (name, at, options) => ({
        name, x, y: path.update[at], customdata: gradient, mode: "lines",
        hovertemplate: "g = %{customdata:.3g}<br>Δx = %{y:.4g}", ...options,
      });
      const thin = (ink) => ({ line: { color: colour(ink), width: 1.5, dash: "dot" } });
      const largest = Math.max(...path.update.flat().map((change) => Math.abs(change ?? 0)));
      return {
        title: "Update against gradient",
        words: `In the state ${stateName(path, index)}, the update at the largest gradient is `
          + `${text(path.update[index].at(-1))}.`,
        traces: [
          densityTrace(density, smallest),
          curve("h₀", 0, thin("--ink")), curve("h*", path.step.length - 1, thin("--gold")),
          curve("the chosen state", index, { line: { color: colour("--kept"), width: 3 } }),
        ],
        layout: {
          bargap: 0, barmode: "overlay",
          xaxis: axis("gradient g", gradientTicks(smallest, gradient.at(-1))),
          yaxis: axis("update Δx", { range: [-1.05 * largest, 1.05 * largest] }),
          yaxis2: { overlaying: "y", range: [0, 4], visible: false, fixedrange: true },
        },
      };
    });
  }

  function schedule(found, index) {
    draw("schedule", () => {
      const { path, rate } = found;
      const step = path.step[index];
      return {
        title: "Learning rate −∂Δx/∂g without gradient",
        words: step === null ? "At rest." : `${text(rate[step])} after ${step} steps.`,
        traces: [
          {
            name: "without gradient", x: rate.map((_, k) => k), y: rate, mode: "lines",
            showlegend: false, hovertemplate: "step %{x}: %{y:.4g}<extra></extra>",
            line: { color: colour("--accent"), width: 2 },
          },
          {
            name: "the chosen state", x: step === null ? [] : [step],
            y: step === null ? [] : [rate[step]], mode: "markers", showlegend: false,
            hoverinfo: "skip", marker: { size: 12, color: colour("--kept") },
          },
        ],
        layout: { xaxis: axis("step"), yaxis: axis("learning rate") },
      };
    });
  }

  Object.assign(window.optdyn, { mechanisms: { portrait, schedule, stateName, update } });
})();
