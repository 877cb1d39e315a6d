// The explorer: latents of a pair, what they fire on, and which input latents feed which output latents.
// Each state is an address: #<variant>/<model>/<layer>/output/<latent>/<input latent of an edge>, or .../input/<latent>.
"use strict";
(() => {
  const NODES = 12, PAGE = 100, EACH_SIDE = 8;
  const $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  let cells = [], state = {}, order = [], shown = PAGE;

  // --- small things ---

  // Everything that is shown goes in as text, never as markup.
  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "g", "path", "rect", "text", "tspan", "circle", "polyline", "title", "line"].includes(tag);
    const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }
  // "0%" is exactly none: what would round to that, but is not, is said to be less than the smallest that is shown.
  const percent = (x, digits = 1) => {
    const least = 10 ** -digits;
    if (x === 0) return "0%";
    return 100 * x < least / 2 ? `<${least.toFixed(digits)}%` : `${(100 * x).toFixed(digits)}%`;
  };
  const number = (x) => (x === null ? "–" : Math.abs(x) >= 100 ? x.toFixed(0) : x.toPrecision(3));
  const signed = (x) => (x > 0 ? "+" : x < 0 ? "−" : "") + number(Math.abs(x));
  const inText = (token) => token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍");
  const visible = (token) => {
    const shown = inText(token);
    return shown.trim() ? shown : shown.replaceAll(" ", "␣");
  };
  const address = (change) => {
    const { cell, side, latent, edge } = { ...state, edge: null, ...change };
    return "#" + [cell, side, latent, edge].filter((part) => part !== null && part !== undefined).join("/");
  };
  // What is made anew loses the keyboard's focus: whose it was, "" if it says nothing of itself, null if it was elsewhere.
  const focusedIn = (id, name) => ($(id).contains(document.activeElement) ? document.activeElement.dataset[name] ?? "" : null);
  const parse = () => {
    const [variant, model, layer, side, latent, edge] = decodeURIComponent(location.hash.slice(1)).split("/");
    const named = (wanted) => cells.find((one) => one.cell === wanted);
    const first = named($("content").dataset.opens) ?? cells[0];
    const cell = layer === undefined ? first?.cell : [variant, model, layer].join("/");
    const whole = (text) => (/^\d+$/.test(text ?? "") ? Number(text) : null);
    return {
      cell,
      about: named(cell), // undefined where the address names a pair that the explorer does not hold
      side: side === "input" ? "input" : "output",
      latent: whole(latent),
      edge: whole(edge),
    };
  };
  const about = () => jsae.load(`cell/${state.cell}/about`);
  const listed = (side = state.side) => jsae.load(`cell/${state.cell}/${side}s`);
  async function latentOf(side, latent) {
    const { a_file } = await about();
    return (await jsae.load(`cell/${state.cell}/${side}/${Math.floor(latent / a_file)}`))[latent];
  }
  async function documentOf(document) {
    const { text_starts, cell } = await about();
    let file = text_starts.length - 1;
    while (text_starts[file] > document) file--;
    return (await jsae.load(`text/${cell.split("/")[1]}/${file}`))[document - text_starts[file]];
  }

  // --- the list ---

  async function fillList() {
    if (!state.about) return;
    const { density, strength, tokens } = await listed();
    const all = [...density.keys()];
    const asked = $("search").value.trim();
    let note = "";
    if (/^\d+$/.test(asked)) order = all.filter((n) => String(n).startsWith(asked)).sort((a, b) => a - b);
    else if (asked) {
      const wanted = asked.toLowerCase();
      const byToken = all.filter((n) => tokens[n].some((token) => token.toLowerCase().includes(wanted)));
      const byText = state.side === "output" ? await inContexts(wanted) : [];
      const inTokens = new Set(byToken);
      order = [...byToken, ...byText.filter((n) => !inTokens.has(n))];
      note = `${byToken.length} by their top tokens` + (state.side === "output" ? `, ${order.length - byToken.length} more by their contexts` : "");
    } else {
      const by = $("order").value;
      const key = { strength: (n) => -strength[n], density: (n) => -density[n], number: (n) => n }[by];
      order = all.sort((a, b) => key(a) - key(b) || a - b);
      note = `${density.filter((share) => share === 0).length} of ${density.length.toLocaleString()} never fire`;
    }
    if (!order.length) note = "No latent is found.";
    $("found").textContent = note;
    shown = PAGE;
    await showList();
  }

  async function showList() {
    if (!state.about) return;
    const { density, tokens } = await listed();
    const current = state.latent, held = focusedIn("latents", "latent");
    $("latents").replaceChildren(
      ...order.slice(0, shown).map((n) =>
        make("li", {},
          make("a", { href: address({ latent: n }), "aria-current": n === current ? "true" : null, "data-latent": n },
            make("span", {}, String(n)),
            make("span", { class: "tokens" }, tokens[n].map(visible).join("  ")),
            make("span", { title: "share of tokens at which it fires" }, percent(density[n]))))));
    if (held) $("latents").querySelector(`[data-latent="${held}"]`)?.focus({ preventScroll: true });
    $("more").hidden = order.length <= shown;
    const there = $("latents").querySelector("[aria-current]");
    if (there) $("latents").scrollTop = Math.max(0, there.offsetTop - $("latents").offsetTop - 120);
  }

  // Output latents that have a top context at a token that holds this. For what goes over several tokens, the texts are
  // read, but only those with a top context at a token that may be one of them.
  async function inContexts(wanted) {
    const peaks = await jsae.load(`cell/${state.cell}/peaks`);
    const found = new Set(peaks.filter(([token]) => token.includes(wanted)).flatMap(([, latents]) => latents));
    if (found.size) return [...found];
    const files = peaks.filter(([token]) => mayBePartOf(token, wanted)).flatMap(([, , files]) => files);
    return inTexts(wanted, [...new Set(files)].sort((a, b) => a - b));
  }

  // Whether the token lies in the text, or they can overlap at an end of it.
  function mayBePartOf(token, text) {
    if (text.includes(token)) return true;
    const longest = Math.min(token.length, text.length) - 1;
    for (let n = longest; n > 0; n--)
      if (token.endsWith(text.slice(0, n)) || token.startsWith(text.slice(-n))) return true;
    return false;
  }

  // Output latents that have a top context within the text, in these files of texts.
  async function inTexts(wanted, files) {
    const { text_starts, cell } = await about();
    const found = new Map();
    for (const file of files) {
      const [documents, [at, positions, latents]] = await Promise.all([
        jsae.load(`text/${cell.split("/")[1]}/${file}`), jsae.load(`cell/${cell}/places/${file}`)]);
      const matches = new Map();
      documents.forEach((tokens, n) => {
        const whole = tokens.join("").toLowerCase();
        for (let from = whole.indexOf(wanted); from >= 0; from = whole.indexOf(wanted, from + 1)) {
          let passed = 0, first = null, last = null;
          tokens.some((token, place) => {
            const end = passed + token.length;
            if (first === null && end > from) first = place + 1;
            if (end >= from + wanted.length) { last = place + 1; return true; }
            passed = end;
            return false;
          });
          const key = text_starts[file] + n;
          if (!matches.has(key)) matches.set(key, []);
          matches.get(key).push([first, last]);
        }
      });
      at.forEach((document, n) => {
        const hit = (matches.get(document) ?? []).some(([first, last]) => positions[n] >= first && positions[n] <= last);
        if (hit) found.set(latents[n], (found.get(latents[n]) ?? 0) + 1);
      });
    }
    return [...found].sort((a, b) => b[1] - a[1]).map(([latent]) => latent);
  }

  // --- one latent ---

  async function contextItem([document, position, activation, first, shades], label = null) {
    const tokens = await documentOf(document);
    const text = make("span", { class: "text" });
    shades.forEach((shade, n) => {
      const at = first + n;
      text.append(make("span", {
        style: shade ? `--a: ${shade / 100}` : null,
        class: at === position ? "peak" : null,
        title: shade ? `${shade}% of its largest activation` : null,
      }, inText(tokens[at - 1])));
    });
    return make("li", {}, make("span", { class: "value" }, label ?? number(activation)), text);
  }

  async function exampleItem([document, position, J, s, output]) {
    const tokens = await documentOf(document);
    const first = Math.max(1, position - EACH_SIDE), last = Math.min(tokens.length, position + EACH_SIDE);
    const text = make("span", { class: "text" });
    for (let at = first; at <= last; at++)
      text.append(make("span", { class: at === position ? "peak" : null }, inText(tokens[at - 1])));
    text.append(make("span", { class: "said" }, `input ${number(s)}, output ${number(output)}, J ${signed(J)}`));
    return make("li", {}, make("span", { class: "value" }, signed(J * s)), text);
  }

  const chips = (tokens, values, said) =>
    make("ul", { class: "chips" }, ...tokens.map((token, n) => make("li", {}, visible(token), make("small", {}, said(values[n])))));
  const fact = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, value));
  const section = (title, ...children) => make("section", {}, make("h2", {}, title), ...children);

  function graph(latent, connections) {
    const edges = connections.slice(0, NODES), narrow = innerWidth < 700;
    const W = narrow ? 430 : 760, node = narrow ? 150 : 248, end = narrow ? 96 : 140, out = W - end - 4, bend = Math.min(190, (out - node) * 0.6);
    const height = Math.max(120, edges.length * 46 + 16), middle = height / 2;
    const largest = Math.max(...edges.map((edge) => Math.abs(edge[6])), 1e-12);
    const svg = make("svg", { class: "graph", viewBox: `0 0 ${W} ${height}`, role: "group", "aria-label": `The ${edges.length} strongest input latents of output latent ${latent}` });
    edges.forEach((edge, n) => {
      const [input, , , , , , attribution, share] = edge, y = 8 + n * 46 + 19;
      const said = `Input latent ${input}: mean J·s ${signed(attribution)}, ${percent(share)} of the attribution`;
      const choose = () => (location.hash = address({ edge: input }));
      svg.append(
        make("g", {
          role: "button", tabindex: 0, "aria-label": said, "aria-pressed": String(input === state.edge), "data-input": input,
          onclick: choose,
          onkeydown: (event) => { if (event.key === " " || (event.key === "Enter" && input !== state.edge)) { event.preventDefault(); event.stopPropagation(); choose(); } },
        },
          make("title", {}, said),
          make("path", { class: attribution < 0 ? "minus" : "plus", d: `M ${node + 2} ${y} C ${node + bend} ${y}, ${out - bend} ${middle}, ${out} ${middle}`, "stroke-width": 1 + 9 * Math.abs(attribution) / largest }),
          make("rect", { x: 1, y: y - 17, width: node, height: 34, rx: 6 }),
          make("text", { x: 12, y: y + 4 }, String(input)),
          make("text", { x: 66, y: y + 4, class: "mono" }, edge[11].map(visible).join(" ").slice(0, narrow ? 9 : 22)),
          make("text", { x: node + 14, y: y - 5, class: "value" }, `${signed(attribution)} (${percent(share)})`)));
    });
    svg.append(make("g", { class: "output" },
      make("rect", { x: out, y: middle - 22, width: end, height: 44, rx: 6 }),
      make("text", { x: out + end / 2, y: middle + 5, "text-anchor": "middle" }, `output ${latent}`)));
    return svg;
  }

  function curve([end, values], s) {
    const top = Math.max(...values, 1e-9), X = (x) => 60 + (x / end) * 420, Y = (y) => 200 - (y / top) * 170;
    const svg = make("svg", { class: "curve", viewBox: "0 0 520 250", role: "img", "aria-label": `The output latent's activation goes from ${number(values[0])} to ${number(values[values.length - 1])} as the input latent's goes from 0 to ${number(end)}; its largest is ${number(top)}` });
    svg.append(
      make("path", { class: "axis", d: "M 60 20 V 200 H 490" }),
      make("text", { x: 54, y: 35, "text-anchor": "end" }, number(top)), make("text", { x: 54, y: 204, "text-anchor": "end" }, "0"),
      make("text", { x: 60, y: 220 }, "0"), make("text", { x: 480, y: 220, "text-anchor": "middle" }, number(end)),
      make("text", { x: 270, y: 240, "text-anchor": "middle" }, "activation of the input latent"),
      make("text", { x: 66, y: 16 }, "activation of the output latent"),
      make("polyline", { class: "line", points: values.map((y, n) => `${X((n / (values.length - 1)) * end)},${Y(y)}`).join(" ") }));
    const nearest = values[Math.round((s / end) * (values.length - 1))];
    if (nearest !== undefined) svg.append(make("circle", { class: "there", cx: X(s), cy: Y(nearest), r: 5 }));
    return svg;
  }

  async function edgePanel(latent, connection) {
    const [input, both, active, J, sd, size, attribution, share, agreement, examples, drawn] = connection;
    const of = await latentOf("input", input);
    const panel = make("section", { class: "edge", id: "edge" },
      make("h2", { style: "margin-top: .3rem" }, `Input ${input} → output ${latent}`),
      make("p", {}, `It contributes ${signed(attribution)} on average where both are active, which is in ${both.toLocaleString()} of the ${active.toLocaleString()} tokens in which the output latent is; ${percent(share)} of all that input latents contribute. The Jacobian J has a mean of ${signed(J)} there and a standard deviation of ${number(sd)} (mean |J| ${number(size)}); it has the sign of its mean in ${percent(agreement, 0)} of these tokens.`),
      make("p", {}, make("a", { href: address({ side: "input", latent: input }) }, `Input latent ${input}`), " fires on"),
      chips(of.top_tokens.slice(0, 8), of.top_token_shares, (value) => percent(value, 0)));
    if (drawn) panel.append(make("h3", {}, "As a function, where it contributes most"), curve(drawn, examples[0]?.[3] ?? 0));
    else panel.append(make("p", { class: "note" }, "Functions are drawn for the five strongest input latents of an output latent."));
    if (examples.length)
      panel.append(make("h3", {}, "Where it contributes most, by |J·s|"), make("ul", { class: "contexts" }, ...(await Promise.all(examples.map(exampleItem)))));
    return panel;
  }

  // What a column of a table says, shown where the pointer rests on its title.
  const EXPLAINED = {
    input: "number of the input latent", output: "number of the output latent",
    "top tokens": "the tokens on which the input latent fires most",
    "mean J·s": "what the input latent contributes to first order: the Jacobian times its activation, mean over the tokens in which both are active",
    share: "of all that input latents contribute to this output latent: its part of the sum of |J·s| over all tokens",
    "share of it": "of all that input latents contribute to the output latent: this one's part of the sum of |J·s| over all tokens",
    "mean J": "the Jacobian: change of the output latent for a unit of the input latent, mean over the tokens in which both are active",
    "SD of J": "standard deviation of the Jacobian over these tokens",
    "same sign": "share of these tokens in which the Jacobian has the sign of its mean",
    "times both": "number of tokens in which both latents are active",
  };
  const headOf = (names) => make("thead", {}, make("tr", {}, ...names.map((name) => make("th", { scope: "col", title: EXPLAINED[name] }, name))));

  function connectionTable(connections) {
    return make("details", {}, make("summary", {}, connections.length === 1 ? "The connection as a table" : `All ${connections.length} connections as a table`),
      make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Connections" }, make("table", {},
        make("caption", {}, "Over the tokens in which both latents are active; the largest share comes first."),
        headOf(["input", "top tokens", "mean J·s", "share", "mean J", "SD of J", "same sign", "times both"]),
        make("tbody", {}, ...connections.map(([input, both, , J, sd, , attribution, share, agreement, , , tokens]) =>
          make("tr", { "aria-selected": String(input === state.edge) },
            make("td", {}, make("a", { href: address({ edge: input }) }, String(input))),
            make("td", { class: "tokens" }, tokens.map(visible).join(" ")),
            ...[signed(attribution), percent(share), signed(J), number(sd), percent(agreement, 0), both.toLocaleString()].map((text) => make("td", { class: "number" }, text))))))));
  }

  function fedTable(connections) {
    return make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Output latents that it feeds" }, make("table", {},
      make("caption", {}, "The output latents of which this one contributes the largest share."),
      headOf(["output", "share of it", "mean J·s", "times both"]),
      make("tbody", {}, ...connections.map(([output, both, attribution, share]) => make("tr", {},
        make("td", {}, make("a", { href: address({ side: "output", latent: output, edge: state.latent }) }, String(output))),
        ...[percent(share), signed(attribution), both.toLocaleString()].map((text) => make("td", { class: "number" }, text)))))));
  }

  async function showLatent(now) {
    const [pair, of, { density }] = await Promise.all([about(), latentOf(now.side, now.latent), listed(now.side)]);
    const place = $("latent");
    if (!of) { place.replaceChildren(make("p", {}, `There is no ${now.side} latent ${now.latent}; the last one is ${density.length - 1}.`)); return; }
    const isOutput = now.side === "output", name = isOutput ? "Output" : "Input";
    const parts = [
      make("p", { class: "variant" }, `${pair.label}, `, make("a", { href: pair.page }, pair.title)),
      make("h1", { tabindex: -1 }, `${name} latent ${now.latent}`),
    ];
    const { similar } = of;
    if (similar) parts.push(make("p", {}, `Most alike in the pair “${pair.other_label}”: `,
      make("a", { href: address({ cell: pair.other, latent: similar[0] }), id: "compared" }, `${now.side} latent ${similar[0]}`),
      ` (cosine of the decoder rows ${similar[1].toFixed(2)})`));
    const strongest = of.connections[0];
    parts.push(make("dl", { class: "facts" },
      fact("fires at", `${percent(of.density, 2)} of tokens`),
      isOutput && strongest ? fact("strongest input latent", `${strongest[0]}, ${percent(strongest[7])}`) : null,
      fact(isOutput ? "connections counted" : "output latents it feeds most", String(of.connections.length))));
    const left = make("div"), right = make("div");
    if (isOutput && of.connections.length) {
      left.append(section("Which input latents feed it",
        make("p", { class: "note" }, "At each line stands the mean of J·s, what the input latent contributes to first order where both are active; the line is as thick, and dashed if that is negative. In brackets, its share of all that input latents contribute over all tokens: the largest comes first. Choose one to see where and how."),
        graph(now.latent, of.connections), connectionTable(of.connections)));
      const connection = of.connections.find(([input]) => input === now.edge);
      if (connection) left.append(await edgePanel(now.latent, connection));
      else if (now.edge !== null) left.append(make("p", {}, `Input latent ${now.edge} is not among the strongest of this output latent.`));
    } else if (isOutput) left.append(section("Which input latents feed it", make("p", {}, "It was not active together with any input latent often enough to say.")));
    else left.append(section("Which output latents it feeds", of.connections.length ? fedTable(of.connections) : make("p", {}, "It is not among the strongest input latents of any output latent.")));
    if (of.raised) left.append(section("What it says to the logits", make("h3", {}, "raises"), chips(of.raised.map(([t]) => t), of.raised.map(([, v]) => v), signed), make("h3", {}, "lowers"), chips(of.lowered.map(([t]) => t), of.lowered.map(([, v]) => v), signed)));
    if (of.density) {
      right.append(section("What it fires on", chips(of.top_tokens, of.top_token_shares, (value) => percent(value, 0)),
        make("p", { class: "note" }, "Tokens by their share of the sum of its activations. Below, its largest activations, one a document, or one a piece of it where long documents are cut; shading is the activation at each token."),
        make("ul", { class: "contexts" }, ...(await Promise.all(of.contexts.map((context) => contextItem(context)))))));
      right.append(section("From weak to strong", make("p", { class: "note" }, "At quantiles of its activations above zero."),
        make("ul", { class: "contexts" }, ...(await Promise.all(of.quantiles.map((context) => contextItem(context, `${percent(context[5], 0)}  ${number(context[2])}`)))))));
    } else right.append(section("What it fires on", make("p", {}, "It never fires on the tokens that were measured.")));
    parts.push(make("div", { class: "columns" }, left, right), make("p", { class: "note" },
      "Keys: ", make("kbd", {}, "←"), " ", make("kbd", {}, "→"), " latents of the list, ", make("kbd", {}, "↑"), " ", make("kbd", {}, "↓"), " connections, ",
      make("kbd", {}, "Enter"), " go to the input latent, ", make("kbd", {}, "c"), " the other pair, ", make("kbd", {}, "/"), " search."));
    if (now !== state) return;
    const held = focusedIn("latent", "input");
    place.replaceChildren(...parts);
    if (held !== null) (place.querySelector(`g[data-input="${held}"][aria-pressed="true"]`) ?? place.querySelector("h1")).focus();
    $("said").textContent = `${name} latent ${now.latent}, ${pair.label}`;
    document.title = `${name} latent ${now.latent} · ${pair.label}, ${pair.title}`;
  }

  // --- moving ---

  // Another pair in its place would be taken for the one that was asked for.
  function sayThatPairIsNotHere() {
    order = [];
    $("pair").value = "";
    $("side").value = state.side;
    $("latents").replaceChildren();
    $("found").textContent = "";
    $("more").hidden = true;
    const [variant, model, layer] = state.cell.split("/");
    $("latent").replaceChildren(
      make("h1", { tabindex: -1 }, "This pair is not in the explorer"),
      make("p", {}, `Nothing is shown of ${variant}, ${model}, layer ${layer}: when this site was made, the pair was refused, or its latents were not stored, or the catalog did not hold it. The `,
        make("a", { href: "index.html" }, "start page"), " says which pairs were refused and what was not stored. The list of pairs has those that can be shown."));
    $("said").textContent = document.title = "This pair is not in the explorer";
  }

  async function go() {
    const before = state;
    state = parse();
    if (!cells.length) { $("latent").textContent = "No latents were stored when this site was made: materialise latent_contexts and latent_connections, then the site again."; return; }
    if (!state.about) { sayThatPairIsNotHere(); document.body.dataset.shown = location.hash; return; }
    document.documentElement.style.setProperty("--variant", state.about.colour);
    $("pair").value = state.cell;
    $("side").value = state.side;
    if (before.cell !== state.cell || before.side !== state.side) await fillList();
    if (state.latent === null) { history.replaceState(null, "", address({ latent: order[0] ?? 0 })); state = parse(); }
    await showList();
    await showLatent(state);
    document.body.dataset.shown = location.hash;
  }
  const failed = (error) => { $("latent").textContent = `This cannot be shown: ${error.message}`; };
  const step = (by) => {
    const next = order[order.indexOf(state.latent) + by];
    if (next !== undefined) location.hash = address({ latent: next });
  };
  async function stepEdge(by) {
    if (!state.about || state.side !== "output") return;
    const { connections } = await latentOf("output", state.latent);
    const at = connections.findIndex(([input]) => input === state.edge);
    const next = connections[at < 0 ? (by > 0 ? 0 : connections.length - 1) : at + by];
    if (next) location.hash = address({ edge: next[0] });
  }
  addEventListener("keydown", (event) => {
    const tag = event.target.tagName;
    if (event.ctrlKey || event.metaKey || event.altKey || tag === "INPUT" || tag === "SELECT" || tag === "SUMMARY") return;
    const acts = {
      ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => stepEdge(-1), ArrowDown: () => stepEdge(1),
      "/": () => $("search").focus(), c: () => $("compared")?.click(),
      Enter: () => { if (state.edge !== null && tag !== "A" && tag !== "BUTTON") location.hash = address({ side: "input", latent: state.edge }); },
    };
    if (acts[event.key]) {
      if (event.key !== "Enter") event.preventDefault();
      acts[event.key]();
    }
  });
  addEventListener("hashchange", () => go().catch(failed));
  addEventListener("DOMContentLoaded", async () => {
    try {
      cells = await jsae.load("cells");
      $("pair").append(...cells.map((one) => make("option", { value: one.cell }, `${one.title}: ${one.label}`)));
      $("pair").addEventListener("change", () => (location.hash = `#${$("pair").value}/${state.side}`));
      $("side").addEventListener("change", () => (location.hash = `#${state.cell}/${$("side").value}`));
      $("order").addEventListener("change", () => fillList().catch(failed));
      let timer;
      $("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => fillList().catch(failed), 200); });
      $("search").addEventListener("keydown", (event) => {
        if (event.key === "Enter" && order.length) location.hash = address({ latent: order[0] });
        if (event.key === "Escape") $("search").blur();
      });
      $("more").addEventListener("click", () => { shown += PAGE; showList().catch(failed); });
      await go();
    } catch (error) { failed(error); }
  });
})();
