// The calls as a table, and what is known of one workload or call.

import { byId, bytes, count, counted, duration, el, time } from "./dom.js";

/** Rows that are shown at first. */
const ROWS = 300;

export const title = (party) => (party.namespace === undefined ? party.name : `${party.name}.${party.namespace}`);
const ports = (edge) => edge.ports.map(({ protocol, port }) => (port === 0 ? protocol : `${protocol} ${port}`)).join(", ");
const failures = (edge) => Object.entries(edge.failed).map(([reason, times]) => `${FAILURES[reason] ?? reason} ${count(times)}`).join(", ");
const FAILURES = { refused: "refused", noAnswer: "not answered", unreachable: "unreachable" };

/** How a call is known: see docs/collector.md. */
const KNOWN = {
  syn: "the client's SYN",
  synAck: "the server's SYN-ACK",
  firstFrame: "the first frame",
  port: "the port",
  address: "the server's own address",
  join: "both views of the connection",
  conntrack: "the node's conntrack",
  endpoints: "the endpoints of the service",
  service: "the address of the service",
  dns: "the DNS name that the client looked up",
  sni: "the name in the TLS handshake",
  network: "the name of the network",
  country: "the country of the network",
};

const COLUMNS = [
  ["client", "Client", (edge) => title(edge.client)],
  ["server", "Server", (edge) => title(edge.server)],
  ["ports", "Ports", ports],
  ["connections", "Connections", (edge) => edge.connections + edge.preexisting, count],
  ["failures", "Failed", (edge) => edge.failures, count],
  ["sent", "Sent", (edge) => edge.bytesSent, bytes],
  ["bytes", "Bytes", (edge) => edge.bytes, bytes],
  ["handshake", "Handshake", (edge) => edge.handshakes?.meanUs, duration],
  ["last", "Last seen", (edge) => edge.lastSeenMs, time],
];

let shown = ROWS;

/** Fills the table of calls. `sort` is a column, with "-" before it for ascending numbers or descending text. */
export function showCalls(edges, sort, { sortBy, openEdge }) {
  const isReverse = sort.startsWith("-");
  const column = COLUMNS.find(([name]) => name === sort.replace("-", "")) ?? COLUMNS[6];
  const [name, , value, isNumber] = column;
  const direction = (isNumber ? -1 : 1) * (isReverse ? -1 : 1);
  const compare = (a, b) => {
    const [left, right] = [value(a), value(b)];
    if (isNumber) return direction * ((left ?? -1) - (right ?? -1));
    return direction * left.localeCompare(right);
  };
  const sorted = [...edges].sort(compare);
  const { activeElement } = document;
  const row = activeElement.closest("#calls-body tr")?.dataset.id;
  const heading = activeElement.closest("#calls-head") && activeElement.dataset.sort;
  byId("calls-head").replaceChildren(el("tr", {}, COLUMNS.map(([key, heading, , number]) => {
    const order = (number ? -1 : 1) * (isReverse ? -1 : 1) === 1 ? "ascending" : "descending";
    const press = () => sortBy(key === name && !isReverse ? `-${key}` : key);
    return el("th", { scope: "col", class: number && "number", "aria-sort": key === name ? order : "none" },
      el("button", { type: "button", onclick: press, "data-sort": key }, heading));
  })));
  byId("calls-body").replaceChildren(...sorted.slice(0, shown).map((edge) =>
    el("tr", { "data-id": edge.id, class: edge.failures > 0 && "failing" }, COLUMNS.map(([key, , of, format]) => {
      const text = format ? format(of(edge)) : of(edge);
      const link = key === "client" && el("button", { type: "button", class: "link", onclick: () => openEdge(edge) }, text);
      return el("td", { class: format && "number" }, link || text);
    }))));
  // What had the keyboard has it again.
  if (heading) byId("calls-head").querySelector(`[data-sort=${heading}]`).focus();
  const same = row !== undefined && [...byId("calls-body").rows].find((tr) => tr.dataset.id === row);
  if (same) same.querySelector("button").focus();
  const more = sorted.length - Math.min(shown, sorted.length);
  const rest = () => {
    shown += 1000;
    showCalls(edges, sort, { sortBy, openEdge });
  };
  byId("calls-more").replaceChildren(
    el("span", {}, counted(sorted.length, "call")),
    ...(more > 0 ? [el("button", { type: "button", onclick: rest }, `Show more (${count(more)} are not shown)`)] : []));
}

const rows = (pairs) => el("dl", {}, pairs.filter(([, value]) => value !== "" && value !== undefined)
  .map(([key, value]) => el("div", {}, el("dt", {}, key), el("dd", {}, value))));

/** What is known of a call. */
export function callDetails(edge, actions) {
  const handshakes = edge.handshakes && `mean ${duration(edge.handshakes.meanUs)}, ${duration(edge.handshakes.minUs)} to ${
    duration(edge.handshakes.maxUs)}, ${count(edge.handshakes.count)} seen`;
  const known = Object.entries(edge.known).map(([how, flows]) => el("li", {}, `${KNOWN[how] ?? how}: ${counted(flows, "flow")}`));
  return [
    el("h2", {}, el("button", { type: "button", class: "link", onclick: () => actions.focus(edge.client) }, title(edge.client)), " → ",
      el("button", { type: "button", class: "link", onclick: () => actions.focus(edge.server) }, title(edge.server))),
    rows([
      ["Ports", edge.ports.map(({ protocol, port, flows }) => `${protocol}${port === 0 ? "" : ` ${port}`} (${counted(flows, "flow")})`).join(", ")],
      ["Services", edge.services.map(({ namespace, name, flows }) => `${name}.${namespace} (${counted(flows, "flow")})`).join(", ")],
      ["Sent by the client", bytes(edge.bytesSent)],
      ["Received", bytes(edge.bytesReceived)],
      ["Connections", count(edge.connections)],
      ["Older than what was seen", edge.preexisting > 0 ? count(edge.preexisting) : undefined],
      ["Failed", failures(edge) || "none"],
      ["Handshake", handshakes],
      ["First seen", time(edge.firstSeenMs)],
      ["Last seen", time(edge.lastSeenMs)],
      ["Known by", known.length > 0 ? el("ul", {}, known) : "nothing but the address"],
    ]),
    el("button", { type: "button", id: "edge-flows", onclick: () => actions.flows(edge) }, "Show its flows"),
  ];
}

/** A list of calls, each of which can be opened; the largest first. */
function list(heading, edges, of, openEdge, noun) {
  const sorted = [...edges].sort((a, b) => b.bytes - a.bytes);
  return edges.length > 0 && el("section", {}, el("h3", {}, `${heading} (${count(edges.length)})`),
    el("ul", { class: "calls" }, sorted.slice(0, ROWS).map((edge) => el("li", {},
      el("button", { type: "button", class: "link", onclick: () => openEdge(edge), "data-id": edge.id }, of(edge)),
      el("span", { class: "aside" }, ` ${bytes(edge.bytes)}${edge.failures > 0 ? `, ✕ ${count(edge.failures)}` : ""}`)))),
    sorted.length > ROWS && el("p", {}, `and ${counted(sorted.length - ROWS, noun)} more`));
}

/** What is known of a workload, or of what is drawn in its place. */
export function partyDetails(party, actions) {
  return [
    el("h2", {}, party.name),
    rows([["Kind", party.kind], ["Namespace", party.namespace]]),
    list("Called by", party.callers, (edge) => title(edge.client), actions.openEdge, "call"),
    list("Calls", party.calls, (edge) => title(edge.server), actions.openEdge, "call"),
  ];
}

/** What several calls that are drawn as one edge have. */
export const joinedDetails = (edge, actions) => [
  el("h2", {}, "Several calls"),
  list("Calls", edge.calls, (call) => `${title(call.client)} → ${title(call.server)}`, actions.openEdge, "call"),
];

/** What a node stands for that is folded. */
export const foldedDetails = (node, actions) => [
  el("h2", {}, node.label),
  el("p", {}, node.kind === "namespace"
    ? `${counted(node.parties.length, "workload")} in one, with ${counted(node.inside, "call")} between them.`
    : `${node.label} in one.`),
  el("button", { type: "button", id: "unfold", onclick: () => actions.unfold(node) }, "Unfold"),
  el("ul", { class: "calls" }, node.parties.slice(0, ROWS).map((party) => el("li", {},
    el("button", { type: "button", class: "link", onclick: () => actions.focus(party) }, party.name)))),
  node.parties.length > ROWS && el("p", {}, `and ${count(node.parties.length - ROWS)} more`),
];
