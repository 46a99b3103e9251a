/* Explores a knowledge graph: search, filters, cards, paths, tables; see cellvq/explorer.py.

   Helpers come from cellvq-figure.js, which the page loads first. The graph is drawn on a canvas;
   everything that it shows also stands in cards and tables, for readers who do not see it or use
   no mouse. What a reader chose stands in the address of the page. Names from data only ever
   become text, never markup, and nothing is loaded. */
(() => {
  "use strict";

  const { add, ahead, movable, zoomed, register } = window.cellvqFigures;
  const SVG = "http://www.w3.org/2000/svg";
  const COMMUNITIES = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#999933",
    "#882255", "#44aa99", "#6f4fa0", "#b5651d", "#7a8796"];
  const STATUS = {
    finding: { says: "finding", about: "tested in these cells", dash: [] },
    prior: { says: "prior", about: "known before", dash: [6, 4] },
    structure: { says: "structure", about: "how codes were made", dash: [1.5, 4] },
  };
  const FDR = [0.05, 0.01, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10, 1e-15, 1e-20, 1e-30, 1e-50, 1e-100];
  const CELLS = [0, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 2000, 5000, 1e4,
    1e5];
  const FIRST = 300;  // nodes that a large graph shows before a reader asks for more
  const UNFOLDED = 40;  // neighbours that appear with a node that was chosen
  const LISTED = 6;  // links of a kind that a card lists before a reader asks for more
  const ROWS = 100;
  const MOVING = 2500;  // links that are drawn while the picture moves
  const LARGEST = 16, APART = 4;  // radius of a node, room between two, in pixels of
  const USUAL = { w: 560, h: 480 };  // a stage of this size
  const PLAIN = 1500;  // links from which on those in the background are straight and solid
  const CURRENT = new Set(["node", "kinds", "nodes", "status", "fdr", "cells", "from", "to", "view",
    "colour"]);

  /* Words and numbers. */
  const count = (number) => Number(number).toLocaleString("en");
  const many = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
  const plain = (text) => String(text).replace(/[\s\u0000-\u001f]+/g, " ").trim();
  const small = (value) => (value < 1e-300 ? "below 1e-300" : value && value < 1e-3
    ? value.toExponential(1).replace(".0e", "e") : String(Number(value.toPrecision(2))));
  const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}\u2026` : text);
  const atMost = (value) => `at most ${small(Math.max(value, 1e-300))}`;
  const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(2);

  /* The tables of Python by columns; ends are numbers of nodes, and texts are numbers of texts. */
  function load(spec) {
    const rows = (columns) => columns[Object.keys(columns)[0]].map((_, i) => Object.fromEntries(
      Object.entries(columns).map(([name, values]) => [name, values[i]])));
    const nodes = rows(spec.nodes);
    for (const node of nodes) {
      node.links = [];
      node.label = plain(node.name) || node.id;
      node.key = node.label.toLowerCase();
    }
    const edges = rows(spec.edges).map((edge, i) => ({ ...edge, i, from: nodes[edge.source],
      to: nodes[edge.target], name: spec.texts[edge.name], null: spec.texts[edge.null],
      evidence: spec.texts[edge.evidence] }));
    const pairs = new Map();
    for (const edge of edges) {  // strongest first, as Python sorted them
      edge.from.links.push(edge);
      if (edge.to !== edge.from) edge.to.links.push(edge);
      const pair = [edge.source, edge.target].sort((a, b) => a - b).join(" ");
      const lanes = pairs.get(pair) || new Map();
      pairs.set(pair, lanes);
      const lane = `${edge.kind} ${edge.directed ? edge.source : ""}`;
      if (!lanes.has(lane)) lanes.set(lane, lanes.size);
      edge.lane = `${pair} ${lane}`;
      edge.place = lanes.get(lane);
      edge.lanes = lanes;
    }
    for (const edge of edges) {  // links between the same nodes lie side by side
      edge.bend = (edge.place - (edge.lanes.size - 1) / 2) * 0.16
        * (edge.source < edge.target ? 1 : -1);
      delete edge.lanes;
    }
    const most = Math.max(1, ...nodes.map((node) => node.cells));
    for (const node of nodes) {
      node.r = node.kind === "code" ? 6 + 10 * Math.sqrt(node.cells / most)
        : Math.min(9, 4 + 0.35 * Math.sqrt(node.links.length) + (node.cells ? 2 : 0));
    }
    return { nodes, edges, byId: new Map(nodes.map((node) => [node.id, node])) };
  }

  /* An edge as a sentence: texts and nodes in turn. */
  function sentence(edge, kinds) {
    const said = [edge.from, ` ${kinds[edge.kind].says} `, edge.to];
    if (edge.name) said.push(edge.kind.startsWith("talk") || edge.kind.includes("-talks-")
      ? ` by ${edge.name}` : ` [${edge.name}]`);
    return said;
  }
  function numbers(edge, kinds) {
    if (edge.status !== "finding") {
      const sign = edge.effect === null || edge.status !== "prior" ? ""
        : edge.effect > 0 ? ", activates" : ", represses";
      return `${edge.status === "prior" ? "known before" : "structure"}${sign}`;
    }
    const said = kinds[edge.kind].effect === "none" || edge.effect === null ? []
      : [`effect ${signed(edge.effect)}`];
    said.push(`FDR ${small(edge.fdr)}`);
    if (edge.n_cells) said.push(many(edge.n_cells, "cell"));
    if (edge.n_donors) said.push(many(edge.n_donors, "donor"));
    if (edge.stability !== null) said.push(`stability ${edge.stability.toFixed(2)}`);
    return said.map((each) => each.replaceAll(" ", "\u00a0")).join(" \u00b7 ");
  }

  /* Shapes, on the canvas and in the legend. */
  const ring = (n, turn, by) => (r) => Array.from({ length: n }, (_, i) => {
    const angle = turn + (2 * Math.PI * i) / n;
    return [by * r * Math.cos(angle), by * r * Math.sin(angle)];
  });
  const CORNERS = { square: ring(4, Math.PI / 4, 1.2), diamond: ring(4, 0, 1.25),
    triangle: ring(3, -Math.PI / 2, 1.3), hexagon: ring(6, 0, 1.1) };
  function trace(pen, shape, x, y, r) {
    const corners = CORNERS[shape];
    if (!corners) {
      pen.moveTo(x + r, y);
      pen.arc(x, y, r, 0, 2 * Math.PI);
      return;
    }
    corners(r).forEach(([dx, dy], i) => (i ? pen.lineTo(x + dx, y + dy)
      : pen.moveTo(x + dx, y + dy)));
    pen.closePath();
  }
  function icon(parent, look) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "-9 -9 18 18");
    svg.setAttribute("class", "cvx-icon");
    svg.setAttribute("aria-hidden", "true");
    parent.appendChild(svg);
    const corners = CORNERS[look.shape];
    add(svg, "path", { fill: look.color, d: corners
      ? `M${corners(6).map((point) => point.map((v) => v.toFixed(2)).join(" ")).join("L")}Z`
      : "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0Z" });
  }
  function strip(parent, dash) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 26 8");
    svg.setAttribute("class", "cvx-line");
    svg.setAttribute("aria-hidden", "true");
    parent.appendChild(svg);
    add(svg, "path", { d: "M1 4H25", "stroke-dasharray": dash.join(" ") });
  }
  const toRgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const mixed = (hex, other, share) => {
    const to = toRgb(other);
    return `rgb(${toRgb(hex).map((v, i) => Math.round(v + (to[i] - v) * share)).join(" ")})`;
  };

  /* Files for the reader. */
  const FORMULA = /^'*[=+\-@\t\r]/;  // what a spreadsheet would run, as in cellvq/tablefiles.py
  function csv(header, rows) {
    const cell = (value) => {
      if (value === null || value === undefined) return "";
      if (typeof value === "number") return String(value);
      const text = FORMULA.test(value) ? `'${value}` : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [header, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  }
  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  /* What a reader chose, as the part of the address after the sign #. */
  function readAddress() {
    const found = {};
    for (const part of location.hash.slice(1).split("&")) {
      const at = part.indexOf("=");
      if (at < 0 || !CURRENT.has(part.slice(0, at))) continue;
      try {
        found[part.slice(0, at)] = decodeURIComponent(part.slice(at + 1));
      } catch { /* a bare percent sign */ }
    }
    return found;
  }
  const address = (values) => Object.entries(values).filter(([, value]) => value !== null)
    .map(([name, value]) => `${name}=${encodeURIComponent(value).replaceAll("%3A", ":")
      .replaceAll("%2C", ",")}`).join("&");

  /* A field that offers names while a reader types. */
  function offer(parent, { id, label, hint, find, take, kinds }) {
    const box = add(parent, "div", { class: "cvx-offer" });
    const field = add(box, "input", { type: "text", role: "combobox", "aria-expanded": "false",
      "aria-controls": id, "aria-autocomplete": "list", "aria-label": label, placeholder: hint,
      autocomplete: "off", autocapitalize: "off", spellcheck: "false", class: "cvx-field" });
    const list = add(box, "ul", { id, role: "listbox", "aria-label": label, class: "cvx-options" });
    list.hidden = true;
    let found = [], at = -1;
    const close = () => {
      list.hidden = true;
      at = -1;
      field.setAttribute("aria-expanded", "false");
      field.removeAttribute("aria-activedescendant");
    };
    const pick = (node) => {
      field.value = node.label;
      field.removeAttribute("aria-invalid");
      close();
      take(node);
    };
    const mark = (next) => {
      at = next;
      [...list.querySelectorAll("[role=option]")].forEach((item, i) => {
        item.setAttribute("aria-selected", String(i === at));
        if (i !== at) return;
        item.scrollIntoView({ block: "nearest" });
        field.setAttribute("aria-activedescendant", item.id);
      });
    };
    const open = () => {
      found = find(field.value);
      list.replaceChildren();
      at = -1;
      field.removeAttribute("aria-activedescendant");
      found.forEach((node, i) => {
        const item = add(list, "li", { role: "option", id: `${id}-${i}`,
          "aria-selected": "false" });
        icon(item, kinds[node.kind]);
        add(item, "bdi", {}, node.label);
        add(item, "small", {}, kinds[node.kind].label);
        item.addEventListener("pointerdown", (event) => event.preventDefault());
        item.addEventListener("click", () => pick(node));
      });
      const lost = Boolean(field.value.trim()) && !found.length;
      if (lost) add(list, "li", { class: "cvx-none" }, "No node has this name.");
      field.setAttribute("aria-invalid", String(lost));
      list.hidden = !found.length && !lost;
      field.setAttribute("aria-expanded", String(!list.hidden));
    };
    field.addEventListener("input", open);
    field.addEventListener("focus", () => field.select());
    field.addEventListener("blur", close);
    field.addEventListener("keydown", (event) => {
      const down = event.key === "ArrowDown", up = event.key === "ArrowUp";
      if (down || up) {
        if (list.hidden) open();
        if (found.length) mark((at + (down ? 1 : at < 0 ? 0 : -1) + found.length) % found.length);
      } else if (event.key === "Enter") {
        if (list.hidden) open();
        if (found.length) pick(found[Math.max(0, at)]);
      } else if (event.key === "Escape" && !list.hidden) close();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    return field;
  }

  /* Moves nodes that lie on each other apart, as far as they need on a stage of usual size. */
  function spread(nodes, span) {
    const some = nodes.filter((node) => node.rank < FIRST * 1.25), cell = 2 * LARGEST + APART;
    const [left, wide] = span("x"), [top, high] = span("y");
    const scale = Math.min(USUAL.w / wide, USUAL.h / high), key = (x, y) => x * 4096 + y;
    const at = some.map((node) => [(node.x - left) * scale, (node.y - top) * scale]);
    for (let round = 0; round < 60; round++) {
      const cells = new Map();
      let met = 0;
      at.forEach(([x, y], i) => {
        const here = key(Math.floor(x / cell), Math.floor(y / cell));
        if (cells.has(here)) cells.get(here).push(i);
        else cells.set(here, [i]);
      });
      at.forEach((one, i) => {
        const [column, row] = [Math.floor(one[0] / cell), Math.floor(one[1] / cell)];
        for (let next = 0; next < 9; next++) {
          for (const j of cells.get(key(column + (next % 3) - 1, row + Math.floor(next / 3) - 1))
            || []) {
            if (j <= i) continue;
            const other = at[j], wanted = some[i].r + some[j].r + APART;
            let dx = other[0] - one[0], dy = other[1] - one[1], far = Math.hypot(dx, dy);
            if (far >= wanted) continue;
            if (far < 1e-3) [dx, dy, far] = [Math.cos(i + j), Math.sin(i + j), 1];
            const by = (wanted - Math.min(far, wanted - 0.1)) / far / 2;
            const share = (2 * some[j].r ** 2) / (some[i].r ** 2 + some[j].r ** 2);
            one[0] -= dx * by * share;  // the larger one moves less
            one[1] -= dy * by * share;
            other[0] += dx * by * (2 - share);
            other[1] += dy * by * (2 - share);
            met += 1;
          }
        }
      });
      if (!met) break;
    }
    some.forEach((node, i) => {
      node.x = left + at[i][0] / scale;
      node.y = top + at[i][1] / scale;
    });
  }

  /* The drawing: places in the stage, zoom and shift, nodes, links and names. */
  function drawing(stage, spec, model, part) {
    const { kinds } = spec;
    const canvas = add(stage, "canvas", { class: "cvx-canvas cvf-drawing", tabindex: "0",
      role: "application", "aria-roledescription": "graph", "aria-label": `${spec.alt} Arrow `
        + "keys move the picture, Shift and an arrow key go to the next node, Enter opens its "
        + "card, Escape lets go, plus and minus zoom, 0 shows all. The same stands in the "
        + "tables." });
    const screen = canvas.getContext("2d"), widths = new Map();
    let size = { w: 0, h: 0 }, view = { k: 1, x: 0, y: 0 }, tones = null, waiting = false;
    let awaited = null;  // nodes to show as soon as the stage has a size
    let moved = -Infinity, rest = 0;  // when the picture last moved, and the timer of its rest
    const linked = model.nodes.filter((node) => node.links.length || node.kind === "code");
    const span = (key) => {  // a node without links may lie far from all others
      const values = (linked.length ? linked : model.nodes).map((node) => node[key]);
      const low = values.reduce((a, b) => Math.min(a, b), Infinity);
      return [low, Math.max(values.reduce((a, b) => Math.max(a, b), -Infinity) - low, 1e-9)];
    };
    spread(linked, span);
    const [left, wide] = span("x"), [top, high] = span("y");
    const ratio = () => Math.min(window.devicePixelRatio || 1, 2);

    /* Distances in a layout say little, so it is stretched a little to fill the stage. */
    function fit({ w, h }) {
      const pad = Math.min(42, w / 9), right = 24;  // buttons stand on the right
      const sx = (w - 2 * pad - right) / wide, sy = (h - 2 * pad) / high;
      const least = Math.min(sx, sy);
      const scale = [Math.min(sx, least * 1.8), Math.min(sy, least * 1.8)];
      return { scale, shift: [(w - right - wide * scale[0]) / 2, (h - high * scale[1]) / 2] };
    }
    function place(nodes) {
      const { scale, shift } = fit(size);
      for (const node of nodes) {
        node.px = ((node.x - left) * scale[0] + shift[0]) * view.k + view.x;
        node.py = ((node.y - top) * scale[1] + shift[1]) * view.k + view.y;
      }
    }
    function readTones() {
      const css = getComputedStyle(stage), tone = (name) => css.getPropertyValue(name).trim();
      const dark = tone("--cvx-dark") === "1";
      tones = { back: tone("--cvx-back"), text: tone("--cvx-text"), edge: tone("--cvx-edge"),
        accent: tone("--cvx-accent"), quiet: tone("--cvx-quiet"), font: css.fontFamily, dark,
        rim: (color) => (dark ? mixed(color, "#ffffff", 0.35) : mixed(color, "#000000", 0.35)),
        fill: (color) => (dark ? mixed(color, "#ffffff", 0.12) : color) };
    }
    const grown = () => Math.min(1.6, Math.max(0.7, Math.sqrt(view.k)))
      * Math.min(1, Math.max(0.6, Math.min(size.w, size.h) / 560));

    function line(pen, edge, simple) {
      const { from, to } = edge;
      pen.moveTo(from.px, from.py);
      if (from === to) {
        const r = from.r * grown();
        pen.moveTo(from.px, from.py - r);
        pen.bezierCurveTo(from.px + 3 * r, from.py - 3 * r - 8, from.px + 3 * r + 8, from.py + r,
          from.px + r, from.py);
      } else if (simple || !edge.bend) pen.lineTo(to.px, to.py);
      else {
        const dx = to.px - from.px, dy = to.py - from.py;
        pen.quadraticCurveTo((from.px + to.px) / 2 - dy * edge.bend,
          (from.py + to.py) / 2 + dx * edge.bend, to.px, to.py);
      }
    }
    function arrow(pen, edge) {
      if (!edge.directed || edge.from === edge.to) return;
      const { from, to } = edge, dx = to.px - from.px, dy = to.py - from.py;
      const far = Math.hypot(dx, dy);
      if (far < 18) return;
      const ax = to.px - ((from.px + to.px) / 2 - dy * edge.bend);
      const ay = to.py - ((from.py + to.py) / 2 + dx * edge.bend);
      const long = Math.hypot(ax, ay) || 1, ux = ax / long, uy = ay / long;
      const x = to.px - ux * (to.r * grown() + 2), y = to.py - uy * (to.r * grown() + 2);
      pen.moveTo(x, y);
      const head = 7.5 * Math.min(1, grown()), half = head / 2;
      pen.lineTo(x - head * ux - half * uy, y - head * uy + half * ux);
      pen.lineTo(x - head * ux + half * uy, y - head * uy - half * ux);
      pen.closePath();
    }
    /* Many short paths are faster than a long one. */
    function strokes(pen, edges, simple) {
      for (let i = 0; i < edges.length; i += 120) {
        pen.beginPath();
        for (const edge of edges.slice(i, i + 120)) line(pen, edge, simple);
        pen.stroke();
      }
    }
    function links(pen, edges, tone, width, simple) {
      pen.strokeStyle = pen.fillStyle = tone;
      pen.lineWidth = width;
      pen.lineCap = "round";
      if (simple) strokes(pen, edges, true);
      else for (const [status, { dash }] of Object.entries(STATUS)) {
        pen.setLineDash(dash);
        strokes(pen, edges.filter((edge) => edge.status === status), false);
      }
      pen.setLineDash([]);
      if (simple || edges.length > 600) return;
      pen.beginPath();
      for (const edge of edges) arrow(pen, edge);
      pen.fill();
    }
    function marks(pen, nodes, alpha) {
      const looks = new Map();
      for (const node of nodes) {
        const look = kinds[node.kind];
        const color = part.colour() === "community" && node.community >= 0
          ? COMMUNITIES[node.community % COMMUNITIES.length] : look.color;
        const key = `${look.shape} ${color}`;
        if (!looks.has(key)) looks.set(key, { look, color, nodes: [] });
        looks.get(key).nodes.push(node);
      }
      pen.globalAlpha = alpha;
      pen.lineWidth = 1;
      for (const { look, color, nodes: some } of [...looks.values()].reverse()) {
        pen.fillStyle = tones.fill(color);
        pen.strokeStyle = tones.rim(color);
        for (let i = 0; i < some.length; i += 60) {
          pen.beginPath();
          for (const node of some.slice(i, i + 60)) {
            trace(pen, look.shape, node.px, node.py, node.r * grown());
          }
          pen.fill();
          pen.stroke();
        }
      }
      pen.globalAlpha = 1;
    }
    function measured(pen, text) {
      const key = `${pen.font}|${text}`;
      if (!widths.has(key)) widths.set(key, pen.measureText(text).width);
      return widths.get(key);
    }
    /* Names of the most telling nodes, each where it covers no other. */
    function names(pen, nodes, lit, focus, { w, h }) {
      const rank = (node) => (node === focus ? 1e6 : 0) + (lit && lit.has(node) ? 1e3 : 0)
        + (node.kind === "code" ? 200 : node.cells ? 100 : 0) + node.r;
      const inside = nodes.filter((node) => node.px > -20 && node.px < w + 20 && node.py > -20
        && node.py < h + 20 && (!lit || lit.has(node)));
      const taken = inside.filter((node) => node.kind === "code" || node.cells).map((node) => {
        const r = node.r * grown() * 0.8;  // names cover no code and no annotation
        return [node.px - r, node.py - r, node.px + r, node.py + r, node];
      });
      const most = Math.min(160, Math.max(24, (w * h * view.k) / 9000));
      let written = 0;
      pen.textBaseline = "middle";
      pen.textAlign = "center";
      pen.lineJoin = "round";
      pen.lineWidth = 3.5;
      for (const node of inside.sort((a, b) => rank(b) - rank(a) || a.rank - b.rank)) {
        const strong = node === focus, code = node.kind === "code";
        if (written > most && !strong) break;
        const height = strong ? 15 : code ? 13 : 11.5;
        pen.font = `${node.kind === "gene" ? "italic " : ""}${code || strong ? 600 : 400} `
          + `${height}px ${tones.font}`;
        const text = cut(node.label, strong ? 60 : 26);
        const half = measured(pen, text) / 2 + 3, r = node.r * grown(), up = height * 0.62;
        const spots = [[node.px, node.py + r + up + 2], [node.px, node.py - r - up - 1],
          [node.px + r + half + 1, node.py], [node.px - r - half - 1, node.py]];
        const free = spots.find(([x, y]) => x - half > 0 && x + half < w && y - up > 0 && y + up < h
          && taken.every((box) => box[4] === node || x - half > box[2] || x + half < box[0]
            || y - up > box[3] || y + up < box[1])) || (strong && spots[0]);
        if (!free) continue;
        pen.strokeStyle = tones.back;
        pen.strokeText(text, ...free);
        pen.fillStyle = tones.text;
        pen.fillText(text, ...free);
        taken.push([free[0] - half, free[1] - up, free[0] + half, free[1] + up]);
        written += 1;
      }
    }
    /* A large picture that moves shows a part of its links, so that it follows the hand. */
    function paint(pen, stageSize, quick) {
      const { nodes, edges: every, lit, litEdges, focus, ends } = part.scene();
      const step = quick ? Math.ceil(every.length / MOVING) : 1;
      const edges = step > 1 ? every.filter((edge, i) => i % step === 0
        || (litEdges && litEdges.has(edge))) : every;
      place(nodes);
      const simple = edges.length > PLAIN;
      const dense = Math.sqrt(500 / Math.max(500, edges.length));  // many links are drawn fainter
      pen.globalAlpha = lit ? 0.16 * Math.max(0.4, dense) : Math.max(0.08, 0.6 * dense);
      links(pen, lit ? edges.filter((edge) => !litEdges.has(edge)) : edges, tones.edge, 0.9,
        simple || Boolean(lit));
      pen.globalAlpha = 0.9;
      if (lit) links(pen, edges.filter((edge) => litEdges.has(edge)), tones.accent, 1.6,
        litEdges.size > PLAIN);
      if (lit) marks(pen, nodes.filter((node) => !lit.has(node)), 0.18);
      marks(pen, lit ? nodes.filter((node) => lit.has(node)) : nodes, 1);
      pen.strokeStyle = tones.text;
      pen.lineWidth = 2.2;
      for (const node of ends) {
        pen.beginPath();
        trace(pen, kinds[node.kind].shape, node.px, node.py, node.r * grown() + 3);
        pen.stroke();
      }
      names(pen, nodes, lit, focus, stageSize);
    }
    function draw() {
      waiting = false;
      if (!size.w || !size.h) return;
      const sharp = ratio();
      if (!tones) readTones();
      screen.setTransform(1, 0, 0, 1, 0, 0);
      screen.clearRect(0, 0, canvas.width, canvas.height);
      screen.setTransform(sharp, 0, 0, sharp, 0, 0);
      const quick = performance.now() - moved < 150;
      paint(screen, size, quick);
      clearTimeout(rest);
      if (quick) rest = setTimeout(later, 180);
    }
    function later() {
      if (!waiting) requestAnimationFrame(draw);
      waiting = true;
    }
    /* The picture for a file, with its title, what is shown and what the marks mean. */
    function picture(title, caption) {
      const sharp = 2, head = 44, sheet = document.createElement("canvas");
      let x = 14, y = head + size.h + 20;
      screen.font = `12px ${tones.font}`;
      const keys = part.legend().map((look) => {  // in as many rows as they need
        const long = 34 + screen.measureText(look.label).width + (look.dash ? 14 : 0);
        if (x + long > size.w && x > 14) [x, y] = [14, y + 20];
        x += long;
        return { ...look, x: x - long, y };
      });
      const foot = y + 38 - head - size.h;
      sheet.width = size.w * sharp;
      sheet.height = (size.h + head + foot) * sharp;
      const pen = sheet.getContext("2d");
      pen.scale(sharp, sharp);
      pen.fillStyle = tones.back;
      pen.fillRect(0, 0, size.w, size.h + head + foot);
      pen.save();
      pen.translate(0, head);
      pen.beginPath();
      pen.rect(0, 0, size.w, size.h);
      pen.clip();
      paint(pen, size);
      pen.restore();
      pen.textAlign = "left";
      pen.textBaseline = "middle";
      pen.fillStyle = tones.text;
      pen.font = `600 17px ${tones.font}`;
      pen.fillText(cut(plain(title), 120), 14, 24, size.w - 28);
      pen.font = `12px ${tones.font}`;
      for (const look of keys) {
        pen.beginPath();
        if (look.dash) {
          pen.moveTo(look.x, look.y);
          pen.lineTo(look.x + 24, look.y);
          pen.strokeStyle = tones.text;
          pen.lineWidth = 1.6;
          pen.setLineDash(look.dash);
          pen.stroke();
        } else {
          trace(pen, look.shape, look.x + 6, look.y, 5.5);
          pen.fillStyle = part.colour() === "kind" ? tones.fill(look.color) : tones.edge;
          pen.fill();
        }
        pen.fillStyle = tones.text;
        pen.fillText(look.label, look.x + (look.dash ? 31 : 17), look.y);
      }
      pen.fillStyle = tones.quiet;
      pen.fillText(plain(caption), 14, y + 22, size.w - 28);
      return sheet;
    }

    const middle = () => [size.w / 2, size.h / 2];
    function zoom(factor, x, y) {
      view = zoomed(view, factor, x, y, 24);
      moved = performance.now();
      later();
    }
    function whole() {
      view = { k: 1, x: 0, y: 0 };
      later();
    }
    /* Bring nodes into the middle of the stage. */
    function show(nodes) {
      if (!size.w) {
        awaited = nodes;
        return;
      }
      const { scale, shift } = fit(size);
      const xs = nodes.map((node) => (node.x - left) * scale[0] + shift[0]);
      const ys = nodes.map((node) => (node.y - top) * scale[1] + shift[1]);
      const box = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
      const k = Math.min(3, Math.max(1, Math.min(size.w / (box[1] - box[0] + 160),
        size.h / (box[3] - box[2] + 120))));
      view = { k, x: size.w / 2 - k * (box[0] + box[1]) / 2,
        y: size.h / 2 - k * (box[2] + box[3]) / 2 };
      later();
    }
    function nearest(x, y) {
      let best = null, far = 7;
      for (const node of part.scene().nodes) {
        const d = Math.max(0, Math.hypot(node.px - x, node.py - y) - node.r * grown());
        if (d <= far) [best, far] = [node, d];  // of some that overlap the one drawn last
      }
      return best;
    }
    const { at, drag } = movable(canvas, {
      zoom,
      shift: (dx, dy) => {
        view.x += dx;
        view.y += dy;
        moved = performance.now();
        later();
      },
      tap: (event, x, y) => part.tap(nearest(x, y)),
    });
    if (spec.page) canvas.addEventListener("wheel", (event) => {  // nothing else to scroll there
      if (document.activeElement === canvas || event.ctrlKey) return;  // done by `movable`
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * 0.0016), ...at(event));
    }, { passive: false });
    canvas.addEventListener("pointermove", (event) => {
      if (drag.size || event.pointerType === "touch") return;
      const node = nearest(...at(event));
      canvas.classList.toggle("cvx-over", Boolean(node));
      part.hover(node);
    });
    canvas.addEventListener("pointerleave", () => part.hover(null));
    canvas.addEventListener("keydown", (event) => {
      const { nodes, focus } = part.scene();
      const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60],
        ArrowDown: [0, -60] }[event.key];
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (step && event.shiftKey) {
        const next = focus ? ahead(event.key, focus, nodes) : nodes.filter((node) => node.px > 0
          && node.px < size.w && node.py > 0 && node.py < size.h)[0];
        if (next) {
          part.hover(next, true);
          const out = [Math.max(0, 40 - next.px) - Math.max(0, next.px - size.w + 40),
            Math.max(0, 40 - next.py) - Math.max(0, next.py - size.h + 40)];
          view.x += out[0];
          view.y += out[1];
        }
      } else if (step) {
        view.x += step[0];
        view.y += step[1];
      } else if (event.key === "Enter" && focus) part.tap(focus, true);
      else if (event.key === "Escape") part.tap(null);
      else if (event.key === "+" || event.key === "=") zoom(1.4, ...middle());
      else if (event.key === "-") zoom(1 / 1.4, ...middle());
      else if (event.key === "0") whole();
      else return;
      event.preventDefault();
      later();
    });
    function measure() {
      const now = { w: canvas.clientWidth, h: canvas.clientHeight };
      if (!now.w || !now.h || (now.w === size.w && now.h === size.h)) return;
      view.x *= now.w / (size.w || now.w);
      view.y *= now.h / (size.h || now.h);
      size = now;
      canvas.width = Math.round(size.w * ratio());
      canvas.height = Math.round(size.h * ratio());
      if (awaited) show(awaited);
      awaited = null;
      draw();
    }
    new ResizeObserver(measure).observe(canvas);
    const restyle = () => {
      tones = null;
      later();
    };
    new MutationObserver(restyle).observe(document.documentElement, { attributes: true });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);
    return { canvas, draw, later, whole, show, picture, measure,
      zoomBy: (by) => zoom(by, ...middle()) };
  }

  function explore(figure, spec, number) {
    const kinds = spec.kinds, links = spec.links, model = load(spec);
    const { nodes, edges, byId } = model;
    const used = { kinds: Object.keys(links).filter((kind) => edges.some((e) => e.kind === kind)),
      nodes: Object.keys(kinds).filter((kind) => nodes.some((node) => node.kind === kind)),
      status: Object.keys(STATUS).filter((name) => edges.some((e) => e.status === name)) };
    const large = nodes.length > FIRST * 1.25, grouped = nodes.some((node) => node.community > 0);
    const state = { node: null, from: null, to: null, view: "graph", fdr: 1, cells: 0,
      colour: "kind", kinds: new Set(used.kinds), nodes: new Set(used.nodes),
      status: new Set(used.status) };
    let all = !large, unfolded = new Set(), hovered = null, way = null, sorted = null, rows = ROWS;
    let scene = { nodes: [], edges: [], here: new Set() }, passing = [];
    let pathOpen = false, owned = false;  // owned: the address of the page is ours
    const owner = figure === document.querySelector('.cellvq-figure[data-kind="explorer"]');

    /* Which links the filters leave, and what of that is drawn. */
    const passes = (edge) => state.kinds.has(edge.kind) && state.status.has(edge.status)
      && state.nodes.has(edge.from.kind) && state.nodes.has(edge.to.kind)
      && (edge.status !== "finding" || (edge.fdr <= state.fdr && edge.n_cells >= state.cells));
    const drawn = (node) => all || node.rank < FIRST || unfolded.has(node);
    function sift() {
      passing = edges.filter(passes);
      const held = new Set([state.node, state.from, state.to, ...(way ? way.nodes : [])]);
      const seen = new Set(nodes.filter((node) => held.has(node) || (drawn(node)
        && node.kind === "code" && state.nodes.has("code"))));
      const lanes = new Set(), kept = [];
      for (const edge of passing) {
        if (!(drawn(edge.from) || held.has(edge.from)) || !(drawn(edge.to) || held.has(edge.to))) {
          continue;
        }
        seen.add(edge.from).add(edge.to);
        if (!lanes.has(edge.lane)) kept.push(edge);  // of each kind the strongest
        lanes.add(edge.lane);
      }
      scene = { nodes: nodes.filter((node) => seen.has(node)), edges: kept, here: seen };
      scene.nodes.sort((a, b) => (a.kind === "code") - (b.kind === "code"));
    }
    const neighbours = (node) => node.links.filter(passes)
      .map((edge) => (edge.from === node ? edge.to : edge.from));
    /* What the picture points out: the node under the pointer, a path, or the chosen node. */
    function lightUp() {
      const focus = hovered || (way ? null : state.node);
      const ends = [state.node, state.from, state.to].filter(Boolean);
      if (!focus && !way) return { ...scene, ends, focus: null, lit: null, litEdges: null };
      const litEdges = new Set(scene.edges.filter((edge) => (focus
        ? edge.from === focus || edge.to === focus : way.lanes.has(edge.lane))));
      const lit = new Set([...litEdges].flatMap((edge) => [edge.from, edge.to]));
      for (const node of focus ? [focus] : way.nodes) lit.add(node);
      return { ...scene, ends: hovered ? [...ends, hovered] : ends, focus, lit, litEdges };
    }
    let pointed = null;
    const now = () => (pointed ||= lightUp());

    /* The frame: head, bar, filters, stage, card. */
    const root = add(figure, "div", { class: spec.page ? "cvx cvx-page" : "cvx" });
    const frame = add(root, "div", { class: "cvx-frame" });
    const head = add(frame, "div", { class: "cvx-head" });
    add(head, spec.page ? "h1" : "strong", { class: "cvx-title", dir: "auto" }, spec.title);
    const told = add(head, "p", { class: "cvx-told" });
    const bar = add(frame, "div", { class: "cvx-bar", role: "group", "aria-label": "Tools" });
    const button = (parent, text, name, act, extra = {}) => {
      const made = add(parent, "button", { type: "button", class: "cvx-button", title: name,
        "aria-label": name, ...extra }, text);
      made.addEventListener("click", act);
      return made;
    };
    function find(text) {
      const wanted = plain(text).toLowerCase();
      if (!wanted) return [];
      const score = (node) => (node.key === wanted ? 0 : node.key.startsWith(wanted) ? 1
        : node.key.includes(wanted) ? 2 : node.id.toLowerCase() === wanted ? 3 : 9);
      return nodes.map((node) => [score(node), node]).filter(([value]) => value < 9)
        .sort((a, b) => a[0] - b[0] || a[1].rank - b[1].rank).slice(0, 12).map(([, node]) => node);
    }
    const search = offer(bar, { id: `cvx-found-${number}`, label: "Search a node by its name",
      hint: "Search code, gene, annotation \u2026", find, kinds,
      take: (node) => choose(node, "search") });
    search.classList.add("cvx-search");
    const views = add(bar, "span", { class: "cvx-group", role: "group", "aria-label": "View" });
    const viewButtons = Object.fromEntries([["graph", "Graph", "Show the graph"],
      ["links", "Links", "Show the links as a table"],
      ["nodes", "Nodes", "Show the nodes as a table"],
    ].map(([name, text, says]) => [name, button(views, text, says, () => change({ view: name }))]));
    const actions = add(bar, "span", { class: "cvx-group" });
    const pathButton = button(actions, "Path", "Find the shortest path between two nodes", () => {
      pathOpen = !pathOpen;
      if (!pathOpen) return void change({ from: null, to: null });
      if (state.node) change({ from: state.node, node: null });
      else showPanel();
      fields[state.from ? "to" : "from"].focus();
    });
    button(actions, "PNG", "Save the picture of the graph as PNG", savePicture);
    button(actions, "CSV", "Save what is shown as a table, CSV", saveTable);
    if (spec.page) button(actions, "\u25d0", "Light or dark page", () => {
      const there = document.documentElement.dataset.theme;
      const dark = there ? there === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      document.documentElement.dataset.theme = dark ? "light" : "dark";
      try {
        localStorage.setItem("cellvq-theme", document.documentElement.dataset.theme);
      } catch { /* a browser may refuse storage to a file */ }
    }, { class: "cvx-button cvx-theme" });
    const body = add(frame, "div", { class: "cvx-body" });
    const filters = add(body, "details", { class: "cvx-filters" });
    const filterHead = add(filters, "summary", {}, "Filters");
    const filterNote = add(filterHead, "span", { class: "cvx-note" });
    const sieve = add(filters, "div", { class: "cvx-sieve" });
    const stage = add(body, "div", { class: "cvx-stage" });
    const tableBox = add(body, "div", { class: "cvx-tables", tabindex: "0", role: "region",
      "aria-label": "Table" });
    const panel = add(body, "div", { class: "cvx-panel" });
    const pathBox = add(panel, "section", { class: "cvx-path", "aria-label": "Path" });
    const card = add(panel, "section", { class: "cvx-card", "aria-label": "Card" });
    const live = add(root, "p", { class: "cvx-live", role: "status", "aria-live": "polite" });
    const announce = (text) => {
      live.textContent = text;
    };
    const picture = drawing(stage, spec, model, {
      scene: now,
      colour: () => state.colour,
      legend: () => [...used.nodes.filter((kind) => state.nodes.has(kind))
        .map((kind) => kinds[kind]), ...used.status.filter((name) => state.status.has(name))
        .map((name) => ({ label: STATUS[name].says, dash: STATUS[name].dash }))],
      hover: (node, aloud) => {
        if (node === hovered) return;
        hovered = node;
        pointed = null;
        picture.later();
        if (node && aloud) announce(inShort(node));
      },
      tap: (node, key) => {
        hovered = null;
        choose(node, key ? "key" : "tap");
      },
    });
    const tools = add(stage, "div", { class: "cvx-zoom", role: "group", "aria-label": "Zoom" });
    button(tools, "+", "Zoom in", () => picture.zoomBy(1.4));
    button(tools, "\u2212", "Zoom out", () => picture.zoomBy(1 / 1.4));
    button(tools, "\u2922", "Show the whole graph", picture.whole);
    const legend = add(stage, "div", { class: "cvx-legend", role: "group",
      "aria-label": "Legend: kinds of nodes, shown or hidden" });

    /* Filters. */
    function choices(parent, title, name, options) {
      const group = add(parent, "fieldset");
      add(group, "legend", {}, title);
      const boxes = options.map(([value, draw]) => {
        const label = add(group, "label");
        const box = add(label, "input", { type: "checkbox", value });
        draw(label);
        box.addEventListener("change", () => {
          const on = new Set(state[name]);
          on[box.checked ? "add" : "delete"](value);
          change({ [name]: on }, true);
        });
        return box;
      });
      if (options.length > 3) {
        const line = add(group, "p", { class: "cvx-all" });
        button(line, "all", `${title}: all`, () => change({ [name]: new Set(used[name]) }, true));
        button(line, "none", `${title}: none`, () => change({ [name]: new Set() }, true));
      }
      return () => boxes.forEach((box) => {
        box.checked = state[name].has(box.value);
      });
    }
    const much = (test) => count(edges.filter(test).length);
    const line = (text, detail, number) => (label) => {
      const words = add(label, "span", {}, text);
      if (detail) add(words, "small", {}, detail);
      add(label, "em", {}, number);
    };
    function slider(title, steps, words, name, note) {
      const group = add(sieve, "fieldset");
      add(group, "legend", {}, title);
      const field = add(group, "input", { type: "range", min: 0, max: steps.length - 1, step: 1,
        "aria-label": title });
      const shown = add(group, "output");
      add(group, "small", {}, note);
      field.addEventListener("input", () => change({ [name]: steps[Number(field.value)] }, true));
      return () => {
        const value = state[name];
        field.value = steps.reduce((best, step, i) => (Math.abs(Math.log((step + 1e-320)
          / (value + 1e-320))) < Math.abs(Math.log((steps[best] + 1e-320) / (value + 1e-320)))
          ? i : best), 0);
        shown.textContent = words(value);
        field.setAttribute("aria-valuetext", words(value));
      };
    }
    const found = edges.filter((edge) => edge.status === "finding");
    const worst = found.reduce((most, edge) => Math.max(most, edge.fdr), 0);
    const least = found.reduce((low, edge) => Math.min(low, edge.fdr), 1);
    const largest = found.reduce((most, edge) => Math.max(most, edge.n_cells), 0);
    const refresh = [choices(sieve, "Links", "kinds", used.kinds.map((kind) => [kind,
      line(links[kind].says, `${kinds[links[kind].source].label} \u2013 `
        + kinds[links[kind].target].label, much((edge) => edge.kind === kind))]))];
    refresh.push(choices(sieve, "Status", "status", used.status.map((name) => [name, (label) => {
      strip(label, STATUS[name].dash);
      line(STATUS[name].says, STATUS[name].about, much((edge) => edge.status === name))(label);
    }])));
    if (found.length) {
      refresh.push(slider("FDR of findings", [1, ...FDR.filter((step) => step < worst
        && step > least)], (value) => (value >= 1 ? "all" : atMost(value)), "fdr",
      "Priors and structure have no FDR."));
      refresh.push(slider("Cells behind a finding", CELLS.filter((step) => step < largest),
        (value) => (value ? `at least ${count(value)}` : "all"), "cells",
        "Cells that its numbers come from."));
    }
    if (grouped) {
      const group = add(sieve, "fieldset");
      add(group, "legend", {}, "Colour");
      for (const [value, text] of [["kind", "by kind of node"], ["community", "by community"]]) {
        const label = add(group, "label");
        const box = add(label, "input", { type: "radio", name: `cvx-colour-${number}`, value });
        add(label, "span", {}, text);
        box.addEventListener("change", () => change({ colour: value }, true));
        refresh.push(() => {
          box.checked = state.colour === value;
        });
      }
    }
    for (const kind of used.nodes) {
      const made = button(legend, "", `${kinds[kind].label}, shown or hidden`, () => {
        const on = new Set(state.nodes);
        on[on.has(kind) ? "delete" : "add"](kind);
        change({ nodes: on }, true);
      });
      icon(made, kinds[kind]);
      add(made, "span", {}, kinds[kind].label);
      refresh.push(() => made.setAttribute("aria-pressed", String(state.nodes.has(kind))));
    }
    for (const name of used.status) {
      const key = add(legend, "span", { class: "cvx-key" });
      strip(key, STATUS[name].dash);
      add(key, "span", {}, STATUS[name].says);
    }

    /* The path between two nodes: breadth first over the links that the filters leave. */
    const fields = {};
    const pathForm = add(pathBox, "div", { class: "cvx-ends" });
    add(pathForm, "div", { class: "cvx-name", role: "heading", "aria-level": "2" },
      "Shortest path");
    for (const [name, text] of [["from", "From"], ["to", "To"]]) {
      const label = add(pathForm, "div", { class: "cvx-end" });
      add(label, "span", { "aria-hidden": "true" }, text);
      fields[name] = offer(label, { id: `cvx-${name}-${number}`, label: `${text}: node of the path`,
        hint: "name", find, kinds, take: (node) => {
          change({ [name]: node, node: null });
          if (name === "from" && !state.to) fields.to.focus();
        } });
    }
    button(pathForm, "\u00d7", "Close the path", () => {
      pathButton.click();
      pathButton.focus();
    }, { class: "cvx-button cvx-close" });
    const pathList = add(pathBox, "div");
    function walk(start, end) {
      const before = new Map([[start, null]]), queue = [start];
      for (let i = 0; i < queue.length && !before.has(end); i++) {
        for (const edge of queue[i].links) {
          const next = edge.from === queue[i] ? edge.to : edge.from;
          if (before.has(next) || !passes(edge)) continue;
          before.set(next, edge);
          queue.push(next);
        }
      }
      if (!before.has(end)) return null;
      const steps = [], passed = [end];
      for (let at = end; before.get(at);) {
        const edge = before.get(at);
        at = edge.from === at ? edge.to : edge.from;
        steps.unshift(edge);
        passed.unshift(at);
      }
      return { steps, nodes: passed, lanes: new Set(steps.map((edge) => edge.lane)) };
    }

    /* Cards. */
    const link = (parent, node) => {
      const made = add(parent, "a", { href: `#${address({ ...values(), node: node.id, from: null,
        to: null, view: null })}`, class: "cvx-link" });
      add(made, "bdi", {}, node.label);
      made.addEventListener("click", (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
        event.preventDefault();
        choose(node, "link");
      });
      return made;
    };
    function say(parent, edge, about) {
      const made = add(parent, "span", { class: "cvx-said" });
      for (const each of sentence(edge, links)) {
        if (typeof each === "string") add(made, "span", {}, each);
        else if (each === about) add(made, "bdi", {}, each.label);
        else link(made, each);
      }
      return made;
    }
    const proof = (edge) => [edge.null && `null: ${edge.null}`,
      edge.evidence && `evidence: ${edge.evidence}`].filter(Boolean).join("; ");
    function inShort(node) {
      const cells = node.cells ? `, ${many(node.cells, "cell")}` : "";
      return `${node.label}, ${kinds[node.kind].label}${cells}, `
        + `${many(node.links.filter(passes).length, "link")}`;
    }
    const title = (parent, node) => {
      const top = add(parent, "div", { class: "cvx-card-head" });
      icon(top, kinds[node.kind]);
      const name = add(top, "div", { class: "cvx-name", role: "heading", "aria-level": "2",
        tabindex: "-1" });
      add(name, "bdi", {}, node.name || node.id);
      return top;
    };
    function fillCard(node) {
      card.replaceChildren();
      card.scrollTop = panel.scrollTop = 0;
      const top = title(card, node);
      button(top, "\u00d7", "Close the card", () => {
        choose(null);
        (state.view === "graph" ? picture.canvas : tableBox).focus({ preventScroll: true });
      }, { class: "cvx-button cvx-close" });
      const facts = add(card, "dl");
      const fact = (name, value) => {
        add(facts, "dt", {}, name);
        add(facts, "dd", { dir: "auto" }, value);
      };
      fact("kind", kinds[node.kind].label);
      if (node.cells) fact("cells", count(node.cells));
      if (node.donors) fact("donors", count(node.donors));
      if (grouped && node.community >= 0) fact("community", String(node.community));
      if (node.detail) fact("about", node.detail);
      const here = node.links.filter(passes), hiddenLinks = node.links.length - here.length;
      const buttons = add(card, "p", { class: "cvx-row" });
      button(buttons, "Path from here", `Find a path from ${node.label}`, () => {
        pathOpen = true;
        change({ from: node, to: null, node: null });
        fields.to.focus();
      });
      const folded = new Set(neighbours(node).filter((other) => !drawn(other)));
      if (folded.size) {
        button(buttons, `Show ${many(folded.size, "more neighbour")}`,
          `Draw all neighbours of ${node.label}`, () => {
            for (const other of folded) unfolded.add(other);
            update();
            card.querySelector(".cvx-name").focus({ preventScroll: true });
          });
      }
      if (hiddenLinks) add(card, "p", { class: "cvx-note" },
        `${many(hiddenLinks, "more link")} hidden by the filters.`);
      if (!here.length && !hiddenLinks) add(card, "p", { class: "cvx-note" }, "No links.");
      for (const kind of used.kinds) {
        const some = here.filter((edge) => edge.kind === kind);
        if (some.length) group(node, kind, some);
      }
    }
    /* Links of a kind; what they have in common is said once, at their head. */
    function group(node, kind, some) {
      const box = add(card, "section", { class: "cvx-kind" });
      const name = add(box, "div", { class: "cvx-kind-head", role: "heading", "aria-level": "3" },
        links[kind].says);
      add(name, "em", {}, ` ${count(some.length)}`);
      const same = new Set(some.map(proof)).size === 1;
      const unit = links[kind].effect !== "none" && some.some((edge) => edge.effect !== null
        && edge.status === "finding") ? `effect: ${links[kind].effect}` : "";
      const about = [unit, same ? proof(some[0]) : ""].filter(Boolean).join("; ");
      if (about) add(box, "p", { class: "cvx-proof" }, about);
      const list = add(box, "ul");
      const fill = (part) => {
        for (const edge of part) {
          const item = add(list, "li");
          say(item, edge, node);
          add(item, "small", {}, numbers(edge, links));
          if (!same && proof(edge)) add(item, "small", {}, proof(edge));
        }
      };
      fill(some.slice(0, LISTED));
      if (some.length > LISTED) {
        const more = button(box, `${count(some.length - LISTED)} more`,
          `${count(some.length - LISTED)} more: ${links[kind].says}`, () => {
            const next = list.children.length;
            fill(some.slice(LISTED));
            more.remove();
            list.children[next].querySelector("a")?.focus();
          });
      }
    }
    /* Without a chosen node: where to begin. */
    function fillStart() {
      card.replaceChildren();
      add(card, "div", { class: "cvx-name", role: "heading", "aria-level": "2" }, "Where to begin");
      add(card, "p", {}, spec.alt);
      const codes = nodes.filter((node) => node.kind === "code" && state.nodes.has("code"))
        .sort((a, b) => b.cells - a.cells || a.rank - b.rank);
      const first = (codes.length ? codes : [...nodes].sort((a, b) => a.rank - b.rank)).slice(0, 8);
      if (first.length) {
        add(card, "div", { class: "cvx-kind-head", role: "heading", "aria-level": "3" },
          codes.length ? "largest codes" : "strongest nodes");
        const list = add(card, "ul");
        for (const node of first) {
          const item = add(list, "li");
          icon(item, kinds[node.kind]);
          link(item, node);
          add(item, "small", { dir: "auto" }, [node.cells ? many(node.cells, "cell") : "",
            node.detail].filter(Boolean).join(" \u00b7 "));
        }
      } else add(card, "p", {}, "This graph has no nodes.");
      add(card, "p", { class: "cvx-note" }, "A finding was tested in these cells. A prior was "
        + "known before. Structure is how the codes were made.");
      if (spec.notes.length) {
        add(card, "div", { class: "cvx-kind-head", role: "heading", "aria-level": "3" },
          "what is missing");
        const list = add(card, "ul", { class: "cvx-missing" });
        for (const note of spec.notes) add(list, "li", { dir: "auto" }, note);
      }
    }
    function fillPath() {
      pathList.replaceChildren();
      for (const name of ["from", "to"]) {
        if (document.activeElement !== fields[name] || state[name]) {
          fields[name].value = state[name] ? state[name].label : "";
        }
      }
      if (!state.from || !state.to) {
        add(pathList, "p", { class: "cvx-note" }, "Name two nodes; the path takes the fewest links "
          + "that the filters leave.");
      } else if (state.from === state.to) {
        add(pathList, "p", { class: "cvx-note" }, "Both ends are the same node; name two.");
      } else if (!way) {
        add(pathList, "p", { class: "cvx-note" }, "No path leads over the links that the filters "
          + "leave.");
      } else {
        add(pathList, "p", { class: "cvx-note" }, `${many(way.steps.length, "step")}. Where paths `
          + "are equally short, kinds of links go in the order of the filters, strongest first.");
        const list = add(pathList, "ol");
        for (const edge of way.steps) {
          const item = add(list, "li");
          say(item, edge, null);
          add(item, "small", {}, numbers(edge, links));
          if (proof(edge)) add(item, "small", {}, proof(edge));
        }
      }
    }
    function showPanel() {
      panel.hidden = state.view !== "graph" && !state.node && !pathOpen;
      body.classList.toggle("cvx-alone", panel.hidden);
      pathBox.hidden = !pathOpen;
      pathButton.setAttribute("aria-pressed", String(pathOpen));
      if (pathOpen) fillPath();
      card.hidden = pathOpen && !state.node;
      if (state.node) fillCard(state.node);
      else fillStart();
    }

    /* Tables, the way to all of it without the picture. */
    const COLUMNS = {
      links: [["source", (edge) => edge.from.label, (cell, edge) => link(cell, edge.from)],
        ["says", (edge) => links[edge.kind].says, null, null, "cvx-middle"],
        ["target", (edge) => edge.to.label, (cell, edge) => link(cell, edge.to)],
        ["name", (edge) => edge.name], ["status", (edge) => edge.status],
        ["effect", (edge) => edge.effect, null, (v) => signed(v)],
        ["FDR", (edge) => edge.fdr, null, (v) => small(v)],
        ["cells", (edge) => edge.n_cells || null, null, count],
        ["donors", (edge) => edge.n_donors || null, null, count],
        ["null", (edge) => edge.null, null, null, "cvx-wide"],
        ["evidence", (edge) => edge.evidence, null, null, "cvx-wide"]],
      nodes: [["name", (node) => node.label, (cell, node) => link(cell, node)],
        ["kind", (node) => kinds[node.kind].label],
        ["cells", (node) => node.cells || null, null, count],
        ["donors", (node) => node.donors || null, null, count],
        ["links", (node) => node.shownLinks, null, count],
        ["about", (node) => node.detail, null, null, "cvx-wide"]],
    };
    function listed() {
      if (state.view === "links") return state.node ? state.node.links.filter(passes) : passing;
      for (const node of nodes) node.shownLinks = 0;
      for (const edge of passing) {
        edge.from.shownLinks += 1;
        if (edge.to !== edge.from) edge.to.shownLinks += 1;
      }
      return nodes.filter((node) => state.nodes.has(node.kind)).sort((a, b) => a.rank - b.rank);
    }
    function fillTable() {
      const at = tableBox.scrollLeft;
      tableBox.replaceChildren();
      const columns = COLUMNS[state.view], entries = listed();
      const by = sorted && columns.find(([name]) => name === sorted.name);
      if (by) {
        const value = by[1], way = sorted.down ? -1 : 1;
        entries.sort((a, b) => {
          const [u, v] = [value(a), value(b)];
          if (u === null || v === null) return (u === null) - (v === null);
          return way * (typeof u === "number" ? u - v : u.localeCompare(v, "en"));
        });
      }
      const about = state.node && state.view === "links" ? ` of ${state.node.label}` : "";
      tableBox.setAttribute("aria-label", `Table of ${state.view}${about}`);
      const above = add(tableBox, "p", { class: "cvx-above", dir: "auto" },
        `${many(entries.length, state.view.slice(0, -1))}${about}. `);
      if (about) button(above, "all links", "Show the links of all nodes", () => choose(null));
      const table = add(tableBox, "table");
      const line = add(add(table, "thead"), "tr");
      for (const [name, , , format, look] of columns) {
        const here = by && by[0] === name;
        const cell = add(line, "th", { scope: "col", "aria-sort": !here ? "none"
          : sorted.down ? "descending" : "ascending", class: format ? "cvx-number" : look || "" });
        const sort = button(cell, name, `Sort by ${name}`, () => {
          sorted = { name, down: here ? !sorted.down : false };
          fillTable();
          [...tableBox.querySelectorAll("th button")].find((each) => each.dataset.name === name)
            .focus();
        });
        sort.dataset.name = name;
        if (here) add(sort, "span", { "aria-hidden": "true" }, sorted.down ? " \u25be" : " \u25b4");
      }
      const foot = add(table, "tbody");
      for (const entry of entries.slice(0, rows)) {
        const row = add(foot, "tr");
        columns.forEach(([, value, fill, format, look], i) => {
          const cell = add(row, i ? "td" : "th", i ? { class: format ? "cvx-number" : look || "" }
            : { scope: "row" });
          if (fill) return void fill(cell, entry);
          const found = value(entry);
          add(cell, "bdi", {}, found === null ? "" : format ? format(found) : found);
        });
      }
      if (entries.length > rows) button(add(tableBox, "p", { class: "cvx-above" }),
        `${count(Math.min(ROWS, entries.length - rows))} more rows`, "Show more rows", () => {
          const next = rows;
          rows += ROWS;
          fillTable();
          tableBox.querySelectorAll("tbody tr")[next].querySelector("a")?.focus();
        });
      tableBox.scrollLeft = at;
    }

    /* Files. */
    const slug = plain(spec.title).toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "")
      .slice(0, 60) || "graph";
    function savePicture() {
      if (state.view !== "graph") change({ view: "graph" });
      picture.measure();
      const made = picture.picture(spec.title, `${told.textContent} ${filterNote.textContent}`);
      const bytes = atob(made.toDataURL("image/png").split(",")[1]);
      save(new Blob([Uint8Array.from(bytes, (sign) => sign.charCodeAt(0))], { type: "image/png" }),
        `${slug}.png`);
      announce("The picture is saved as PNG.");
    }
    const LINK_COLUMNS = ["source", "target", "kind", "name", "directed", "status", "effect",
      "n_cells", "n_donors", "p", "fdr", "null", "evidence", "stability", "source_name",
      "target_name"];
    const NODE_COLUMNS = ["id", "kind", "name", "cells", "donors", "detail"];
    function saveTable() {
      const about = state.view === "nodes" ? "nodes" : "links";
      const some = state.view === "graph" ? passing.filter(drawnEdge) : listed();
      const text = about === "nodes" ? csv(NODE_COLUMNS, some.map((node) => NODE_COLUMNS.map(
        (name) => node[name]))) : csv(LINK_COLUMNS, some.map((edge) => LINK_COLUMNS.map((name) => (
        name === "source" ? edge.from.id : name === "target" ? edge.to.id
          : name === "source_name" ? edge.from.name : name === "target_name" ? edge.to.name
            : name === "directed" ? (edge.directed ? "True" : "False") : edge[name]))));
      save(new Blob([text], { type: "text/csv;charset=utf-8" }), `${slug}-${about}.csv`);
      announce(`${many(some.length, about.slice(0, -1))} saved as CSV.`);
    }
    const drawnEdge = (edge) => scene.here.has(edge.from) && scene.here.has(edge.to);

    /* State, address and what follows from them. */
    const some = (name) => (state[name].size === used[name].length ? null
      : used[name].filter((each) => state[name].has(each)).join(","));
    const values = () => ({ node: state.node && state.node.id, from: state.from && state.from.id,
      to: state.to && state.to.id, view: state.view === "graph" ? null : state.view,
      kinds: some("kinds"), nodes: some("nodes"), status: some("status"),
      fdr: state.fdr < 1 ? String(state.fdr) : null,
      cells: state.cells ? String(state.cells) : null,
      colour: state.colour === "kind" ? null : state.colour });
    function remember(quietly) {
      const wanted = address(values());
      if (!owner || wanted === address(readAddress()) || (!wanted && !owned)) return;
      owned = true;
      const url = wanted ? `#${wanted}` : location.pathname + location.search;
      try {
        history[quietly ? "replaceState" : "pushState"](null, "", url);
      } catch {
        if (!quietly) location.hash = wanted;  // a frame may not change its history
      }
    }
    function restore() {
      const read = readAddress();
      const among = (name) => (read[name] === undefined ? new Set(used[name])
        : new Set(read[name].split(",").filter((each) => used[name].includes(each))));
      const named = (name) => byId.get(read[name]) || null;
      const between = (name, low, high, usual) => (read[name] !== undefined
        && Number(read[name]) >= low && Number(read[name]) <= high ? Number(read[name]) : usual);
      owned ||= Object.keys(read).length > 0;
      Object.assign(state, { node: named("node"), from: named("from"), to: named("to"),
        view: Object.hasOwn(COLUMNS, read.view ?? "") ? read.view : "graph", kinds: among("kinds"),
        nodes: among("nodes"), status: among("status"), fdr: between("fdr", 0, 1, 1),
        cells: between("cells", 0, 1e12, 0), colour: grouped && read.colour === "community"
          ? "community" : "kind" });
      pathOpen = Boolean(state.from || state.to);
      if (state.node) unfold(state.node);
      update();
      const lost = ["node", "from", "to"].find((name) => read[name] && !state[name]);
      if (lost) announce(`This graph has no node ${plain(read[lost])}.`);
      else if (state.node) announce(inShort(state.node));
      if (way) picture.show(way.nodes);
      else if (state.node) picture.show([state.node, ...near(state.node)]);
    }
    function unfold(node) {
      if (all) return;
      unfolded.add(node);
      for (const other of neighbours(node).slice(0, UNFOLDED)) unfolded.add(other);
    }
    const near = (node) => scene.edges.flatMap((edge) => (edge.from === node ? [edge.to]
      : edge.to === node ? [edge.from] : []));
    function change(wanted, quietly = false) {
      Object.assign(state, wanted);
      if (state.from || state.to) pathOpen = true;
      rows = ROWS;
      update();
      remember(quietly);
      if ("from" in wanted || "to" in wanted) {
        if (way) picture.show(way.nodes);
        if (state.from && state.to) announce(way
          ? `Path of ${many(way.steps.length, "step")}.` : "No path.");
      }
      if (quietly) announce(told.textContent);
    }
    /* how: tap (on the picture), key (there), search or link. */
    function choose(node, how) {
      const missing = ["from", "to"].find((name) => !state[name]);
      if (node && pathOpen && missing && (how === "tap" || how === "key")) {
        change({ [missing]: node });
        return;
      }
      if (node) unfold(node);
      if (node !== state.node || pathOpen) {
        pathOpen = false;
        change({ node, from: null, to: null });
      }
      if (!node) return;
      announce(inShort(node));
      if (how === "search" || how === "link") picture.show([node, ...near(node)]);
      if (how !== "tap") card.querySelector(".cvx-name").focus({ preventScroll: true });
      if (panel.getBoundingClientRect().top > innerHeight - 90) {
        panel.scrollIntoView({ block: "nearest" });
      }
    }
    function update() {
      way = state.from && state.to && state.from !== state.to ? walk(state.from, state.to) : null;
      for (const node of way ? way.nodes : []) unfolded.add(node);
      sift();
      pointed = null;
      for (const each of refresh) each();
      const active = [["kinds", "kinds of links"], ["status", "status"],
        ["nodes", "kinds of nodes"]].filter(([name]) => some(name) !== null)
        .map(([, text]) => text);
      if (state.fdr < 1) active.push(`FDR ${atMost(state.fdr)}`);
      if (state.cells) active.push(`at least ${many(state.cells, "cell")}`);
      filterNote.textContent = active.length ? `Filtered: ${active.join(", ")}.` : "";
      const inside = passing.filter(drawnEdge).length;
      told.textContent = `${count(scene.nodes.length)} of ${many(nodes.length, "node")}, `
        + `${count(inside)} of ${many(edges.length, "link")} shown.`;
      more.hidden = !large;
      more.textContent = all ? "Show the strongest" : "Show all";
      legend.classList.toggle("cvx-plain", state.colour === "community");
      for (const [name, each] of Object.entries(viewButtons)) {
        each.setAttribute("aria-pressed", String(state.view === name));
      }
      stage.hidden = state.view !== "graph";
      tableBox.hidden = state.view === "graph";
      if (state.view !== "graph") fillTable();
      showPanel();
      picture.later();
    }
    const more = button(head, "Show all", "Show all nodes, or the strongest alone", () => {
      all = !all;
      unfolded = new Set();
      if (state.node) unfold(state.node);
      update();
      announce(told.textContent);
    });
    addEventListener("popstate", () => {  // addresses of the page's own headings are not ours
      const ours = location.hash.length < 2 || Object.keys(readAddress()).length;
      if (owner && ours) restore();
    });
    root.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !state.node || event.defaultPrevented) return;
      choose(null);
      (state.view === "graph" ? picture.canvas : tableBox).focus({ preventScroll: true });
    });
    const roomy = new ResizeObserver(() => {
      if (root.clientWidth > 960) filters.open = true;
      roomy.disconnect();
    });
    roomy.observe(root);
    figure.cellvqExplorer = { draw: picture.draw, canvas: picture.canvas,
      shown: () => ({ nodes: scene.nodes.map((node) => node.id), links: passing.filter(drawnEdge)
        .length, drawn: scene.edges.length }),
      at: (id) => [byId.get(id).px, byId.get(id).py] };
    if (owner) restore();
    else update();
  }

  register("explorer", explore);
})();
