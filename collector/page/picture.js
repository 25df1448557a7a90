// Draws the map, and lets people move in it by mouse, touch and keyboard.

import { byId, bytes, count, counted, el, svg } from "./dom.js";
import { layout } from "./layout.js";

const HEIGHT = 40;
/** Pixels around a curve in which a click is for it. */
const NEAR = 7;
/** Edges whose direction has an arrow each, and that show which of them is below the pointer. */
const MOST_ARROWS = 1500;
/** Nodes and edges that are laid out at once: that takes less than a worker takes to start. */
const SMALL = 600;
const SCALE = { least: 0.03, most: 3, far: 0.45 };

const text = (node) => (node.label.length > 26 ? `${node.label.slice(0, 25)}…` : node.label);
const pen = document.createElement("canvas").getContext("2d");
function widthOf(words, font) {
  pen.font = `${font} "DejaVu Sans", system-ui, sans-serif`;
  return pen.measureText(words).width;
}
const width = (node) => Math.ceil(Math.max(84, 26 + widthOf(text(node), "bold 14px"), 26 + widthOf(detail(node), "11px")));
const thickness = (edge) => Math.min(9, 1.2 + 0.75 * Math.log10(1 + edge.bytes / 100));

function detail(node) {
  if (node.kind === "namespace") return counted(node.parties.length, "workload");
  if (node.class) return node.folded > 0 ? `folded, with ${counted(node.folded, "call")}` : "folded";
  return node.folded > 0 ? `${node.kind} · ${counted(node.folded, "call")} folded` : node.kind;
}

function description(node, { calls, callers }) {
  const where = node.party?.namespace === undefined ? "" : ` in namespace ${node.party.namespace}`;
  return `${node.label}, ${detail(node)}${where}: calls ${calls}, is called by ${callers}`;
}

export class Picture {
  /** Draws into the element with the ID `map`. `open(node)` and `openEdge(edge)` are called for what is chosen. */
  constructor({ open, openEdge, leave }) {
    this.port = byId("map");
    this.stage = el("div", { class: "stage" });
    this.port.append(this.stage);
    Object.assign(this, { open, openEdge, leave, x: 0, y: 0, scale: 1, elements: new Map(), paths: new Map() });
    this.number = 0;
    this.listen();
  }

  /**
   * Shows nodes and edges; calls back when they are drawn. What has the same nodes and edges as before keeps its places, and a user who
   * has moved the map keeps the place in it, until the choices are others.
   */
  show(nodes, edges, choices, drawn) {
    if (choices !== this.choices) this.isMoved = false;
    this.choices = choices;
    const key = JSON.stringify([nodes.map((node) => [node.id, text(node), detail(node)]), edges.map((edge) => edge.id)]);
    Object.assign(this, { nodes, edges, drawn });
    if (key === this.key) {
      if (this.result) this.update();
      return;
    }
    this.key = key;
    this.result = undefined;
    this.number += 1;
    this.port.dataset.state = "waiting";
    this.began = performance.now();
    const sizes = nodes.map((node) => ({ id: node.id, group: node.group, w: width(node), h: HEIGHT }));
    const pairs = edges.map(({ id, from, to }) => ({ id, from, to }));
    if (nodes.length + edges.length <= SMALL) this.placed({ number: this.number, ...layout(sizes, pairs) });
    else this.inWorker({ number: this.number, nodes: sizes, edges: pairs });
  }

  inWorker(request) {
    if (this.worker === undefined) {
      this.worker = new Worker(workerAddress(), { type: "module" });
      this.worker.addEventListener("message", ({ data }) => this.placed(data));
    }
    this.worker.postMessage(request);
  }

  placed(result) {
    if (result.number !== this.number) return;
    this.result = result;
    const focused = this.port.contains(document.activeElement) ? document.activeElement.dataset.id : undefined;
    this.draw();
    this.update();
    this.keepInView();
    this.port.dataset.state = "ready";
    this.port.dataset.milliseconds = Math.round(performance.now() - this.began);
    if (focused !== undefined) this.elements.get(focused)?.focus();
  }

  draw() {
    const { w, h, groups, nodes, edges } = this.result;
    const [byNode, byEdge] = [this.nodes, this.edges].map((all) => new Map(all.map((one) => [one.id, one])));
    const boxes = groups.map((group) => svg("g", { class: "group" },
      svg("rect", { x: group.x, y: group.y, width: group.w, height: group.h, rx: 10 }),
      svg("text", { x: group.x + 14, y: group.y + 22 }, group.title)));
    this.paths = new Map();
    this.curves = edges;
    const arrows = edges.length <= MOST_ARROWS;
    const marks = [];
    const lines = edges.map(({ id, points: [[x, y], ...rest] }) => {
      const path = svg("path", { d: `M${x} ${y}C${rest.map((point) => point.map(Math.round).join(" ")).join(" ")}` });
      if (arrows) path.setAttribute("marker-end", "url(#arrow)");
      path.dataset.id = id;
      const mark = svg("text", { class: "failures", "text-anchor": "middle" });
      [mark.at] = [middle([[x, y], ...rest])];
      marks.push(mark);
      this.paths.set(id, { path, mark, edge: byEdge.get(id) });
      return path;
    });
    this.elements = new Map();
    const shapes = nodes.map(({ id, x, y }) => {
      const node = byNode.get(id);
      const shape = svg("g", { class: `node kind-${node.kind.toLowerCase().replace(/[^a-z]/g, "")}`, tabindex: -1, role: "button", transform: `translate(${x} ${y})` },
        svg("rect", { width: width(node), height: HEIGHT, rx: 7 }),
        svg("text", { class: "name", x: 12, y: 17 }, text(node)),
        svg("text", { class: "detail", x: 12, y: 32 }, detail(node)));
      Object.assign(shape.dataset, { id, x: x + width(node) / 2, y: y + HEIGHT / 2 });
      if (node.isFocus) shape.classList.add("focus");
      this.elements.set(id, shape);
      return shape;
    });
    const arrow = svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto-start-reverse" },
      svg("path", { d: "M0 0 8 4 0 8z" }));
    this.drawing = svg("svg", { width: w, height: h, "aria-hidden": "false" }, svg("defs", {}, arrow),
      svg("g", {}, boxes), svg("g", { class: "edges" }, lines), svg("g", {}, shapes), svg("g", {}, marks));
    this.stage.replaceChildren(this.drawing);
    shapes[0]?.setAttribute("tabindex", 0);
  }

  /** What changes without a new layout. */
  update() {
    const current = new Map(this.edges.map((edge) => [edge.id, edge]));
    for (const [id, shown] of this.paths) {
      shown.edge = current.get(id);
      const { path, mark, edge } = shown;
      path.setAttribute("stroke-width", thickness(edge).toFixed(1));
      path.classList.toggle("failing", edge.failures > 0);
      mark.textContent = edge.failures > 0 ? `✕ ${count(edge.failures)}` : "";
      if (edge.failures > 0) {
        mark.setAttribute("x", mark.at[0]);
        mark.setAttribute("y", mark.at[1] - 5);
      }
    }
    const degrees = new Map(this.nodes.map((node) => [node.id, { calls: 0, callers: 0 }]));
    for (const { from, to } of this.edges) {
      degrees.get(from).calls += 1;
      degrees.get(to).callers += 1;
    }
    for (const node of this.nodes) this.elements.get(node.id).setAttribute("aria-label", description(node, degrees.get(node.id)));
    this.drawn(this.result);
  }

  /** Shows which nodes are searched for, and which node or edge is open. */
  mark({ found, open, edge }) {
    for (const node of this.nodes ?? []) {
      const shape = this.elements.get(node.id);
      shape?.classList.toggle("dim", found !== undefined && !node.parties.some((party) => found.has(party.id)));
      shape?.classList.toggle("found", found !== undefined && node.parties.some((party) => found.has(party.id)));
      shape?.classList.toggle("open", node.id === open);
    }
    for (const [id, { path, edge: shown }] of this.paths) {
      const ends = [shown?.from, shown?.to];
      path.classList.toggle("open", id === edge || (edge === "" && ends.includes(open)));
    }
  }

  // Moving.

  move() {
    this.stage.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.drawing?.classList.toggle("far", this.scale < SCALE.far);
    this.drawing?.style.setProperty("--title", `${Math.min(64, Math.max(13, 12 / this.scale))}px`);
    // As a layer of its own, it moves without being painted again; afterwards, it is painted once, sharply.
    this.stage.classList.add("moving");
    clearTimeout(this.still);
    this.still = setTimeout(() => this.stage.classList.remove("moving"), 250);
  }

  /** Unless the user has chosen a part of it. */
  keepInView() {
    if (this.isMoved) this.move();
    else this.fit();
  }

  fit() {
    this.isMoved = false;
    const { clientWidth, clientHeight } = this.port;
    const { w, h } = this.result ?? { w: 0, h: 0 };
    if (w === 0 || clientWidth === 0) return;
    this.scale = Math.max(SCALE.least, Math.min(1.15, (clientWidth - 48) / w, (clientHeight - 48) / h));
    this.x = (clientWidth - w * this.scale) / 2;
    this.y = (clientHeight - h * this.scale) / 2;
    this.move();
  }

  zoom(factor, [x, y] = [this.port.clientWidth / 2, this.port.clientHeight / 2]) {
    const scale = Math.max(SCALE.least, Math.min(SCALE.most, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.isMoved = true;
    this.move();
  }

  pan(x, y) {
    this.x += x;
    this.y += y;
    this.isMoved = true;
    this.move();
  }

  /** Moves a node into the window, and gives it the keyboard. */
  reveal(id) {
    const shape = this.elements.get(id);
    if (!shape) return false;
    for (const other of this.elements.values()) other.setAttribute("tabindex", other === shape ? 0 : -1);
    const [x, y] = [this.x + shape.dataset.x * this.scale, this.y + shape.dataset.y * this.scale];
    const { clientWidth, clientHeight } = this.port;
    if (x < 60 || y < 40 || x > clientWidth - 60 || y > clientHeight - 40) this.pan(clientWidth / 2 - x, clientHeight / 2 - y);
    shape.focus({ preventScroll: true });
    return true;
  }

  listen() {
    const { port } = this;
    const within = (event) => {
      const box = port.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let drag;
    port.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), within(event));
    }, { passive: false });
    port.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      drag = { at: within(event), moved: 0 };
    });
    port.addEventListener("pointermove", (event) => {
      if (!drag) {
        this.hover(within(event));
        return;
      }
      const at = within(event);
      const [dx, dy] = [at[0] - drag.at[0], at[1] - drag.at[1]];
      drag.moved += Math.abs(dx) + Math.abs(dy);
      drag.at = at;
      // Not before: else a click would be for this element, and not for the node.
      if (drag.moved > 4 && !port.hasPointerCapture(event.pointerId)) port.setPointerCapture(event.pointerId);
      if (drag.moved > 4) this.pan(dx, dy);
    });
    const end = () => {
      this.dragged = drag !== undefined && drag.moved > 4;
      drag = undefined;
    };
    port.addEventListener("pointerup", end);
    port.addEventListener("pointercancel", end);
    port.addEventListener("click", (event) => {
      if (this.dragged) return;
      const shape = event.target.closest(".node");
      if (shape) this.choose(shape.dataset.id);
      else this.openNearest(within(event));
    });
    port.addEventListener("keydown", (event) => this.press(event));
    // What has the keyboard must be visible.
    port.addEventListener("scroll", () => port.scrollTo(0, 0));
    new ResizeObserver(() => this.keepInView()).observe(port);
  }

  choose(id) {
    const node = this.nodes.find((one) => one.id === id);
    if (node) this.open(node);
  }

  openNearest(at) {
    const id = this.nearest(at);
    if (id !== undefined) this.openEdge(this.paths.get(id).edge);
    else this.leave();
  }

  hover(at) {
    if (!this.curves || this.curves.length > MOST_ARROWS || this.hovering) return;
    this.hovering = requestAnimationFrame(() => {
      this.hovering = undefined;
      const id = this.nearest(at);
      if (id === this.hovered) return;
      this.paths.get(this.hovered)?.path.classList.remove("hovered");
      this.hovered = id;
      const shown = this.paths.get(id);
      shown?.path.classList.add("hovered");
      this.port.classList.toggle("on-edge", shown !== undefined);
      const name = (end) => this.nodes.find((node) => node.id === end)?.label;
      this.port.title = shown?.edge ? `${name(shown.edge.from)} → ${name(shown.edge.to)}: ${bytes(shown.edge.bytes)}` : "";
    });
  }

  /** The edge whose curve is nearest to a point of the window. */
  nearest([px, py]) {
    const [x, y] = [(px - this.x) / this.scale, (py - this.y) / this.scale];
    let [best, id] = [NEAR / this.scale, undefined];
    for (const { id: other, points } of this.curves ?? []) {
      for (let i = 0; i + 3 < points.length; i += 3) {
        const part = points.slice(i, i + 4);
        if (part.every((point) => point[0] < x - best) || part.every((point) => point[0] > x + best)) continue;
        if (part.every((point) => point[1] < y - best) || part.every((point) => point[1] > y + best)) continue;
        const steps = Math.max(8, Math.ceil(Math.hypot(part[3][0] - part[0][0], part[3][1] - part[0][1]) / 8));
        for (let step = 0; step <= steps; step += 1) {
          const [cx, cy] = bezier(part, step / steps);
          const distance = Math.hypot(cx - x, cy - y);
          if (distance < best) [best, id] = [distance, other];
        }
      }
    }
    return id;
  }

  /** Arrows go to the nearest node in their direction; with Shift they move the map. */
  press(event) {
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const direction = directions[event.key];
    const shape = event.target.closest?.(".node");
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (direction && (event.shiftKey || !shape)) this.pan(-60 * direction[0], -60 * direction[1]);
    else if (direction) this.step(shape, direction);
    else if (event.key === "+" || event.key === "=") this.zoom(1.25);
    else if (event.key === "-") this.zoom(0.8);
    else if (event.key === "0") this.fit();
    else if (shape && (event.key === "Enter" || event.key === " ")) this.choose(shape.dataset.id);
    else if (event.key === "Escape") this.leave();
    else return;
    event.preventDefault();
  }

  step(shape, [dx, dy]) {
    const [x, y] = [Number(shape.dataset.x), Number(shape.dataset.y)];
    let [best, next] = [Infinity, undefined];
    for (const other of this.elements.values()) {
      const [ox, oy] = [other.dataset.x - x, other.dataset.y - y];
      const along = ox * dx + oy * dy;
      if (other === shape || along <= 4) continue;
      const distance = along + 3 * Math.abs(ox * dy + oy * dx);
      if (distance < best) [best, next] = [distance, other];
    }
    if (next) this.reveal(next.dataset.id);
  }
}

function bezier([a, b, c, d], t) {
  const u = 1 - t;
  const at = (axis) => u * u * u * a[axis] + 3 * u * u * t * b[axis] + 3 * u * t * t * c[axis] + t * t * t * d[axis];
  return [at(0), at(1)];
}

function middle(points) {
  const part = 3 * Math.floor((points.length - 1) / 6);
  return bezier(points.slice(part, part + 4), 0.5).map(Math.round);
}

/** The only text that becomes the address of a script here, and the only one that the browser is told to accept (`trusted-types`). */
function workerAddress() {
  const address = "page/worker.js";
  if (globalThis.trustedTypes === undefined) return address;
  return trustedTypes.createPolicy("worker", { createScriptURL: () => address }).createScriptURL("");
}
