"use strict";
// Whatever the texts contain reaches the page through `textContent` alone.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const words = data.words;
  const RUN = 400; // tokens in a block that the browser may leave unrendered
  const views = [];
  let quantity = data.quantities[0];
  let selected = null; // [view, token]

  const make = (tag, className, text, parent) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  };
  const svg = (tag, attributes, parent) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (parent) parent.append(element);
    return element;
  };

  // Characters that are not seen, or that move others about: shown by name, and not themselves.
  const UNSEEN = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|[\u{e0000}-\u{e007f}]/gu;
  const NAMES = { 9: "⇥", 13: "␍", 27: "␛" };
  const visible = (text, parent, spaces) => {
    if (text === "") return make("span", "mark", "◌", parent);
    if (/^ +$/.test(text) || (spaces && /^ | $/.test(text))) {
      text.split(/( )/).forEach((part) => { if (part === " ") make("span", "mark", "␣", parent); else if (part) visible(part, parent); });
      return parent;
    }
    let end = 0;
    const plain = (part) => part.split(/(\n)/).forEach((line) => {
      if (line === "\n") { make("span", "mark", "↵", parent); if (!spaces) parent.append("\n"); } else if (line) parent.append(line);
    });
    for (const match of text.matchAll(UNSEEN)) {
      plain(text.slice(end, match.index));
      const code = match[0].codePointAt(0);
      make("span", "code", NAMES[code] || "U+" + code.toString(16).toUpperCase().padStart(4, "0"), parent);
      end = match.index + match[0].length;
    }
    plain(text.slice(end));
    return parent;
  };

  const number = (value, digits = 3, sign = false) => {
    if (value === null || value === undefined) return "−∞ / ∞";
    const text = Math.abs(value).toFixed(digits);
    return (value < 0 && Number(text) !== 0 ? "−" : sign && Number(text) !== 0 ? "+" : "") + text;
  };
  const chance = (logProb) => {
    if (logProb === null) return "0";
    const p = Math.exp(logProb);
    return p >= 0.0001 || p === 0 ? p.toFixed(4) : p.toExponential(1);
  };
  const share = (value) => (value === null || value === undefined ? "–" : Math.round(value * 100) + " %");
  const values = (view) => view.from.values[quantity.key] || [];

  // The details of one token --------------------------------------------------------------------------------------------
  const panel = document.getElementById("details");
  const row = (table, name, cells, className) => {
    const line = make("tr", className, undefined, table);
    make("th", "", name, line).scope = "row";
    for (const cell of cells) {
      const place = make("td", typeof cell === "object" ? "word" : "", undefined, line);
      if (typeof cell === "object") visible(cell.word, make("bdi", "", undefined, place), true); else place.textContent = cell;
    }
  };
  const details = (view, i) => {
    const from = view.from;
    panel.replaceChildren();
    visible(words[from.tokens[i]], make("bdi", "said", undefined, make("div", "", undefined, panel)), true);
    make("div", "what", `token ${i + 1} of ${from.tokens.length}, id ${from.ids[i]}`, panel);
    const changedBy = from.changedBy[i];
    make("div", "what", changedBy === null ? `the first choice is ${from.against}'s` : `another first choice than ${from.against}'s, most by ${words[changedBy]}`, panel);
    const members = make("table", "", undefined, panel);
    const head = make("tr", "", undefined, members);
    for (const title of ["", "log-prob", "p", "first choice"]) make("th", "", title, head).scope = "col";
    row(members, "combined", [number(from.logProb[i]), chance(from.logProb[i]), { word: words[from.choice[i]] }], "main");
    for (const name of from.members) row(members, name, [number(from.logProbs[name][i]), chance(from.logProbs[name][i]), { word: words[from.choices[name][i]] }]);
    const numbers = make("table", "", undefined, panel);
    for (const { key, label, kind } of data.quantities) {
      if (from.values[key]) row(numbers, label, [number(from.values[key][i], 3, kind === "diverging")], key === quantity.key ? "main" : "");
    }
    for (const [kind, title] of [["raised", "Gained most"], ["lowered", "Lost most"]]) {
      make("h3", "", title + ": probability before → after", panel);
      for (const [word, before, after] of from[kind][i]) {
        const line = make("div", "shift " + kind, undefined, panel);
        visible(words[word], make("bdi", "word", undefined, line), true);
        const track = make("div", "track", undefined, line), low = Math.min(before, after), high = Math.max(before, after);
        make("i", "kept", undefined, track).style.width = low * 100 + "%";
        const moved = make("i", "moved", undefined, track);
        moved.style.left = low * 100 + "%";
        moved.style.width = (high - low) * 100 + "%";
        make("span", "", `${before.toFixed(3)} → ${after.toFixed(3)}`, line);
      }
    }
  };

  // Colours and numbers -------------------------------------------------------------------------------------------------
  const paint = () => {
    const two = quantity.kind === "diverging";
    for (const view of views) {
      const all = values(view);
      view.items.forEach((item, i) => {
        const value = all[i], known = value !== null && value !== undefined;
        item.style.setProperty("--w", known ? Math.min(1, Math.abs(value) / quantity.limit).toFixed(3) : 0);
        item.classList.toggle("less", known && value < 0);
        item.classList.toggle("out", !known);
        item.dataset.value = known ? number(value, 2, two) : "∞";
      });
      draw(view);
    }
    document.getElementById("ramp").className = two ? "ramp two" : "ramp";
    const beyond = quantity.clipped ? "≥ " : "";
    document.getElementById("low").textContent = two ? (quantity.clipped ? "≤ " : "") + number(-quantity.limit, 2) : "0";
    document.getElementById("high").textContent = beyond + number(quantity.limit, 2, two) + (quantity.unit ? " " + quantity.unit : "");
    document.getElementById("about").textContent = quantity.about;
  };

  // The chart over the sequence -----------------------------------------------------------------------------------------
  const LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 24, HEIGHT = 108;
  const draw = (view) => {
    const all = values(view), width = Math.max(200, view.chart.clientWidth), count = view.items.length;
    const inner = width - LEFT - RIGHT, two = quantity.kind === "diverging", bottom = HEIGHT - BOTTOM;
    const y = (v) => TOP + (bottom - TOP) * (two ? (1 - Math.max(-1, Math.min(1, v / quantity.limit))) / 2 : 1 - Math.min(1, v / quantity.limit));
    const bars = Math.min(count, Math.max(1, Math.floor(inner))), step = inner / bars, gap = step > 4 ? 1 : 0, paths = { plus: "", minus: "" };
    for (let bar = 0; bar < bars; bar++) {
      let high = 0, low = 0;
      for (let i = Math.floor((bar * count) / bars); i < Math.floor(((bar + 1) * count) / bars); i++) {
        if (all[i] > high) high = all[i];
        if (all[i] < low) low = all[i];
      }
      const x = (LEFT + bar * step).toFixed(2), w = (step - gap).toFixed(2);
      if (high > 0) paths.plus += `M${x} ${y(0)}h${w}V${y(high).toFixed(2)}h-${w}z`;
      if (low < 0) paths.minus += `M${x} ${y(0)}h${w}V${y(low).toFixed(2)}h-${w}z`;
    }
    let marks = "";
    view.from.changed.forEach((changed, i) => { if (changed) marks += `M${(LEFT + ((i + 0.5) * inner) / count).toFixed(2)} ${bottom + 3}v5`; });
    view.chart.replaceChildren();
    view.chart.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg("path", { class: "plus", d: paths.plus }, view.chart);
    svg("path", { class: "minus", d: paths.minus }, view.chart);
    svg("path", { class: "zero", d: `M${LEFT} ${y(0)}h${inner}` }, view.chart);
    svg("path", { class: "marks", d: marks }, view.chart);
    view.cursor = svg("path", { class: "cursor", d: "" }, view.chart);
    const label = (text, x, place, anchor) => { svg("text", { x, y: place, "text-anchor": anchor }, view.chart).textContent = text; };
    label(number(quantity.limit, 2, two), LEFT - 5, TOP + 7, "end");
    label(two ? number(-quantity.limit, 2) : "0", LEFT - 5, bottom, "end");
    label("1", LEFT, HEIGHT - 3, "start");
    label(`${count} tokens; ticks: another first choice`, width - RIGHT, HEIGHT - 3, "end");
    view.place = (i) => LEFT + ((i + 0.5) * inner) / count;
    view.tokenAt = (x) => Math.max(0, Math.min(count - 1, Math.floor(((x - LEFT) / inner) * count)));
    cursor(view);
  };
  const cursor = (view) => {
    const at = view.shown;
    if (view.cursor) view.cursor.setAttribute("d", at === null ? "" : `M${view.place(at)} ${TOP - 4}V${HEIGHT - BOTTOM + 10}`);
  };

  // Choosing a token ----------------------------------------------------------------------------------------------------
  const show = (view, i) => {
    for (const other of views) {
      if (other.shown !== null) other.items[other.shown].classList.remove("at");
      other.shown = other === view ? i : null;
      if (other !== view) cursor(other);
    }
    view.items[i].classList.add("at");
    cursor(view);
    details(view, i);
  };
  const select = (view, i, focus, scroll) => {
    if (selected) {
      const old = selected[0].items[selected[1]];
      old.tabIndex = -1;
      old.removeAttribute("aria-selected");
    }
    selected = [view, i];
    const item = view.items[i], value = values(view)[i];
    item.tabIndex = 0;
    item.setAttribute("aria-label", `${words[view.from.tokens[i]]}, ${quantity.label} ${number(value)}${view.from.changed[i] ? ", choice changed" : ""}`);
    item.setAttribute("aria-selected", "true");
    show(view, i);
    if (scroll) item.scrollIntoView({ block: "center" });
    if (focus) item.focus({ preventScroll: scroll });
  };
  const back = () => { if (selected) show(...selected); };
  const jump = (by) => {
    const [view, i] = selected;
    let next = i + by;
    while (next >= 0 && next < view.items.length && !view.from.changed[next]) next += by;
    if (next >= 0 && next < view.items.length) return select(view, next, true, true);
    const other = views[views.indexOf(view) + by];
    const found = other && (by > 0 ? other.from.changed.indexOf(1) : other.from.changed.lastIndexOf(1));
    if (other && found >= 0) select(other, found, true, true);
  };

  // Building ------------------------------------------------------------------------------------------------------------
  const build = (from) => {
    const section = make("section", "", undefined, document.getElementById("analyses"));
    visible(from.recipe, make("bdi", "", undefined, make("h2", "", undefined, section)));
    const numbers = make("div", "numbers", undefined, section);
    for (const [label, value] of from.numbers) { const place = make("span", "", label + " ", numbers); make("b", "", value, place); }
    const chart = svg("svg", { class: "chart", role: "img", "aria-label": "The chosen quantity over the sequence" }, section);
    const prompt = make("div", "prompt", undefined, section);
    visible(from.prompt, make("bdi", "", undefined, prompt));
    const text = make("div", from.tokens.length > RUN * 1.25 ? "text long" : "text", undefined, section);
    text.dir = from.rtl ? "rtl" : "ltr";
    text.setAttribute("role", "listbox");
    text.setAttribute("aria-label", "Tokens; arrow keys move");
    const view = { from, chart, text, items: [], shown: null, cursor: null };
    let block = null, filled = 0;
    from.tokens.forEach((word, i) => {
      if (block === null || filled >= RUN * 1.25 || (filled >= RUN && words[from.tokens[i - 1]].includes("\n"))) {
        block = make("div", "block", undefined, text);
        if (i > 0) block.dataset.from = "token " + (i + 1);
        filled = 0;
      }
      filled += 1;
      const item = make("bdi", from.changed[i] ? "t changed" : "t", undefined, block);
      item.dataset.i = i;
      item.tabIndex = -1;
      item.setAttribute("role", "option");
      visible(words[word], item);
      view.items.push(item);
    });
    views.push(view);
    const at = (event) => { const item = event.target.closest(".t"); return item ? Number(item.dataset.i) : null; };
    text.addEventListener("mouseover", (event) => { const i = at(event); if (i !== null) show(view, i); });
    text.addEventListener("mouseleave", back);
    text.addEventListener("focusin", (event) => { const i = at(event); if (i !== null && !(selected[0] === view && selected[1] === i)) select(view, i); });
    text.addEventListener("click", (event) => { const i = at(event); if (i !== null) select(view, i, true); });
    text.addEventListener("keydown", (event) => {
      const last = view.items.length - 1, forward = from.rtl ? "ArrowLeft" : "ArrowRight", backward = from.rtl ? "ArrowRight" : "ArrowLeft";
      const i = at(event) ?? 0;
      const target = { [forward]: i + 1, [backward]: i - 1, ArrowDown: i + 10, ArrowUp: i - 10, PageDown: i + 100, PageUp: i - 100, Home: 0, End: last }[event.key];
      if (target !== undefined && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        select(view, Math.max(0, Math.min(last, target)), true);
      } else if (event.key === "n" || event.key === "p") jump(event.key === "n" ? 1 : -1);
    });
    const pointed = (event) => view.tokenAt(event.clientX - chart.getBoundingClientRect().left);
    chart.addEventListener("pointermove", (event) => show(view, pointed(event)));
    chart.addEventListener("pointerleave", back);
    chart.addEventListener("click", (event) => select(view, pointed(event), true, true));
    new ResizeObserver(() => draw(view)).observe(chart);
  };

  const chooser = document.getElementById("quantity");
  data.quantities.forEach((each, i) => { make("option", "", each.label, chooser).value = i; });
  chooser.addEventListener("change", () => { quantity = data.quantities[Number(chooser.value)]; paint(); back(); });
  document.getElementById("with-numbers").addEventListener("change", (event) => document.body.classList.toggle("with-numbers", event.target.checked));
  document.getElementById("next").addEventListener("click", () => jump(1));
  document.getElementById("previous").addEventListener("click", () => jump(-1));
  data.analyses.forEach(build);
  select(views[0], 0);
  paint();
})();
