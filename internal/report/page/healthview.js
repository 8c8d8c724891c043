// The health check and the scale-up, with sliders that compute anew as they move.

const kinds = {
  container: { label: "Container check (ECS, Docker)", knobs: [["interval", "Interval", 1, 60, 1, 30, "s"], ["retries", "Retries", 1, 10, 1, 3, ""], ["startPeriod", "Start period", 0, 300, 1, 0, "s"], ["timeout", "Timeout", 1, 60, 1, 5, "s"]] },
  target: { label: "Load balancer target group", knobs: [["interval", "Interval", 5, 120, 1, 30, "s"], ["healthy", "Healthy threshold", 2, 10, 1, 5, ""], ["unhealthy", "Unhealthy threshold", 2, 10, 1, 2, ""]] },
  pod: { label: "Kubernetes probes", knobs: [["period", "Readiness period", 1, 60, 1, 10, "s"], ["startup", "Startup probe period (0: none)", 0, 60, 1, 0, "s"], ["failure", "Startup failure threshold", 1, 60, 1, 3, ""], ["delay", "Initial delay", 0, 60, 1, 0, "s"]] },
};
const variants = [["classic", "Docker before 25, Fargate"], ["docker25", "Docker 25 (start interval 5 s)"], ["moby2026", "Docker of 2026"]];

// evaluate says what settings make of containers that are ready at r (in seconds).
function evaluate(kind, k, variant, probe, r) {
  const s = health.second, d = Math.round(probe * s);
  const row = (label, t) => ({ label, ready: t / s });
  const quantiles = [row("p50", Math.round(r.p50 * s)), row("p99", Math.round(r.p99 * s))];
  const dist = { p50: Math.round(r.p50 * s), p99: Math.round(Math.max(r.p99, r.p50) * s) };
  const out = { rows: quantiles, kill: null, killLatest: null, given: 0, ticks: [], mean: 0 };
  const put = (q, b) => { [q.best, q.expected, q.worst] = b.map((v) => v / s); };
  if (kind === "container") {
    const c = { interval: k.interval * s, timeout: k.timeout * s, retries: k.retries, startPeriod: k.startPeriod * s, startInterval: 5 * s };
    const [unhealthy, last] = health.container.deadline(c, variant, d);
    for (const q of quantiles) { const t = Math.round(q.ready * s), at = health.container.healthy(c, variant, d, t); q.exact = at === null ? null : at / s; q.gone = at === null ? 1 : 0; put(q, health.container.bounds(c, variant, d, t)); }
    out.given = d > c.timeout ? 1 : health.ready.later(dist, last);
    out.kill = out.killLatest = unhealthy / s;
    out.mean = health.ready.mean(dist, (t) => { const at = health.container.healthy(c, variant, d, t); return at === null ? [0, 0] : [at, 1]; })[0] / s;
    out.ticks = health.container.probes(c, variant, d, 1000 * s).map((t) => t / s);
    out.fixed = true;
  } else if (kind === "target") {
    const t = { interval: k.interval * s, healthy: k.healthy, unhealthy: k.unhealthy };
    for (const q of quantiles) { const at = Math.round(q.ready * s); put(q, health.target.bounds(t, at).map((v) => v + d)); q.gone = health.target.cliff(t, at); }
    out.given = health.ready.mean(dist, (at) => [at, health.target.cliff(t, at)])[1];
    [out.kill, out.killLatest] = health.target.unhealthyFrom(t).map((v) => (v + d) / s);
    out.mean = health.ready.mean(dist, (at) => [health.target.bounds(t, at)[1] + d, 1])[0] / s;
    out.ticks = Array.from({ length: 400 }, (_, i) => (i + .5) * k.interval);
  } else {
    const probes = { readiness: { period: k.period * s, timeout: 1 * s, delay: k.startup ? 0 : k.delay * s, success: 1, failure: 3 }, liveness: null, startup: k.startup ? { period: k.startup * s, timeout: 1 * s, delay: k.delay * s, success: 1, failure: k.failure } : null };
    for (const q of quantiles) { const at = Math.round(q.ready * s), b = health.pod.bounds(probes, at, d); q.gone = b ? health.pod.restarted(probes, at, d) : 1; put(q, b || [NaN, NaN, NaN]); }
    const gate = health.pod.gate(probes);
    if (gate) [out.kill, out.killLatest] = health.pod.restarts(gate, d).map((v) => v / s);
    const m = health.ready.mean(dist, (at) => { const b = health.pod.bounds(probes, at, d); return b ? [b[1], 1 - health.pod.restarted(probes, at, d)] : [0, 0]; });
    out.mean = m[0] / s;
    out.given = health.ready.mean(dist, (at) => [at, health.pod.restarted(probes, at, d)])[1];
    const step = k.startup || k.period;
    out.ticks = Array.from({ length: 400 }, (_, i) => (i + .5) * step);
  }
  return out;
}

function knob(name, label, min, max, step, value, unit, change) {
  const show = (v) => (unit === "s" ? +(+v).toFixed(2) + " s" : v);
  const out = h("output", {}, show(value));
  const input = h("input", { type: "range", min, max, step, value, name, "aria-label": label, "aria-valuetext": show(value), oninput: () => { out.textContent = show(input.value); input.setAttribute("aria-valuetext", show(input.value)); change(+input.value); } });
  return h("div", { class: "knob" }, h("label", {}, label, out), input);
}

const sec = (v) => known(v) && isFinite(v) ? (v < 10 ? v.toFixed(2) : v < 100 ? v.toFixed(1) : v.toFixed(0)) + " s" : "never";

// readyOf is a subject's readiness, in seconds; a guess where nothing is measured.
function readyOf(s) {
  if (s.fit) return { p50: s.fit.p50 / 1000, p99: s.fit.p99 / 1000, n: s.readiness.length };
  // Until healthy, the wait for a check is in it.
  const all = s.readiness.length || s.median && s.median.events.some((e) => e.name === "healthy") ? s.readiness : s.totals, sorted = [...all].sort((a, b) => a - b);
  if (!sorted.length) return { p50: 5, p99: 10, guess: true };
  const at = (q) => { const i = q * (sorted.length - 1), j = Math.floor(i); return sorted[j] + (i - j) * (sorted[Math.min(j + 1, sorted.length - 1)] - sorted[j]); };
  return { p50: Math.max(at(.5), 1) / 1000, p99: Math.max(at(.99), 1) / 1000, n: sorted.length, fromRequest: !s.readiness.length };
}

function healthCard(s) {
  const r = readyOf(s), measured = { ...r };
  let kind = s.health && /target|lb/.test(s.health.kind) ? "target" : s.health && /kube|pod/.test(s.health.kind) ? "pod" : "container", variant = "classic", probe = .05;
  const values = {};
  for (const [name, k] of Object.entries(kinds)) values[name] = Object.fromEntries(k.knobs.map(([id, , , , , v]) => [id, v]));
  if (s.health && s.health.interval > 900) {
    const v = Math.round(s.health.interval / 1000);
    if (kind === "pod") values.pod.period = v; else values[kind].interval = v;
  }
  const knobs = h("div", { class: "knobs" }), said = h("p", { class: "big", "aria-live": "polite" }), rows = h("div", {}), share = h("div", {});
  const c = chart("Health check over the distribution of readiness", (w) => drawHealth(w));
  let now;
  function compute() { now = evaluate(kind, values[kind], variant, probe, r); tell(); c.redraw(); }
  function tell() {
    const gone = kind === "target" ? "fall to unhealthy first" : kind === "pod" ? "are restarted first" : "are stopped first";
    const part = [];
    if (now.kill) part.push("Not ready by then, it is given up at ", h("b", {}, now.kill === now.killLatest ? sec(now.kill) : `${sec(now.kill)} to ${sec(now.killLatest)}`), ": ", h("b", {}, (100 * now.given).toFixed(now.given > 0 && now.given < .1 ? 1 : 0) + " %"), ` of starts ${gone}.`);
    else part.push("Nothing gives it up.");
    said.replaceChildren("On average it is known to be healthy at ", h("b", {}, sec(now.mean)), ", ", h("b", {}, sec(Math.max(now.mean - r.p50, 0))), " after it is ready. ", ...part);
    rows.replaceChildren(table([["Ready", (q) => `${q.label}: ${sec(q.ready)}`], ["Exactly", (q) => kind === "container" ? (q.exact === null ? "never" : sec(q.exact)) : null, "n"], ["Best", (q) => sec(q.best), "n"], ["Expected", (q) => sec(q.expected), "n"], ["Worst", (q) => sec(q.worst), "n"],
      ["Given up", (q) => (100 * q.gone).toFixed(0) + " %", "n"]], now.rows, "Healthy, after the container's start"));
    share.replaceChildren(...balancer(s, r));
  }
  function build() {
    const k = kinds[kind];
    knobs.replaceChildren(...k.knobs.map(([id, label, min, max, step, , unit]) => knob(id, label, min, max, step, values[kind][id], unit, (v) => { values[kind][id] = v; compute(); })),
      knob("probe", "A probe takes", 0, 2, .05, probe, "s", (v) => { probe = v; compute(); }),
      knob("p50", "Ready, p50", .05, Math.max(30, +(measured.p50 * 4).toFixed(0)), .05, r.p50.toFixed(2), "s", (v) => { r.p50 = v; if (r.p99 < v) { r.p99 = v; } compute(); }),
      knob("p99", "Ready, p99", .05, Math.max(60, +(measured.p99 * 4).toFixed(0)), .05, r.p99.toFixed(2), "s", (v) => { r.p99 = Math.max(v, r.p50); compute(); }),
      kind === "container" ? h("div", { class: "knob" }, h("label", {}, "Engine"), select("Engine", variants, variant, (v) => { variant = v; compute(); })) : "");
  }
  // drawHealth: density of readiness, ticks of the check, and what they come to.
  function drawHealth(width) {
    const q = now.rows[1], mid = now.rows[0], left = 0, top = 20, height = 150;
    const last = Math.max(...[mid.worst, q.worst, q.ready * 1.3, isFinite(now.kill) && now.kill ? Math.min(now.kill * 1.06, 6 * Math.max(q.worst || 1, q.ready)) : 0].filter((v) => isFinite(v)), 1);
    const x = (v) => left + (width - left - 8) * Math.min(v / last, 1);
    const sigma = health.ready.sigma({ p50: r.p50, p99: r.p99 }), out = [];
    if (sigma > 0) {
      const density = (t) => t <= 0 ? 0 : Math.exp(-Math.pow(Math.log(t / r.p50) / sigma, 2) / 2) / t;
      let most = 0;
      const points = [];
      for (let i = 0; i <= 160; i++) { const t = last * i / 160; points.push([t, density(t)]); }
      for (let i = 1; i < 60; i++) { const t = r.p50 * Math.exp(sigma * (i - 30) / 8); if (t < last) points.push([t, density(t)]); }
      points.sort((a, b) => a[0] - b[0]);
      for (const p of points) most = Math.max(most, p[1]);
      out.push(g("path", { class: "p-image_pull", "fill-opacity": .22, stroke: "var(--c-image_pull)", "stroke-width": 1.4, d: "M0," + (top + height) + points.map(([t, v]) => ` L${x(t).toFixed(1)},${(top + height - 84 * v / most).toFixed(1)}`).join("") + ` L${x(last)},${top + height} Z` }));
    } else out.push(g("line", { stroke: "var(--c-image_pull)", "stroke-width": 2.5, x1: x(r.p50), x2: x(r.p50), y1: top + height - 84, y2: top + height }));
    const label = x(r.p50) + 8;
    out.push(text(label > width - 130 ? label - 16 : label, top + height - 90, measured.guess ? "ready (assumed)" : "ready (measured, fitted)", "s", label > width - 130 ? "end" : "start"));
    const shown = now.ticks.filter((t) => t <= last);
    if (shown.length <= width / 5) for (const t of shown) out.push(g("path", { class: "whisker", d: `M${x(t)},${top + height} v9`, "stroke-dasharray": now.fixed ? null : "2 2" }));
    out.push(text(0, top + height + 24, now.fixed ? "ticks: probes" : "ticks: probes, somewhere in their period", "s"));
    [["best", mid.best], ["expected", mid.expected], ["worst", mid.worst]].forEach(([n, v], i) => {
      if (!isFinite(v)) return;
      const at = x(v);
      out.push(g("g", { tabindex: 0, role: "img", "data-mark": n, tip: [`${n}, where it is ready at p50: ${sec(v)}`] }, g("path", { fill: i === 1 ? "var(--accent)" : "var(--card)", stroke: "var(--accent)", "stroke-width": 1.6, d: `M${at},${top + 46} l5,-6 l-5,-6 l-5,6 Z` }), g("rect", { class: "ring", x: at - 9, y: top + 31, width: 18, height: 18, rx: 4 })));
    });
    if (isFinite(mid.best)) {
      out.splice(0, 0, g("line", { stroke: "var(--accent)", "stroke-width": 1.6, x1: x(mid.best), x2: x(mid.worst), y1: top + 40, y2: top + 40 }));
      const end = x(mid.worst) + 12;
      out.push(text(end > width - 150 ? x(mid.best) - 12 : end, top + 44, `healthy: ${sec(mid.best)} · ${sec(mid.expected)} · ${sec(mid.worst)}`, "ink s b", end > width - 150 && x(mid.best) > 170 ? "end" : "start"));
    }
    if (now.kill && now.kill <= last) {
      const at = x(now.kill);
      out.push(g("g", { tabindex: 0, role: "img", "data-mark": "kill", tip: [`given up at ${sec(now.kill)}${now.kill !== now.killLatest ? ` to ${sec(now.killLatest)}` : ""}`] },
        g("line", { stroke: "var(--bad)", "stroke-width": 2, x1: at, x2: at, y1: top + 2, y2: top + height }), g("rect", { class: "ring", x: at - 6, y: top, width: 12, height: height, rx: 4 })),
        text(at - 6, top + 14, kind === "target" ? "unhealthy" : "given up", "s b", "end"));
    } else if (now.kill) out.push(text(width, top + 14, `given up at ${sec(now.kill)} →`, "s", "end"));
    return frame(width, top + height + 30, axis(x, top, top + height, last, width, (v) => +v.toFixed(2) + " s"), g("line", { class: "axis", x1: 0, x2: width, y1: top + height, y2: top + height }), out);
  }
  compute();
  build();
  return card("health", "Health check", "When an orchestrator or load balancer notices that it is ready, and when it gives up. Ready times are those measured, as a lognormal distribution; everything is computed here, by the formulas of thaw health." + (measured.guess ? " No run here says when it was ready: 5 s are assumed." : ""), {
    controls: [select("Kind of check", Object.entries(kinds).map(([k, v]) => [k, v.label]), kind, (v) => { kind = v; build(); compute(); })],
    before: [knobs, said], chart: c, table: () => table([["Probe", (t, i) => i + 1, "n"], ["Begins, if none succeeds", (t) => sec(t), "n"]], now.ticks.slice(0, 30), "Probes"), after: [rows, share] });
}

// balancer is what is left of a saving behind a load balancer.
function balancer(s, r) {
  const t = (interval) => ({ interval: interval * health.second, healthy: 5, unhealthy: 2 });
  const mean = (p50, interval) => health.target.bounds(t(interval), Math.round(p50 * health.second))[1] / health.second;
  const rows = data.subjects.filter((o) => o.total).map((o) => ({ name: o.name, ready: o.total.p50 / 1000 }));
  if (!rows.length) rows.push({ name: s.name, ready: r.p50 });
  const base = rows[0];
  const signed = (v) => (v > 0 ? "+" : v < 0 ? "−" : "±") + Math.abs(v * 100).toFixed(0) + " %";
  const cell = (i) => (o) => { const v = mean(o.ready, i); return `${sec(v)}` + (o !== base ? ` (${signed(v / mean(base.ready, i) - 1)})` : ""); };
  const part = (i) => (o) => { const v = mean(o.ready, i); return pct(v - o.ready, v); };
  return [h("h3", {}, "Behind a load balancer"), table([["Start", (o) => o.name], ["Ready, median", (o) => sec(o.ready) + (o !== base ? ` (${signed(o.ready / base.ready - 1)})` : ""), "n"], ["Checked every 30 s: in service, expected", cell(30), "n"], ["of it waiting", part(30), "n"], ["Every 5 s", cell(5), "n"], ["of it waiting", part(5), "n"]], rows, "A new target needs one success; the check is as likely anywhere in its interval")];
}

// Scale-ups: what was measured of one start, of many, after somebody noticed.
const detections = { "60": { label: "60 s metrics", s: 363 }, "20": { label: "20 s metrics", s: 86 }, "0": { label: "none", s: 0 } };

function scaleCard(s) {
  if (!s.total) return missing("scale", "Scale-up", "When it was ready is not known: nothing can be said of many starts.");
  let n = 25, metric = "20", lb = 15;
  const said = h("p", { class: "big", "aria-live": "polite" });
  const sorted = [...s.totals].sort((a, b) => a - b);
  const start = (q) => { const i = q * (sorted.length - 1), j = Math.floor(i); return (sorted[j] + (i - j) * (sorted[Math.min(j + 1, sorted.length - 1)] - sorted[j])) / 1000; };
  // Ready, and noticed: of the check's period each phase is as likely.
  const times = () => { const out = []; for (let i = 0; i < n; i++) { const q = (i + .5) / n, phase = ((i * 7919) % n + .5) / n; out.push(detections[metric].s + start(q) + lb * phase); } return out.sort((a, b) => a - b); };
  const c = chart("Containers in service over time", (width) => {
    const all = times(), detect = detections[metric].s, mid = start(.5), last = all[all.length - 1] * 1.05, height = 150, top = 74, x = (v) => 30 + (width - 46) * v / last, y = (v) => top + height - height * v / n;
    const out = axis(x, top, top + height, last, width - 46, (v) => +v.toFixed(2) + " s");
    let d = `M${x(0)},${y(0)}`;
    all.forEach((t, i) => { d += ` H${x(t).toFixed(1)} V${y(i + 1).toFixed(1)}`; });
    out.push(g("path", { d: d + ` H${x(last)}`, fill: "none", stroke: "var(--accent)", "stroke-width": 2 }), text(24, y(n) + 4, n, "s", "end"), text(24, y(0) + 4, "0", "s", "end"), g("line", { class: "axis", x1: x(0), x2: x(last), y1: y(0), y2: y(0) }));
    const parts = [["queue", "detection", 0, detect], ["image_pull", "cold start", detect, mid], ["health_wait_lb", "health check", detect + mid, lb / 2]], whole = detect + mid + lb / 2;
    for (const [p, label, from, v] of parts) if (v > 0) {
      const x0 = x(from), w = x(from + v) - x0;
      out.push(g("g", { tabindex: 0, role: "img", "data-part": label, tip: [`${label}: ${sec(v)}`, `${pct(v, whole)} of the median container's way into service`] }, box(p, x0, 22, w, 20, { rx: 3 }), g("rect", { class: "ring", x: x0 - 2, y: 20, width: w + 4, height: 24, rx: 4 })));
      const words = `${label} ${pct(v, whole)}`;
      if (w > words.length * 6.6) out.push(text(x0 + 1, 16, words, "s ink"));
    }
    return frame(width, top + height + 8, out);
  });
  function tell() {
    const all = times(), detect = detections[metric].s, mid = start(.5), whole = detect + mid + lb / 2;
    said.replaceChildren("Half of ", plural(n, "new container"), " are in service after ", h("b", {}, sec(all[Math.floor((n - 1) / 2)])), ", all after ", h("b", {}, sec(all[n - 1])), ": detection is ", h("b", {}, pct(detect, whole)), " of that, the cold start ", h("b", {}, pct(mid, whole)), ", the health check ", h("b", {}, pct(lb / 2, whole)), ".");
    c.redraw();
    e.retable();
  }
  const e = card("scale", "Scale-up", "How many new containers are in service, and when, if they start as measured here.", {
    before: [h("div", { class: "knobs" }, knob("n", "New containers", 1, 200, 1, n, "", (v) => { n = v; tell(); }), knob("lb", "Load balancer's interval (0: none)", 0, 60, 1, lb, "s", (v) => { lb = v; tell(); }),
      h("div", { class: "knob" }, h("label", {}, "Detection"), select("Detection", Object.entries(detections).map(([k, v]) => [k, v.s ? `${v.label}: ${v.s} s` : "none"]).reverse(), metric, (v) => { metric = v; tell(); }))), said],
    chart: c, table: () => table([["In service", (t, i) => i + 1, "n"], ["After", (t) => sec(t), "n"]], times(), "Containers in service"),
    after: [h("ul", { class: "legend" }, [["queue", "Detection"], ["image_pull", "Cold start"], ["health_wait_lb", "Health check"]].map(([n, t]) => h("li", {}, swatch(n), t))), h("p", { class: "note" }, "Detection: until target tracking of an ECS service scales out, as AWS is reported to have measured it in 2026, with metrics every 60 s and every 20 s; press reports, not checked here. Containers that start at once share a registry's bandwidth, which runs one by one do not show: starts that pull may be slower then.")] });
  tell();
  return e;
}
