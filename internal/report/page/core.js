// What all parts of the page use: elements, numbers for people, colours, tips, cards.
// Nothing of the data is ever parsed as markup: text goes in as text.

const data = JSON.parse(document.getElementById("data").textContent);

function fill(e, attrs, children) {
  for (const [k, v] of Object.entries(attrs || {})) {
    if (v === null || v === undefined || v === false) continue;
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else if (k === "tip") continue;
    else e.setAttribute(k, v === true ? "" : String(v));
  }
  for (const c of children.flat(Infinity)) {
    if (c === null || c === undefined || c === false) continue;
    e.append(c instanceof Node ? c : document.createTextNode(String(c)));
  }
  if (attrs && attrs.tip) tip(e, attrs.tip);
  return e;
}
const h = (tag, attrs, ...children) => fill(document.createElement(tag), attrs, children);
const g = (tag, attrs, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attrs, children);
const known = (v) => v !== null && v !== undefined;

// Numbers for people.
function ms(v, signed) {
  if (!known(v)) return "unknown";
  const a = Math.abs(v), sign = a < .05 ? "" : v < 0 ? "−" : signed && v > 0 ? "+" : "";
  if (a >= 99950) return sign + (a / 1000).toFixed(0) + " s";
  if (a >= 9995) return sign + (a / 1000).toFixed(1) + " s";
  if (a >= 999.5) return sign + (a / 1000).toFixed(2) + " s";
  if (a >= 9.95) return sign + a.toFixed(0) + " ms";
  return sign + a.toFixed(1) + " ms";
}
function bytes(v) {
  if (!known(v)) return "unknown";
  if (v >= 999.5e6) return (v / 1e9).toFixed(2) + " GB";
  if (v >= 99.5e6) return (v / 1e6).toFixed(0) + " MB";
  if (v >= 999500) return (v / 1e6).toFixed(1) + " MB";
  if (v >= 1000) return (v / 1000).toFixed(0) + " kB";
  return Math.round(v) + " B";
}
const pct = (part, whole) => whole > 0 ? (100 * part / whole).toFixed(100 * part / whole < 9.95 ? 1 : 0) + " %" : "–";
const plural = (n, one) => n + " " + one + (n === 1 ? "" : "s");
function when(iso) {
  const d = new Date(iso);
  return isNaN(d) || d.getUTCFullYear() < 1971 ? "" : d.toISOString().slice(0, 19).replace("T", " ") + " UTC";
}
const shorten = (s, n) => s.length <= n ? s : s.slice(0, Math.max(1, n - 1)) + "…";

// Phases: their words, colours and patterns.
const phaseNames = new Map((data.phases || []).map((p) => [p.name, p]));
const phaseLabel = (name) => name === "" ? "Never read" : phaseNames.has(name) ? phaseNames.get(name).label : name;
const phaseClass = (name) => name === "" ? "never" : phaseNames.has(name) ? name : "other";
const patterns = {
  queue: [], image_pull: ["M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4"], runtime_init: ["dot:2,2 6,6"], dependency_load: ["M2,0 v8 M6,0 v8"],
  app_bootstrap: ["M-2,6 l4,4 M0,0 l8,8 M6,-2 l4,4"], health_wait_container: ["M0,4 h8 M4,0 v8"], health_wait_lb: ["M0,2 h8 M0,6 h8"],
  first_request_penalty: ["M0,0 l8,8 M0,8 l8,-8"], hydration: ["dot:4,4"], never: ["never:M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4"], other: [], wait: ["wait:M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4"],
};
function defs() {
  const out = g("defs");
  for (const [name, list] of Object.entries(patterns)) {
    const p = g("pattern", { id: "pat-" + name, width: name === "wait" ? 6 : 8, height: name === "wait" ? 6 : 8, patternUnits: "userSpaceOnUse", patternContentUnits: "userSpaceOnUse" });
    const inner = name === "wait" ? g("g", { transform: "scale(.75)" }) : p;
    if (inner !== p) p.append(inner);
    for (const what of list) {
      if (what.startsWith("dot:")) for (const at of what.slice(4).split(" ")) inner.append(g("circle", { class: "pat dot", cx: at.split(",")[0], cy: at.split(",")[1], r: 1.3 }));
      else inner.append(g("path", { class: "pat " + (what.includes(":") ? what.split(":")[0] : ""), d: what.replace(/^\w+:/, "") }));
    }
    out.append(p);
  }
  return g("svg", { width: 0, height: 0, "aria-hidden": "true", id: "patterns" }, out);
}
// box is a rectangle in a phase's colour and pattern.
function box(name, x, y, w, height, attrs) {
  const c = phaseClass(name), shape = { x: x.toFixed(2), y: y.toFixed(2), width: Math.max(w, .75).toFixed(2), height: height.toFixed(2), rx: attrs && attrs.rx || 0 };
  return [g("rect", { class: "p-" + c + (attrs && attrs.class ? " " + attrs.class : ""), ...shape }),
    w > 3 && patterns[c].length ? g("rect", { class: "over", fill: "url(#pat-" + c + ")", ...shape }) : null];
}
const swatch = (name) => g("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, box(name, 0, 0, 12, 12, { rx: 2 }));
const legend = (names, value) => h("ul", { class: "legend" }, names.map((n) => h("li", {}, swatch(n), phaseLabel(n), value ? h("b", {}, value(n)) : null)));

// Tips, for the mouse and for the focus.
const tipBox = document.getElementById("tip");
function showTip(e, lines, x, y) {
  tipBox.replaceChildren(...lines.filter(known).map((l, i) => h(i ? "span" : "b", {}, l)));
  tipBox.hidden = false;
  const r = tipBox.getBoundingClientRect();
  tipBox.style.left = Math.max(6, Math.min(x + 12, innerWidth - r.width - 8)) + "px";
  tipBox.style.top = (y + 18 + r.height > innerHeight ? Math.max(4, y - r.height - 10) : y + 18) + "px";
}
let focused = null; // element whose tip is shown because it has the focus
function hideTip() { tipBox.hidden = true; focused = null; }
function tipAtFocus(e, lines) {
  const r = e.getBoundingClientRect();
  showTip(e, lines, r.left + Math.min(r.width / 2, 200), r.top + Math.min(r.height, 60) - 6);
  focused = [e, lines];
}
function tip(e, lines) {
  const get = () => typeof lines === "function" ? lines() : lines;
  e.setAttribute("aria-label", get().filter(known).join(". "));
  e.addEventListener("mousemove", (ev) => { showTip(e, get(), ev.clientX, ev.clientY); ev.stopPropagation(); });
  e.addEventListener("mouseleave", hideTip);
  if (!e.hasAttribute("tabindex")) return; // a listener would make it focusable
  e.addEventListener("focus", () => { if (e.matches(":focus-visible")) tipAtFocus(e, get()); });
  e.addEventListener("blur", hideTip);
}
addEventListener("scroll", () => { if (focused) tipAtFocus(...focused); else hideTip(); }, { passive: true }); // the focus itself may scroll
addEventListener("keydown", (e) => { if (e.key === "Escape") hideTip(); });

// Charts are drawn for the width that they have, and again when it changes.
const charts = new Set();
function chart(name, draw) {
  const host = h("div", { class: "chart", role: "group", "aria-label": name });
  const c = { host, width: 0, draw: (width) => { c.width = width; host.replaceChildren(...[draw(width)].flat().filter(known)); } };
  host.redraw = () => { if (c.width) c.draw(c.width); };
  charts.add(c);
  return host;
}
// Where the page's letters are large, on large screens, charts are too: they are drawn for
// less width, and scaled.
function drawCharts(width) {
  const scale = Math.max(1, parseFloat(getComputedStyle(document.documentElement).fontSize) / 16);
  for (const c of charts) {
    if (!c.host.isConnected) { charts.delete(c); continue; }
    const w = width || Math.round(c.host.clientWidth / scale);
    if (w > 0 && w !== c.width) c.draw(w);
  }
}
const frame = (w, height, ...children) => g("svg", { viewBox: `0 0 ${w} ${height}`, "data-width": w, preserveAspectRatio: "xMinYMin meet" }, ...children);

// ticks of an axis: about n round numbers from 0 on.
function steps(max, n) {
  if (!(max > 0)) return [0];
  const raw = max / Math.max(n, 1), unit = Math.pow(10, Math.floor(Math.log10(raw)));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= raw);
  const out = [];
  for (let i = 0; i * step <= max * 1.0001; i++) out.push(i * step);
  return out;
}
function axis(x, from, to, max, width, unit) {
  const out = [];
  for (const v of steps(max, Math.max(2, Math.floor(width / 95)))) {
    out.push(g("line", { class: v ? "grid" : "axis", x1: x(v), x2: x(v), y1: from, y2: to }));
    out.push(g("text", { class: "s", x: x(v), y: from - 6, "text-anchor": v ? "middle" : "start" }, unit ? unit(v) : v === 0 ? "0" : v >= 1000 ? +(v / 1000).toFixed(2) + " s" : +v.toFixed(2) + " ms"));
  }
  return out;
}
const text = (x, y, s, c, anchor) => g("text", { x, y, class: c || "", "text-anchor": anchor || "start" }, s);

// table of rows; a column is [title, cell, class].
function table(columns, rows, caption) {
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption || "Table" }, h("table", {}, caption ? h("caption", {}, caption) : null,
    h("thead", {}, h("tr", {}, columns.map(([t, , c]) => h("th", { scope: "col", class: c === "n" ? "n" : null }, t)))),
    h("tbody", {}, rows.map((r, i) => h("tr", {}, columns.map(([, f, c]) => {
      const v = f(r, i);
      const [value, cls] = Array.isArray(v) ? v : [v, null];
      return h("td", { class: [c, cls].filter(Boolean).join(" ") || null }, known(value) ? value : "–");
    }))))));
}

// card is a section: a title, what it is, controls, a chart, and the table behind it.
function card(id, title, sub, o) {
  const head = h("div", { class: "head" }, h("h2", { id: id + "-title" }, title));
  const body = h("div", {});
  const controls = h("div", { class: "group" }, o.controls || []);
  if (o.table) {
    const b = h("button", { type: "button", "aria-pressed": "false", "data-table": id, onclick: () => {
      const on = b.getAttribute("aria-pressed") !== "true";
      b.setAttribute("aria-pressed", String(on));
      behind.hidden = !on;
      if (on) behind.replaceChildren(o.table());
      if (o.chart) o.chart.hidden = on;
      if (!on) drawCharts();
    } }, "Table");
    controls.append(b);
    var behind = h("div", { hidden: true, class: "tall" });
    body.retable = () => { if (!behind.hidden) behind.replaceChildren(o.table()); };
  }
  head.append(controls);
  if (sub) head.append(h("p", { class: "sub" }, sub));
  body.append(...[o.before, o.chart, behind, o.after].flat().filter(known));
  const e = h("section", { class: "card" + (o.long ? " long" : ""), id, "aria-labelledby": id + "-title" }, head, body);
  e.retable = () => body.retable && body.retable();
  return e;
}
// missing stands for a card that there is nothing for: it becomes a line of one that has them all.
const missing = (id, title, why) => ({ missing: true, id, title, why });
const none = (why) => h("p", { class: "none" }, why);
// choose is a row of buttons of which one is pressed.
function choose(label, options, value, pick) {
  const all = options.map(([v, t]) => h("button", { type: "button", "aria-pressed": String(v === value), "data-value": v, title: t, onclick: () => {
    for (const b of all) b.setAttribute("aria-pressed", String(b === all[options.findIndex((o) => o[0] === v)]));
    pick(v);
  } }, t));
  return h("div", { class: "seg", role: "group", "aria-label": label }, all);
}
function select(label, options, value, pick) {
  return h("select", { "aria-label": label, onchange: (e) => pick(e.target.value) }, options.map(([v, t]) => h("option", { value: v, selected: String(v) === String(value) }, t)));
}
