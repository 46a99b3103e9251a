/* Draws the atlas of codes (cells on a canvas) and the tree of codes; see cellvq/atlas.py.

   Helpers come from cellvq-figure.js, which the page loads first. A state is a code or one of its
   parents. Names from data only ever become text. */
(() => {
  "use strict";

  const { add, ahead, movable, openCard, toolbar, zoomed, register } = window.cellvqFigures;
  const MISSING = "#b9c1c8";

  /* What is known of a state: names with values, then the states to go to. */
  function fillCard(card, spec, state, go) {
    const facts = add(card, "dl");
    for (const [name, value] of state.facts) {
      add(facts, "dt", {}, name);
      add(facts, "dd", {}, value);
    }
    const list = add(card, "ul");
    for (const [word, number] of state.links) {
      const other = spec.states[number];
      const jump = add(add(list, "li"), "button", { type: "button" },
        `${word} ${other.address} ${other.name}`);
      jump.addEventListener("click", () => go(number));
    }
  }

  /* States that a text names: by address, by a marker gene or by name; in part, if asked to. */
  function lookUp(states, text, part) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return null;
    const same = (value) => value.toLowerCase() === wanted;
    const near = (value) => (part ? value.toLowerCase().includes(wanted) : same(value));
    const all = [...states.keys()];
    const one = all.find((i) => same(states[i].address));
    if (one !== undefined) return { state: one };
    for (const [about, fit] of [
      ["marker gene of", (i) => states[i].genes.find(same)],
      ["suggested name of", (i) => near(states[i].name) && states[i].name],
      ["marker gene of", (i) => states[i].genes.find(near)],
    ]) {
      const found = all.filter(fit);
      if (found.length) return { found, about, head: fit(found[0]) };
    }
    return null;
  }
  const findable = (states) => [...new Set(states.flatMap(
    (state) => [state.address, state.name, ...state.genes]))].filter(Boolean);

  function searchWith(find, states, act) {
    const search = (part) => {
      const hit = lookUp(states, find.value, part);
      find.setAttribute("aria-invalid", String(part && !hit && Boolean(find.value.trim())));
      if (hit || !find.value.trim()) act(hit);
    };
    find.addEventListener("input", () => search(false));
    find.addEventListener("keydown", (event) => {
      if (event.key === "Enter") search(true);
    });
  }

  function drawAtlas(figure, spec, number) {
    const { x, y, code } = spec.cells, count = x.length, states = spec.states;
    const levels = spec.levels, last = levels.length - 1;
    const above = states.map((state, i) => {  // the state of each level that a state lies in
      const path = [];
      for (let at = i; at >= 0; at = states[at].parent) path[states[at].level] = at;
      return path;
    });
    let level = last, view = { k: 1, x: 0, y: 0 }, size = { w: 0, h: 0 }, waiting = false;
    let chosen = null, hovered = null, lit = null, look = 0, hidden = new Set(), dots = null;

    const { bar, find, button } = toolbar(figure, number, spec, findable(states),
      "code, gene, name");
    const select = (label, names, action) => {
      const made = add(add(bar, "label", { class: "cvf-select" }, label), "select");
      names.forEach((name, i) => add(made, "option", { value: i }, name));
      made.addEventListener("change", () => action(Number(made.value)));
      return made;
    };
    select("Colour ", ["code", ...spec.looks.map((each) => each.name)], (value) => {
      look = value;
      hidden = new Set();
      paint();
    });
    if (last) {
      select("Level ", levels, (value) => {
        level = value;
        release();
        paint();
      }).value = last;
    }
    button("+", "Zoom in", () => zoom(1.5, size.w / 2, size.h / 2));
    button("\u2212", "Zoom out", () => zoom(1 / 1.5, size.w / 2, size.h / 2));
    button("Reset", "Show all cells", reset);
    const legend = add(figure, "div", { class: "cvf-legend", role: "group" });
    const stage = add(figure, "div", { class: "cvf-stage" });
    const canvas = add(stage, "canvas", { class: "cvf-drawing", tabindex: "0", role: "application",
      "aria-roledescription": "map of cells", "aria-label": `${spec.alt} Arrow keys go from code to `
        + "code, Enter centres one, Escape lets go, plus and minus zoom." });
    const card = add(stage, "div", { class: "cvf-card", "aria-live": "polite" });
    add(figure, "p", { class: "cvf-hint" }, `${spec.note} Hover or tap a cell for the card of its `
      + "code. Drag to move; click into the figure, then scroll or pinch to zoom.");
    const pen = canvas.getContext("2d");

    /* Colours: of each cell the number of its tone, and a disc of every tone to stamp. */
    let tones = [], toneOf = [];
    const ofState = (values) => Array.from(code, (i) => values[i]);
    function paint() {
      const chosenLook = spec.looks[look - 1];
      if (!chosenLook) {
        tones = states.map((state) => state.color);
        toneOf = ofState(above.map((path) => path[level]));
      } else {
        tones = [...(chosenLook.tones || spec.scale)];
        toneOf = chosenLook.of === "cell" ? chosenLook.values
          : ofState(above.map((path) => chosenLook.values[path[level]] ?? -1));
      }
      tones.push(MISSING);
      toneOf = Array.from(toneOf, (tone) => (tone < 0 ? tones.length - 1 : tone));
      dots = null;
      explain(chosenLook);
      later();
    }
    function explain(chosenLook) {
      legend.replaceChildren();
      legend.hidden = !chosenLook;
      legend.setAttribute("aria-label", "What the colours mean");
      if (!chosenLook) return;
      const rest = toneOf.includes(tones.length - 1) ? [["not known", tones.length - 1]] : [];
      if (!chosenLook.groups) {
        add(legend, "span", {}, chosenLook.low);
        add(legend, "span", { class: "cvf-scale",
          style: `background: linear-gradient(90deg, ${spec.scale.join(", ")})` });
        add(legend, "span", {}, chosenLook.high);
      }
      const groups = (chosenLook.groups || []).map((name, i) => [name, i]);
      for (const [name, tone] of [...groups.slice(0, 40), ...rest]) {
        const made = add(legend, "button", { type: "button", "aria-pressed": "true" });
        add(made, "i", { class: "cvf-dot", style: `background: ${tones[tone]}` });
        add(made, "span", {}, name);
        made.addEventListener("click", () => {
          hidden[hidden.has(tone) ? "delete" : "add"](tone);
          made.setAttribute("aria-pressed", String(!hidden.has(tone)));
          later();
        });
      }
      if (groups.length > 40) add(legend, "span", {}, `and ${groups.length - 40} more`);
    }
    const ratio = () => Math.min(window.devicePixelRatio || 1, 2);
    function stamps(r) {
      const sharp = ratio(), side = Math.ceil(2 * (r + 1) * sharp);
      if (dots && dots.side === side) return dots;
      const sheet = document.createElement("canvas"), brush = sheet.getContext("2d");
      sheet.width = side * tones.length;
      sheet.height = side;
      tones.forEach((tone, i) => {
        brush.fillStyle = tone;
        brush.beginPath();
        brush.arc((i + 0.5) * side, side / 2, r * sharp, 0, 7);
        brush.fill();
      });
      dots = { sheet, side };
      return dots;
    }

    /* The grid of positions fitted into the stage, then the reader's zoom and shift. */
    const pad = 26;
    const fit = () => {
      const scale = Math.min(size.w - 2 * pad, (size.h - 2 * pad) * spec.wide) / spec.grid;
      return { sx: scale, sy: scale / spec.wide, x: (size.w - scale * spec.grid) / 2,
        y: (size.h - scale * spec.grid / spec.wide) / 2 };
    };
    const place = (state) => {
      const { sx, sy, x: left, y: top } = fit();
      state.px = (left + state.x * sx) * view.k + view.x;
      state.py = (top + state.y * sy) * view.k + view.y;
      return state;
    };
    const inLevel = () => states.filter((state) => state.level === level);
    function draw() {
      waiting = false;
      const css = getComputedStyle(figure), sharp = ratio();
      const { sx, sy, x: left, y: top } = fit();
      const r = Math.min(6, Math.max(1.1, Math.sqrt(9000 / count)) * Math.sqrt(view.k));
      const { sheet, side } = stamps(Math.round(4 * r) / 4);
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.clearRect(0, 0, canvas.width, canvas.height);
      const ax = sx * view.k * sharp, bx = (left * view.k + view.x) * sharp - side / 2;
      const ay = sy * view.k * sharp, by = (top * view.k + view.y) * sharp - side / 2;
      for (const on of lit ? [false, true] : [true]) {
        pen.globalAlpha = on ? 0.9 : 0.13;
        for (let i = 0; i < count; i++) {
          if ((lit && lit.has(code[i]) !== on) || hidden.has(toneOf[i])) continue;
          const u = x[i] * ax + bx, v = y[i] * ay + by;
          if (u < -side || v < -side || u > canvas.width || v > canvas.height) continue;
          pen.drawImage(sheet, toneOf[i] * side, 0, side, side, u, v, side, side);
        }
      }
      pen.globalAlpha = 1;
      pen.setTransform(sharp, 0, 0, sharp, 0, 0);
      write(css);
    }
    /* Names go in the order of size, as long as they cover no other. */
    function write(css) {
      const taken = [], focus = chosen ?? hovered;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      pen.lineWidth = 3.5;
      pen.lineJoin = "round";
      pen.strokeStyle = css.backgroundColor;
      pen.fillStyle = css.color;
      const shown = inLevel().filter((state) => !lit || lit.has(states.indexOf(state)));
      for (const state of shown.sort((a, b) => (states[focus] === b) - (states[focus] === a)
        || b.count - a.count)) {
        place(state);
        const text = view.k > 1.7 || states[focus] === state
          ? `${state.address} ${state.name}`.trim() : state.address;
        pen.font = `600 ${states[focus] === state ? 14 : 12}px ${css.fontFamily}`;
        const half = pen.measureText(text).width / 2 + 3;
        const box = [state.px - half, state.py - 8, state.px + half, state.py + 8];
        if (taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3]
          && box[3] > other[1])) continue;
        taken.push(box);
        pen.strokeText(text, state.px, state.py);
        pen.fillText(text, state.px, state.py);
      }
    }
    function later() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(draw);
    }

    /* The nearest visible cell to a point of the stage. */
    function nearest(px, py, reach) {
      const { sx, sy, x: left, y: top } = fit();
      let best = -1, far = reach * reach;
      for (let i = 0; i < count; i++) {
        const dx = (left + x[i] * sx) * view.k + view.x - px;
        const dy = (top + y[i] * sy) * view.k + view.y - py;
        const d = dx * dx + dy * dy;
        if (d < far && !hidden.has(toneOf[i]) && (!lit || lit.has(code[i]))) [best, far] = [i, d];
      }
      return best;
    }

    /* The card of a state, or of all states that a search found. */
    function describe(state, cell = -1) {
      if (state === null) return openCard(card, null);
      const it = states[state];
      openCard(card, it.address, it.name, release);
      const here = cell < 0 ? [] : spec.looks.filter((each) => each.of === "cell" && each.groups)
        .map((each) => `${each.name}: ${each.groups[each.values[cell]] ?? "not known"}`);
      if (here.length) add(card, "p", { class: "cvf-here" }, `this cell: ${here.join(", ")}`);
      fillCard(card, spec, it, (other) => choose(other, true));
    }
    const below = (state) => new Set([...states.keys()].filter(
      (i) => above[i][states[state].level] === state));
    function choose(state, centre = false) {
      chosen = state;
      hovered = null;
      lit = state === null ? null : below(state);
      if (state !== null && states[state].level !== level) {
        level = states[state].level;
        const switched = bar.querySelectorAll("select")[1];
        if (switched) switched.value = level;
        paint();
      }
      if (state !== null && centre) {
        place(states[state]);
        view.x += size.w * (size.w > 620 ? 0.36 : 0.5) - states[state].px;  // beside the card
        view.y += size.h / 2 - states[state].py;
      }
      describe(state);
      later();
    }
    function release() {
      choose(null);
    }
    function showFound({ found, about, head }) {
      chosen = hovered = null;
      const here = found.filter((i) => states[i].level === level);
      lit = new Set(here.flatMap((i) => [...below(i)]));
      openCard(card, head, `${about} ${here.length} of ${inLevel().length}`, release);
      const list = add(card, "ul");
      for (const i of here.slice(0, 60)) {
        const jump = add(add(list, "li"), "button", { type: "button" },
          `${states[i].address} ${states[i].name}`);
        jump.addEventListener("click", () => choose(i, true));
      }
      if (!here.length) add(card, "p", {}, `at another level: ${found.map((i) => states[i].address)
        .join(", ")}`);
      later();
    }
    searchWith(find, states, (hit) => {
      if (!hit) release();
      else if (hit.found) showFound(hit);
      else choose(hit.state, true);
    });

    function zoom(factor, px, py) {
      view = zoomed(view, factor, px, py, 60);
      later();
    }
    function reset() {
      view = { k: 1, x: 0, y: 0 };
      find.value = "";
      release();
    }
    const stateOf = (cell) => (cell < 0 ? null : above[code[cell]][level]);
    const { at, drag } = movable(canvas, {
      zoom,
      shift: (dx, dy) => {
        view.x += dx;
        view.y += dy;
        later();
      },
      tap: (event, px, py) => choose(stateOf(nearest(px, py, 16))),
    });
    canvas.addEventListener("pointermove", (event) => {
      if (drag.size || chosen !== null || lit || event.pointerType === "touch") return;
      const cell = nearest(...at(event), 9), state = stateOf(cell);
      if (state !== null || hovered !== null) describe(state, cell);
      if (state !== hovered) later();
      hovered = state;
    });
    canvas.addEventListener("pointerleave", () => {
      if (hovered !== null && chosen === null) describe(null);
      hovered = null;
      later();
    });
    canvas.addEventListener("keydown", (event) => {
      const marks = inLevel().map(place);
      const next = ahead(event.key, states[chosen] || { px: size.w / 2, py: size.h / 2 }, marks);
      if (next !== undefined) {
        if (next || chosen === null) choose(states.indexOf(next || marks[0]));
      } else if (event.key === "Enter" && chosen !== null) choose(chosen, true);
      else if (event.key === "Escape") release();
      else if (event.key === "+" || event.key === "=") zoom(1.5, size.w / 2, size.h / 2);
      else if (event.key === "-") zoom(1 / 1.5, size.w / 2, size.h / 2);
      else if (event.key === "0") reset();
      else return;
      event.preventDefault();
    });

    function resize() {
      size = { w: canvas.clientWidth, h: canvas.clientHeight };
      canvas.width = Math.round(size.w * ratio());
      canvas.height = Math.round(size.h * ratio());
      if (size.w && size.h) draw();
    }
    new ResizeObserver(resize).observe(canvas);
    new MutationObserver(later).observe(document.documentElement, { attributes: true });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
    paint();
    resize();
  }

  /* A tree whose branches open and close; an open state shows its card. */
  function drawTree(figure, spec, number) {
    const { find, button } = toolbar(figure, number, spec, findable(spec.states),
      "code, gene, name");
    const tree = add(figure, "div", { class: "cvf-drawing cvf-tree", role: "group",
      "aria-label": spec.alt });
    const rows = [], most = Math.max(1, ...spec.states.map((state) => state.count));
    const unfold = (i, bare) => {  // bare: without the card
      if (!rows[i].open) rows[i].classList.toggle("cvf-bare", bare);
      rows[i].open = true;
    };
    const reveal = (i) => {
      for (let at = spec.states[i].parent; at >= 0; at = spec.states[at].parent) unfold(at, true);
      rows[i].scrollIntoView({ block: "nearest" });
    };
    const show = (i) => {
      reveal(i);
      unfold(i, false);
      rows[i].querySelector("summary").focus({ preventScroll: true });
    };
    spec.states.forEach((state, i) => {
      const row = rows[i] = add(state.parent < 0 ? tree : rows[state.parent], "details");
      const line = add(row, "summary");
      add(line, "i", { class: "cvf-dot", style: `background: ${state.color}` });
      add(line, "strong", {}, state.address);
      add(line, "span", {}, state.name);
      add(line, "em", {}, state.genes.slice(0, 4).join(", "));
      const bar = add(line, "span", { class: "cvf-share", title: `${state.count} cells` });
      add(bar, "i", { style: `width: ${Math.max(1, 100 * state.count / most).toFixed(1)}%` });
      if (state.unstable) line.classList.add("cvf-unstable");
      row.addEventListener("toggle", () => {
        if (!row.open) row.classList.remove("cvf-bare");
        else if (!row.querySelector(":scope > .cvf-facts")) {
          const card = document.createElement("div");
          card.className = "cvf-facts";
          line.after(card);
          fillCard(card, spec, state, show);
        }
      });
    });
    const parents = new Set(spec.states.map((state) => state.parent).filter((i) => i >= 0));
    button("Open", "Open all parents", () => parents.forEach((i) => unfold(i, true)));
    button("Close", "Close all", () => rows.forEach((row) => {
      row.open = false;
    }));
    searchWith(find, spec.states, (hit) => {
      const found = hit ? hit.found || [hit.state] : [];
      rows.forEach((row, i) => row.classList.toggle("cvf-found", found.includes(i)));
      if (found.length === 1) show(found[0]);
      else found.reverse().forEach(reveal);
    });
    add(figure, "p", { class: "cvf-hint" }, "Bars: cells. Open a state for its card and for the "
      + "states below it. Hollow: unstable.");
  }

  register("atlas", drawAtlas);
  register("code-tree", drawTree);
})();
