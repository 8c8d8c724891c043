// The map of the image's bytes: area is compressed bytes, colour the phase of the first read.

// trees of the leaves, by path, layer or package.
function buildTree(map, layers, by) {
  const root = { name: by === "path" ? "/" : "All", children: new Map(), size: 0, phases: new Map(), leaves: 0 };
  const step = (node, name, extra) => {
    if (!node.children.has(name)) node.children.set(name, { name, children: new Map(), size: 0, phases: new Map(), parent: node, leaves: 0, ...extra });
    return node.children.get(name);
  };
  for (const [dir, name, layer, pkg, phase, compressed, size, read, files] of map.leaves) {
    const path = map.dirs[dir], leafName = name || `(${files || 1} small files)`;
    let way;
    if (by === "path") way = path.split("/").filter(Boolean);
    else if (by === "layer") way = [layers[layer] ? `${layer + 1}. ${layers[layer].instruction || layers[layer].digest.slice(0, 19)}` : "Layer not known", ...path.split("/").filter(Boolean)];
    else { const p = map.packages[pkg], i = p.indexOf(":"); way = p ? (i > 0 ? [p.slice(0, i), p.slice(i + 1)] : [p]) : ["no package", ...path.split("/").filter(Boolean).slice(0, 2)]; }
    let node = root;
    const up = [root];
    for (const w of way) up.push(node = step(node, w));
    const ph = map.phases[phase];
    const leaf = step(node, leafName + (name ? "" : " " + ph), { leaf: { path: name ? (path === "/" ? "" : path) + "/" + name : path + "/…", layer, pkg: map.packages[pkg], phase: ph, compressed, size, read, files: files || 1 } });
    if (leaf.leaf && leaf.size) { leaf.leaf = { ...leaf.leaf, compressed: leaf.leaf.compressed + compressed, size: leaf.leaf.size + size, read: leaf.leaf.read + read }; }
    up.push(leaf);
    for (const n of up) { n.size += compressed; n.leaves += files || 1; n.phases.set(ph, (n.phases.get(ph) || 0) + compressed); }
  }
  const collapse = (n) => {
    n.list = [...n.children.values()].sort((a, b) => b.size - a.size);
    n.list.forEach(collapse);
    if (n.parent && n.list.length === 1 && !n.list[0].leaf) {
      const only = n.list[0];
      n.name += "/" + only.name;
      n.list = only.list;
      for (const c of n.list) c.parent = n;
    }
  };
  collapse(root);
  return root;
}

// squarify lays nodes into a rectangle, about as square as they can be.
// Bruls, Huizing, van Wijk: Squarified Treemaps, 2000.
function squarify(list, x, y, w, height, put) {
  let total = 0;
  for (const n of list) total += n.size;
  if (!(total > 0)) return;
  const scale = w * height / total;
  let i = 0;
  while (i < list.length && w > .3 && height > .3) {
    const side = Math.min(w, height);
    let sum = 0, best = Infinity, j = i;
    while (j < list.length) {
      const next = sum + list[j].size * scale, biggest = list[i].size * scale, smallest = list[j].size * scale;
      const worst = Math.max(side * side * biggest / (next * next), next * next / (side * side * Math.max(smallest, 1e-9)));
      if (worst > best) break;
      best = worst;
      sum = next;
      j++;
    }
    const thick = sum / side;
    let at = 0;
    for (; i < j; i++) {
      const long = list[i].size * scale / Math.max(thick, 1e-9);
      if (w >= height) put(list[i], x, y + at, thick, long); else put(list[i], x + at, y, long, thick);
      at += long;
    }
    if (w >= height) { x += thick; w -= thick; } else { y += thick; height -= thick; }
  }
}

const mostOf = (n) => { let best = "", size = -1; for (const [p, s] of n.phases) if (s > size) [best, size] = [p, s]; return best; };
const unreadOf = (n) => n.phases.get("") || 0;

function mapCard(s) {
  if (!s.map) return missing("bytes", "Bytes of the image", "Which files the image has, and which of them are read, is not known of these runs. thaw measure finds out.");
  let by = "path", root = buildTree(s.map, s.layers, by), here = root;
  const crumbs = h("nav", { class: "crumbs", "aria-label": "Where the map is" });
  const list = h("div", { class: "tall" });
  const c = chart("Map of the image's bytes", draw);
  const nodeTip = (n) => n.leaf ? [n.leaf.path, `${bytes(n.size)} compressed, ${bytes(n.leaf.size)} in all` + (n.leaf.files > 1 ? `, ${n.leaf.files} files` : ""), n.leaf.phase ? `first read in ${phaseLabel(n.leaf.phase).toLowerCase()}` + (n.leaf.read ? `, ${bytes(n.leaf.read)} of it` : "") : "never read", n.leaf.pkg || null]
    : [n.name, `${bytes(n.size)} compressed, ${plural(n.leaves, "file")}`, `${pct(unreadOf(n), n.size)} never read`];
  function go(n, focus) {
    here = n;
    hideTip();
    c.redraw();
    tell();
    if (focus) (c.querySelector(".zoom") || crumbs.querySelector("button:last-of-type") || c).focus();
  }
  function draw(width) {
    const height = Math.round(Math.max(300, Math.min(width * .46, 620))), out = [], names = [], hatched = new Map();
    let drawn = 0;
    // Patterns are one shape a phase: thousands of them are slow to draw, and to print.
    const cell = (n, x, y, w, hh) => {
      const phase = mostOf(n), c = phaseClass(phase);
      if (w > 3 && hh > 3 && patterns[c].length) hatched.set(c, (hatched.get(c) || "") + `M${x.toFixed(1)},${y.toFixed(1)}h${w.toFixed(1)}v${hh.toFixed(1)}h${(-w).toFixed(1)}z`);
      return g("rect", { class: "cell p-" + c, x: x.toFixed(2), y: y.toFixed(2), width: w.toFixed(2), height: hh.toFixed(2), tip: nodeTip(n), onclick: () => {
        let m = n; // the part of what is shown that it is in
        while (m.parent && m.parent !== here) m = m.parent;
        if (m !== n) go(m);
      } });
    };
    const place = (n, x, y, w, hh, depth) => {
      if (w < 1.2 || hh < 1.2 || drawn > 2600) return;
      drawn++;
      if (n.leaf || !n.list.length) {
        out.push(cell(n, x, y, w, hh));
        if (w > 74 && hh > 20) names.push(label(n.name, x, y, w, mostOf(n)));
        return;
      }
      const group = depth < 4 && w > 26 && hh > 20, head = group && w > 52 && hh > 40 ? 17 : 0, pad = group && head ? 2 : 0;
      if (group) out.push(g("g", { class: "zoom", tabindex: 0, role: "button", tip: nodeTip(n), "data-zoom": n.name, onclick: () => go(n), onkeydown: (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); go(n, true); } } },
        g("rect", { class: "box", x, y, width: w, height: hh, rx: 2 }), head ? text(x + 5, y + 12.5, shorten(n.name, Math.floor((w - 10) / 6.5)) + (w > 190 ? `  ${bytes(n.size)}` : ""), "s ink") : null, g("rect", { class: "ring", x: x + 1, y: y + 1, width: Math.max(w - 2, 0), height: Math.max(hh - 2, 0), rx: 2 })));
      if (!head && w * hh < 160) { out.push(cell(n, x, y, w, hh)); return; }
      squarify(n.list, x + pad, y + head, w - 2 * pad, hh - head - pad, (m, ...r) => place(m, ...r, depth + 1));
    };
    squarify(here.list.length ? here.list : [here], 0, 0, width, height, (n, ...r) => place(n, ...r, 0));
    return frame(width, height, out, [...hatched].map(([c, d]) => g("path", { class: "over", d, fill: `url(#pat-${c})` })), names);
  }
  const label = (name, x, y, w, phase) => text(x + 6, y + 15, shorten(name, Math.floor((w - 10) / 6.6)), "s" + (phase === "" ? "" : ["hydration", "dependency_load", "runtime_init"].includes(phase) ? " dark" : " on"));
  function tell() {
    const way = [];
    for (let n = here; n; n = n.parent) way.unshift(n);
    crumbs.replaceChildren(...way.flatMap((n, i) => [i ? " › " : "", n === here ? h("b", {}, n.name) : h("button", { type: "button", onclick: () => go(n, true) }, n.name)]), ` — ${bytes(here.size)} compressed, ${plural(here.leaves, "file")}, ${pct(unreadOf(here), here.size)} never read`);
    const leaves = [];
    const gather = (n) => { if (n.leaf) leaves.push(n.leaf); else n.list.forEach(gather); };
    gather(here);
    leaves.sort((a, b) => b.compressed - a.compressed);
    list.replaceChildren(table([["File", (l) => l.path, "path"], ["Layer", (l) => l.layer + 1, "n"], ["Package", (l) => l.pkg || null], ["Compressed", (l) => bytes(l.compressed), "n"], ["Bytes", (l) => bytes(l.size), "n"], ["Read", (l) => l.phase ? bytes(l.read) : "never", "n"], ["First read in", (l) => l.phase ? phaseLabel(l.phase) : null]], leaves.slice(0, 60), leaves.length > 60 ? `The largest 60 of ${leaves.length} here` : "Files here"));
  }
  tell();
  const total = s.map.needed_bytes + s.map.later_bytes + s.map.unread_bytes;
  const used = s.map.phases.filter((p) => s.map.leaves.some((l) => s.map.phases[l[4]] === p));
  const order = [...data.phases.map((p) => p.name).filter((n) => used.includes(n)), ...used.filter((n) => n && !phaseNames.has(n)), ...(used.includes("") ? [""] : [])];
  const sums = new Map();
  for (const l of s.map.leaves) sums.set(s.map.phases[l[4]], (sums.get(s.map.phases[l[4]]) || 0) + l[5]);
  return card("bytes", "Bytes of the image", `Area is compressed bytes, colour the phase in which a file was first read. ${pct(s.map.needed_bytes, total)} of the bytes are in files that are read until it is ready${s.map.later_bytes ? `, ${pct(s.map.later_bytes, total)} in files read later` : ""}; ${pct(s.map.unread_bytes, total)} are never read. Click, or press Enter, to look into a part.`
    + (s.map.compressed ? "" : " How files compress is not known: each has its share of its layer."), {
    chart: c, before: crumbs, controls: [choose("Group by", [["path", "Path"], ["layer", "Layer"], ["package", "Package"]], by, (v) => { by = v; root = buildTree(s.map, s.layers, by); go(root); })],
    table: () => list, after: [legend(order, (n) => bytes(sums.get(n)))] });
}
