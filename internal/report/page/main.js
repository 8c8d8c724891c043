// The page: the subject that is shown, and its cards.

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
  }, { rootMargin: "-14% 0px -85% 0px" });
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
