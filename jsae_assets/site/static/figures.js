// Draws a page's figures with Plotly, each once it comes near the window. Titles stand above them as text of the page;
// what is downloaded has them, and is as it was stored: 900 px wide and light.
// In a narrow window, one panel is drawn as narrow as the window, and two beside each other are drawn below each other.
// A figure of more panels is shown whole, smaller than it was drawn, with a button that enlarges it.
"use strict";
const NATURAL = 640, NARROWEST = 300; // px: figures of several panels, and of one, are not drawn narrower
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

const axes = (layout, letter) => Object.entries(layout).filter(([name]) => name.startsWith(`${letter}axis`)).map(([, axis]) => axis);
const spans = (all) => [...new Set(all.map((axis) => (axis.domain ?? [0, 1]).join()))].map((span) => span.split(",").map(Number));

// Two panels beside each other become two below each other, each as high as both were.
function stacked(layout, columns) {
  const [left, right] = columns.sort((a, b) => a[0] - b[0]);
  const of = (axis) => (axis.domain?.[0] === right[0] ? 1 : 0);
  const rows = [[0.6, 1], [0, 0.4]];
  const below = Object.fromEntries(Object.entries(layout).map(([name, axis]) => {
    if (name.startsWith("xaxis")) return [name, { ...axis, domain: [0, 1] }];
    if (name.startsWith("yaxis")) {
      const row = of(layout[(axis.anchor ?? "x").replace("x", "xaxis")]);
      return [name, { ...axis, domain: rows[row], showticklabels: true, title: axis.title ?? layout.yaxis.title }];
    }
    return [name, axis];
  }));
  const top = layout.margin.t, bottom = 90, panel = layout.height - top - bottom;
  below.annotations = (layout.annotations ?? []).map((note) => {
    if (note.xref !== "paper" || note.yref !== "paper") return note;
    const [span, row] = note.x < right[0] - 0.02 ? [left, rows[0]] : [right, rows[1]];
    return { ...note, x: (note.x - span[0]) / (span[1] - span[0]), y: row[0] + note.y * (row[1] - row[0]) };
  });
  return { ...below, height: top + bottom + 2.5 * panel };
}

// The layout for a window with this much room, and the width to draw it in, which may be more.
function fitting(layout, room, canvas) {
  const columns = spans(axes(layout, "x"));
  if (room >= NATURAL || canvas) return [layout, Math.max(room, NATURAL)];
  if (columns.length === 2 && spans(axes(layout, "y")).length === 1 && axes(layout, "x").length === 2)
    return [stacked(layout, columns), Math.max(room, NARROWEST)];
  return [layout, columns.length === 1 && (layout.margin.l ?? 80) < 150 ? Math.max(room, NARROWEST) : NATURAL];
}

function button(place) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "enlarge";
  made.addEventListener("click", () => {
    place.dataset.enlarged = place.dataset.enlarged ? "" : "yes";
    shrink(place);
  });
  place.after(made);
  return made;
}

// Shown whole, or, once enlarged, as it was drawn, to be scrolled.
function shrink(place) {
  const room = place.parentElement.clientWidth, width = Number(place.dataset.width);
  const enlarge = place.parentElement.querySelector(".enlarge") ?? (width > room ? button(place) : null);
  const scale = place.dataset.enlarged ? 1 : Math.min(1, room / width);
  // a transform, of which Plotly knows where the pointer is; margins take in the room that it leaves free
  Object.assign(place.style, scale < 1
    ? { width: `${width}px`, transformOrigin: "0 0", transform: `scale(${scale})`, marginRight: `${room - width}px` }
    : { width: "", transform: "", marginRight: "" });
  place.style.marginBottom = scale < 1 ? `${(scale - 1) * place.offsetHeight}px` : "";
  if (enlarge) {
    enlarge.hidden = width <= room;
    enlarge.textContent = place.dataset.enlarged ? "Show the whole figure" : "Enlarge the figure";
  }
}

async function draw(place) {
  const figure = styled(await jsae.load(place.dataset.figure));
  place.replaceChildren();
  place.removeAttribute("style");
  const [fitted, width] = fitting(figure.layout, place.parentElement.clientWidth, place.dataset.canvas);
  const layout = scaled(fitted, width);
  const data = scaled(figure.data, width);
  await Plotly.newPlot(place, data, { ...layout, width }, {
    displaylogo: false,
    responsive: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    showSendToCloud: false,
    showEditInChartStudio: false,
    toImageButtonOptions: { format: "svg", filename: place.dataset.figure.replaceAll("/", "-") },
  });
  place.dataset.width = width;
  shrink(place);
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
