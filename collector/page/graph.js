// From the map, as the collector serves it, to what is drawn: pure functions.

import { counted } from "./dom.js";

/** More workloads than this are folded by namespace. */
export const MOST_NODES = 150;
/** A client that calls so many workloads, and so much of all of them, calls everything: it monitors them. Questions to DNS do not count. */
const MONITORING = { workloads: 10, share: 0.6 };
const DNS_PORTS = new Set([53, 5353, 853]);

/** The classes of calls that can be folded. */
export const CLASSES = {
  external: "External peers",
  node: "Nodes and probes",
  dns: "DNS",
  monitoring: "Monitoring",
};

const idOf = (party) => [party.kind, party.namespace ?? "", party.name ?? ""].map(encodeURIComponent).join("/");

function nameOf(party) {
  if (party.name !== undefined && party.name !== null) return party.name;
  return { AnotherNamespace: "another namespace", External: "external", Other: "other" }[party.kind] ?? party.kind;
}

/** Where a party is drawn: in its namespace, or with others of its kind. */
const groupOf = (party) => party.namespace ?? { Node: "(nodes)", External: "(external)" }[party.kind] ?? "(other)";

/** Parties by ID, and edges between them. */
export function parse(map) {
  const parties = new Map();
  const add = (party) => {
    const id = idOf(party);
    if (!parties.has(id)) {
      const { kind, namespace } = party;
      parties.set(id, { id, kind, namespace, name: nameOf(party), group: groupOf(party), calls: [], callers: [] });
    }
    return parties.get(id);
  };
  const edges = map.edges.map((seen) => {
    const [client, server] = [add(seen.client), add(seen.server)];
    const failures = Object.values(seen.failed).reduce((sum, failed) => sum + failed, 0);
    const edge = {
      ...seen,
      id: `${client.id}>${server.id}`,
      client,
      server,
      failures,
      bytes: seen.bytesSent + seen.bytesReceived,
    };
    client.calls.push(edge);
    server.callers.push(edge);
    return edge;
  });
  classify(parties, edges);
  return { parties, edges, namespaces: [...new Set([...parties.values()].map((party) => party.group))].sort() };
}

function classify(parties, edges) {
  for (const edge of edges) {
    if (edge.ports.length > 0 && edge.ports.every(({ port }) => DNS_PORTS.has(port))) edge.class = "dns";
    // The kubelet's probes, above all.
    else if (edge.client.kind === "Node") edge.class = "node";
  }
  const workloads = [...parties.values()].filter((party) => party.namespace !== undefined);
  const isCall = (edge) => edge.class !== "dns" && edge.server.namespace !== undefined && edge.server !== edge.client;
  for (const party of workloads) {
    const called = party.calls.filter(isCall).length;
    if (called < MONITORING.workloads || called < MONITORING.share * (workloads.length - 1)) continue;
    for (const edge of party.calls) edge.class ??= "monitoring";
  }
}

const classOfParty = (party) => ({ External: "external", Node: "node" })[party.kind];

/** How much of each class there is: parties of those that are folded into one, else calls. */
export function classes(graph) {
  const found = {};
  for (const name of Object.keys(CLASSES)) {
    const is = (party) => classOfParty(party) === name;
    const parties = [...graph.parties.values()].filter(is);
    const calls = graph.edges.filter((edge) => edge.class === name || is(edge.client) || is(edge.server));
    found[name] = { parties: parties.length, calls: calls.length };
  }
  return found;
}

/**
 * What is drawn: nodes, of which some stand for several parties, and edges, of which some stand for several calls.
 *
 * Options: `focus` (the ID of a party: only its calls, none of which is folded), `ns` (only calls from or to these groups), `unfold`
 * (classes), `toggle` (namespaces that are not as they are by default), `all` (do not fold by namespace).
 */
export function picture(graph, options) {
  const focus = graph.parties.get(options.focus);
  const of = (edge, group) => edge.client.group === group || edge.server.group === group;
  let edges = focus ? graph.edges.filter((edge) => edge.client === focus || edge.server === focus) : graph.edges;
  const before = edges.length;
  if (options.ns.length > 0) edges = edges.filter((edge) => options.ns.some((group) => of(edge, group)));
  const filtered = before - edges.length;

  const parties = new Set(edges.flatMap((edge) => [edge.client, edge.server]));
  if (focus) parties.add(focus);
  const isFolded = (name) => name !== undefined && !focus && !options.unfold.includes(name);
  const folded = {};
  const kept = edges.filter((edge) => {
    if (!isFolded(edge.class)) return true;
    folded[edge.class] = (folded[edge.class] ?? 0) + 1;
    return false;
  });

  const byClass = (party) => (isFolded(classOfParty(party)) ? `class:${classOfParty(party)}` : undefined);
  const count = [...parties].filter((party) => !byClass(party)).length;
  const isLarge = count > MOST_NODES && !options.all;
  const isClosed = (group) => !group.startsWith("(") && isLarge !== options.toggle.includes(group);
  const place = (party) => byClass(party) ?? (party !== focus && isClosed(party.group) ? `group:${party.group}` : party.id);

  const nodes = new Map();
  for (const party of parties) {
    const id = place(party);
    if (!nodes.has(id)) nodes.set(id, { id, parties: [], inside: 0, folded: 0 });
    nodes.get(id).parties.push(party);
  }
  for (const node of nodes.values()) describe(node, focus);
  for (const edge of edges) {
    if (!isFolded(edge.class)) continue;
    // The end that all these calls have in common.
    nodes.get(place(edge.class === "dns" ? edge.server : edge.client)).folded += 1;
  }
  return { nodes: [...nodes.values()], edges: join(kept, place, nodes), folded, filtered, isLarge, workloads: count };
}

function describe(node, focus) {
  const [party] = node.parties;
  if (node.id.startsWith("class:")) {
    const name = node.id.slice("class:".length);
    const noun = { external: "external peer", node: "node" }[name];
    Object.assign(node, { label: counted(node.parties.length, noun), group: null, kind: name, class: name });
  } else if (node.id.startsWith("group:")) {
    Object.assign(node, { label: party.group, group: null, kind: "namespace", namespace: party.group });
  } else {
    Object.assign(node, { label: party.name, group: party.group, kind: party.kind, party, isFocus: party === focus });
  }
}

/** Calls between the same nodes are one edge. */
function join(calls, place, nodes) {
  const edges = new Map();
  for (const call of calls) {
    const [from, to] = [place(call.client), place(call.server)];
    if (from === to && nodes.get(from).parties.length > 1) {
      nodes.get(from).inside += 1;
      continue;
    }
    const id = `${from}>${to}`;
    if (!edges.has(id)) edges.set(id, { id, from, to, calls: [], bytes: 0, failures: 0 });
    const edge = edges.get(id);
    edge.calls.push(call);
    edge.bytes += call.bytes;
    edge.failures += call.failures;
  }
  return [...edges.values()];
}

/** Parties whose name, namespace or kind has these words. */
export function search(graph, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return [];
  return [...graph.parties.values()].filter((party) => {
    const all = `${party.name} ${party.group} ${party.kind}`.toLowerCase();
    return words.every((word) => all.includes(word));
  });
}
