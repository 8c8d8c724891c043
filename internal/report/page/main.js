// The page: its bar, the subject that is shown, and its cards.

const rootElement = document.documentElement;
const icons = { sun: "M12 4V2M12 22v-2M4 12H2M22 12h-2M5.6 5.6 4.2 4.2M19.8 19.8l-1.4-1.4M5.6 18.4l-1.4 1.4M19.8 4.2l-1.4 1.4M16 12a4 4 0 1 1-8 0 4 4 0 0 1 8 0Z", moon: "M20 14.5A8 8 0 0 1 9.5 4a8 8 0 1 0 10.5 10.5Z", print: "M7 9V3h10v6M7 18H4v-8h16v8h-3M7 14h10v7H7z" };
const icon = (name) => g("svg", { viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true" }, g("path", { d: icons[name] }));
const logo = () => g("svg", { viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": 2, "stroke-linecap": "round", "aria-hidden": "true" }, g("path", { d: "M12 3v13M6.5 6.2 17.5 12.8M17.5 6.2 6.5 12.8M9 20.5h6" }));

function themeButton() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("thaw-theme"); } catch { /* a file may have no storage */ }
  const b = h("button", { type: "button", class: "icon", id: "theme", onclick: () => {
    chosen = rootElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("thaw-theme", chosen); } catch { /* it is kept for this page */ }
    apply();
  } });
  function apply() {
    const on = chosen ? chosen === "dark" : dark.matches;
    rootElement.dataset.theme = on ? "dark" : "light";
    b.replaceChildren(icon(on ? "sun" : "moon"));
    b.setAttribute("aria-label", on ? "Light colours" : "Dark colours");
    b.setAttribute("aria-pressed", String(on));
  }
  dark.addEventListener("change", apply);
  // Paper is light.
  let before;
  addEventListener("beforeprint", () => { before = rootElement.dataset.theme; rootElement.dataset.theme = "light"; drawCharts(700); });
  addEventListener("afterprint", () => { rootElement.dataset.theme = before; drawCharts(); });
  apply();
  return b;
}

const main = document.getElementById("main"), links = h("nav", { class: "links", "aria-label": "Parts of the report" });

function show(s) {
  const cards = [overview(s)];
  const compare = data.subjects.length > 1 && data.compared.length ? compareCard() : null;
  if (compare && data.compare) cards.unshift(compare);
  cards.push(...warningsBox(s), waterfallCard(s));
  if (compare && !data.compare) cards.push(compare);
  cards.push(opportunitiesCard(s), mapCard(s), layersCard(s), packagesCard(s), requestsCard(s), healthCard(s), scaleCard(s), runsCard(s), methodCard(s));
  const lacking = cards.filter((c) => c.missing), shown = cards.filter((c) => !c.missing);
  if (lacking.length) shown.splice(shown.length - 1, 0, card("unseen", "Not seen in these runs", null, { chart: h("dl", {}, lacking.map((c) => [h("dt", { id: c.id }, c.title), h("dd", {}, c.why)])) }));
  main.replaceChildren(...shown, h("footer", {}, `Made ${when(data.made)}${data.tool ? " by thaw " + data.tool : " by thaw"}. This page is whole: it asks nobody for anything.`));
  links.replaceChildren(...shown.filter((c) => c.id).map((c) => h("a", { href: "#" + c.id }, c.id === "overview" ? "Overview" : c.querySelector("h2").textContent)));
  drawCharts();
  watch();
}

// The link of the part that is on the screen is marked.
let watcher;
function watch() {
  if (watcher) watcher.disconnect();
  const seen = new Map();
  watcher = new IntersectionObserver((entries) => {
    for (const e of entries) seen.set(e.target.id, e.isIntersecting);
    let found = false;
    for (const a of links.children) {
      const here = !found && seen.get(a.getAttribute("href").slice(1));
      found = found || here;
      a.classList.toggle("here", Boolean(here));
      if (here) a.setAttribute("aria-current", "true"); else a.removeAttribute("aria-current");
    }
  }, { rootMargin: "-15% 0px -70% 0px" });
  for (const c of main.children) if (c.id) watcher.observe(c);
}

function begin() {
  const names = data.subjects.map((s, i) => [i, s.name]);
  const pick = (i) => show(data.subjects[+i]);
  document.getElementById("top").append(h("div", { class: "bar" }, data.home ? h("a", { class: "brand", href: data.home }, logo(), "thaw") : h("span", { class: "brand" }, logo(), "thaw"), h("span", { class: "what", title: data.title }, data.title),
    names.length > 1 ? (names.length > 3 ? select("Start", names, 0, pick) : choose("Start", names, 0, pick)) : null,
    h("div", { class: "group" }, themeButton(), h("button", { type: "button", class: "icon", id: "print", "aria-label": "Print", onclick: () => print() }, icon("print")))), links);
  document.body.append(defs());
  show(data.subjects[0]);
  new ResizeObserver(() => drawCharts()).observe(main);
}

window.thaw = { health, evaluate };
begin();
