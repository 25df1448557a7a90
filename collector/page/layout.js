// Places nodes in columns, so that most edges go from left to right: pure functions, in the style of Sugiyama.
//
// Each group is laid out by itself, and then the groups, as if they were nodes. All lengths are in pixels.

const GAP = { x: 56, y: 16, inGroup: 46 };
/** A dense graph has paths through most of its nodes: they share so many columns. */
const COLUMNS = 7;
/** Pixels. A column that is taller, and taller than the whole should be wide, becomes several. */
const TALL = 1100;
/** Of the whole: width by height. */
const ASPECT = 1.9;
const SWEEPS = 8;
const PADDING = { side: 16, top: 34, bottom: 16 };
const BETWEEN_POINTS = 6;

/**
 * Places `{id, group, w, h}` (without a group: by itself) and `{id, from, to}`.
 *
 * Returns the size of the whole, nodes with `x` and `y` of their upper left corners, boxes of the groups, and a list of points for each
 * edge, from side to side.
 */
export function layout(nodes, edges) {
  const groups = new Map();
  for (const node of nodes) {
    const key = node.group === null ? `node ${node.id}` : `group ${node.group}`;
    if (!groups.has(key)) groups.set(key, { title: node.group, nodes: [] });
    groups.get(key).nodes.push(node);
  }
  const all = [...groups.values()];
  const at = new Map();
  all.forEach((group, number) => group.nodes.forEach((node, row) => at.set(node.id, { group, number, row, node })));
  const routes = new Map();
  for (const group of all) {
    const inside = edges.filter((edge) => at.get(edge.from).group === group && at.get(edge.to).group === group);
    const placed = layered(group.nodes, inside.map((edge) => [at.get(edge.from).row, at.get(edge.to).row]), GAP.inGroup);
    const { side, top, bottom } = group.title === null ? { side: 0, top: 0, bottom: 0 } : PADDING;
    Object.assign(group, { placed, side, top, w: placed.w + 2 * side, h: placed.h + top + bottom });
    if (group.title !== null) group.w = Math.max(group.w, 9 * group.title.length + 40);
    inside.forEach((edge, number) => routes.set(edge.id, placed.routes[number]));
  }
  const between = edges.filter((edge) => at.get(edge.from).group !== at.get(edge.to).group);
  const pairs = new Map(between.map((edge) => {
    const [from, to] = [at.get(edge.from).number, at.get(edge.to).number];
    return [`${from} ${to}`, [from, to]];
  }));
  const outer = largest(all, [...pairs.values()]);
  for (const [number, group] of all.entries()) {
    const { x, y } = outer.places[number];
    Object.assign(group, { x, y });
    group.nodes.forEach((node, row) => {
      const place = group.placed.places[row];
      Object.assign(at.get(node.id), { x: x + group.side + place.x, y: y + group.top + place.y });
    });
  }
  const lines = edges.map((edge) => {
    const [from, to] = [at.get(edge.from), at.get(edge.to)];
    const { group } = from;
    const via = (routes.get(edge.id) ?? []).map((point) => [point[0] + group.x + group.side, point[1] + group.y + group.top]);
    return { id: edge.id, points: connect(from, to, via) };
  });
  const places = nodes.map(({ id }) => ({ id, x: at.get(id).x, y: at.get(id).y }));
  const boxes = all.filter((group) => group.title !== null).map(({ title, x, y, w, h }) => ({ title, x, y, w, h }));
  return { w: outer.w, h: outer.h, nodes: places, groups: boxes, edges: lines };
}

/** With as many columns as let the whole be largest in a window; many groups are tried with few numbers of columns. */
function largest(groups, pairs) {
  const numbers = groups.length > 100 ? [5, COLUMNS] : [2, 3, 4, 5, 6, COLUMNS];
  const scale = ({ w, h }) => Math.min(ASPECT / w, 1 / h);
  const tried = numbers.map((columns) => layered(groups, pairs, GAP.x, columns));
  return tried.reduce((best, other) => (scale(other) > 1.05 * scale(best) ? other : best));
}

/** From one side of a node to one of another. */
function connect(from, to, via) {
  const middle = ({ y, node }) => y + node.h / 2;
  if (from === to) {
    const [x, y] = [from.x + from.node.w, middle(from)];
    return [[x, y - 8], [x + 34, y - 8], [x + 34, y + 8], [x, y + 8]];
  }
  const right = ({ x, node }) => [x + node.w, 1];
  const left = ({ x }) => [x, -1];
  let ends = [right(from), left(to)];
  if (to.x + to.node.w <= from.x) ends = [left(from), right(to)];
  else if (to.x < from.x + from.node.w) ends = [right(from), right(to)];
  const [[x1, out], [x2, into]] = ends;
  const points = [[x1, middle(from)], ...via, [x2, middle(to)]];
  const curve = [points[0]];
  for (let i = 1; i < points.length; i += 1) {
    const [[ax, ay], [bx, by]] = [points[i - 1], points[i]];
    const reach = Math.max(24, Math.abs(bx - ax) / 2);
    const [leave, enter] = [i === 1 ? out : Math.sign(bx - ax) || 1, i === points.length - 1 ? into : Math.sign(ax - bx) || -1];
    curve.push([ax + leave * reach, ay], [bx + enter * reach, by], [bx, by]);
  }
  return curve;
}

/** Places rectangles in columns. `pairs` are indices of clients and servers. */
function layered(sizes, pairs, gap, most = COLUMNS) {
  const arcs = acyclic(sizes.length, pairs.filter(([from, to]) => from !== to));
  const rank = ranks(sizes.length, arcs);
  const depth = rank.reduce((most, column) => Math.max(most, column), 0) + 1;
  if (depth > most) rank.forEach((column, node) => (rank[node] = Math.floor((column * most) / depth)));
  // Points that long edges pass through: a column each.
  const items = sizes.map(({ w, h }, number) => ({ w, h, rank: rank[number], before: [], after: [] }));
  const link = (a, b) => {
    items[a].after.push(b);
    items[b].before.push(a);
  };
  const long = new Map();
  const room = 2000 + 4 * sizes.length;
  for (const [from, to] of arcs) {
    let last = from;
    const points = [];
    if (items.length < room) {
      for (let column = rank[from] + 1; column < rank[to]; column += 1) {
        items.push({ w: 0, h: BETWEEN_POINTS, rank: column, before: [], after: [] });
        link(last, items.length - 1);
        last = items.length - 1;
        points.push(last);
      }
    }
    if (rank[to] - rank[last] === 1) link(last, to);
    long.set(`${from} ${to}`, points);
  }
  const columns = order(items);
  const size = place(items, columns, gap);
  const routes = pairs.map(([from, to]) => {
    const points = long.get(`${from} ${to}`) ?? [...(long.get(`${to} ${from}`) ?? [])].reverse();
    return points.map((number) => [items[number].x, items[number].y + items[number].h / 2]);
  });
  return { ...size, places: items.slice(0, sizes.length).map(({ x, y }) => ({ x, y })), routes };
}

/** Each pair once, and those that close a cycle the other way around. */
function acyclic(count, pairs) {
  const after = Array.from({ length: count }, () => new Set());
  const incoming = new Array(count).fill(0);
  for (const [from, to] of pairs) {
    if (!after[from].has(to)) incoming[to] += 1;
    after[from].add(to);
  }
  const state = new Uint8Array(count);
  const arcs = new Map();
  const visit = (start) => {
    const stack = [[start, after[start].values()]];
    state[start] = 1;
    while (stack.length > 0) {
      const [node, rest] = stack.at(-1);
      const { value: next, done } = rest.next();
      if (done) {
        state[node] = 2;
        stack.pop();
      } else {
        const [from, to] = state[next] === 1 ? [next, node] : [node, next];
        arcs.set(`${from} ${to}`, [from, to]);
        if (state[next] === 0) {
          state[next] = 1;
          stack.push([next, after[next].values()]);
        }
      }
    }
  };
  // From those without callers first.
  const starts = Array.from({ length: count }, (_, node) => node).sort((a, b) => incoming[a] - incoming[b]);
  for (const node of starts) if (state[node] === 0) visit(node);
  return [...arcs.values()];
}

/** The column of each node: behind all that call it, and clients without callers right before what they call. */
function ranks(count, arcs) {
  const rank = new Array(count).fill(0);
  const [after, waiting] = [Array.from({ length: count }, () => []), new Array(count).fill(0)];
  for (const [from, to] of arcs) {
    after[from].push(to);
    waiting[to] += 1;
  }
  const isFirst = waiting.map((number) => number === 0);
  const ready = [...isFirst.keys()].filter((node) => isFirst[node]);
  while (ready.length > 0) {
    const node = ready.pop();
    for (const next of after[node]) {
      rank[next] = Math.max(rank[next], rank[node] + 1);
      waiting[next] -= 1;
      if (waiting[next] === 0) ready.push(next);
    }
  }
  for (let node = 0; node < count; node += 1) {
    if (isFirst[node] && after[node].length > 0) rank[node] = Math.min(...after[node].map((next) => rank[next])) - 1;
  }
  return rank;
}

/** Items of each column, ordered so that few edges cross. */
function order(items) {
  const columns = [];
  items.forEach((item, number) => (columns[item.rank] ??= []).push(number));
  const settle = (column) => column.forEach((number, row) => (items[number].row = row / column.length));
  columns.forEach(settle);
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    const side = sweep % 2 === 0 ? "before" : "after";
    for (const column of sweep % 2 === 0 ? columns : [...columns].reverse()) {
      for (const number of column) {
        const others = items[number][side];
        const sum = others.reduce((total, other) => total + items[other].row, 0);
        items[number].wish = others.length > 0 ? sum / others.length : items[number].row;
      }
      column.sort((a, b) => items[a].wish - items[b].wish);
      settle(column);
    }
  }
  return columns;
}

/** Gives items their places; returns the size of the whole. */
function place(items, columns, gap) {
  // Long columns of real nodes become several.
  const area = items.reduce((sum, { w, h }) => sum + (w + gap) * (h + GAP.y), 0);
  const tall = Math.max(TALL, Math.sqrt(area / ASPECT));
  const split = columns.flatMap((column) => {
    const parts = Math.ceil(column.reduce((sum, number) => sum + items[number].h + GAP.y, 0) / tall);
    return Array.from({ length: parts }, (_, part) => column.filter((_, row) => row % parts === part));
  });
  let x = 0;
  for (const column of split) {
    const width = Math.max(...column.map((number) => items[number].w));
    let y = 0;
    for (const number of column) {
      const item = items[number];
      item.x = x + (item.w === 0 ? width / 2 : 0);
      item.y = y;
      y += item.h + GAP.y;
    }
    x += width + gap;
  }
  const middle = (number) => items[number].y + items[number].h / 2;
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    const side = sweep % 2 === 0 ? "before" : "after";
    for (const column of sweep % 2 === 0 ? split : [...split].reverse()) {
      const wishes = column.map((number) => {
        const others = items[number][side];
        const at = others.length > 0 ? others.reduce((sum, other) => sum + middle(other), 0) / others.length : middle(number);
        return at - items[number].h / 2;
      });
      apart(column.map((number) => items[number]), wishes);
    }
  }
  const top = items.reduce((least, item) => Math.min(least, item.y), Infinity);
  for (const item of items) item.y -= top;
  return { w: Math.max(0, x - gap), h: items.reduce((most, item) => Math.max(most, item.y + item.h), 0) };
}

/** Moves items, in order, as close to their wishes as possible without overlap (pooling of adjacent violators). */
function apart(items, wishes) {
  const blocks = [];
  let offset = 0;
  items.forEach((item, row) => {
    let block = { sum: wishes[row] - offset, count: 1, items: [[item, offset]] };
    while (blocks.length > 0 && blocks.at(-1).sum / blocks.at(-1).count > block.sum / block.count) {
      const earlier = blocks.pop();
      block = { sum: earlier.sum + block.sum, count: earlier.count + block.count, items: earlier.items.concat(block.items) };
    }
    blocks.push(block);
    offset += item.h + GAP.y;
  });
  for (const block of blocks) for (const [item, before] of block.items) item.y = block.sum / block.count + before;
}
