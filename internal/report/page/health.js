// When a health check notices: package health's closed forms, in whole nanoseconds as
// there, so that both say the same. A test holds one against the other.

const health = (() => {
  const div = (a, b) => Math.trunc(a / b), never = Infinity;
  const second = 1e9;

  // Container: {interval, timeout, retries, startPeriod, startInterval}.
  function schedule(c, variant, d) {
    d = Math.min(d, c.timeout);
    const step = c.interval + d, quick = c.startInterval + d;
    if (variant === "docker25" && c.startPeriod > 0) {
      const n = div(c.startPeriod + quick - 1, quick);
      return [[c.startInterval, quick, n], [n * quick + c.interval, step, -1]];
    }
    if (variant === "moby2026" && c.startPeriod > 0) {
      const n = c.startPeriod >= c.interval ? div(c.startPeriod - c.interval, quick) + 1 : 0;
      const s = [[c.startInterval, quick, n]];
      let end = n * quick;
      if (end < c.startPeriod) { s.push([c.startPeriod, step, 1]); end = c.startPeriod + d; }
      s.push([end + c.interval, step, -1]);
      return s;
    }
    return [[c.interval, step, -1]];
  }
  function next(s, t) {
    let n = 0;
    for (const [first, step, count] of s) {
      const k = t > first ? div(t - first + step - 1, step) : 0;
      if (count < 0 || k < count) return [n + k, first + k * step, step];
      n += count;
    }
    return [n, never, 0];
  }
  function at(s, n) {
    for (const [first, step, count] of s) {
      if (count < 0 || n < count) return first + n * step;
      n -= count;
    }
    return never;
  }
  const container = {
    schedule,
    probes: (c, v, d, until) => { const s = schedule(c, v, d), out = []; for (let n = 0; n < 400; n++) { const t = at(s, n); if (!(t <= until)) break; out.push(t); } return out; },
    deadline(c, v, d) {
      const s = schedule(c, v, d), last = at(s, next(s, c.startPeriod)[0] + c.retries - 1);
      return [last + Math.min(d, c.timeout), last];
    },
    healthy(c, v, d, r) {
      const last = container.deadline(c, v, d)[1], t = next(schedule(c, v, d), r)[1];
      return d > c.timeout || t > last ? null : t + Math.min(d, c.timeout);
    },
    bounds(c, v, d, r) {
      const s = schedule(c, v, d), e = Math.min(d, c.timeout), step = next(s, r)[2], least = at(s, 0) + e;
      return [Math.max(r + e, least), Math.max(r + div(step - e, 2) + e, least), Math.max(r + step + e, least)];
    },
  };

  // Target group: {interval, healthy, unhealthy}.
  const share = (part, whole) => Math.min(Math.max(part / whole, 0), 1);
  const target = {
    cliff: (t, r) => share(r - (t.unhealthy - 1) * t.interval, t.interval),
    bounds(t, r) {
      const p = target.cliff(t, r), extra = (t.healthy - 1) * t.interval;
      return [r + (p === 1 ? extra : 0), r + div(t.interval, 2) + Math.trunc(p * extra), r + t.interval + (p > 0 ? extra : 0)];
    },
    unhealthyFrom: (t) => [(t.unhealthy - 1) * t.interval, t.unhealthy * t.interval],
  };

  // Pod: {startup, readiness}, each null or {period, timeout, delay, success, failure}; a liveness probe too.
  const pod = {
    gate: (p) => p.startup || p.liveness,
    restarts(p, d) { const s = p.delay + (p.failure - 1) * p.period + Math.min(d, p.timeout); return [s, s + p.period]; },
    restarted(p, r, d) {
      const q = pod.gate(p);
      return !q ? 0 : d > q.timeout ? 1 : share(r - q.delay - (q.failure - 1) * q.period, q.period);
    },
    bounds(p, r, d) {
      for (const q of [pod.gate(p), p.readiness]) if (q && d > q.timeout) return null;
      const s = p.startup, y = p.readiness;
      if (!s && !y) return [0, 0, 0];
      let b;
      if (!s) {
        const from = Math.max(y.delay, r) + (y.success - 1) * y.period;
        b = [from, from + div(y.period, 2), from + y.period];
      } else {
        const from = Math.max(s.delay, r), span = Math.min(s.period, s.delay + s.failure * s.period - from);
        if (span <= 0) return null;
        b = [from + d, from + d + div(span, 2), from + d + span];
        if (!y) return b;
        b = after(y, b);
      }
      return b.map((v) => v + d);
    },
  };
  function after(p, b) {
    const rest = (p.success - 1) * p.period;
    const [soon, mean, late] = p.success > 1 ? [rest - p.period, rest - div(p.period, 2), rest] : [0, 0, 0];
    if (p.delay <= b[0]) return [b[0] + soon, b[1] + mean, b[2] + late];
    const early = share(p.delay - b[0], b[2] - b[0]);
    const waits = [p.delay + rest, p.delay + div(p.period, 2) + rest, p.delay + p.period + rest];
    if (early === 1) return waits;
    const straight = [p.delay + soon, div(p.delay + b[2], 2) + mean, b[2] + late];
    return [Math.min(waits[0], straight[0]), Math.trunc(early * waits[1] + (1 - early) * straight[1]), Math.max(waits[2], straight[2])];
  }

  // Readiness: lognormal with p50 and p99, or one time.
  const z99 = 2.3263478740408408;
  // erfc after W. J. Cody, Rational Chebyshev Approximations for the Error Function, 1969.
  function erfc(x) {
    const y = Math.abs(x);
    let r;
    if (y <= 0.46875) {
      const a = [3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3, 1.85777706184603153e-1];
      const b = [2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3];
      const q = y * y;
      let n = a[4] * q, m = q;
      for (let i = 0; i < 3; i++) { n = (n + a[i]) * q; m = (m + b[i]) * q; }
      return 1 - x * (n + a[3]) / (m + b[3]);
    }
    if (y <= 4) {
      const c = [5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1, 2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3, 2.15311535474403846e-8];
      const e = [1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3];
      let n = c[8] * y, m = y;
      for (let i = 0; i < 7; i++) { n = (n + c[i]) * y; m = (m + e[i]) * y; }
      r = (n + c[7]) / (m + e[7]);
    } else {
      const p = [3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1, 1.60837851487422766e-2, 6.58749161529837803e-4, 1.63153871373020978e-2];
      const q = [2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1, 6.05183413124413191e-2, 2.33520497626869185e-3];
      const z = 1 / (y * y);
      let n = p[5] * z, m = z;
      for (let i = 0; i < 4; i++) { n = (n + p[i]) * z; m = (m + q[i]) * z; }
      r = (1 / Math.sqrt(Math.PI) - z * (n + p[4]) / (m + q[4])) / y;
    }
    r *= Math.exp(-y * y);
    return x < 0 ? 2 - r : r;
  }
  // normal is the standard normal's quantile (Acklam's, made exact by one step of Halley's).
  function normal(p) {
    const a = [-39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269, -30.66479806614716, 2.506628277459239], b = [-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572];
    const c = [-0.007784894002430293, -0.3223964580411365, -2.400758277161838, -2.549732539343734, 4.374664141464968, 2.938163982698783], e = [0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416];
    let x;
    if (p < 0.02425 || p > 1 - 0.02425) {
      const q = Math.sqrt(-2 * Math.log(Math.min(p, 1 - p)));
      x = (((((c[0] * q + c[1]) * q + c[2]) * q + c[3]) * q + c[4]) * q + c[5]) / ((((e[0] * q + e[1]) * q + e[2]) * q + e[3]) * q + 1);
      if (p > 0.5) x = -x;
    } else {
      const q = p - 0.5, r = q * q;
      x = (((((a[0] * r + a[1]) * r + a[2]) * r + a[3]) * r + a[4]) * r + a[5]) * q / (((((b[0] * r + b[1]) * r + b[2]) * r + b[3]) * r + b[4]) * r + 1);
    }
    const off = erfc(-x / Math.SQRT2) / 2 - p, u = off * Math.sqrt(2 * Math.PI) * Math.exp(x * x / 2);
    return x - u / (1 + x * u / 2);
  }
  const sigma = (r) => r.p50 <= 0 || r.p99 <= r.p50 ? 0 : Math.log(r.p99 / r.p50) / z99;
  const ready = {
    sigma,
    quantile: (r, q) => { const s = sigma(r); return s === 0 ? r.p50 : Math.trunc(Math.min(r.p50 * Math.exp(s * normal(q)), 3600000e9)); },
    later: (r, d) => { const s = sigma(r); return s === 0 ? (r.p50 > d ? 1 : 0) : d <= 0 ? 1 : erfc(Math.log(d / r.p50) / s / Math.SQRT2) / 2; },
    // mean of f, which returns a value and how much it counts.
    mean(r, f) {
      const n = sigma(r) === 0 ? 1 : 1000;
      let sum = 0, weights = 0;
      for (let i = 0; i < n; i++) { const [v, w] = f(ready.quantile(r, (i + 0.5) / n)); sum += w * v; weights += w; }
      return weights === 0 ? [0, 0] : [Math.trunc(sum / weights), weights / n];
    },
  };
  return { second, container, target, pod, ready };
})();
