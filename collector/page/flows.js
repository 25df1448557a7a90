// The newest flows, with filters that the collector applies.

import { byId, bytes, count, duration, el, time } from "./dom.js";
import { choose, state } from "./state.js";

const PROTOCOLS = { 1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP" };
const OPERATORS = { "=": "is", "!=": "is not", "~=": "contains", ">=": "at least", "<=": "at most" };
/** Rows of an export. */
const EXPORTED = 10000;

const end = (flow, side) => {
  const sni = side === "Dst" ? flow.TlsSni : undefined;
  const name = flow[`${side}K8S_OwnerName`] ?? flow[`${side}DnsName`] ?? sni ?? flow[`${side}SubnetLabel`] ?? flow[`${side}Country`];
  const address = flow[`${side}Addr`];
  const port = flow[`${side}Port`];
  // Of an end in a namespace that may not be read, only the port is known.
  if (address === undefined) return ["another namespace", el("span", { class: "aside" }, port === undefined ? "" : ` port ${port}`)];
  const host = address.includes(":") ? `[${address}]` : address;
  const full = port === undefined ? address : `${host}:${port}`;
  const namespace = flow[`${side}K8S_Namespace`];
  return name === undefined ? full : [`${name}${namespace === undefined ? "" : `.${namespace}`}`, el("span", { class: "aside" }, ` ${full}`)];
};

const behind = (flow) => {
  const name = flow.XlatDstK8S_Name ?? flow.XlatDstK8S_OwnerName;
  return name === undefined ? "" : name;
};

const COLUMNS = [
  ["End", (flow) => time(flow.TimeFlowEndMs)],
  ["From", (flow) => end(flow, "Src")],
  ["To", (flow) => end(flow, "Dst")],
  ["Pod or workload", behind],
  ["Protocol", (flow) => PROTOCOLS[flow.Proto] ?? String(flow.Proto)],
  ["Payload", (flow) => bytes(flow.PayloadBytes), true],
  ["Packets", (flow) => count(flow.Packets), true],
  ["Handshake", (flow) => duration(flow.TimeFlowRttNs === undefined ? undefined : flow.TimeFlowRttNs / 1000), true],
  ["State", (flow) => flow.Failure ?? flow.FlowEndReason],
];

/** The query of the filters: each is field, operator and value in one text. */
const query = (limit) => {
  const pairs = state.flow.map((filter) => {
    const at = filter.search(/[!~><]?=/);
    const operator = filter.slice(at).startsWith("=") ? "=" : filter.slice(at, at + 2);
    // In a URL, all of it but "=" belongs to the name.
    return [filter.slice(0, at) + operator.slice(0, -1), filter.slice(at + operator.length)];
  });
  return new URLSearchParams([["limit", limit], ...pairs]);
};

/** Where the flows of the table can be downloaded. */
export const exported = () => `flows?${query(EXPORTED)}`;

/** Filters for the flows of a call, in both directions. */
export function filtersOf(edge) {
  const of = (party, sides) => {
    const fields = (...names) => sides.flatMap((side) => names.map((name) => `${side}${name}`)).join("|");
    if (party.kind === "External") {
      const named = "DstDnsName|SrcDnsName|TlsSni|DstSubnetLabel|SrcSubnetLabel";
      const country = party.name?.match(/^country (..)$/);
      if (country) return [`SrcCountry|DstCountry=${country[1]}`];
      return party.name === "external" ? [] : [`${named}=${party.name}`];
    }
    const namespace = party.namespace === undefined ? [] : [`${fields("K8S_Namespace")}=${party.namespace}`];
    return ["AnotherNamespace", "Other"].includes(party.kind) ? [] : [...namespace, `${fields("K8S_OwnerName")}=${party.name}`];
  };
  return [...of(edge.client, ["Src", "Dst"]), ...of(edge.server, ["Dst", "XlatDst", "Src"])];
}

/** Gets the flows, and shows them; not while the user has one open. */
export async function showFlows({ isForced }) {
  filters();
  const body = byId("flows-body");
  const reading = body.querySelector("tr.all") !== null || body.contains(document.activeElement);
  if (reading && !isForced) {
    byId("flows-state").textContent = "Not refreshed while a flow is open.";
    return;
  }
  const response = await fetch(`flows?${query(state.limit)}`, { cache: "no-store" });
  const text = await response.text();
  if (!response.ok) {
    byId("flows-state").textContent = `The filters are not understood: ${text.trim()}`;
    body.replaceChildren();
    return;
  }
  const flows = text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
  byId("flows-state").textContent = flows.length === 0
    ? "No flow matches. A flow is reported at its end, after 15 seconds without a frame, and every minute."
    : `${count(flows.length)} flow records and directions, the newest first${flows.length === Number(state.limit) ? " (there are more)" : ""}.`;
  body.replaceChildren(...flows.map(row));
  const fields = new Set(flows.flatMap((flow) => Object.keys(flow)));
  byId("fields").replaceChildren(...["*", ...[...fields].sort()].map((field) => el("option", { value: field })));
}

function row(flow) {
  const open = (event) => {
    const tr = event.currentTarget.closest("tr");
    const isOpen = tr.nextElementSibling?.classList.contains("all");
    event.currentTarget.setAttribute("aria-expanded", !isOpen);
    if (isOpen) tr.nextElementSibling.remove();
    else tr.after(all(flow));
  };
  return el("tr", { class: flow.Failure !== undefined && "failing" }, COLUMNS.map(([, value, isNumber], number) => {
    const content = value(flow);
    const button = number === 0 && el("button", { type: "button", class: "link", "aria-expanded": false, onclick: open }, content);
    return el("td", { class: isNumber && "number" }, button || content);
  }));
}

/** All fields, each of which can become a filter. */
function all(flow) {
  const add = (key, value) => choose({ flow: [...state.flow, `${key}=${value}`] });
  return el("tr", { class: "all" }, el("td", { colspan: COLUMNS.length }, el("dl", {}, Object.entries(flow).map(([key, value]) =>
    el("div", {}, el("dt", {}, key), el("dd", {},
      el("button", { type: "button", class: "link", title: "Filter by this value", onclick: () => add(key, value) }, String(value))))))));
}

function filters() {
  byId("flow-filters").replaceChildren(...state.flow.map((filter, number) => {
    const remove = () => choose({ flow: state.flow.filter((_, other) => other !== number) });
    return el("li", {}, el("button", { type: "button", onclick: remove, "aria-label": `Remove the filter ${filter}` }, `${filter} ✕`));
  }));
}

/** Makes what does not change. */
export function prepare() {
  byId("flows-head").append(el("tr", {}, COLUMNS.map(([heading, , isNumber]) => el("th", { scope: "col", class: isNumber && "number" }, heading))));
  byId("operator").append(...Object.entries(OPERATORS).map(([value, text]) => el("option", { value }, text)));
  byId("flow-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const [field, operator, value] = ["field", "operator", "value"].map((id) => byId(id).value.trim());
    if (field === "") return;
    byId("value").value = "";
    choose({ flow: [...state.flow, `${field}${operator}${value}`] });
  });
  byId("limit").addEventListener("change", (event) => choose({ limit: event.target.value }));
}
