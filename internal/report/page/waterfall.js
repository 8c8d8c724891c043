// The waterfall: phases and processes of one run, or of what is typical of all.

const eventLabels = { requested: "requested", scheduled: "scheduled", pull_start: "pull begins", pull_end: "image here", created: "created", started: "exec", dep_start: "first file", dep_end: "loaded", listen: "listens",
  accept: "accepts", ready: "ready", healthy: "healthy", lb_healthy: "in service", first_request: "first request", steady: "steady", hydrated: "all here" };
const mainEvents = ["started", "listen", "ready", "healthy", "lb_healthy", "steady"];

const startOf = (run) => { const e = run.events.find((e) => e.name === "started"); return e ? e.at : null; };

// extent is until when a run is drawn: a little more than its start; hydration may go on for long.
function extent(run) {
  let last = known(run.total) ? run.total : 0;
  for (const p of run.phases) if (p.name !== "hydration" && known(p.end)) last = Math.max(last, p.end, p.stats ? (p.start || 0) + p.stats.p95 : 0);
  for (const e of run.events) if (e.name !== "hydrated" && e.name !== "steady") last = Math.max(last, e.at);
  const first = run.phases.find((p) => p.name === "first_request_penalty"), ready = run.events.find((e) => e.name === "ready");
  if (first && known(first.ms) && ready) last = Math.max(last, Math.min(ready.at + first.ms, 2 * last));
  if (!last) for (const e of run.events) last = Math.max(last, e.at);
  if (!last) for (const p of run.phases) last = Math.max(last, p.end || p.ms || 0);
  return last > 0 ? last * 1.04 : 1;
}

function phaseTip(p, run) {
  const lines = [phaseLabel(p.name) + ": " + (known(p.ms) ? ms(p.ms) : "unknown")];
  if (known(p.start) && known(p.end)) lines.push(`from ${ms(p.start)} to ${ms(p.end)}`);
  if (p.stats && p.stats.n > 1) lines.push(`median of ${p.stats.n} runs; min ${ms(p.stats.min)}, avg ${ms(p.stats.avg)}, max ${ms(p.stats.max)}, p95 ${ms(p.stats.p95)}`);
  if (known(p.lazy)) lines.push("waited for bytes: " + ms(p.lazy));
  if (known(p.files) || known(p.bytes)) lines.push("first read: " + [known(p.files) ? plural(Math.round(p.files), "file") : null, known(p.bytes) ? bytes(p.bytes) : null].filter(known).join(", "));
  if (known(p.cpu)) lines.push("CPU " + ms(p.cpu));
  lines.push("confidence: " + p.confidence + (p.source ? ", from " + p.source : ""));
  if (p.reason) lines.push(p.reason);
  return lines;
}

// gap is where a phase of unknown times must lie: between its known neighbours.
function gap(run, i) {
  let from = 0, to = null;
  for (let j = i - 1; j >= 0; j--) if (known(run.phases[j].end) && startPhase(run.phases[j].name)) { from = run.phases[j].end; break; }
  for (let j = i + 1; j < run.phases.length; j++) if (known(run.phases[j].start) && startPhase(run.phases[j].name)) { to = run.phases[j].start; break; }
  if (to === null) for (const n of ["ready", "healthy", "lb_healthy"]) { const e = run.events.find((e) => e.name === n); if (e && to === null) to = e.at; }
  return to !== null && to > from ? [from, to] : null;
}
const startPhase = (name) => phaseNames.has(name) && phaseNames.get(name).start;

function drawWaterfall(run, width) {
  const narrow = width < 620, labels = narrow ? 0 : 196, right = narrow ? 62 : 92, rowHeight = narrow ? 44 : 30, barHeight = narrow ? 18 : 18;
  const max = extent(run), x = (v) => labels + (width - labels - right) * Math.min(v / max, 1);
  const marks = run.events.filter((e) => e.name !== "hydrated" && e.name !== "requested" && e.at <= max);
  // Labels of events, in as many rows as they need.
  const rows = [], placed = [];
  for (const e of marks.filter((e) => mainEvents.includes(e.name) || marks.length < 6)) {
    const label = eventLabels[e.name] || e.name, w = label.length * 6.4 + 12, at = Math.min(x(e.at), width - w / 2 - 2);
    let r = rows.findIndex((end) => at - w / 2 > end);
    if (r < 0) r = rows.push(0) - 1;
    rows[r] = at + w / 2;
    placed.push({ e, label, at, r });
  }
  const head = 22 + rows.length * 17 + 8;
  let y = head;
  const body = [], top = [];
  const group = (title) => { y += 8; body.push(text(0, y + 12, title, "s b")); y += narrow ? 18 : 22; };
  const row = (label, lines, draw, name) => {
    const barY = narrow ? y + 20 : y + (rowHeight - barHeight) / 2;
    const e = g("g", { class: "row", tabindex: 0, role: "img", tip: lines, "data-row": name },
      g("rect", { class: "hover", x: -8, y, width: width + 16, height: rowHeight, rx: 5 }),
      text(0, narrow ? y + 14 : y + rowHeight / 2 + 4, shorten(label, narrow ? Math.floor(width / 7) : 27), "ink"), draw(barY), g("rect", { class: "ring", x: -6, y: y + 1, width: width + 12, height: rowHeight - 2, rx: 5 }));
    body.push(e);
    y += rowHeight;
  };
  run.phases.forEach((p, i) => {
    if (p.name === "queue" && p.ms === 0) return;
    row(phaseLabel(p.name), phaseTip(p, run), (barY) => {
      if (!known(p.ms)) {
        const between = startPhase(p.name) ? gap(run, i) : null;
        const from = between ? x(between[0]) : labels, to = between ? x(between[1]) : labels;
        return [between ? g("rect", { class: "unknown", x: from, y: barY + .5, width: Math.max(to - from, 6), height: barHeight - 1, rx: 3 }) : null,
          text(Math.min((between ? Math.max(to, from + 6) : labels) + 8, width - 70), barY + 13, "unknown", "i")];
      }
      let start = p.start;
      if (!known(start)) start = (run.events.find((e) => e.name === "ready") || { at: 0 }).at;
      const end = known(p.end) && known(p.start) ? p.end : start + p.ms, cut = end > max * 1.001;
      const x0 = x(Math.min(start, max)), x1 = x(end), out = [];
      if (known(p.start)) out.push(box(p.name, x0, barY, x1 - x0, barHeight, { rx: 3 }));
      else out.push(box(p.name, x0, barY + 4, x1 - x0, barHeight - 8, { rx: 3 }));
      if (startPhase(p.name)) out.push(waiting(run.waits, start, end, x, barY, barHeight));
      let label = x1 + 7;
      if (p.stats && p.stats.n > 1 && !cut && p.stats.p95 > p.ms) {
        const w = x(start + p.stats.p95), mid = barY + barHeight / 2;
        out.push(g("path", { class: "whisker", d: `M${x1},${mid} H${w} M${w},${mid - 4} V${mid + 4}` }));
        label = Math.max(label, w + 6);
      }
      if (cut) out.push(g("path", { class: "whisker", d: `M${width - right + 2},${barY + 4} l6,5 l-6,5` }));
      out.push(text(cut ? width - right + 12 : Math.min(label, width - 60), barY + 13, ms(p.ms), "ink" + (known(p.start) ? "" : " i")));
      return out;
    }, p.name);
  });
  if (run.processes.length) {
    group("Processes" + (run.from && run.of > 1 ? ` of run ${run.from}, the one nearest to the median` : ""));
    for (const p of run.processes) {
      const end = known(p.end) ? p.end : max, x0 = x(Math.min(p.start, max)), x1 = x(end);
      row(p.command, [p.command, `pid ${p.pid}, from ${ms(p.start)}` + (known(p.end) ? ` to ${ms(p.end)}` : ", and it runs on")], (barY) =>
        [g("rect", { class: "proc", x: x0, y: barY + 4, width: Math.max(x1 - x0, 1.5), height: barHeight - 8, rx: 2 }), text(known(p.end) ? Math.min(x1 + 7, width - 60) : width - right + 12, barY + 13, known(p.end) ? ms(p.end - p.start) : "runs on", known(p.end) ? "" : "s")], "process");
    }
  }
  const lines = [];
  for (const { e, label, at, r } of placed) {
    const ly = 34 + r * 17;
    lines.push(g("line", { class: "mark" + (e.name === "ready" ? " main" : ""), x1: x(e.at), x2: x(e.at), y1: ly + 4, y2: y }));
    top.push(g("g", { tabindex: 0, role: "img", "data-row": "event", tip: [`${eventLabels[e.name] || e.name} at ${ms(e.at)}`, e.p95 && e.p95 !== e.at ? `p95 ${ms(e.p95)}` : null, `confidence: ${e.confidence}, from ${e.source}`, e.precision ? `to ${ms(e.precision)}` : null, e.detail || null] },
      text(at, ly, label, "s" + (e.name === "ready" ? " ink b" : ""), "middle"), g("rect", { class: "ring", x: at - label.length * 3.4 - 4, y: ly - 12, width: label.length * 6.8 + 8, height: 17, rx: 4 })));
  }
  return frame(width, y + 6, axis(x, 18, y, max, width - labels - right), lines, body, top);
}

// waiting is what of a bar was waiting for bytes: columns, as high as their share of the time.
function waiting(waits, start, end, x, y, height) {
  const x0 = x(start), x1 = x(end), n = Math.max(1, Math.ceil((x1 - x0) / 2)), step = (end - start) / n, share = new Array(n).fill(0);
  if (!(step > 0)) return null;
  for (const [a, b] of waits) for (let i = Math.max(0, Math.floor((a - start) / step)); i < n && start + i * step < b; i++)
    share[i] += Math.max(0, Math.min(b, start + (i + 1) * step) - Math.max(a, start + i * step)) / step;
  let d = "", some = false;
  share.forEach((v, i) => { if (v < .02) return; some = true; const top = y + height * (1 - Math.min(v, 1)), left = x0 + (x1 - x0) * i / n, right = x0 + (x1 - x0) * (i + 1) / n; d += `M${left.toFixed(2)},${(y + height).toFixed(1)} V${top.toFixed(1)} H${right.toFixed(2)} V${(y + height).toFixed(1)} Z `; });
  return some ? [g("path", { class: "waits-under", d }), g("path", { class: "waits", d })] : null;
}

function waterfallTable(run) {
  return table([["Phase", (p) => phaseLabel(p.name)], ["Begins", (p) => known(p.start) ? ms(p.start) : null, "n"], ["Takes", (p) => known(p.ms) ? ms(p.ms) : "unknown", "n"],
    ["p95", (p) => p.stats ? ms(p.stats.p95) : null, "n"], ["Waited for bytes", (p) => known(p.lazy) ? ms(p.lazy) : null, "n"], ["Files", (p) => known(p.files) ? Math.round(p.files) : null, "n"],
    ["Bytes", (p) => known(p.bytes) ? bytes(p.bytes) : null, "n"], ["Confidence", (p) => p.confidence], ["Source", (p) => p.source || null], ["Why", (p) => p.reason || null]], run.phases, "Phases");
}

function waterfallCard(s) {
  let run = s.median || s.runs[0];
  if (!run) return missing("waterfall", "Waterfall", "There are no runs.");
  const c = chart("Waterfall of phases and processes", (w) => drawWaterfall(run, w));
  const options = [];
  if (s.median) options.push(["median", s.median.of > 1 ? `Median of ${plural(s.median.of, "run")}` : "The run"]);
  if (s.runs.length > 1 || !s.median) s.runs.forEach((r, i) => options.push([String(i), `Run ${i + 1}${r.error ? " (failed)" : known(r.total) ? ": " + ms(r.total) : ""}`]));
  const said = h("p", { class: "note" });
  const e = card("waterfall", "Waterfall", "Phases of the start follow one another and add up to the time to ready; those below stand beside them. Hatched: something in the container waited for bytes, as high as its share of the time. Whiskers reach to the 95th percentile.", {
    chart: c, table: () => waterfallTable(run), after: said,
    controls: options.length > 1 ? [select("Run", options, options[0][0], (v) => { run = v === "median" ? s.median : s.runs[+v]; tell(); c.redraw(); e.retable(); })] : [] });
  function tell() {
    const unknown = run.phases.filter((p) => !known(p.ms)).map((p) => phaseLabel(p.name).toLowerCase() + (p.reason ? ` (${p.reason})` : ""));
    said.replaceChildren(run.error ? h("span", {}, h("b", {}, "This run failed: "), run.error + ". ") : "", unknown.length ? "Unknown: " + unknown.join("; ") + ". " : "",
      run.of > 1 && run.waits.length ? `Waits for bytes are those of run ${run.from}, the one nearest to the median.` : "");
  }
  tell();
  return e;
}
