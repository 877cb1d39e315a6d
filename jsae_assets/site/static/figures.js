// Draws a page's figures with Plotly, each once it comes near the window. Titles stand above them as text of the page;
// what is downloaded has them, and is as it was stored: 900 px wide and light.
"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const DARK = { "#222222": "#e8e6e1", "#DDDDDD": "#3a3d42", white: "#16181b", "#FFFFFF": "#16181b", "#ffffff": "#16181b" };

function styled(figure) {
  let text = JSON.stringify(figure);
  if (dark.matches) {
    for (const [from, to] of Object.entries(DARK)) text = text.replaceAll(`"${from}"`, `"${to}"`);
    text = text.replace(/rgba\(255, ?255, ?255/g, "rgba(22, 24, 27");
  }
  const { data, layout } = JSON.parse(text);
  const top = layout.margin?.t ?? 60;
  const kept = (layout.annotations ?? []).some((note) => note.yref === "paper" && note.y > 0.99) ? 48 : 24;
  layout.height = Math.max(260, (layout.height ?? 450) - top + kept);
  layout.margin = { ...layout.margin, t: kept };
  delete layout.title; // the page has it as text
  return { data, layout: { ...layout, autosize: true } };
}

// fonts of figures are made for 900 px: where there is less, they shrink
function scaled(layout, width) {
  const factor = Math.max(0.62, Math.min(0.8, width / 900));
  const walk = (part) => {
    if (Array.isArray(part)) return part.map(walk);
    if (part === null || typeof part !== "object") return part;
    return Object.fromEntries(
      Object.entries(part).map(([key, value]) => [
        key,
        key === "font" || key === "tickfont" || key === "textfont"
          ? { ...value, size: value.size ? Math.round(value.size * factor) : undefined }
          : walk(value),
      ]),
    );
  };
  return walk(layout);
}

async function draw(place) {
  const figure = styled(await jsae.load(place.dataset.figure));
  place.replaceChildren();
  place.style.minHeight = "";
  const width = Math.max(place.clientWidth, 640);
  const layout = scaled(figure.layout, width);
  const data = scaled(figure.data, width);
  await Plotly.newPlot(place, data, { ...layout, width }, {
    displaylogo: false,
    responsive: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    showSendToCloud: false,
    showEditInChartStudio: false,
    toImageButtonOptions: { format: "svg", filename: place.dataset.figure.replaceAll("/", "-") },
  });
  place.dataset.drawn = "yes";
}

addEventListener("DOMContentLoaded", () => {
  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          near.unobserve(entry.target);
          draw(entry.target).catch((error) => (entry.target.textContent = `The figure cannot be drawn: ${error.message}`));
        }
      }
    },
    { rootMargin: "600px" },
  );
  const places = [...document.querySelectorAll(".plot")];
  for (const place of places) near.observe(place);
  const again = () => {
    for (const place of places) if (place.dataset.drawn) draw(place);
  };
  dark.addEventListener("change", again);
  let width = innerWidth, timer;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(timer);
    timer = setTimeout(again, 200);
  });
  for (const button of document.querySelectorAll("[data-download]")) {
    button.addEventListener("click", async () => {
      const { figure } = button.closest("figure").querySelector(".plot").dataset;
      const { data, layout } = JSON.parse(JSON.stringify(await jsae.load(figure))); // Plotly writes into it
      const size = { width: 900, height: layout.height };
      Plotly.downloadImage({ data, layout: { ...layout, ...size } }, { format: button.dataset.download, filename: figure.replaceAll("/", "-"), ...size });
    });
  }
});
