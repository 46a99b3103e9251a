/* Draws the interactive figures of the book, without any library and without the network.

   Python writes <div class="cellvq-figure"> holding a JSON description with positions already
   computed (cellvq/graphview.py); this script draws graphs as SVG, and cellvq-atlas.js, which takes
   its helpers from here, draws cells and trees. Colours of the page come from CSS, so a change of
   theme needs no new drawing. Names from data only ever become text, never markup. */
(() => {
  "use strict";

  const SVG = "http://www.w3.org/2000/svg";
  const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#999933",
    "#882255", "#44aa99", "#6f4fa0", "#b5651d", "#7a8796"];
  const DASHES = ["", "7 4", "2 4", "10 3 2 3", "1 6"];
  const corners = (n, turn) => (r) => "M" + Array.from({ length: n }, (_, i) => {
    const angle = turn + (2 * Math.PI * i) / n;
    return `${(r * Math.cos(angle)).toFixed(2)} ${(r * Math.sin(angle)).toFixed(2)}`;
  }).join("L") + "Z";
  const SHAPES = {
    circle: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`,
    square: (r) => corners(4, Math.PI / 4)(r * 1.2),
    diamond: (r) => corners(4, 0)(r * 1.25),
    triangle: (r) => corners(3, -Math.PI / 2)(r * 1.3),
    hexagon: (r) => corners(6, 0)(r * 1.1),
  };

  /* One element with attributes and, if given, a text. */
  function add(parent, tag, attributes = {}, text) {
    const svg = tag === "svg" || parent.namespaceURI === SVG;
    const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    parent.appendChild(element);
    return element;
  }

  /* A detail is a text, a list of texts, or names with values: always returned as lines. */
  function lines(detail) {
    if (detail === undefined || detail === null || detail === "") return [];
    if (Array.isArray(detail)) return detail.map(String);
    if (typeof detail !== "object") return String(detail).split("\n");
    return Object.entries(detail).map(([name, value]) => `${name}: ${value}`);
  }

  /* The view after zooming by a factor about a point that stays where it is. */
  function zoomed(view, factor, x, y, most = 12) {
    const k = Math.min(most, Math.max(0.5, view.k * factor)), by = k / view.k;
    return { k, x: x - (x - view.x) * by, y: y - (y - view.y) * by };
  }

  /* The nearest of some marks in the direction of an arrow key; undefined for other keys. */
  const WAYS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  function ahead(key, here, marks) {
    const way = WAYS[key];
    if (!way) return undefined;
    const found = marks.filter((mark) => mark !== here).map((mark) => {
      const dx = mark.px - here.px, dy = mark.py - here.py;
      const along = dx * way[0] + dy * way[1], aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
      return { mark, along, cost: along + 2 * aside };
    }).filter((each) => each.along > 0).sort((a, b) => a.cost - b.cost)[0];
    return found ? found.mark : null;
  }

  /* Zoom and shift by wheel, mouse and finger; a press that did not move is a tap. */
  function movable(surface, { zoom, shift, tap }) {
    const at = (event) => {
      const box = surface.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const drag = new Map();
    let moved = 0;
    surface.addEventListener("wheel", (event) => {
      if (document.activeElement !== surface && !event.ctrlKey) return;  // let the page scroll
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * 0.0016), ...at(event));
    }, { passive: false });
    surface.addEventListener("pointerdown", (event) => {
      drag.set(event.pointerId, at(event));
      moved = 0;
    });
    surface.addEventListener("pointermove", (event) => {
      const before = drag.get(event.pointerId);
      if (!before) return;
      const now = at(event);
      moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
      if (moved > 4 && !surface.hasPointerCapture(event.pointerId)) {
        surface.setPointerCapture(event.pointerId);
      }
      if (drag.size === 2) {
        const other = [...drag].find(([id]) => id !== event.pointerId)[1];
        const apart = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
        zoom(apart(now) / apart(before), other[0], other[1]);
      } else shift(now[0] - before[0], now[1] - before[1]);
      drag.set(event.pointerId, now);
    });
    const release = (event) => {
      if (event.type === "pointerup" && drag.size === 1 && moved <= 4) tap(event, ...at(event));
      drag.delete(event.pointerId);
    };
    surface.addEventListener("pointerup", release);
    surface.addEventListener("pointercancel", release);
    return { at, drag };
  }

  /* The title, the search field with what can be found, and a maker of buttons. */
  function toolbar(figure, number, spec, names, what) {
    const bar = add(figure, "div", { class: "cvf-bar" });
    add(bar, "span", { class: "cvf-title" }, spec.title || "");
    const find = add(bar, "input", { type: "search", class: "cvf-find", list: `cvf-names-${number}`,
      placeholder: `Find ${what}`, "aria-label": `Find ${what} by its name` });
    const options = add(figure, "datalist", { id: `cvf-names-${number}` });
    for (const name of names) add(options, "option", { value: name });
    const buttons = add(bar, "span", { class: "cvf-buttons" });
    const button = (text, name, action) => {
      const made = add(buttons, "button", { type: "button", "aria-label": name, title: name }, text);
      made.addEventListener("click", action);
      return made;
    };
    return { bar, find, button };
  }

  /* Empties a card; where there is something to tell, opens it with a head. */
  function openCard(card, head, about, close) {
    card.replaceChildren();
    card.classList.toggle("cvf-open", head !== null);
    if (head === null) return;
    const top = add(card, "div", { class: "cvf-card-head" });
    add(top, "strong", {}, head);
    add(top, "span", {}, about);
    const cross = add(top, "button", { type: "button", "aria-label": "Close" }, "\u00d7");
    cross.addEventListener("click", close);
  }

  function drawGraph(figure, spec, number) {
    const kinds = spec.kinds || {};
    const kindOf = (name, i) => ({ label: name, color: PALETTE[i % PALETTE.length], shape: "circle",
      ...kinds[name] });
    const names = [...new Set(spec.nodes.map((node) => node.kind))];
    const look = new Map(names.map((name, i) => [name, kindOf(name, i)]));
    const nodes = spec.nodes.map((node) => ({ ...node, r: Math.max(3, node.size || 6), links: [] }));
    const byId = new Map(nodes.map((node) => [node.id, node]));
    const edges = spec.edges.filter((edge) => byId.has(edge.source) && byId.has(edge.target))
      .map((edge) => ({ ...edge, from: byId.get(edge.source), to: byId.get(edge.target) }));
    const edgeKinds = [...new Set(edges.map((edge) => edge.kind))];
    const communities = [...new Set(nodes.map((node) => node.community))].sort((a, b) => a - b);
    const hidden = new Set();
    const heaviest = Math.max(1e-9, ...edges.map((edge) => Math.abs(edge.weight ?? 1)));
    for (const edge of edges) {
      edge.from.links.push(edge);
      if (edge.to !== edge.from) edge.to.links.push(edge);
    }
    let view = { k: 1, x: 0, y: 0 }, size = { w: 0, h: 0 }, chosen = null, hovered = null;
    let colouring = "kind", waiting = false;

    /* The parts around the drawing. */
    const { find, button } = toolbar(figure, number, spec, nodes.map((node) => node.label), "a node");
    button("+", "Zoom in", () => zoom(1.4, size.w / 2, size.h / 2));
    button("\u2212", "Zoom out", () => zoom(1 / 1.4, size.w / 2, size.h / 2));
    button("Reset", "Show the whole graph", reset);
    if (communities.length > 1 && communities.length < nodes.length) {
      const colour = button("Communities", "Colour the nodes by community, not by kind", () => {
        colouring = colouring === "kind" ? "community" : "kind";
        colour.setAttribute("aria-pressed", String(colouring === "community"));
        legend.classList.toggle("cvf-plain", colouring === "community");
        paint();
      });
      colour.setAttribute("aria-pressed", "false");
    }
    const legend = add(figure, "div", { class: "cvf-legend", role: "group",
      "aria-label": "Show or hide kinds" });
    const toggle = (key, text, draw) => {
      const made = add(legend, "button", { type: "button", "aria-pressed": "true" });
      draw(add(made, "svg", { viewBox: "-12 -9 24 18", "aria-hidden": "true" }));
      add(made, "span", {}, text);
      made.addEventListener("click", () => {
        hidden[hidden.has(key) ? "delete" : "add"](key);
        made.setAttribute("aria-pressed", String(!hidden.has(key)));
        later();
      });
    };
    for (const [name, kind] of look) {
      const count = nodes.filter((node) => node.kind === name).length;
      toggle(`node ${name}`, `${kind.label} (${count})`, (svg) => add(svg, "path", {
        d: (SHAPES[kind.shape] || SHAPES.circle)(6.5), fill: kind.color, class: "cvf-mark" }));
    }
    for (const [i, name] of edgeKinds.entries()) {
      const label = (kinds[name] && kinds[name].label) || name;
      toggle(`edge ${name}`, label, (svg) => add(svg, "path", { d: "M-11 0H11", class: "cvf-edge",
        "stroke-dasharray": DASHES[i % DASHES.length], "stroke-width": 2.2 }));
    }

    const stage = add(figure, "div", { class: "cvf-stage" });
    const svg = add(stage, "svg", { class: "cvf-drawing", tabindex: "0", role: "application",
      "aria-roledescription": "graph", "aria-label": `${spec.alt || spec.title || "Graph"} `
        + "Arrow keys go from node to node, Enter keeps one, Escape lets go, plus and minus zoom." });
    const defs = add(svg, "defs");
    const arrow = (name) => {
      const marker = add(defs, "marker", { id: `cvf-${name}-${number}`, viewBox: "0 0 8 8", refX: 7,
        refY: 4, markerWidth: 8, markerHeight: 8, orient: "auto", markerUnits: "userSpaceOnUse" });
      add(marker, "path", { d: "M0 .8L8 4L0 7.2Z", class: `cvf-${name}` });
      return `url(#cvf-${name}-${number})`;
    };
    const arrows = { usual: arrow("arrow"), strong: arrow("arrow-strong") };
    const edgeLayer = add(svg, "g"), nodeLayer = add(svg, "g"), labelLayer = add(svg, "g");
    for (const edge of edges) {
      const share = Math.abs(edge.weight ?? 1) / heaviest;
      edge.path = add(edgeLayer, "path", { class: "cvf-edge", "stroke-width": (0.8 + 1.8 * share).toFixed(2),
        "stroke-dasharray": DASHES[edgeKinds.indexOf(edge.kind) % DASHES.length] });
    }
    for (const node of nodes) {
      const shape = SHAPES[look.get(node.kind).shape] || SHAPES.circle;
      node.mark = add(nodeLayer, "path", { d: shape(node.r), class: "cvf-mark" });
      node.text = add(labelLayer, "text", { class: "cvf-label" }, node.label);
      node.mark.addEventListener("pointerenter", () => hover(node));
      node.mark.addEventListener("pointerleave", () => hover(null));
    }
    const card = add(stage, "div", { class: "cvf-card", "aria-live": "polite" });
    add(figure, "p", { class: "cvf-hint" }, "Hover or tap a node for its evidence. Drag to move; "
      + "click into the figure, then scroll or pinch to zoom.");

    /* World positions fitted into the stage, then the reader's zoom and shift. */
    const range = (key) => {
      const values = nodes.map((node) => node[key]);
      return [Math.min(...values), Math.max(...values)];
    };
    const [left, right] = range("x"), [top, bottom] = range("y");
    function place(node) {
      const pad = 34;
      const scale = Math.min((size.w - 2 * pad) / (right - left || 1), (size.h - 2 * pad) / (bottom - top || 1));
      const x = size.w / 2 + (node.x - (left + right) / 2) * scale;
      const y = size.h / 2 + (node.y - (top + bottom) / 2) * scale;
      node.px = x * view.k + view.x;
      node.py = y * view.k + view.y;
    }
    const shown = (node) => !hidden.has(`node ${node.kind}`);
    const shownEdge = (edge) => !hidden.has(`edge ${edge.kind}`) && shown(edge.from) && shown(edge.to);

    /* Every edge is a slight curve, so that two directions between the same nodes can be told apart. */
    function curve(edge) {
      const { from, to } = edge;
      if (from === to) {
        const r = from.r;
        return `M${from.px} ${from.py - r}C${from.px + 3 * r + 10} ${from.py - 3 * r - 12} `
          + `${from.px + 3 * r + 12} ${from.py + r + 4} ${from.px + r + 2} ${from.py}`;
      }
      const dx = to.px - from.px, dy = to.py - from.py, far = Math.hypot(dx, dy) || 1;
      const bend = edge.directed ? 0.12 : 0.04;
      const cx = (from.px + to.px) / 2 - dy * bend, cy = (from.py + to.py) / 2 + dx * bend;
      const inwards = Math.hypot(to.px - cx, to.py - cy) || 1;
      const stop = Math.min(far * 0.45, to.r + 2) / inwards;
      return `M${from.px.toFixed(1)} ${from.py.toFixed(1)}Q${cx.toFixed(1)} ${cy.toFixed(1)} `
        + `${(to.px - (to.px - cx) * stop).toFixed(1)} ${(to.py - (to.py - cy) * stop).toFixed(1)}`;
    }

    /* Labels go in the order of node size, as long as they cover neither a label nor a large node. */
    function label(near) {
      const taken = nodes.filter((node) => shown(node) && node.r > 7)
        .map((node) => [node.px - node.r, node.py - node.r, node.px + node.r, node.py + node.r, node]);
      const first = (node) => (near && near.has(node) ? 1e6 : 0) + node.r;
      for (const node of [...nodes].sort((a, b) => first(b) - first(a))) {
        const wide = String(node.label).length * 6.6 + 4;
        const spots = [[node.px, node.py + node.r + 12], [node.px, node.py - node.r - 5],
          [node.px + node.r + wide / 2 + 2, node.py + 4], [node.px - node.r - wide / 2 - 2, node.py + 4]];
        const free = shown(node) && (!near || near.has(node)) && spots.find(([x, y]) => {
          const box = [x - wide / 2, y - 10, x + wide / 2, y + 3];
          return box[0] > 0 && box[2] < size.w && box[1] > 0 && box[3] < size.h
            && taken.every((other) => other[4] === node || box[0] > other[2] || box[2] < other[0]
              || box[1] > other[3] || box[3] < other[1]);
        });
        node.text.style.display = free ? "" : "none";
        if (!free) continue;
        node.text.setAttribute("x", free[0].toFixed(1));
        node.text.setAttribute("y", free[1].toFixed(1));
        taken.push([free[0] - wide / 2, free[1] - 10, free[0] + wide / 2, free[1] + 3, null]);
      }
    }

    function draw() {
      waiting = false;
      const focus = chosen || hovered;
      const near = focus && new Set([focus, ...focus.links.filter(shownEdge)
        .flatMap((edge) => [edge.from, edge.to])]);
      nodes.forEach(place);
      for (const node of nodes) {
        node.mark.style.display = shown(node) ? "" : "none";
        node.mark.setAttribute("transform", `translate(${node.px.toFixed(1)} ${node.py.toFixed(1)})`);
        node.mark.classList.toggle("cvf-faint", Boolean(near) && !near.has(node));
        node.mark.classList.toggle("cvf-chosen", node === focus);
      }
      for (const edge of edges) {
        edge.path.style.display = shownEdge(edge) ? "" : "none";
        edge.path.setAttribute("d", curve(edge));
        const on = near && (edge.from === focus || edge.to === focus);
        edge.path.classList.toggle("cvf-faint", Boolean(near) && !on);
        edge.path.classList.toggle("cvf-strong", Boolean(on));
        if (edge.directed) edge.path.setAttribute("marker-end", on ? arrows.strong : arrows.usual);
      }
      label(near);
    }
    function later() {
      if (!waiting) requestAnimationFrame(draw);
      waiting = true;
    }
    function paint() {
      for (const node of nodes) {
        node.mark.setAttribute("fill", colouring === "kind" ? look.get(node.kind).color
          : PALETTE[communities.indexOf(node.community) % PALETTE.length]);
      }
    }

    /* The card: what is known of a node, and its neighbours with the evidence of each edge. */
    function describe(node) {
      openCard(card, node && node.label, node && look.get(node.kind).label, () => choose(null));
      if (!node) return;
      for (const line of lines(node.detail)) add(card, "p", {}, line);
      const links = node.links.filter(shownEdge);
      if (!links.length) return;
      const list = add(card, "ul");
      for (const edge of links.slice(0, 40)) {
        const out = edge.from === node, other = out ? edge.to : edge.from;
        const verb = (kinds[edge.kind] && kinds[edge.kind].label) || edge.kind;
        const item = add(list, "li");
        const jump = add(item, "button", { type: "button" },
          out ? `${verb} ${other.label}` : `${other.label} ${verb} it`);
        jump.addEventListener("click", () => choose(other, true));
        for (const line of lines(edge.detail)) add(item, "small", {}, line);
      }
      if (links.length > 40) add(list, "li", {}, `and ${links.length - 40} more`);
    }
    function hover(node) {
      if (drag.size) return;
      hovered = node;
      if (!chosen) describe(node);
      later();
    }
    function choose(node, centre = false) {
      chosen = node;
      if (node && centre) {
        place(node);
        view.x += size.w * (size.w > 620 ? 0.36 : 0.5) - node.px;  // the card lies on the right
        view.y += size.h / 2 - node.py;
      }
      describe(node);
      later();
    }

    /* Zoom and shift, by wheel, finger, key and button. */
    function zoom(factor, x, y) {
      view = zoomed(view, factor, x, y);
      later();
    }
    function reset() {
      view = { k: 1, x: 0, y: 0 };
      choose(null);
    }
    const { drag } = movable(svg, {
      zoom,
      shift: (dx, dy) => {
        view.x += dx;
        view.y += dy;
        later();
      },
      tap: (event) => choose(nodes.find((node) => node.mark === event.target) || null),
    });
    svg.addEventListener("keydown", (event) => {
      const here = chosen || { px: size.w / 2, py: size.h / 2 };
      const next = ahead(event.key, here, nodes.filter(shown));
      if (next !== undefined) {
        if (next || !chosen) choose(next || nodes.find(shown) || null);
      } else if (event.key === "Enter") choose(chosen || hovered, true);
      else if (event.key === "Escape") choose(null);
      else if (event.key === "+" || event.key === "=") zoom(1.4, size.w / 2, size.h / 2);
      else if (event.key === "-") zoom(1 / 1.4, size.w / 2, size.h / 2);
      else if (event.key === "0") reset();
      else return;
      event.preventDefault();
    });
    const search = () => {
      const wanted = find.value.trim().toLowerCase();
      if (!wanted) return;
      const named = nodes.filter(shown);
      const hit = named.find((node) => String(node.label).toLowerCase() === wanted);
      find.setAttribute("aria-invalid", String(!hit && !named.some(
        (node) => String(node.label).toLowerCase().startsWith(wanted))));
      if (hit) choose(hit, true);
    };
    find.addEventListener("input", search);
    find.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      const wanted = find.value.trim().toLowerCase();
      const hit = wanted && nodes.find((node) => shown(node) && String(node.label).toLowerCase().includes(wanted));
      if (hit) choose(hit, true);
    });

    new ResizeObserver(() => {
      size = { w: stage.clientWidth, h: svg.clientHeight };
      if (size.w && size.h) {
        svg.setAttribute("viewBox", `0 0 ${size.w} ${size.h}`);
        draw();
      }
    }).observe(svg);
    size = { w: stage.clientWidth, h: svg.clientHeight };
    svg.setAttribute("viewBox", `0 0 ${size.w} ${size.h}`);
    paint();
    draw();
  }

  const DRAW = { graph: drawGraph };

  function refuse(figure, fault) {
    add(figure, "p", { class: "cvf-hint" }, "This figure could not be drawn.");
    console.error("cellvq-figure:", fault);
  }
  function drawAll() {
    const figures = [...document.querySelectorAll(".cellvq-figure")];
    for (const [number, figure] of figures.entries()) {
      try {
        if (figure.dataset.drawn || figure.querySelector(".cvf-hint")) continue;
        const spec = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
        if (!DRAW[spec.kind]) {
          if (document.readyState === "complete") throw new Error(`no script draws ${spec.kind}`);
          continue;  // the script for this kind may follow
        }
        DRAW[spec.kind](figure, spec, number);
        figure.dataset.drawn = "1";
      } catch (fault) {
        refuse(figure, fault);
      }
    }
  }
  window.cellvqFigures = { add, ahead, movable, openCard, toolbar, zoomed, register: (kind, draw) => {
    DRAW[kind] = draw;
    drawAll();
  } };
  addEventListener("load", drawAll);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", drawAll);
  else drawAll();
})();
