// The page: gets the map every few seconds, and shows what the user has chosen of it.

import { byId, count, counted, el, time } from "./dom.js";
import { exported, filtersOf, prepare, showFlows } from "./flows.js";
import { CLASSES, classes, parse, picture, search } from "./graph.js";
import { Picture } from "./picture.js";
import { choose, state, toggled, watch } from "./state.js";
import { callDetails, foldedDetails, joinedDetails, partyDetails, showCalls, title } from "./tables.js";

const INTERVAL = 5000;
const FORMATS = {
  map: ["JSON", "json"],
  list: ["Text, as the Otterize CLI prints it", "txt"],
  "client-intents": ["ClientIntents", "yaml"],
  "client-intents-v1": ["ClientIntents v1alpha3", "yaml"],
  "client-intents-json": ["ClientIntents in JSON", "json"],
  dot: ["Graphviz", "dot"],
  mermaid: ["Mermaid", "mmd"],
  svg: ["SVG", "svg"],
  "network-policy": ["NetworkPolicies, to be reviewed", "yaml"],
};
const THEMES = ["", "light", "dark"];

let graph;
let status;
let tag;
/** What is drawn now. */
let shown;
/** A node or edge that is open, if it is none of the map itself. */
let opened;
let lost = 0;

const actions = {
  openEdge: (edge) => open(undefined, { edge: edge.id }),
  focus: (party) => open(undefined, { view: "map", focus: party.id, edge: "" }),
  flows: (edge) => choose({ view: "flows", flow: filtersOf(edge) }),
  unfold: (node) => {
    opened = undefined;
    choose(node.class ? { unfold: [...state.unfold, node.class] } : { toggle: toggled(state.toggle, node.namespace) });
  },
};

function open(what, choices = {}) {
  opened = what;
  choose(choices);
}

const drawing = new Picture({
  open: (node) => {
    if (node.party) actions.focus(node.party);
    else open({ node }, { edge: "" });
  },
  openEdge: (edge) => {
    if (edge.calls.length === 1) actions.openEdge(edge.calls[0]);
    else open({ edge }, { edge: "" });
  },
  leave,
});

/** One step back: from details to the focus, and from there to all. */
function leave() {
  if (opened || state.edge !== "") open(undefined, { edge: "" });
  else if (state.focus !== "") open(undefined, { focus: "" });
}

// Getting it.

async function get(path, headers = {}) {
  const response = await fetch(path, { headers, cache: "no-store" });
  if (!response.ok && response.status !== 304) throw new Error(`${response.status}: ${(await response.text()).trim()}`);
  return response;
}

async function refresh() {
  try {
    const map = await get("map?format=map", tag === undefined ? {} : { "If-None-Match": tag });
    if (map.status !== 304) {
      graph = parse(await map.json());
      tag = map.headers.get("ETag") ?? undefined;
    }
    const next = await (await get("status")).json();
    lost = status === undefined ? 0 : next.framesDropped - status.framesDropped;
    status = next;
    byId("alert").replaceChildren();
    byId("updated").textContent = `Updated ${time(Date.now())}`;
    render();
    if (state.view === "flows") await showFlows({ isForced: false });
  } catch (error) {
    byId("alert").replaceChildren(el("p", { class: "notice bad" },
      `The collector cannot be reached (${error.message}). Does kubectl port-forward still run? Trying again every ${INTERVAL / 1000} seconds.`));
    render();
  }
}

async function poll() {
  for (;;) {
    const began = performance.now();
    if (document.visibilityState === "visible") await refresh();
    // A tenth of the time at most is spent on a large map.
    const wait = Math.max(INTERVAL, 10 * (performance.now() - began));
    await new Promise((resume) => {
      const wake = () => {
        clearTimeout(timer);
        document.removeEventListener("visibilitychange", wake);
        resume();
      };
      const timer = setTimeout(wake, wait);
      document.addEventListener("visibilitychange", wake);
    });
  }
}

// Showing it.

function render() {
  document.documentElement.dataset.theme = THEMES.includes(state.theme) ? state.theme : "";
  byId("theme").textContent = `Theme: ${state.theme || "system"}`;
  for (const button of document.querySelectorAll("nav button")) {
    if (button.dataset.view === state.view) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  for (const view of ["map", "calls", "flows"]) byId(`${view}-view`).hidden = view !== state.view;
  byId("limit").value = state.limit;
  if (document.activeElement !== byId("search")) byId("search").value = state.q;
  if (graph === undefined) return;
  showMatches();
  showNamespaces();
  showMap();
  if (state.view === "calls") {
    showCalls(chosenCalls(), state.sort, { sortBy: (sort) => choose({ sort }), openEdge: actions.openEdge });
  }
  showDetails();
  showNotices();
  byId("figures").textContent = figures();
}

/** Those of the focus, the namespaces and the search. Nothing is folded in the table. */
function chosenCalls() {
  const found = new Set(search(graph, state.q));
  const isOf = (edge, test) => test(edge.client) || test(edge.server);
  return graph.edges.filter((edge) => (!graph.parties.has(state.focus) || isOf(edge, (party) => party.id === state.focus))
    && (state.ns.length === 0 || isOf(edge, (party) => state.ns.includes(party.group)))
    && (state.q === "" || isOf(edge, (party) => found.has(party))));
}

function showMap() {
  shown = picture(graph, state);
  showFolds();
  const isEmpty = shown.nodes.length === 0;
  byId("empty").hidden = !isEmpty;
  byId("map").hidden = isEmpty;
  if (isEmpty) byId("empty").replaceChildren(...emptiness());
  if (state.view !== "map" || isEmpty) return;
  const { focus, ns, unfold, toggle, all } = state;
  drawing.show(shown.nodes, shown.edges, JSON.stringify([focus, ns, unfold, toggle, all]), mark);
  mark();
}

function mark() {
  const found = state.q === "" ? undefined : new Set(search(graph, state.q).map((party) => party.id));
  const drawn = opened?.edge?.id ?? shown.edges.find((edge) => edge.calls.some((call) => call.id === state.edge))?.id ?? "";
  drawing.mark({ found, open: opened?.node?.id, edge: drawn });
}

function emptiness() {
  if (graph.edges.length > 0) return [el("p", {}, "Nothing matches the filters."), el("button", { type: "button", onclick: () => choose({ ns: [], focus: "" }) }, "Show all")];
  if (status === undefined) return [el("p", {}, "Waiting for the map.")];
  if (!status.live) return [el("h2", {}, "No calls"), el("p", {}, "The files have no connections.")];
  if (status.frames > 0) return [el("h2", {}, "No calls yet"), el("p", {}, `${counted(status.frames, "frame")} arrived, but no connection between two ends was seen yet.`)];
  return [
    el("h2", {}, "No frame has arrived yet"),
    el("p", {}, "Tap the pods of a namespace, with the collector as the destination:"),
    el("pre", {}, "kubectl apply -n NAMESPACE -f examples/tap-who-calls-whom.yaml"),
    el("p", {}, "If there is such a tap, its status tells why nothing arrives:"),
    el("pre", {}, "kubectl get podtap -A\nkubectl describe podtap -n NAMESPACE NAME"),
  ];
}

function showFolds() {
  const found = classes(graph);
  const focus = graph.parties.get(state.focus);
  const chips = Object.entries(CLASSES).filter(([name]) => found[name].calls > 0 || found[name].parties > 0).map(([name, text]) => {
    const isFolded = !state.unfold.includes(name) && !focus;
    const { parties, calls } = found[name];
    const what = parties > 0 ? `${count(parties)}, ${counted(calls, "call")}` : counted(calls, "call");
    const press = () => choose({ unfold: toggled(state.unfold, name) });
    return el("button", { type: "button", "data-class": name, "aria-pressed": isFolded, disabled: focus !== undefined, onclick: press }, `${text} (${what})`);
  });
  keep(byId("folds"), chips);
  byId("fold-label").hidden = chips.length === 0;
  byId("crumb").replaceChildren(...(focus
    ? [`Only ${title(focus)}; nothing is folded. `, el("button", { type: "button", id: "unfocus", onclick: () => open(undefined, { focus: "", edge: "" }) }, "Show all")]
    : []));
}

/** Replaces buttons only if they have changed, so that they keep the keyboard. */
function keep(parent, children) {
  const same = (a, b) => a !== undefined && a.isEqualNode(b);
  if (children.length === parent.children.length && children.every((child, number) => same(parent.children[number], child))) return;
  const focused = [...parent.children].indexOf(document.activeElement);
  parent.replaceChildren(...children);
  parent.children[focused]?.focus();
}

function showMatches() {
  const found = search(graph, state.q);
  const list = byId("matches");
  const isOpen = document.activeElement?.closest(".search") !== null && state.q !== "";
  list.hidden = !isOpen;
  if (!isOpen) return;
  const items = found.slice(0, 12).map((party) => el("li", {},
    el("button", { type: "button", onclick: () => actions.focus(party) }, title(party), el("span", { class: "aside" }, ` ${party.kind}`))));
  const rest = el("li", { class: "aside" }, found.length === 0 ? "No workload has this name." : `${counted(found.length, "match", "matches")}; Enter shows the first one.`);
  keep(list, [...items, rest]);
}

function showNamespaces() {
  const field = byId("namespaces").querySelector("fieldset");
  const before = [...field.querySelectorAll("input")].map((box) => box.value);
  if (JSON.stringify(before) !== JSON.stringify(graph.namespaces)) {
    const box = (group) => el("input", { type: "checkbox", value: group, onchange: () => choose({ ns: toggled(state.ns, group) }) });
    field.replaceChildren(field.firstElementChild, ...graph.namespaces.map((group) => el("label", {}, box(group), ` ${group}`)));
  }
  for (const box of field.querySelectorAll("input")) box.checked = state.ns.includes(box.value);
  byId("namespaces").firstElementChild.textContent = state.ns.length === 0 ? "Namespaces: all" : `Namespaces: ${count(state.ns.length)} of ${count(graph.namespaces.length)}`;
}

function showDetails() {
  let content;
  const edge = graph.edges.find((one) => one.id === state.edge);
  if (edge) content = callDetails(edge, actions);
  else if (opened?.edge) content = joinedDetails(opened.edge, actions);
  else if (opened?.node) content = foldedDetails(opened.node, actions);
  else if (graph.parties.has(state.focus) && state.view !== "flows") content = partyDetails(graph.parties.get(state.focus), actions);
  const panel = byId("details");
  panel.hidden = content === undefined;
  if (content === undefined) return;
  const next = el("div", { id: "details-content" }, content);
  const before = byId("details-content");
  if (next.isEqualNode(before)) return;
  // The same button of the new content has the keyboard that one of the old content had.
  const buttons = [...before.querySelectorAll("button")];
  const focused = buttons.indexOf(document.activeElement);
  before.replaceWith(next);
  if (focused >= 0) (next.querySelectorAll("button")[focused] ?? byId("close")).focus();
}

function showNotices() {
  const notices = [];
  const add = (text, kind = "", ...more) => notices.push(el("p", { class: `notice ${kind}` }, text, ...more));
  if (lost > 0) add(`The collector does not keep up: ${counted(lost, "frame")} were dropped in the last seconds. Bytes and names may be missing.`, "bad");
  else if (status?.framesDropped > 0) add(`${counted(status.framesDropped, "frame")} were dropped by the kernel since the collector started.`, "warn");
  if (status?.captured === "filtered") {
    add(`The collector does not keep up, and captures only what begins and ends connections, and DNS. About ${counted(status.framesLeftOut, "frame")} were left out so far.`, "bad");
  } else if (status?.captured === "notWritten") add("The collector does not keep up, and writes no frames to files.", "warn");
  if (status?.recentTcpFlowsIncomplete > 0) {
    add(`Of ${counted(status.recentTcpFlows, "recent TCP flow")}, ${count(status.recentTcpFlowsIncomplete)} lack frames: mirrors lose them, or a limit of a tap ends them.`, "warn");
  }
  if (status?.flowsEvicted > 0) add(`${counted(status.flowsEvicted, "flow")} were forgotten early, because there were too many at once.`, "warn");
  if (status?.flowsFolded > 0) add(`The map is full: ${counted(status.flowsFolded, "flow")} went to what is called “other”.`, "warn");
  if (status?.namesComplete === false) add("The names of pods and services are not complete yet: flows wait for them.", "warn");
  if (state.view === "map" && shown.isLarge) {
    add(`${counted(shown.workloads, "workload")} are folded by namespace. `, "",
      el("button", { type: "button", id: "all", onclick: () => choose({ all: "1", toggle: [] }) }, "Show all of them"));
  } else if (state.view === "map" && state.all !== "") {
    add("All workloads are shown. ", "", el("button", { type: "button", id: "fold", onclick: () => choose({ all: "", toggle: [] }) }, "Fold many by namespace"));
  }
  if (state.focus !== "" && !graph.parties.has(state.focus)) {
    add("The workload of this address is not in the map, so all of it is shown. ", "", el("button", { type: "button", onclick: () => choose({ focus: "" }) }, "Close"));
  }
  if (state.view === "map" && shown.filtered > 0) add(`The filter hides ${counted(shown.filtered, "call")}.`);
  keep(byId("notices"), notices);
}

function figures() {
  const workloads = [...graph.parties.values()].filter((party) => party.namespace !== undefined).length;
  const parts = [counted(workloads, "workload"), counted(graph.edges.length, "call")];
  if (status) parts.push(status.live ? counted(status.frames, "frame") : `${counted(status.frames, "frame")} of files`, `${count(status.framesDropped)} dropped`, counted(status.flows, "flow"));
  return parts.join(" · ");
}

// The rest of the page.

function listen() {
  for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => choose({ view: button.dataset.view }));
  byId("theme").addEventListener("click", () => choose({ theme: THEMES[(THEMES.indexOf(state.theme) + 1) % THEMES.length] }));
  byId("larger").addEventListener("click", () => drawing.zoom(1.25));
  byId("smaller").addEventListener("click", () => drawing.zoom(0.8));
  byId("whole").addEventListener("click", () => drawing.fit());
  byId("close").addEventListener("click", leave);
  const field = byId("search");
  field.addEventListener("input", () => choose({ q: field.value }));
  field.addEventListener("focus", render);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && graph) {
      const [first] = search(graph, state.q);
      if (!first) return;
      choose({ q: "" });
      field.value = "";
      actions.focus(first);
      byId("map").querySelector(".node")?.focus();
    } else if (event.key === "Escape") {
      field.value = "";
      choose({ q: "" });
    }
  });
  document.addEventListener("keydown", (event) => {
    const isText = event.target.matches("input, select, textarea");
    if (event.key === "/" && !isText) {
      event.preventDefault();
      field.focus();
    } else if (event.key === "Escape" && !isText && !event.defaultPrevented) {
      const menu = document.querySelector("details.menu[open]");
      if (menu) {
        menu.open = false;
        menu.firstElementChild.focus();
      } else leave();
    }
  });
  // One menu at a time, and none that one has left.
  document.addEventListener("pointerdown", (event) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
    if (!event.target.closest(".search")) byId("matches").hidden = true;
  });
  byId("export").addEventListener("toggle", () => {
    const link = (text, href, name) => el("li", {}, el("a", { href, download: name }, text));
    byId("export").querySelector("ul").replaceChildren(
      ...Object.entries(FORMATS).map(([format, [text, suffix]]) => link(text, `map?format=${format}`, `podtap-map.${suffix}`)),
      link("Flows, filtered as in the table", exported(), "podtap-flows.jsonl"));
  });
}

prepare();
listen();
let viewed = "";
watch(() => {
  render();
  const flows = JSON.stringify([state.view, state.flow, state.limit]);
  if (state.view === "flows" && flows !== viewed) showFlows({ isForced: true }).catch(() => {});
  viewed = flows;
});
render();
poll();
