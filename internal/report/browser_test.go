package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/thaw-project/thaw/internal/health"
	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profile/profiletest"
	"github.com/thaw-project/thaw/internal/testenv/browser"
)

// save writes a page into a file and returns its address.
func save(t *testing.T, r *profile.Record, o Options) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, []profile.Record{*r}, o); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "report.html")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return "file://" + path
}

// well fails when something went wrong in a page, or it asked for anything but itself.
func well(t *testing.T, p *browser.Page) {
	t.Helper()
	for _, problem := range p.Problems() {
		t.Errorf("in the page: %s", problem)
	}
	if all := p.Requests(); len(slices.Compact(all)) != 1 || !strings.HasPrefix(all[0], "file://") {
		t.Errorf("requests: %v, want the page alone", all)
	}
}

// everything uses each control of a page, of each subject, and says what did not work.
const everything = `(async () => {
  const out = { wrong: [], buttons: 0, selects: 0, sliders: 0, links: 0, zooms: 0, subjects: 0, printed: 0 };
  const all = (q, e) => [...(e || document).querySelectorAll(q)];
  const wrong = (s) => out.wrong.push(s);
  window.print = () => { out.printed++; };
  const download = HTMLAnchorElement.prototype.click;
  HTMLAnchorElement.prototype.click = function () { if (this.download) window.downloaded = this.download; else download.call(this); };
  const subjects = all("#top .seg button, #top select option");
  const look = (root) => {
    const all = (q) => [...(root || document).querySelectorAll(q)];
    for (const e of all("svg text, svg [aria-label]")) if (/NaN|undefined|null|\[object/.test(e.textContent + (e.getAttribute("aria-label") || ""))) wrong("says " + (e.getAttribute("aria-label") || e.textContent));
    for (const e of all("svg [width], svg [x], svg [y], svg [d]")) for (const a of ["width", "height", "x", "y", "d", "x1", "x2", "cx"]) if (/NaN|Infinity|undefined/.test(e.getAttribute(a) || "")) wrong(a + " of " + e.tagName + " in " + (e.closest("section") || {}).id + ": " + e.getAttribute(a));
    for (const e of all(":is(p, td, dd, b, h1)")) if (/NaN|undefined|\[object/.test(e.textContent)) wrong(e.tagName + " says " + e.textContent.slice(0, 100));
  };
  const one = async () => {
    out.subjects++;
    look();
    for (const a of all(".links a")) { out.links++; if (!document.getElementById(a.getAttribute("href").slice(1))) wrong("link to nowhere: " + a.href); a.click(); }
    for (const b of all("[data-table]")) {
      const body = b.closest("section"), chart = body.querySelector(".chart, .opps, .none");
      b.click();
      if (b.getAttribute("aria-pressed") !== "true" || !body.querySelector(".tall table, .tall .none")) wrong("no table in " + body.id);
      if (chart && !chart.hidden && !body.querySelector(":scope [hidden]")) wrong("the chart stays in " + body.id);
      look(body);
      b.click();
      if (body.querySelector(".tall[hidden]") === null) wrong("the table stays in " + body.id);
      out.buttons++;
    }
    for (const s of all("main select")) {
      const was = s.value;
      for (const o of [...s.options].slice(0, 6)) { s.value = o.value; s.dispatchEvent(new Event("change", { bubbles: true })); look(s.closest("section")); }
      s.value = was;
      s.dispatchEvent(new Event("change", { bubbles: true }));
      out.selects++;
    }
    const healths = document.querySelector("#health select");
    for (const kind of out.subjects === 1 ? ["target", "pod", "container"] : ["container"]) {
      healths.value = kind;
      healths.dispatchEvent(new Event("change", { bubbles: true }));
      for (const r of all("main input[type=range]")) {
        const said = r.closest("section").querySelector(".big"), before = said.textContent, drawn = r.closest("section").querySelector("svg").outerHTML;
        let moved = false;
        for (const v of [r.min, r.max, r.value, (+r.min + +r.max) / 3]) { r.value = v; r.dispatchEvent(new Event("input", { bubbles: true })); if (v === r.min || v === r.max) look(r.closest("section")); moved = moved || said.textContent !== before || r.closest("section").querySelector("svg").outerHTML !== drawn; }
        if (!moved && !["timeout", "failure", "unhealthy", "healthy"].includes(r.name)) wrong("slider " + r.name + " of " + kind + " moves nothing");
        if (r.parentElement.querySelector("output").textContent === "") wrong("slider " + r.name + " shows nothing");
        out.sliders++;
      }
    }
    for (const b of all("main .seg button")) {
      b.click();
      if (b.getAttribute("aria-pressed") !== "true" || all("button[aria-pressed=true]", b.parentElement).length !== 1) wrong("button " + b.textContent);
      look(b.closest("section"));
      out.buttons++;
    }
    const map = document.querySelector("#bytes");
    if (map && map.tagName === "SECTION") for (const by of all(".seg button", map)) {
      by.click();
      for (let i = 0; i < 5; i++) {
        const into = map.querySelector(".zoom");
        if (!into) break;
        const crumbs = map.querySelector(".crumbs").textContent;
        into.dispatchEvent(new MouseEvent("click", { bubbles: true }));
        if (map.querySelector(".crumbs").textContent === crumbs) wrong("zoom into " + into.dataset.zoom + " does nothing");
        look(map);
        out.zooms++;
      }
      const back = map.querySelector(".crumbs button");
      if (back) back.click();
      if (map.querySelector(".crumbs button")) wrong("the way back does not lead to the top");
    }
    const score = document.querySelector(".score button"), detail = document.getElementById("score-detail");
    score.click();
    if (detail.hidden || score.getAttribute("aria-expanded") !== "true") wrong("the score does not explain itself");
    for (const d of all("details")) { d.open = true; out.buttons++; }
    document.getElementById("raw").click();
    for (let i = 0; i < 200 && !window.downloaded; i++) await new Promise((r) => setTimeout(r, 10));
    if (!/\.json$/.test(window.downloaded || "")) wrong("raw data: " + window.downloaded);
    window.downloaded = null;
  };
  if (!subjects.length) await one();
  for (const s of subjects) {
    const before = document.querySelector("#method").textContent + document.querySelector("h1").textContent;
    if (s.tagName === "OPTION") { s.parentElement.value = s.value; s.parentElement.dispatchEvent(new Event("change", { bubbles: true })); } else s.click();
    if (s !== subjects[0] && document.querySelector("#method").textContent + document.querySelector("h1").textContent === before) wrong("choosing " + s.textContent.slice(0, 30) + " changes nothing");
    await one();
  }
  const theme = document.documentElement.dataset.theme;
  document.getElementById("theme").click();
  if (document.documentElement.dataset.theme === theme) wrong("the theme stays " + theme);
  document.getElementById("theme").click();
  document.getElementById("print").click();
  out.wrong = [...new Set(out.wrong)].slice(0, 20);
  return out;
})()`

type used struct {
	Wrong                                                      []string
	Buttons, Selects, Sliders, Links, Zooms, Subjects, Printed int
}

func TestBrowser(t *testing.T) {
	b := browser.New(t)
	t.Run("controls", func(t *testing.T) {
		for name, r := range map[string]*profile.Record{"three": profiletest.Record(1), "modes": profiletest.Modes(2, profiletest.PythonML), "sparse": sparse(), "failed": failed(), "hostile": hostile()} {
			t.Run(name, func(t *testing.T) {
				p := b.Open(t, save(t, r, Options{Compare: name == "modes"}), 1280, 900)
				var u used
				p.Eval(everything, &u)
				for _, wrong := range u.Wrong {
					t.Error(wrong)
				}
				t.Logf("%+v", u)
				if want := max(len(r.Subjects), 1); u.Subjects != want || u.Printed != 1 || u.Sliders < 7*want || u.Links < 5*want || u.Selects < 2*want {
					t.Errorf("used %+v of %d subjects", u, want)
				}
				if name == "three" && (u.Zooms < 9 || u.Buttons < 30) {
					t.Errorf("zoomed %d times, %d buttons", u.Zooms, u.Buttons)
				}
				if name == "hostile" {
					isHarmless(t, p)
				}
				well(t, p)
			})
		}
	})
	t.Run("keyboard", func(t *testing.T) { testKeyboard(t, b) })
	t.Run("widths", func(t *testing.T) { testWidths(t, b) })
	t.Run("print", func(t *testing.T) { testPrint(t, b) })
	t.Run("policy", func(t *testing.T) { testPolicy(t, b) })
	t.Run("health", func(t *testing.T) { testHealth(t, b) })
}

// isHarmless: nothing of a hostile record ran, became an element, or hid the page.
func isHarmless(t *testing.T, p *browser.Page) {
	t.Helper()
	var seen struct {
		Pwned, Scripts, Images, Styles, Handlers int
		Text                                     bool
		Visible                                  bool
	}
	p.Eval(`(() => ({ pwned: window.pwned || ({}).pwned || 0, scripts: document.scripts.length, images: document.querySelectorAll("img, iframe, object, embed, video, audio, base, form").length, styles: document.querySelectorAll("style, link[rel=stylesheet]").length,
		handlers: [...document.querySelectorAll("*")].filter((e) => [...e.attributes].some((a) => a.name.startsWith("on"))).length, text: document.body.textContent.includes("</script><script>window.pwned=1"), visible: document.querySelector("h1").getBoundingClientRect().height > 0 }))()`, &seen)
	if seen.Pwned != 0 || seen.Scripts != 2 || seen.Images != 0 || seen.Styles != 1 || seen.Handlers != 0 || !seen.Text || !seen.Visible {
		t.Errorf("a hostile record did something: %+v", seen)
	}
}

// testKeyboard walks through a page by Tab alone: all that can be used is reached, in
// view, and shows that it is.
func testKeyboard(t *testing.T, b *browser.Browser) {
	p := b.Open(t, save(t, profiletest.Modes(3, profiletest.Nginx), Options{}), 1280, 900)
	var want int
	p.Eval(`(() => {
		window.reached = new Set(); window.dim = [];
		document.addEventListener("focusin", (e) => {
			const t = e.target, s = getComputedStyle(t), ring = t.querySelector(":scope > .ring");
			window.reached.add(t);
			if (!(s.outlineStyle !== "none" && parseFloat(s.outlineWidth) > 0) && !(ring && getComputedStyle(ring).stroke !== "none")) window.dim.push(t.outerHTML.slice(0, 120));
		});
		window.usable = [...document.querySelectorAll("a[href], button, select, input, summary, [tabindex='0']")].filter((e) => e.getClientRects().length);
		return window.usable.length;
	})()`, &want)
	const many = 1200
	for i := range many {
		p.Do(chromedp.KeyEvent(kb.Tab))
		if i%20 == 19 {
			var left int
			if p.Eval("window.usable.filter((e) => !window.reached.has(e)).length", &left); left == 0 {
				break
			}
		}
	}
	var missed, dim []string
	p.Eval("window.usable.filter((e) => !window.reached.has(e)).map((e) => e.outerHTML.slice(0, 120))", &missed)
	p.Eval("window.dim", &dim)
	if want < 60 || len(missed) > 0 || len(dim) > 0 {
		t.Errorf("%d can be used; never reached: %q; reached unseen: %q", want, missed[:min(len(missed), 5)], dim[:min(len(dim), 5)])
	}
	focus := func(query string) {
		p.Eval(fmt.Sprintf("document.querySelector(%q).focus()", query), nil)
	}
	says := func(what, script string) {
		t.Helper()
		var ok bool
		if p.Eval(script, &ok); !ok {
			t.Errorf("by keyboard: %s", what)
		}
	}
	focus("#bytes .zoom")
	p.Do(chromedp.KeyEvent(kb.Enter))
	says("Enter zooms into the map", `document.querySelector("#bytes .crumbs button") !== null && document.activeElement.closest("#bytes") !== null`)
	focus(`[data-table="waterfall"]`)
	p.Do(chromedp.KeyEvent(" "))
	says("the space bar shows a table", `document.querySelector("#waterfall .tall table") !== null`)
	focus(`#health input[name="interval"]`)
	p.Do(chromedp.KeyEvent(kb.ArrowLeft))
	says("arrows move a slider", `document.querySelector('#health input[name="interval"]').value === "29" && document.querySelector("#health output").textContent === "29 s"`)
	focus("#layers [tabindex='0']")
	p.Do(chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Tab, chromedp.KeyModifiers(8)))
	says("the focus shows a tip", `!document.getElementById("tip").hidden`)
	p.Do(chromedp.KeyEvent(kb.Escape))
	says("Escape hides it", `document.getElementById("tip").hidden`)
	well(t, p)
}

// testWidths: nothing is wider than the screen, from a phone to 4K, light or dark.
func testWidths(t *testing.T, b *browser.Browser) {
	p := b.Open(t, save(t, profiletest.Modes(4, profiletest.PythonML), Options{}), 1280, 900)
	p.Eval(`localStorage.clear()`, nil) // what other tests chose
	p.Do(chromedp.Reload())
	for _, scheme := range []string{"light", "dark"} {
		name, value := "prefers-color-scheme", scheme
		browser.Call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: name, Value: value}}})
		p.Eventually(fmt.Sprintf("document.documentElement.dataset.theme === %q", scheme))
		for _, width := range []int64{360, 600, 768, 1280, 1920, 3840} {
			p.Do(chromedp.EmulateViewport(width, 900))
			p.Eventually(fmt.Sprintf("innerWidth === %d && Math.abs(document.querySelector('#waterfall .chart').clientWidth / Math.max(1, parseFloat(getComputedStyle(document.documentElement).fontSize) / 16) - document.querySelector('#waterfall .chart > svg').dataset.width) < 2", width))
			var wide []string
			p.Eval(`[...document.querySelectorAll("body, main, section, h1, h2, .head, .tile, .knob, table, svg text, .chart > svg")].filter((e) => !e.closest(".scroll") && !e.closest(".links") && e.getBoundingClientRect().right > innerWidth + 1).map((e) => (e.closest("section") || {}).id + " " + e.tagName + " " + e.textContent.slice(0, 40)).concat(document.scrollingElement.scrollWidth > innerWidth ? ["the page"] : [])`, &wide)
			if len(wide) > 0 {
				t.Errorf("%s, %d pixels: too wide: %q", scheme, width, wide[:min(len(wide), 6)])
			}
		}
	}
	well(t, p)
}

func testPrint(t *testing.T, b *browser.Browser) {
	p := b.Open(t, save(t, profiletest.Modes(5, profiletest.Nginx), Options{}), 1280, 900)
	p.Eval(`document.getElementById("theme").click()`, nil)
	pdf := p.PDF()
	if !bytes.HasPrefix(pdf, []byte("%PDF")) || len(pdf) < 30_000 {
		t.Errorf("%d bytes of PDF", len(pdf))
	}
	if dir := os.Getenv("REPORT_OUT"); dir != "" {
		os.WriteFile(filepath.Join(dir, "report.pdf"), pdf, 0o644)
	}
	var theme string
	if p.Eval("document.documentElement.dataset.theme", &theme); theme != "dark" {
		t.Errorf("after printing the theme is %s", theme)
	}
	well(t, p)
}

// testPolicy: what gets into a page all the same cannot run, and cannot speak to
// anybody.
func testPolicy(t *testing.T, b *browser.Browser) {
	p := b.Open(t, save(t, sparse(), Options{}), 800, 600)
	var out []string
	p.Eval(`(async () => {
		const out = [];
		const s = document.createElement("script"); s.textContent = "window.ran = 1"; document.body.append(s);
		const d = document.createElement("div"); d.innerHTML = "<img src=x onerror='window.ran = 2'>"; document.body.append(d);
		const st = document.createElement("style"); st.textContent = "body { display: none }"; document.body.append(st);
		await fetch("http://127.0.0.1:9/").then(() => out.push("fetched"), () => {});
		try { new WebSocket("ws://127.0.0.1:9/"); } catch { }
		setTimeout(() => { try { new Function("window.ran = 3")(); } catch { } }, 0);
		await new Promise((r) => setTimeout(r, 50));
		if (window.ran) out.push("ran " + window.ran);
		if (getComputedStyle(document.body).display === "none") out.push("styled");
		return out;
	})()`, &out)
	if len(out) > 0 {
		t.Errorf("the page's policy let through: %v", out)
	}
	if len(p.Problems()) < 3 {
		t.Errorf("the browser complained of %d things only: %q", len(p.Problems()), p.Problems())
	}
}

// testHealth holds the script's health checks against package health's.
func testHealth(t *testing.T, b *browser.Browser) {
	p := b.Open(t, save(t, sparse(), Options{}), 800, 600)
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func(from, to float64) time.Duration { return time.Duration((from + rnd.Float64()*(to-from)) * 1e9) }
	whole := func(from, to int) time.Duration { return time.Duration(from+rnd.IntN(to-from+1)) * time.Second }
	type config struct {
		C                            map[string]int64
		V                            string
		G                            map[string]int64
		Startup, Readiness, Liveness map[string]int64
		D, R, P50, P99               int64
		Q                            float64
		want                         []float64
	}
	probe := func(p *health.Probe) map[string]int64 {
		if p == nil {
			return nil
		}
		return map[string]int64{"period": int64(p.Period), "timeout": int64(p.Timeout), "delay": int64(p.Delay), "success": int64(p.Success), "failure": int64(p.Failure)}
	}
	bounds := func(b health.Bounds, ok bool) []float64 {
		if !ok {
			return []float64{-1, -1, -1}
		}
		return []float64{float64(b.Best), float64(b.Expected), float64(b.Worst)}
	}
	var all []config
	for range 3000 {
		c := health.Container{Interval: random(1, 60), Timeout: whole(1, 30), Retries: 1 + rnd.IntN(10), StartPeriod: time.Duration(rnd.IntN(2)) * random(0, 300), StartInterval: whole(1, 10)}
		v := health.Variants[rnd.IntN(3)]
		d, r := random(0, 3), random(0, 400)
		if rnd.IntN(4) == 0 { // where ticks meet
			c.Interval, c.StartPeriod, d, r = whole(1, 30), whole(0, 60), whole(0, 2), whole(0, 120)
		}
		g := health.Target{Interval: whole(5, 60), Healthy: 2 + rnd.IntN(9), Unhealthy: 2 + rnd.IntN(9)}
		pod := health.Pod{}
		one := func() *health.Probe {
			return &health.Probe{Period: whole(1, 20), Timeout: whole(1, 3), Delay: time.Duration(rnd.IntN(2)) * whole(0, 60), Success: 1 + rnd.IntN(3), Failure: 1 + rnd.IntN(20)}
		}
		if rnd.IntN(3) > 0 {
			pod.Startup = one()
			pod.Startup.Success = 1
		}
		if rnd.IntN(4) > 0 {
			pod.Readiness = one()
		}
		if rnd.IntN(3) == 0 {
			pod.Liveness = one()
		}
		ready := health.Ready{P50: random(.1, 30)}
		ready.P99 = ready.P50 + time.Duration(rnd.IntN(2))*random(0, 60)
		q := (float64(rnd.IntN(1000)) + .5) / 1000
		unhealthy, last := c.Deadline(v, d)
		healthy := -1.
		if at, ok := c.Healthy(v, d, r); ok {
			healthy = float64(at)
		}
		soonest, latest := g.UnhealthyFrom()
		pb, ok := pod.Bounds(r, d)
		x := config{C: map[string]int64{"interval": int64(c.Interval), "timeout": int64(c.Timeout), "retries": int64(c.Retries), "startPeriod": int64(c.StartPeriod), "startInterval": int64(c.StartInterval)}, V: string(v),
			G: map[string]int64{"interval": int64(g.Interval), "healthy": int64(g.Healthy), "unhealthy": int64(g.Unhealthy)}, Startup: probe(pod.Startup), Readiness: probe(pod.Readiness), Liveness: probe(pod.Liveness),
			D: int64(d), R: int64(r), P50: int64(ready.P50), P99: int64(ready.P99), Q: q}
		x.want = slices.Concat([]float64{float64(unhealthy), float64(last), healthy}, bounds(c.Bounds(v, d, r), true), bounds(g.Bounds(r), true), []float64{g.Cliff(r), float64(soonest), float64(latest)},
			bounds(pb, ok), []float64{pod.Restarted(r, d), ready.Later(r), float64(ready.Quantile(q))})
		all = append(all, x)
	}
	in, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	var got [][]float64
	p.Eval(`((all) => { const h = window.thaw.health; return all.map((x) => {
		const r = { p50: x.P50, p99: x.P99 }, pod = { startup: x.Startup, readiness: x.Readiness, liveness: x.Liveness }, at = h.container.healthy(x.C, x.V, x.D, x.R);
		return [...h.container.deadline(x.C, x.V, x.D), at === null ? -1 : at, ...h.container.bounds(x.C, x.V, x.D, x.R), ...h.target.bounds(x.G, x.R), h.target.cliff(x.G, x.R), ...h.target.unhealthyFrom(x.G),
			...(h.pod.bounds(pod, x.R, x.D) || [-1, -1, -1]), h.pod.restarted(pod, x.R, x.D), h.ready.later(r, x.R), h.ready.quantile(r, x.Q)];
	}); })(`+string(in)+`)`, &got)
	if len(got) != len(all) {
		t.Fatalf("%d answers to %d questions", len(got), len(all))
	}
	for i, x := range all {
		for j, want := range x.want {
			// Times to a microsecond: rounding of shares differs in the last bit. Shares to 1e-9.
			tolerance := 1000.
			if j == 9 || j == 15 || j == 16 {
				tolerance = 1e-9
			} else if j == 17 {
				tolerance = 1000 + want*1e-9
			}
			if diff := got[i][j] - want; diff > tolerance || diff < -tolerance {
				t.Fatalf("number %d of configuration %d: %v in the page, %v in Go\n%+v", j, i, got[i][j], want, x)
			}
		}
	}
	well(t, p)
}
