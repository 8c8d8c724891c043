// The bar on top: colours, print.

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

