"use strict";
/* The explorer's controls, and what each of them draws anew. */
(() => {
  const { modal, charts, training, mechanisms, searches } = optdyn;
  const { text } = charts;
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const $ = (id) => document.getElementById(id);
  const state = { task: data.tasks[0], kept: new Set([0]) };
  optdyn.state = state;

  const stage = () => state.task.analysis.stages[Number($("stage").value)];
  const live = () => Boolean(state.task.keep?.problems);

  function fill(select, names) {
    select.replaceChildren(...names.map((name, i) => new Option(name, i)));
  }

  /* Show a part's panel, or why it is not there; returns whether it is. */
  function offer(part, panel = `${part}-panel`) {
    const there = Boolean(state.task[part]);
    if (panel) $(panel).hidden = !there;
    $(`${part}-missing`).hidden = there;
    $(`${part}-missing`).textContent = there ? "" : `Not available: ${state.task.missing[part]}.`;
    return there;
  }

  /* The sets of modes whose losses were stored for the stage, if any were. */
  const stored = () => state.task.keep?.choices?.[stage().meta_step];

  function reduced() {
    const { keep, analysis } = state.task;
    if (live()) {
      const { curve, diverged } = modal.meanLosses(
        stage(), state.kept, keep.problems, keep.num_steps, analysis.relative);
      return { curve, diverged, name: "the modes kept", problems: keep.problems.start.length };
    }
    const set = stored()?.sets[Number($("choice").value)];
    return set && { curve: set.curve, diverged: null, name: set.name, problems: keep.num_problems };
  }

  /* Which of the modes shown are kept. */
  function keptPlaces() {
    if (live()) return state.kept;
    const set = stored()?.sets[Number($("choice").value)];
    const places = modal.groups(stage()).map(([j], place) => (set?.kept.includes(j) ? place : -1));
    return new Set(places.filter((place) => place >= 0));
  }

  function drawKept() {
    const { analysis } = state.task;
    const found = reduced();
    const kept = keptPlaces();
    training.eigenvalues(stage(), kept, $("view").value, clicked);
    training.rates(analysis, stage(), kept, clicked);
    training.losses(analysis, stage(), found, live() ? undefined : stored()?.full);
    if (!found) { $("kept-text").textContent = ""; return; }
    const count = modal.groups(stage()).length;
    $("keep-count").value = kept.size;
    const mean = found.curve.slice(1).reduce((sum, loss) => sum + loss, 0) / (found.curve.length - 1);
    $("kept-text").textContent = `${kept.size} of ${count} modes kept (a conjugate pair counts as one): `
      + `meta-objective ${text(mean)} on ${found.problems} problems`
      + (found.diverged ? `; ${found.diverged} of them diverge.` : ".");
  }

  function listModes() {
    const boxes = training.modesOf(stage()).map((mode) => {
      const label = document.createElement("label");
      const box = Object.assign(document.createElement("input"), {
        type: "checkbox", checked: state.kept.has(mode.place), value: mode.place,
      });
      label.append(box, mode.label);
      return label;
    });
    const focused = document.activeElement?.closest("#modes") ? document.activeElement.value : null;
    $("modes").replaceChildren(...boxes);
    if (focused !== null) $("modes").querySelector(`input[value="${focused}"]`)?.focus();
    $("keep-count").max = boxes.length;
  }

  function keep(places) {
    state.kept = new Set(places);
    $("modes").querySelectorAll("input").forEach((box) => {
      box.checked = state.kept.has(Number(box.value));
    });
    drawKept();
  }

  function toggle(place) {
    if (!live() || place === undefined) return;
    const kept = new Set(state.kept);
    if (!kept.delete(place)) kept.add(place);
    keep(kept);
  }

  const clicked = (event) => toggle(event.points[0].customdata);
  const firstPlaces = (count) => Array.from({ length: count }, (_, place) => place);
  const allPlaces = () => firstPlaces(modal.groups(stage()).length);

  /* How the strongest mode's loss stands to the full optimizer's: the median over steps. */
  function apart(deviation) {
    if (deviation === null) return "diverges";
    return deviation < 1 ? `departs by ${text(100 * deviation, 3)} % from the full optimizer's loss (median over steps)`
      : `makes ${text(1 + deviation, 3)} times the full optimizer's loss (median over steps)`;
  }

  function drawStage() {
    const { analysis, keep: told } = state.task;
    const here = stage();
    const mark = here.meta_step === analysis.momentum_stage ? ` (${analysis.stage_name})` : "";
    $("stage-text").textContent = `Meta-step ${here.meta_step}${mark}: meta-objective `
      + `${text(here.meta_objective)}. The strongest mode alone ${apart(here.deviation)}.`
      + (here.degenerate ? " Eigenvectors are nearly parallel here: only sums of modes mean anything." : "");
    const sets = stored();
    $("keep-modes").hidden = !live();
    $("keep-choices").hidden = !sets;
    offer("keep", null);
    if (live()) {
      listModes();
      $("keep-note").textContent = "The loss of the modes kept is calculated in this page: v_j ← β_j v_j + α_j g, "
        + "Δx = −Σ v_j − feedthrough·g + drift, from the transient of the optimizer's initial state, on the "
        + "same problems as the other curves. A click on a mode in a chart keeps or drops it too.";
    } else {
      const previous = $("choice").selectedIndex;
      fill($("choice"), sets ? sets.sets.map((set) => set.name) : []);
      if (sets) $("choice").selectedIndex = Math.min(Math.max(previous, 0), sets.sets.length - 1);
      $("keep-note").textContent = !told ? "" : sets
        ? `These losses were calculated when the study ran, on ${told.num_problems} problems for the modes and the `
          + `full optimizer alike (not the ${analysis.problems} of the analysis).`
        : "Losses of other sets of modes are stored for the momentum stage and the last one only.";
    }
    training.trainingCurve(analysis, here);
    drawKept();
  }

  function drawState() {
    const found = state.task.mechanisms;
    const index = Number($("state").value);
    $("state-text").textContent = mechanisms.stateName(found.path, index);
    mechanisms.update(found, index);
    mechanisms.schedule(found, index);
    drawPortrait();
  }

  function drawPortrait() {
    const angles = [$("turn"), $("tilt")].map((range) => Number(range.value));
    mechanisms.portrait(state.task.mechanisms, Number($("state").value), ...angles);
  }

  function drawSearches() {
    const view = searches.views(state.task.searches)[Number($("search").value)];
    const worst = $("worst").value === "" ? null : Number($("worst").value);
    searches.drawSearch(view, worst);
    const { search } = view;
    $("search-text").textContent = `Selected: ${searches.describe(search, search.best).join(", ")}; `
      + `meta-objective ${text(search.score[search.best])} on the tuning problems, `
      + `${text(search.rescore)} on those of the final choice.`;
  }

  function drawTask() {
    const { task } = state;
    if (offer("analysis")) {
      const { stages, momentum_stage: chosen } = task.analysis;
      $("stage").max = stages.length - 1;
      $("stage").value = stages.findIndex((each) => each.meta_step === chosen);
      state.kept = new Set([0]);
      drawStage();
    }
    if (offer("mechanisms")) {
      $("state").max = task.mechanisms.path.step.length - 1;
      $("state").value = 0;
      drawState();
    }
    if (offer("searches")) {
      fill($("search"), searches.views(task.searches).map((view) => view.title));
      drawSearches();
    }
  }

  function on(id, event, act) {
    $(id).addEventListener(event, act);
  }

  $("explorer-body").hidden = false;
  fill($("task"), data.tasks.map((task) => task.title));
  on("task", "change", () => { state.task = data.tasks[Number($("task").value)]; drawTask(); });
  on("stage", "input", drawStage);
  on("view", "change", drawKept);
  on("choice", "change", drawKept);
  on("modes", "change", (event) => toggle(Number(event.target.value)));
  on("keep-first", "click", () => keep([0]));
  on("keep-all", "click", () => keep(allPlaces()));
  on("keep-none", "click", () => keep([]));
  on("keep-count", "input", () => keep(firstPlaces(Number($("keep-count").value))));
  on("state", "input", drawState);
  on("turn", "input", drawPortrait);
  on("tilt", "input", drawPortrait);
  on("search", "change", drawSearches);
  on("worst", "change", drawSearches);
  drawTask();
})();
