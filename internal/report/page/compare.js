// Two subjects, phase by phase.

function compareCard() {
  const all = data.subjects;
  const pair = data.compared.length ? [data.compared[0].a, data.compared[0].b] : [0, 1];
  let align = "start";
  const said = h("p", { class: "big", "aria-live": "polite" });
  const find = () => data.compared.find((c) => c.a === pair[0] && c.b === pair[1]) || data.compared.find((c) => c.a === pair[1] && c.b === pair[0]);
  // One that is kept the other way round is turned.
  function compared() {
    const c = find();
    if (!c || c.a === pair[0]) return c;
    const other = { faster: "slower", slower: "faster" };
    return { ...c, a: c.b, b: c.a, phases: c.phases.map((p) => ({ ...p, a: p.b, b: p.a, delta: known(p.delta) ? -p.delta : null, ci: p.ci ? [-p.ci[1], -p.ci[0]] : null, verdict: other[p.verdict] || p.verdict })) };
  }
  const c = chart("Two starts, phase by phase", (width) => drawCompare(all[pair[0]], all[pair[1]], compared(), align, width));
  const e = card("compare", "Compare", null, { chart: c, before: said,
    controls: [
      all.length > 2 ? select("Compared with", all.map((s, i) => [i, s.name]), pair[0], (v) => { pair[0] = +v; tell(); }) : null,
      all.length > 2 ? select("Compared", all.map((s, i) => [i, s.name]), pair[1], (v) => { pair[1] = +v; tell(); }) : null,
      choose("Align on", [["start", "From request"], ["exec", "From exec"]], align, (v) => { align = v; c.redraw(); }),
    ],
    table: () => {
      const now = compared();
      if (!now) return none("A subject is not compared with itself.");
      return table([["Phase", (p) => p.name ? phaseLabel(p.name) : "Requested to ready"], [all[pair[0]].name, (p) => ms(p.a), "n"], [all[pair[1]].name, (p) => ms(p.b), "n"],
        ["Difference", (p) => known(p.delta) ? [ms(p.delta, true), p.verdict === "faster" ? "good" : p.verdict === "slower" ? "bad" : ""] : null, "n"], ["95 % confidence", (p) => p.ci ? `${ms(p.ci[0], true)} to ${ms(p.ci[1], true)}` : null, "n"],
        ["p", (p) => known(p.p) ? p.p.toPrecision(2) : null, "n"], ["Verdict", (p) => p.verdict || null], ["Why", (p) => p.reason || null]], now.phases, "Medians, and their differences");
    } });
  function tell() {
    const now = compared();
    said.textContent = !now ? "Choose two that differ." : now === find() ? now.text : sentence(now, all);
    c.redraw();
    e.retable();
  }
  tell();
  return e;
}

function sentence(c, all) {
  const whole = c.phases.find((p) => p.name === "");
  if (!whole) return "One of them was never ready: there is no whole to compare.";
  const a = all[c.a].name, b = all[c.b].name;
  if (whole.verdict === "faster" || whole.verdict === "slower")
    return `${b} is ${ms(Math.abs(whole.delta))} ${whole.verdict} than ${a}${whole.ci ? ` (95 % confidence: ${ms(Math.min(...whole.ci.map(Math.abs)))} to ${ms(Math.max(...whole.ci.map(Math.abs)))})` : ""}: ${ms(whole.b)} in place of ${ms(whole.a)}.`;
  return `No evidence of a difference between ${a} (${ms(whole.a)}) and ${b} (${ms(whole.b)}): ${whole.reason || ""}.`;
}

function drawCompare(A, B, c, align, width) {
  if (!c || !A.median || !B.median) return none("One of them has no run that succeeded, or both are the same.");
  const narrow = width < 620, labels = narrow ? 0 : 196, right = narrow ? 92 : 168, bar = 11;
  const shift = (s) => align === "exec" ? startOf(s.median) : 0;
  const sa = shift(A), sb = shift(B);
  if (sa === null || sb === null) return none("When the program was started is not known of both: they cannot be aligned on that.");
  const begin = Math.max(sa, sb), max = Math.max(extent(A.median) + begin - sa, extent(B.median) + begin - sb);
  const x = (v) => labels + (width - labels - right) * Math.min(Math.max(v / max, 0), 1);
  const out = [], head = 44;
  let y = head;
  out.push(text(narrow ? 0 : labels, 12, `upper, pale: ${shorten(A.name, 30)}; lower: ${shorten(B.name, 30)}`, "s"), text(width, 30, "difference", "s", "end"));
  const names = data.phases.map((p) => p.name).filter((n) => [A, B].some((s) => s.median.phases.some((p) => p.name === n && (known(p.ms) || startPhase(n)) && !(n === "queue" && p.ms === 0))));
  for (const n of names) {
    const delta = c.phases.find((p) => p.name === n), rowHeight = narrow ? 54 : 40;
    const lines = [phaseLabel(n)], bars = [];
    [[A, sa], [B, sb]].forEach(([s, t], i) => {
      const p = s.median.phases.find((p) => p.name === n);
      const by = y + (narrow ? 20 : 7) + i * (bar + 3);
      lines.push(`${s.name}: ${p && known(p.ms) ? ms(p.ms) : "unknown"}`);
      if (!p || !known(p.ms)) { bars.push(text(labels, by + 9, "unknown", "s i")); return; }
      const start = known(p.start) ? p.start : (s.median.events.find((e) => e.name === "ready") || { at: 0 }).at;
      const x0 = x(start - t + begin), x1 = x(start + p.ms - t + begin);
      bars.push(box(n, x0, by, x1 - x0, bar, { rx: 2, class: i ? "" : "older" }), text(Math.min(x1 + 5, width - right + 8), by + 9, ms(p.ms), "s" + (i ? " ink" : "")));
    });
    if (delta && known(delta.delta)) lines.push(`difference ${ms(delta.delta, true)}${delta.ci ? `, 95 % confidence ${ms(delta.ci[0], true)} to ${ms(delta.ci[1], true)}` : ""}: ${delta.verdict}${delta.reason ? " (" + delta.reason + ")" : ""}`);
    out.push(g("g", { class: "row", tabindex: 0, role: "img", tip: lines, "data-row": n }, g("rect", { class: "hover", x: -8, y, width: width + 16, height: rowHeight, rx: 5 }),
      text(0, narrow ? y + 14 : y + 24, phaseLabel(n), "ink"), bars,
      delta && known(delta.delta) ? text(width, narrow ? y + 14 : y + 24, (delta.verdict === "faster" ? "▼ " : delta.verdict === "slower" ? "▲ " : "") + ms(delta.delta, true), delta.verdict === "no evidence" ? "" : "ink b", "end") : null,
      g("rect", { class: "ring", x: -6, y: y + 1, width: width + 12, height: rowHeight - 2, rx: 5 })));
    y += rowHeight;
  }
  for (const [s, t, i] of [[A, sa, 0], [B, sb, 1]]) if (known(s.median.total)) {
    const at = x(s.median.total - t + begin);
    out.push(g("line", { class: "mark" + (i ? " main" : ""), x1: at, x2: at, y1: head - 4, y2: y }), text(at, y + 14 + i * 15, `${shorten(s.name, 18)} ready`, "s" + (i ? " ink b" : ""), at > width - 120 ? "end" : "middle"));
  }
  return frame(width, y + 36, axis(x, 36, y, max, width - labels - right, align === "exec" && begin > 0 ? (v) => ms(v - begin, true) : null), out);
}
