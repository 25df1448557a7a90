// What the user has chosen. All of it is in the fragment of the URL, so that a view can be bookmarked and sent to others.

const TEXTS = { view: "map", q: "", focus: "", edge: "", theme: "", sort: "bytes", limit: "200", all: "" };
const LISTS = ["ns", "unfold", "toggle", "flow"];

/** The current choices: texts, and lists of texts. */
export const state = { ...TEXTS };

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, usual] of Object.entries(TEXTS)) state[name] = given.get(name) ?? usual;
  for (const name of LISTS) state[name] = given.getAll(name);
  if (!["map", "calls", "flows"].includes(state.view)) state.view = TEXTS.view;
}

function fragment() {
  const written = new URLSearchParams();
  for (const [name, usual] of Object.entries(TEXTS)) if (state[name] !== usual) written.set(name, state[name]);
  for (const name of LISTS) for (const value of state[name]) written.append(name, value);
  return `#${written}`;
}

let changed = () => {};

/** Calls back after each change. */
export function watch(callback) {
  changed = callback;
  read();
  addEventListener("hashchange", () => {
    read();
    changed();
  });
}

/** Makes choices. What one types is no step of the history; what one opens is. */
export function choose(choices) {
  Object.assign(state, choices);
  const isStep = ["view", "focus", "edge"].some((name) => name in choices);
  history[isStep ? "pushState" : "replaceState"](null, "", fragment());
  changed();
}

/** A list of choices with one more, or without it. */
export const toggled = (list, value) =>
  list.includes(value) ? list.filter((other) => other !== value) : [...list, value];
