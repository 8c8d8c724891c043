// The other parts of the page, each a card.

function scoreRing(s, toggle) {
  const v = s.score.value, r = 46, around = 2 * Math.PI * r, colour = !known(v) ? "var(--faint)" : v >= 90 ? "var(--good)" : v >= 50 ? "var(--c-dependency_load)" : "var(--bad)";
  const ring = g("svg", { viewBox: "0 0 110 110", role: "img", "aria-label": known(v) ? `Score ${v} of 100` : "No score: nothing is known" },
    g("circle", { cx: 55, cy: 55, r, fill: "none", stroke: "var(--raised)", "stroke-width": 9 }),
    known(v) ? g("circle", { cx: 55, cy: 55, r, fill: "none", stroke: colour, "stroke-width": 9, "stroke-linecap": "round", "stroke-dasharray": `${around * v / 100} ${around}`, transform: "rotate(-90 55 55)" }) : null);
  const t = text(55, known(v) ? 67 : 63, known(v) ? v : "–", "ink b", "middle");
  t.style.fontSize = "34px";
  ring.append(t);
  return h("div", { class: "score" }, ring, h("button", { type: "button", "aria-expanded": "false", "aria-controls": "score-detail", onclick: toggle }, `Score, version ${s.score.version}`));
}

function overview(s) {
  const t = s.total, detail = h("div", { id: "score-detail", hidden: true }, h("h3", {}, "Score"),
    table([["Measure", (m) => m.name], ["Weight", (m) => (100 * m.weight).toFixed(0) + " %", "n"], ["Value", (m) => !known(m.value) ? "unknown" : m.unit === "ms" ? ms(m.value) : pct(m.value, 1), "n"], ["90 points at", (m) => m.unit === "ms" ? ms(m.p10) : pct(m.p10, 1), "n"], ["50 points at", (m) => m.unit === "ms" ? ms(m.median) : pct(m.median, 1), "n"], ["Points", (m) => known(m.value) ? m.score.toFixed(0) : null, "n"]], s.score.measures, "Each is a lognormal curve, as Lighthouse has them"),
    h("p", { class: "note" }, s.score.known < .999 ? `What is unknown is left out: the score is of ${(100 * s.score.known).toFixed(0)} % of the weights. ` : "", "A score is for orientation. Budgets are better in milliseconds."));
  const ring = scoreRing(s, (e) => { const on = detail.hidden; detail.hidden = !on; e.currentTarget.setAttribute("aria-expanded", String(on)); });
  const facts = [s.image || null, s.mode ? "started " + s.mode : null, s.cold ? { L0: "nothing of the image here (L0)", L1: "all of it on disk (L1)", L2: "all of it in memory (L2)", L3: "a frozen process (L3)" }[s.cold] || s.cold : null, plural(s.count, "run") + (s.failed ? `, ${s.failed} of them failed` : "")].filter(Boolean);
  const tiles = [];
  const tile = (k, v, d) => tiles.push(h("div", { class: "tile" }, h("div", { class: "k" }, k), h("div", { class: "v" }, v), d ? h("div", { class: "d" }, d) : null));
  tile("Ready, median", t ? ms(t.p50) : "unknown", t && t.n > 1 ? `min\u00a0${ms(t.min)} · avg\u00a0${ms(t.avg)} · max\u00a0${ms(t.max)}`.replace(/(\d) (m?s)/g, "$1\u00a0$2") : t ? "one run" : null);
  if (t && t.n >= 5) tile("Ready, p95", ms(t.p95), t.ci ? `median between ${ms(t.ci[0])} and ${ms(t.ci[1])} (95 %)` : null);
  if (s.cost) tile("Bytes until ready", bytes(s.cost.network_bytes), s.image_bytes ? `${pct(s.cost.network_bytes, s.image_bytes)} of the image's ${bytes(s.image_bytes)}` : plural(s.cost.requests, "request"));
  else if (s.image_bytes) tile("Image", bytes(s.image_bytes), "compressed");
  const lazy = s.median ? s.median.phases.filter((p) => startPhase(p.name) && known(p.lazy)).reduce((a, p) => a + p.lazy, 0) : null;
  if (s.median && s.median.phases.some((p) => known(p.lazy))) tile("Waited for bytes", ms(lazy), t ? `${pct(lazy, t.p50)} of the start` : null);
  const worst = s.routes.find((r) => r.known);
  if (worst) tile("First request", ms(worst.first), `${worst.steady > 0 ? (worst.first / worst.steady).toFixed(1) + " × later ones, " : ""}${worst.route}`);
  const e = h("section", { class: "card", id: "overview", "aria-label": "Overview" }, h("div", { class: "hero" }, ring, h("div", {}, h("h1", {}, s.headline.text), h("p", { class: "facts" }, facts.join(" · ")))), h("div", { class: "tiles" }, tiles), strip(s), detail);
  return e;
}

// strip is the start as one bar.
function strip(s) {
  if (!s.median) return null;
  const parts = s.median.phases.filter((p) => startPhase(p.name) && known(p.ms) && p.ms > 0), sum = parts.reduce((a, p) => a + p.ms, 0), unknown = s.median.phases.filter((p) => startPhase(p.name) && !known(p.ms));
  if (!parts.length) return null;
  const whole = Math.max(sum, s.total ? s.total.p50 : 0), rest = unknown.length ? whole - sum : 0;
  const c = chart("The start as one bar", (width) => {
    let x = 0;
    const out = parts.map((p) => {
      const w = Math.max((p.ms / whole) * width, 1), at = x;
      x += w;
      const words = phaseLabel(p.name);
      return g("g", { tip: [`${words}: ${ms(p.ms)}`, `${pct(p.ms, whole)} of the start`] }, box(p.name, at, 0, Math.max(w - 1.5, 1), 26, { rx: 3 }));
    });
    if (rest > 0) out.push(g("rect", { class: "unknown", x: x + 1, y: 1, width: Math.max(width - x - 2, 2), height: 24, rx: 3 }));
    return frame(width, 26, out);
  });
  return h("div", { class: "strip" }, c, legend(parts.map((p) => p.name), (n) => { const p = parts.find((p) => p.name === n); return `${ms(p.ms)}, ${pct(p.ms, whole)}`; }), unknown.length ? h("p", { class: "note" }, "Unknown: " + unknown.map((p) => phaseLabel(p.name).toLowerCase()).join(", ") + ".") : null);
}

const surely = { measured: "measured", reported: "reported by another system", estimated: "estimated", computed: "computed from settings" };

function opportunitiesCard(s) {
  const all = s.opportunities, most = Math.max(...all.map((o) => o.saved_ms), 1);
  const list = all.map((o) => h("div", { class: "opp" },
    h("div", { class: "saved" }, h("b", {}, o.saved_ms > 0 ? (o.up_to ? "≤ " : "") + ms(o.saved_ms) : "0 ms"), o.saved_ms > 0 ? h("span", {}, o.counts ? "of the start" : "beside the start") : null, o.saved_bytes ? h("span", {}, bytes(o.saved_bytes)) : null,
      h("div", { class: "meter", "aria-hidden": "true" }, g("svg", { viewBox: "0 0 100 5", preserveAspectRatio: "none" }, g("rect", { class: "p-" + phaseClass(o.phase || "other"), width: 100 * o.saved_ms / most, height: 5 })))),
    h("div", {}, h("p", { class: "t" }, o.title, h("span", { class: "tag" }, surely[o.confidence] || o.confidence)), h("p", { class: "e" }, o.evidence), h("p", { class: "do" }, o.do))));
  const ids = new Set(all.map((o) => o.id));
  const rest = (data.looked || []).filter((l) => !ids.has(l.id));
  return card("opportunities", "Opportunities", "What need not be, by what was measured; ≤ says that it may be less. Sorted by time.", {
    chart: all.length ? h("div", { class: "opps" }, list) : none(s.median ? "Nothing that was measured says what could go." : "No start succeeded: there is nothing to save."),
    table: all.length ? () => table([["What", (o) => o.title], ["Saves", (o) => (o.up_to ? "≤ " : "") + ms(o.saved_ms), "n"], ["Bytes", (o) => o.saved_bytes ? bytes(o.saved_bytes) : null, "n"], ["Confidence", (o) => o.confidence], ["Evidence", (o) => o.evidence]], all, "Opportunities") : null,
    after: rest.length && s.median ? h("details", {}, h("summary", {}, `Looked for and not found, or not to be told from these runs (${rest.length})`), h("ul", {}, rest.map((l) => h("li", {}, l.text)))) : null, long: true });
}

function layersCard(s) {
  if (!s.layers.length) return missing("layers", "Layers", "The image's layers are not known of these runs.");
  const c = chart("Layers of the image", (width) => {
    const narrow = width < 620, most = Math.max(...s.layers.map((l) => l.bytes), 1), labels = narrow ? 0 : Math.min(430, width * .42), rowHeight = narrow ? 42 : 28, right = 152;
    const x = (v) => labels + (width - labels - right) * v / most;
    return frame(width, s.layers.length * rowHeight + 2, s.layers.map((l, i) => {
      const y = i * rowHeight, by = narrow ? y + 18 : y + 6, used = l.known ? l.share * l.bytes : 0;
      return g("g", { class: "row", tabindex: 0, role: "img", "data-row": "layer", tip: [`Layer ${i + 1}: ${bytes(l.bytes)} compressed, ${bytes(l.unpacked)} unpacked`, l.known ? `${bytes(l.used)} in ${l.files_used} of ${plural(l.files, "file")} read until ready (${pct(l.share, 1)})` : "which of its files were read is not known", l.later ? `${bytes(l.later)} read later` : null, l.instruction || null, l.digest] },
        g("rect", { class: "hover", x: -8, y, width: width + 16, height: rowHeight, rx: 5 }), text(0, narrow ? y + 13 : y + 18, shorten(`${i + 1}. ${l.instruction || l.digest}`, Math.floor((narrow ? width : labels) / 6.9)), "ink"),
        box("", labels, by, x(l.bytes) - labels, 15, { rx: 2 }), used > 0 ? box("dependency_load", labels, by, x(used) - labels, 15, { rx: 2 }) : null,
        text(x(l.bytes) + 8, by + 12, `${bytes(l.bytes)}` + (l.known ? `, ${pct(l.share, 1)} used` : ""), "s ink"), g("rect", { class: "ring", x: -6, y: y + 1, width: width + 12, height: rowHeight - 2, rx: 5 }));
    }));
  });
  return card("layers", "Layers", "From the lowest up: compressed bytes, and what share of a layer's bytes was read until ready.", { chart: c,
    table: () => table([["", (l, i) => i + 1, "n"], ["Made by", (l) => l.instruction || null], ["Compressed", (l) => bytes(l.bytes), "n"], ["Unpacked", (l) => bytes(l.unpacked), "n"], ["Used until ready", (l) => l.known ? bytes(l.used) : "unknown", "n"], ["Share", (l) => l.known ? pct(l.share, 1) : null, "n"], ["Files read", (l) => l.known ? `${l.files_used} of ${l.files}` : null, "n"], ["Digest", (l) => l.digest, "path"]], s.layers, "Layers") });
}

function requestsCard(s) {
  if (!s.routes.length) return missing("requests", "First requests", "No requests were made. thaw measure --request GET:/path finds out what the first one costs.");
  const c = chart("First requests", (width) => {
    const narrow = width < 620, rowHeight = 24, labels = narrow ? 34 : 46, right = narrow ? 96 : 250, out = [];
    let y = 0;
    for (const r of s.routes) {
      const most = Math.max(...r.n.map((n) => n.ms ? n.ms.max : 0), .001), x = (v) => labels + (width - labels - right) * v / most;
      out.push(text(0, y + 15, shorten(r.route, narrow ? 34 : 70), "ink b"), text(width, y + 15, r.known ? `penalty ${ms(r.penalty)}` + (r.steady > 0 ? `, ${(r.first / r.steady).toFixed(1)} ×` : "") : "penalty unknown", "s", "end"));
      y += 24;
      for (const n of r.n.slice(0, 6)) {
        const x1 = x(n.ms.p50);
        out.push(g("g", { class: "row", tabindex: 0, role: "img", "data-row": "request", tip: [`${r.route}, request ${n.n}: ${ms(n.ms.p50)}`, n.ms.n > 1 ? `min ${ms(n.ms.min)}, avg ${ms(n.ms.avg)}, max ${ms(n.ms.max)} of ${n.ms.n} runs` : null, n.files ? `${plural(Math.round(n.files), "file")} opened for the first time, ${bytes(n.bytes)}` : "no new files", n.wait ? `waited for bytes: ${ms(n.wait)}` : null, n.failed ? `failed in ${plural(n.failed, "run")}: ${n.error}` : null] },
          g("rect", { class: "hover", x: -8, y, width: width + 16, height: rowHeight, rx: 5 }), text(0, y + 16, "r" + n.n, n.failed ? "ink b" : ""), box(n.n === 1 ? "first_request_penalty" : "hydration", labels, y + 5, x1 - labels, 14, { rx: 2 }),
          n.wait ? [g("rect", { class: "waits-under", x: labels, y: y + 5, width: Math.min(x(n.wait), x1) - labels, height: 14 }), g("rect", { class: "waits", x: labels, y: y + 5, width: Math.min(x(n.wait), x1) - labels, height: 14 })] : null, n.ms.n > 1 ? g("path", { class: "whisker", d: `M${x1},${y + 12} H${x(n.ms.max)} M${x(n.ms.max)},${y + 8} v8` }) : null,
          text(Math.max(x1, n.ms.n > 1 ? x(n.ms.max) : 0) + 7, y + 16, ms(n.ms.p50) + (n.failed ? " failed" : "") + (!narrow && n.files ? `, ${plural(Math.round(n.files), "new file")}, ${bytes(n.bytes)}` : ""), "s ink"), g("rect", { class: "ring", x: -6, y: y + 1, width: width + 12, height: rowHeight - 2, rx: 5 })));
        y += rowHeight;
      }
      y += 14;
    }
    return frame(width, y, out);
  });
  const rows = s.routes.flatMap((r) => r.n.map((n) => ({ route: r.route, ...n })));
  return card("requests", "First requests", "Requests right after it was ready, in their order; medians, whiskers to the slowest; hatched is what of it was waiting for bytes. What was not loaded at the start is loaded now, and a user waits for it.", { chart: c,
    table: () => table([["Route", (n) => n.route], ["", (n) => "r" + n.n, "n"], ["Median", (n) => ms(n.ms.p50), "n"], ["Min", (n) => ms(n.ms.min), "n"], ["Avg", (n) => ms(n.ms.avg), "n"], ["Max", (n) => ms(n.ms.max), "n"], ["New files", (n) => Math.round(n.files), "n"], ["Bytes", (n) => bytes(n.bytes), "n"], ["Waited", (n) => ms(n.wait), "n"], ["Failed", (n) => n.failed || null, "n"]], rows, "Requests") });
}

function packagesCard(s) {
  if (!s.packages.length) return missing("packages", "Libraries", "What it loads, library by library, was not seen.");
  const phases = [...new Set(s.packages.map((p) => p.phase))].sort((a, b) => data.phases.findIndex((p) => p.name === a) - data.phases.findIndex((p) => p.name === b));
  let phase = phases.includes("dependency_load") ? "dependency_load" : phases[0];
  const c = chart("Libraries by time", (width) => {
    const all = s.packages.filter((p) => p.phase === phase && p.ms > 0), kinds = new Map();
    for (const p of all) { const k = p.name.includes(":") ? p.name.slice(0, p.name.indexOf(":")) : "other"; if (!kinds.has(k)) kinds.set(k, { name: k, ms: 0, list: [] }); kinds.get(k).ms += p.ms; kinds.get(k).list.push(p); }
    const sum = all.reduce((a, p) => a + p.ms, 0);
    if (!sum) return none("None of them took time in this phase.");
    const out = [], row = (x, y, w, name, lines, label, deep) => out.push(g("g", { class: "icicle", tabindex: w > 4 ? 0 : null, role: "img", "data-row": "package", tip: lines }, box(name, x, y, Math.max(w - 1, .7), 30, { rx: 2, class: deep }), w > 44 ? text(x + 6, y + 19, shorten(label, Math.floor((w - 10) / 6.6)), "s " + (["dependency_load", "runtime_init", "hydration"].includes(name) ? "dark" : "on")) : null, g("rect", { class: "ring", x, y, width: Math.max(w - 1, 1), height: 30, rx: 3 })));
    const scale = width / sum;
    row(0, 0, width, phase, [phaseLabel(phase), `${ms(sum)} in ${plural(all.length, "library").replace("librarys", "libraries")}`], `${phaseLabel(phase)}, ${ms(sum)} in libraries`);
    let x = 0;
    for (const k of [...kinds.values()].sort((a, b) => b.ms - a.ms)) {
      row(x, 32, k.ms * scale, phase, [k.name, `${ms(k.ms)}, ${pct(k.ms, sum)}`, plural(k.list.length, "package")], `${k.name} ${ms(k.ms)}`);
      let at = x;
      for (const p of k.list) { row(at, 64, p.ms * scale, phase, [p.name, `${ms(p.ms)}, ${pct(p.ms, sum)}`, `${plural(p.files, "file")}, ${bytes(p.bytes)}`], `${p.name.slice(p.name.indexOf(":") + 1)} ${ms(p.ms)}`); at += p.ms * scale; }
      x += k.ms * scale;
    }
    return frame(width, 95, out);
  });
  const list = h("div", {});
  const tell = () => list.replaceChildren(bars(s.packages.filter((p) => p.phase === phase).slice(0, 12)));
  const bars = (rows) => table([["Library", (p) => p.name], ["Time", (p) => ms(p.ms), "n"], ["Bytes", (p) => bytes(p.bytes), "n"], ["Files", (p) => p.files, "n"]], rows, "The costliest");
  tell();
  const e = card("packages", "Libraries", "What it loads: a library's time is from the first use of its first file to that of the next library's, medians over the runs.", { chart: c, after: list,
    controls: phases.length > 1 ? [select("Phase", phases.map((p) => [p, phaseLabel(p)]), phase, (v) => { phase = v; c.redraw(); tell(); e.retable(); })] : [],
    table: () => table([["Library", (p) => p.name], ["Phase", (p) => phaseLabel(p.phase)], ["Time", (p) => ms(p.ms), "n"], ["Bytes", (p) => bytes(p.bytes), "n"], ["Files", (p) => p.files, "n"]], s.packages, "Libraries") });
  return e;
}

// runs: minimum, average and maximum, and each run as a dot.
function runsCard(s) {
  if (!s.runs.length) return missing("runs", "Runs", "There are no runs.");
  const all = data.subjects, most = Math.max(...all.flatMap((o) => o.totals), 1);
  const c = !all.some((o) => o.total) ? none("None of them was ready, or when is not known.") : chart("Each run's time to ready", (width) => {
    const narrow = width < 620, labels = narrow ? 0 : 196, right = 106, rowHeight = narrow ? 46 : 34, x = (v) => labels + (width - labels - right) * v / (most * 1.03);
    const out = axis(x, 18, 20 + all.length * rowHeight, most * 1.03, width - labels - right);
    all.forEach((o, i) => {
      const y = 20 + i * rowHeight, mid = narrow ? y + 32 : y + rowHeight / 2;
      const t = o.total;
      out.push(g("g", { class: "row", tabindex: 0, role: "img", "data-row": "runs", tip: [o.name, t ? `min ${ms(t.min)}, avg ${ms(t.avg)}, median ${ms(t.p50)}, max ${ms(t.max)}` : "never ready", plural(o.count, "run") + (o.failed ? `, ${o.failed} failed` : "")] },
        g("rect", { class: "hover", x: -8, y, width: width + 16, height: rowHeight, rx: 5 }), text(0, narrow ? y + 15 : mid + 4, shorten(o.name, narrow ? 40 : 27), o === s ? "ink b" : "ink"),
        t && t.ci ? g("rect", { x: x(t.ci[0]), y: mid - 8, width: Math.max(x(t.ci[1]) - x(t.ci[0]), 1), height: 16, rx: 3, fill: "var(--accent)", opacity: .16 }) : null,
        o.totals.map((v) => g("circle", { cx: x(v), cy: mid, r: 4, fill: "var(--accent)", "fill-opacity": .5 })), t ? g("path", { class: "whisker", d: `M${x(t.p50)},${mid - 9} v18`, "stroke-width": 2.2 }) : null,
        t ? text(x(t.max) + 9, mid + 4, "median " + ms(t.p50), "s ink") : text(labels, mid + 4, "never ready", "s i"), g("rect", { class: "ring", x: -6, y: y + 1, width: width + 12, height: rowHeight - 2, rx: 5 })));
    });
    return frame(width, 24 + all.length * rowHeight, out);
  });
  const rows = s.median ? [{ name: null, stats: s.total }, ...s.median.phases] : [];
  const numbers = table([["", (p) => p.name === null ? "Requested to ready" : phaseLabel(p.name)], ...["min", "avg", "max", "p50", "p90", "p95", "p99"].map((k) => [k, (p) => p.stats ? ms(p.stats[k]) : "unknown", "n"])], rows, `${s.name}: ${plural(s.count - s.failed, "run")}`);
  return card("runs", "Runs", "Each dot is a run, from requested to ready; the line is the median, the band its 95 % confidence.", { chart: c, after: rows.length ? h("div", {}, h("h3", {}, "Minimum, average, maximum"), numbers) : null,
    table: () => table([["Run", (r, i) => i + 1, "n"], ["Begun", (r) => when(r.begun)], ["Ready", (r) => ms(r.total), "n"], ["Coldness", (r) => r.coldness ? `${r.coldness.level}${r.coldness.proven ? ", proven" : ", not proven"}` : "not known"], ["Failed", (r) => r.error || null], ["Warnings", (r) => r.warnings.join("; ") || null]], s.runs, `Runs of ${s.name}` + (s.count > s.runs.length ? `, the first ${s.runs.length} of ${s.count}` : "")) });
}

function methodCard(s) {
  const r = data.records[s.record], proven = s.proven, seen = s.looked;
  const pairs = [["Record", r.id || null], ["Name", r.name], ["Measured by", { measure: "thaw measure, which started the containers", attach: "thaw measure --attach, which watched containers that somebody else started", daemon: "the daemon of thaw, of its own starts", containerd: "events of containerd", ecs: "what ECS says of tasks", kubernetes: "status and events of Kubernetes" }[r.source] || r.source], ["When", when(r.begun) + (r.ended && when(r.ended) ? " to " + when(r.ended) : "")], ["thaw", r.tool],
    ["Machine", [r.machine.kernel, r.machine.cpus ? plural(r.machine.cpus, "CPU") : null, r.machine.memory_bytes ? bytes(r.machine.memory_bytes) : null].filter(Boolean).join(", ")],
    ["Network", [r.network.name, r.network.latency_ms ? ms(r.network.latency_ms) + " latency" : null, r.network.bandwidth_bytes_per_s ? bytes(r.network.bandwidth_bytes_per_s) + "/s" : null].filter(Boolean).join(", ")],
    ["Labels", Object.entries(r.labels || {}).map(([k, v]) => `${k}=${v}`).join(", ")], ["Image", s.image], ["Manifest", s.manifest], ["Started", s.mode], ["Command", s.command.join(" ")], ["Ready when", s.probe],
    ["Coldness", seen ? `${s.cold || ""} ${proven} of ${plural(s.count, "run")} proven`.trim() + (proven < s.count ? "; " + [...new Set(s.runs.map((x) => x.coldness && x.coldness.reason).filter(Boolean))].slice(0, 3).join("; ") : "") : "not looked at"]];
  const raw = h("button", { type: "button", id: "raw", onclick: () => saveRaw(r) }, "Save raw data");
  return card("method", "Method", null, { controls: [raw], chart: h("div", { class: "pair" },
    h("dl", {}, pairs.filter(([, v]) => v).map(([k, v]) => [h("dt", {}, k), h("dd", {}, v)])),
    h("div", {}, r.signals.length ? table([["Signal", (x) => x.name], ["Used", (x) => x.used ? "yes" : "no"], ["Why", (x) => x.reason || null]], r.signals, "Where times come from") : none("The record does not say which signals there were."),
      h("p", { class: "note" }, "Times are medians of the runs that did not fail. Confidence: measured, seen when it happened by this machine's clock; reported, said by another system; estimated, follows by a rule that may err; computed, from settings; unknown is never 0.", r.raw_note ? " " + r.raw_note : ""))) });
}

// saveRaw hands out the record that is in the page.
async function saveRaw(r) {
  const packed = Uint8Array.from(atob(r.raw), (c) => c.charCodeAt(0));
  let blob = new Blob([packed], { type: "application/gzip" }), name = (r.id || "record").replace(/[^\w.-]+/g, "_") + ".json.gz";
  if (typeof DecompressionStream === "function") {
    blob = await new Response(blob.stream().pipeThrough(new DecompressionStream("gzip"))).blob();
    name = name.replace(/\.gz$/, "");
  }
  const a = h("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(a);
  a.click();
  a.remove();
  setTimeout(() => URL.revokeObjectURL(a.href), 1000);
  document.documentElement.dataset.saved = name + " " + blob.size;
}

// together says once what several runs say.
function together(lists) {
  const by = new Map();
  lists.forEach((list, i) => { for (const w of new Set(list)) by.set(w, [...(by.get(w) || []), i + 1]); });
  return [...by].map(([w, runs]) => (runs.length === 1 ? `run ${runs[0]}: ` : `${runs.length} runs: `) + w);
}

function warningsBox(s) {
  const r = data.records[s.record], all = [...r.warnings, ...together(s.runs.map((x) => x.warnings))], failed = together(s.runs.map((x) => x.error ? [x.error] : []));
  const failures = s.failed;
  const part = (title, list, bad) => list.length ? h("div", { class: "warn" + (bad ? " bad" : ""), role: "note" }, h("b", {}, title), list.length > 1 ? h("ul", {}, list.slice(0, 12).map((w) => h("li", {}, w)), list.length > 12 ? h("li", {}, `and ${list.length - 12} more`) : null) : " " + list[0]) : null;
  return [part(`${plural(failures, "failed run")}.`, failed, true), part(all.length > 1 ? `${all.length} warnings.` : "Warning.", all)].filter(known);
}
