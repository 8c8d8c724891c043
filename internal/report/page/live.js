// The page of a node's starts: as they happen, by image, and over releases.

const starts = new Map(data.starts.map((s) => [s.id, s]));
const most = 1000;
const states = { asked: "asked for", pull_start: "asked for", pull_end: "mounted", created: "created", started: "runs", ready: "ready", failed: "failed", hydrated: "mounted, all here", requested: "asked for", dep_start: "runs", dep_end: "runs", listen: "listens" };
const sorted = () => [...starts.values()].sort((a, b) => (a.begun < b.begun ? 1 : a.begun > b.begun ? -1 : 0));
const at = (list, q) => { if (!list.length) return null; const s = [...list].sort((a, b) => a - b), i = q * (s.length - 1), j = Math.floor(i); return s[j] + (i - j) * (s[Math.min(j + 1, s.length - 1)] - s[j]); };
const sum = (list, f) => list.reduce((a, s) => a + (f(s) || 0), 0);

// parts of a reference.
function reference(image) {
  const name = image.split("@")[0], i = name.lastIndexOf(":");
  return i > name.lastIndexOf("/") ? { repository: name.slice(0, i), tag: name.slice(i + 1) } : { repository: name, tag: "" };
}

// Where the bytes that starts read came from.
const origins = [["here_bytes", "here", "app_bootstrap"], ["cache_bytes", "shared cache", "runtime_init"], ["registry_bytes", "registry", "image_pull"]];
function originBar(list, width) {
  const all = sum(list, (s) => s.here_bytes + s.cache_bytes + s.registry_bytes);
  if (!all) return "unknown";
  let x = 0;
  const words = origins.filter(([k]) => sum(list, (s) => s[k])).map(([k, name]) => `${name} ${pct(sum(list, (s) => s[k]), all)}`);
  return h("span", { class: "origin", title: words.join(", ") }, g("svg", { width, height: 12, viewBox: `0 0 ${width} 12`, role: "img", "aria-label": words.join(", ") },
    origins.map(([k, , colour]) => { const w = width * sum(list, (s) => s[k]) / all, r = w > 0 ? g("rect", { class: "p-" + colour, x, width: w, height: 12 }) : null; x += w; return r; })), " ", words[0]);
}

const host = { now: h("div", {}), fleet: h("div", {}), headline: h("h1", {}), facts: h("p", { class: "facts" }) };

let rows = 12;
const more = h("button", { type: "button", "aria-pressed": "false", id: "more", onclick: () => { rows = rows === 12 ? 100 : 12; more.setAttribute("aria-pressed", String(rows > 12)); drawNow(); } }, "More");
function drawNow() {
  const list = sorted().slice(0, rows);
  more.hidden = starts.size <= 12;
  if (!list.length) { host.now.replaceChildren(none("Nothing was started yet. What thaw run starts on this node from now on is here, and what containerd mounts through thaw.")); return; }
  host.now.replaceChildren(table([["Begun (UTC)", (s) => when(s.begun).slice(5, 19), "t"], ["Image", (s) => s.image, "path"], ["State", (s) => [(s.over ? "" : "… ") + (states[s.state] || s.state) + (s.error ? ": " + s.error : ""), s.state === "failed" ? "bad" : ""]], ["Ready after", (s) => known(s.total_ms) ? ms(s.total_ms) : null, "n"],
    ["Waited for bytes", (s) => known(s.wait_ms) ? ms(s.wait_ms) : null, "n"], ["Bytes fetched", (s) => s.network_bytes ? bytes(s.network_bytes) : s.over && s.state !== "failed" ? "none" : null, "n"], ["From", (s) => s.needed_bytes ? originBar([s], 60) : null],
    ["", (s) => s.kept ? h("a", { href: "starts/" + encodeURIComponent(s.id) }, "Report") : null]], list, list.length < starts.size ? `The last ${list.length} of ${starts.size} starts` : "Starts, the last first"));
}

// groups of starts that are over, by a key.
function groups(key) {
  const out = new Map();
  for (const s of sorted()) if (s.over) { const k = key(s); out.set(k, [...(out.get(k) || []), s]); }
  return out;
}
const totals = (list) => list.map((s) => s.total_ms).filter(known);
function unread(list) {
  const some = list.filter((s) => s.needed_bytes > 0 && s.unpacked_bytes > 0);
  return some.length ? 1 - sum(some, (s) => s.needed_bytes / s.unpacked_bytes) / some.length : null;
}

function drawFleet() {
  const rows = [...groups((s) => s.image)].sort((a, b) => b[1].length - a[1].length).slice(0, 200);
  if (!rows.length) { host.fleet.replaceChildren(none("No start is over yet.")); return; }
  const q = (p) => ([, list]) => { const v = at(totals(list), p); return known(v) ? ms(v) : null; };
  host.fleet.replaceChildren(table([["Image", ([image]) => image, "path"], ["Starts", ([, l]) => l.length + (l.some((s) => s.state === "failed") ? ` (${l.filter((s) => s.state === "failed").length} failed)` : ""), "n"], ["p50", q(.5), "n"], ["p90", q(.9), "n"], ["p99", q(.99), "n"],
    ["Bytes needed", ([, l]) => { const v = at(l.map((s) => s.needed_bytes).filter((n) => n > 0), .5); return known(v) ? bytes(v) : null; }, "n"], ["Not read until ready", ([, l]) => { const v = unread(l); return known(v) ? pct(v, 1) : null; }, "n"], ["From where", ([, l]) => originBar(l.filter((s) => s.needed_bytes), 90)]], rows, "By image; bytes are uncompressed, of files that were read until ready"), h("ul", { class: "legend" }, origins.map(([, name, colour]) => h("li", {}, g("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, g("rect", { class: "p-" + colour, width: 12, height: 12, rx: 2 })), name))));
}

let repository = null;
const trend = chart("Starts over releases", (width) => {
  const all = releases();
  if (!all.length || !all.some((r) => totals(r.list).length)) return none("No start of this repository was ready yet.");
  const height = 190, top = 12, bottom = 46, left = 58, last = Math.max(...all.flatMap((r) => totals(r.list))) * 1.08, y = (v) => top + height - height * v / last, step = (width - left - 10) / all.length, x = (i) => left + step * (i + .5), out = [];
  for (const v of steps(last, 4)) out.push(g("line", { class: v ? "grid" : "axis", x1: left, x2: width, y1: y(v), y2: y(v) }), text(left - 8, y(v) + 4, ms(v), "s", "end"));
  let d = "";
  all.forEach((r, i) => {
    const t = totals(r.list), mid = at(t, .5);
    if (known(mid)) d += (d ? " L" : "M") + `${x(i)},${y(mid)}`;
    out.push(g("g", { class: "row", tabindex: 0, role: "img", "data-row": "release", tip: [r.name, plural(r.list.length, "start"), known(mid) ? `median ${ms(mid)}, p90 ${ms(at(t, .9))}` : "never ready", "first seen " + when(r.first)] }, g("rect", { class: "hover", x: x(i) - step / 2, y: top, width: step, height: height }), t.map((v) => g("circle", { cx: x(i), cy: y(v), r: 4, fill: "var(--accent)", "fill-opacity": .35 })), known(mid) ? g("path", { class: "whisker", d: `M${x(i) - 9},${y(mid)} h18`, "stroke-width": 2.4 }) : null,
      text(x(i), top + height + 18, shorten(r.name, Math.max(4, Math.floor(step / 7))), "s ink", "middle"), text(x(i), top + height + 34, known(mid) ? ms(mid) : "–", "s", "middle"), g("rect", { class: "ring", x: x(i) - step / 2 + 1, y: top, width: step - 2, height: height + bottom - 6, rx: 4 })));
  });
  return frame(width, top + height + bottom, out, g("path", { d, fill: "none", stroke: "var(--accent)", "stroke-width": 1.6, opacity: .7 }));
});
const repositories = () => [...groups((s) => reference(s.image).repository)].sort((a, b) => b[1].length - a[1].length).map(([r]) => r);
// releases of the repository: tags, and where a tag moved, manifests; the last twelve.
function releases() {
  const list = groups((s) => reference(s.image).repository).get(repository) || [], by = new Map(), tags = new Map();
  for (const s of list) { const t = reference(s.image).tag; if (!tags.has(t)) tags.set(t, new Set()); tags.get(t).add(s.manifest || ""); }
  for (const s of [...list].reverse()) {
    const t = reference(s.image).tag, digest = (s.manifest || "").replace(/^sha256:/, "").slice(0, 7), name = (t || "no tag") + (tags.get(t).size > 1 || !t ? " " + digest : "");
    if (!by.has(name)) by.set(name, { name, first: s.begun, list: [] });
    by.get(name).list.push(s);
  }
  return [...by.values()].slice(-12);
}

const chooser = h("span", {});
function drawTrend() {
  const all = repositories();
  if (!all.includes(repository)) repository = all[0] || null;
  const now = JSON.stringify(all);
  if (chooser.dataset.all !== now) {
    chooser.dataset.all = now;
    chooser.replaceChildren(all.length > 1 ? select("Repository", all.map((r) => [r, r]), repository, (v) => { repository = v; trend.redraw(); trendCard.retable(); }) : "");
  }
  trend.redraw();
  trendCard.retable();
}
const trendCard = card("trend", "Releases", "Time to ready of one repository's releases, in the order in which they came here; the line is the median.", { chart: trend, controls: [chooser],
  table: () => table([["Release", (r) => r.name], ["First seen", (r) => when(r.first)], ["Starts", (r) => r.list.length, "n"], ["p50", (r) => ms(at(totals(r.list), .5)), "n"], ["p90", (r) => ms(at(totals(r.list), .9)), "n"], ["Not read until ready", (r) => { const v = unread(r.list); return known(v) ? pct(v, 1) : null; }, "n"]], releases(), repository || "") });

function drawHeadline() {
  const over = [...starts.values()].filter((s) => s.over), t = totals(over), read = over.filter((s) => s.needed_bytes), all = sum(read, (s) => s.here_bytes + s.cache_bytes + s.registry_bytes), never = unread(over), under = starts.size - over.length;
  host.headline.textContent = !starts.size ? "No starts yet." : known(never) ? `${pct(never, 1)} of the images' bytes are not read until ready; ${pct(all - sum(read, (s) => s.registry_bytes), all)} of the rest came from near.` : t.length ? `Ready in ${ms(at(t, .5))}, in the median.` : `${plural(starts.size, "start")}.`;
  host.facts.textContent = [plural(over.length, "start"), under ? `${under} under way` : null, t.length ? `median ${ms(at(t, .5))}, p99 ${ms(at(t, .99))}` : null, plural(new Set(over.map((s) => s.image)).size, "image")].filter(Boolean).join(" · ");
}

let drawing = false;
function drawAll() { drawing = false; drawHeadline(); drawNow(); drawFleet(); drawTrend(); drawCharts(); }
function soon() { if (!drawing) { drawing = true; setTimeout(drawAll, 60); } }

function take(s) {
  starts.set(s.id, s);
  if (starts.size > most) for (const old of sorted().slice(most)) starts.delete(old.id);
  soon();
}

const dot = h("span", { class: "live", id: "live" }), word = h("span", {}, "not connected");
function connect() {
  const source = new EventSource("events");
  source.addEventListener("open", () => { dot.classList.add("on"); word.textContent = "live"; });
  source.addEventListener("error", () => { dot.classList.remove("on"); word.textContent = "not connected"; });
  source.addEventListener("start", (e) => take(JSON.parse(e.data)));
}

document.getElementById("top").append(h("div", { class: "bar" }, h("span", { class: "brand" }, logo(), "thaw"), h("span", { class: "what" }, "Starts on " + data.node), h("span", { role: "status" }, dot, word), h("div", { class: "group" }, themeButton(), h("button", { type: "button", class: "icon", id: "print", "aria-label": "Print", onclick: () => print() }, icon("print")))));
document.body.append(defs());
document.getElementById("main").replaceChildren(h("section", { class: "card", id: "overview", "aria-label": "Overview" }, host.headline, host.facts),
  card("now", "Starts", "As they happen. Times are seen by the daemon; the report of a start has all that is known of it.", { chart: host.now, long: true, controls: [more] }), card("fleet", "Images", null, { chart: host.fleet, long: true }), trendCard,
  h("footer", {}, `thaw ${data.tool || ""}. Only this node's daemon is asked for anything.`));
drawAll();
new ResizeObserver(() => drawCharts()).observe(document.getElementById("main"));
connect();
