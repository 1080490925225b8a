"use strict";
/*
 * A learned optimizer reduced to some of its modes, run on problems.
 *
 * v_j <- beta_j v_j + alpha_j g and dx = -sum_j v_j - feedthrough g + drift, for every
 * component. The state here is s_j = -beta_j v_j, which exists for beta_j = 0 too:
 * s_j <- beta_j s_j - (alpha_j beta_j + delayed_j) g, dx = sum_j s_j - direct g + drift, with
 * direct = feedthrough + sum_j alpha_j. It starts from the transient `start` that the
 * optimizer's initial state leaves. Of a conjugate pair one is run and counted twice.
 */
(() => {
  /* Each makes, of a problem's data, a function that writes the gradient at x and returns the loss. */
  const LOSSES = {
    least_squares: ([A, b]) => (x, gradient) => {
      let loss = 0;
      gradient.fill(0);
      for (let i = 0; i < b.length; i++) {
        let residual = -b[i];
        for (let j = 0; j < x.length; j++) residual += A[i][j] * x[j];
        for (let j = 0; j < x.length; j++) gradient[j] += A[i][j] * residual;
        loss += residual * residual / 2;
      }
      return loss;
    },
    rosenbrock: () => (x, gradient) => {
      const valley = x[1] - x[0] * x[0];
      gradient[0] = 2 * (x[0] - 1) - 400 * x[0] * valley;
      gradient[1] = 200 * valley;
      return (1 - x[0]) ** 2 + 100 * valley * valley;
    },
  };

  /* Modes as groups of indices, a conjugate pair as one, in the order of the stage (by gain). */
  function groups(stage) {
    const [, imaginary] = stage.beta;
    const found = [];
    imaginary.forEach((part, j) => {
      if (part >= 0) found.push(part > 0 ? [j, j + 1] : [j]);
    });
    return found;
  }

  /* The recursion of the groups in `kept` (a set of places in `groups`). */
  function system(stage, kept) {
    const modes = [];
    let direct = stage.feedthrough;
    groups(stage).forEach((group, place) => {
      if (!kept.has(place)) return;
      const j = group[0];
      const [b, c] = [stage.beta[0][j], stage.beta[1][j]];
      const [p, q] = [stage.alpha[0][j], stage.alpha[1][j]];
      direct += group.length * p;
      modes.push({
        beta: [b, c],
        push: [-(p * b - q * c) - stage.delayed[j], -(p * c + q * b)],
        start: [stage.start[0][j], stage.start[1][j]],
        weight: group.length,
      });
    });
    return { modes, direct, drift: stage.drift };
  }

  /* The losses at steps 0 ... numSteps of one problem; Infinity from where they overflow. */
  function run({ modes, direct, drift }, evaluate, start, numSteps) {
    const x = Float64Array.from(start);
    const gradient = new Float64Array(x.length);
    const real = x.map.call(new Float64Array(x.length * modes.length), (_, i) => modes[i % modes.length].start[0]);
    const imaginary = real.map((_, i) => modes[i % modes.length].start[1]);
    const losses = new Float64Array(numSteps + 1).fill(Infinity);
    for (let step = 0; step <= numSteps; step++) {
      const loss = evaluate(x, gradient);
      if (!Number.isFinite(loss)) break;
      losses[step] = loss;
      for (let i = 0, at = 0; i < x.length; i++) {
        const g = gradient[i];
        let change = drift - direct * g;
        for (const { beta, push, weight } of modes) {
          const [s, t] = [real[at], imaginary[at]];
          change += weight * s;
          real[at] = beta[0] * s - beta[1] * t + push[0] * g;
          imaginary[at] = beta[0] * t + beta[1] * s + push[1] * g;
          at++;
        }
        x[i] += change;
      }
    }
    return losses;
  }

  /*
   * The mean loss curve over `problems` (its loss's name, starts and data) of the reduced
   * optimizer, each curve over its first value if `relative`; and how many diverged.
   */
  function meanLosses(stage, kept, problems, numSteps, relative) {
    const reduced = system(stage, kept);
    const mean = new Float64Array(numSteps + 1);
    const count = problems.start.length;
    let diverged = 0;
    problems.start.forEach((start, i) => {
      const evaluate = LOSSES[problems.loss](problems.data.map((part) => part[i]));
      const losses = run(reduced, evaluate, start, numSteps);
      const scale = relative ? 1 / losses[0] : 1;
      losses.forEach((loss, step) => { mean[step] += loss * scale / count; });
      diverged += Number(!Number.isFinite(losses[numSteps]));
    });
    return { curve: Array.from(mean), diverged };
  }

  window.optdyn = { modal: { groups, system, meanLosses } };
})();
