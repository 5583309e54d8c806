// The plot: points, colours, front, rings around what is open, hover and keys.
"use strict";

const element = id => document.getElementById(id);
const PALETTES = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8860B", "#7B3294"],
  dark: ["#58B4E9", "#F0924C", "#3FC79A", "#E59AC4", "#3D8BD4", "#E3C04B", "#B48AD6"],
};
const DRAGGED = 4000; // about so many points are drawn while the plot moves
const OTHERS = "#8A8A8A";
const dark = matchMedia("(prefers-color-scheme: dark)");
const palette = () => PALETTES[dark.matches ? "dark" : "light"];
const FILTERS = {
  transfers: ["method", "gap", "teacher.kind", "student.kind", "teacher.family", "student.family"],
  pairs: ["gap", "teacher.kind", "student.kind", "teacher.family", "student.family"],
  models: ["kind", "family", "method"],
};
const COLOURED = {
  transfers: ["gap", "method", "teacher.kind", "student.kind", "same_kind", "teacher.family", "student.family", "same_family"],
  pairs: ["gap", "teacher.kind", "student.kind", "same_kind", "teacher.family", "student.family", "same_family"],
  models: ["kind", "family", "pretraining", "licence"],
};
const AXES = {
  transfers: [study.words.gap, "delta"], pairs: [study.words.gap, "pos_flips"], models: ["params", study.words.key],
};
const SHOWN_ROWS = 100;

const taught = transfers.columns.get("method").values;
const teaching = study.methods.filter(method => taught.includes(method) && !study.ensembles.includes(method));
const start = view => ({ view, x: AXES[view][0], y: AXES[view][1], colour: COLOURED[view].find(key => views[view].columns.has(key)) ?? "", front: "", search: "", method: teaching[0] ?? "" });
let state, rows = [], chosen = [], opened = null, front = new Set(), scatter = null;

// words

function create(tag, facts = {}, ...children) {
  const made = Object.assign(document.createElement(tag), facts);
  made.append(...children);
  return made;
}

const view = () => views[state.view];
const noun = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const titled = found => found.label + (found.unit ? `, ${found.unit}` : "");

function nameOf(row) {
  if (!view().pair) return modelNames[row];
  const pair = view().pair(row), names = `${modelNames[teacherOf[pair]]} → ${modelNames[studentOf[pair]]}`;
  return state.view === "transfers" ? `${names} · ${transfers.columns.get("method").at(row)}` : names;
}

/** A number with its standard error where the table has one: `+4.02 ± 0.81 pp`. */
const withError = (found, row) => withErrorOf([...view().columns.values()], found, row);
function withErrorOf(columns, found, row) {
  const error = columns.find(other => other.key === `${found.key}_se`), value = found.at(row);
  if (!error || !Number.isFinite(value) || !Number.isFinite(error.at(row))) return shown(found, value);
  return `${shown(found, value, false)} ± ${shown({ ...error, unit: found.unit }, error.at(row))}`;
}

function described(row) {
  const keys = state.view === "transfers" ? [state.x, state.y, "delta", "control_delta", "seeds"] : [state.x, state.y];
  if (state.view === "models" && [state.x, state.y].includes("best_after")) keys.push("best_teacher");
  return [...new Set(keys)].map(key => view().columns.get(key)).filter(Boolean)
    .map(found => `${found.label}: ${withError(found, row)}`);
}

// the plot

const theme = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const rgba = (hex, alpha) => ((parseInt(hex.slice(1), 16) << 8) | Math.round(255 * alpha)) >>> 0;

/** Where a row stands on an axis; texts stand side by side, each a little apart from its likes. */
function place(found) {
  if (found.kind === "number") return found.log ? row => (found.at(row) > 0 ? found.at(row) : NaN) : found.at;
  const codes = found.code ?? (row => { const name = found.at(row); return name === null ? NaN : modelNames.indexOf(name); });
  return row => codes(row) + 0.5 * (((row * 0.6180339887) % 1) - 0.5);
}

function colours() {
  const found = view().columns.get(state.colour), COLOURS = palette();
  if (!found) return { of: () => COLOURS[0], keys: [] };
  const counts = new Map();
  for (const row of rows) counts.set(found.code(row), (counts.get(found.code(row)) ?? 0) + 1);
  const fixed = state.colour === "gap" || found.values.length <= COLOURS.length;
  const order = fixed ? [...found.values.keys()].filter(code => counts.has(code)) : [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a));
  const named = new Map(order.slice(0, order.length > COLOURS.length ? COLOURS.length - 1 : COLOURS.length).map((code, at) => [code, COLOURS[fixed ? code : at]]));
  const word = code => (state.colour === "gap" ? gapWords[found.values[code]] : found.values[code] ?? UNKNOWN);
  const keys = [...named].map(([code, colour]) => ({ colour, text: word(code), count: counts.get(code) }));
  const rest = order.slice(named.size);
  if (rest.length) keys.push({ colour: OTHERS, text: `${rest.length} others`, count: rest.reduce((sum, code) => sum + counts.get(code), 0) });
  return { of: row => named.get(found.code(row)) ?? OTHERS, keys };
}

function ticks(axis, found) {
  if (found.kind !== "number") {
    const names = found.values ?? modelNames, step = Math.ceil(names.length / 24);
    const at = [...names.keys()].filter(code => code % step === 0);
    axis.ticker = new Bokeh.FixedTicker({ ticks: at, minor_ticks: [] });
    axis.major_label_overrides = new Map(at.map(code => [code, names[code] ?? UNKNOWN]));
    if (at.length > 5) axis.major_label_orientation = axis === scatter.plot.below[0] ? 0.6 : "horizontal";
  } else if (found.log) {
    const code = "const steps = [[1e9, ' G'], [1e6, ' M'], [1e3, ' k'], [0, '']]; const [size, sign] = steps.find(([size]) => tick >= size); return (size ? tick / size : tick) + sign;";
    axis.formatter = new Bokeh.CustomJSTickFormatter({ code });
  } else if (found.key.endsWith("year")) {
    axis.formatter = new Bokeh.NumeralTickFormatter({ format: "0" });
  }
}

function build() {
  const found = { x: view().columns.get(state.x), y: view().columns.get(state.y) };
  const [ink, soft, line, page] = ["ink", "soft", "line", "page"].map(theme);
  const type = axis => (found[axis].log ? "log" : "linear");
  const plot = Bokeh.Plotting.figure({
    sizing_mode: "stretch_both", tools: "pan,box_select,lasso_select,wheel_zoom,box_zoom,reset", active_scroll: null,
    active_drag: matchMedia("(pointer: coarse)").matches ? null : "box_select",
    x_range: new Bokeh.Range1d(), y_range: new Bokeh.Range1d(), x_axis_type: type("x"), y_axis_type: type("y"), x_axis_label: titled(found.x), y_axis_label: titled(found.y),
    background_fill_color: page, border_fill_color: page, outline_line_color: line,
  });
  plot.toolbar.logo = null;
  plot.toolbar_location = "above";
  for (const axis of [...plot.below, ...plot.left]) {
    Object.assign(axis, { axis_label_text_color: ink, major_label_text_color: soft, axis_line_color: line, major_tick_line_color: line, minor_tick_line_color: null, axis_label_text_font_style: "normal", axis_label_text_font: "system-ui, sans-serif", major_label_text_font: "system-ui, sans-serif" });
  }
  for (const grid of plot.center) grid.grid_line_color = line;
  const empty = names => new Bokeh.ColumnDataSource({ data: Object.fromEntries(names.map(name => [name, []])) });
  const source = empty(["x", "y", "colour", "row"]), line_ = empty(["x", "y"]), marked = empty(["x", "y", "colour", "marker"]);
  const glyph = plot.circle({ field: "x" }, { field: "y" }, 3, { source, radius_units: "screen", fill_color: { field: "colour" }, line_color: null, nonselection_fill_alpha: 0.15 });
  plot.step({ field: "x" }, { field: "y" }, "after", { source: line_, line_color: ink, line_width: 1.5 });
  const halo = plot.scatter({ field: "x" }, { field: "y" }, { source: marked, size: 13, fill_color: null, line_color: { field: "colour" }, line_width: 2, marker: { field: "marker" } });
  for (const drawn of [glyph, halo]) drawn.hover_glyph = null; // else each move of the mouse draws all points again
  plot.add_tools(
    new Bokeh.HoverTool({ tooltips: null, renderers: [glyph] }),
    new Bokeh.TapTool({ behavior: "inspect", renderers: [glyph], callback: { execute: () => { const at = source.inspected.indices[0]; if (at !== undefined) open(itemOf(source.data.row[at])); } } }),
  );
  source.inspect.connect(() => hover(source.inspected.indices));
  source.selected.properties.indices.change.connect(() => {
    chosen = [...source.selected.indices].map(at => source.data.row[at]);
    tell();
  });
  scatter?.drawn.then(drawn => drawn.remove());
  scatter = { plot, source, line: line_, marked, glyph, halo, found };
  ticks(plot.below[0], found.x);
  ticks(plot.left[0], found.y);
  fill();
  const holder = create("div", { className: "place" });
  element("plot").replaceChildren(holder);
  scatter.drawn = Bokeh.Plotting.show(plot, holder);
}

/** Fits a range to its values, with some room at both ends. */
function fit(range, values, log) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low > high) [low, high] = log ? [1, 10] : [0, 1];
  const [from, to] = log ? [Math.log(low), Math.log(high)] : [low, high], room = 0.06 * (to - from) || 0.5;
  const [start, end] = [from - room, to + room].map(value => (log ? Math.exp(value) : value));
  range.setv({ start, end, reset_start: start, reset_end: end });
}

/** Puts the rows that pass the filters into the plot. */
function fill() {
  const x = place(scatter.found.x), y = place(scatter.found.y), { of, keys } = colours();
  const shownRows = rows.filter(row => !Number.isNaN(x(row)) && !Number.isNaN(y(row)));
  const many = shownRows.length, alpha = many > 20000 ? 0.35 : many > 2000 ? 0.5 : 0.8;
  const shades = new Map();
  const shade = colour => shades.get(colour) ?? shades.set(colour, rgba(colour, alpha)).get(colour);
  const radius = many > 20000 ? 1.5 : many > 2000 ? 2.2 : many > 300 ? 3 : 4.5;
  for (const glyph of [scatter.glyph.glyph, scatter.glyph.nonselection_glyph, scatter.glyph.selection_glyph]) glyph.radius = { value: radius, units: "screen" };
  scatter.plot.lod_factor = Math.max(2, Math.ceil(many / DRAGGED));
  scatter.source.selected.indices = [];
  scatter.source.data = {
    x: Float64Array.from(shownRows, x), y: Float64Array.from(shownRows, y),
    colour: Uint32Array.from(shownRows, row => shade(of(row))), row: Uint32Array.from(shownRows),
  };
  fit(scatter.plot.x_range, scatter.source.data.x, scatter.found.x.log);
  fit(scatter.plot.y_range, scatter.source.data.y, scatter.found.y.log);
  const best = state.front ? paretoFront(shownRows, scatter.found.x.at, scatter.found.y.at) : [];
  front = new Set(best);
  scatter.line.data = { x: best.map(x), y: best.map(y) };
  scatter.missing = rows.length - many;
  element("keys").replaceChildren(...keys.map(key => {
    const dot = create("i");
    dot.style.background = key.colour;
    return create("span", {}, dot, `${key.text} (${key.count.toLocaleString("en")})`);
  }));
  mark();
}

/** Rings around what is open: a pair, or a model as teacher and as student. */
function mark() {
  const x = place(scatter.found.x), y = place(scatter.found.y), found = { x: [], y: [], colour: [], marker: [] };
  const teaches = theme("ink"), learns = theme("mark");
  if (opened) {
    for (const row of scatter.source.data.row) {
      let colour = null;
      if (!view().pair) colour = row === opened.model ? theme("ink") : null;
      else if (opened.pair !== undefined) colour = view().pair(row) === opened.pair ? theme("ink") : null;
      else if (teacherOf[view().pair(row)] === opened.model) colour = teaches;
      else if (studentOf[view().pair(row)] === opened.model) colour = learns;
      if (!colour) continue;
      found.x.push(x(row)); found.y.push(y(row)); found.colour.push(colour);
      found.marker.push(colour === learns ? "square" : opened.pair === undefined && view().pair ? "triangle" : "circle");
    }
  }
  scatter.halo.glyph.size = { value: found.x.length > 200 ? 8 : 13 };
  scatter.marked.data = found;
}

let pointer = { x: 0, y: 0 };
element("plot").addEventListener("pointermove", event => { pointer = { x: event.clientX, y: event.clientY }; }, true);
element("plot").addEventListener("pointerleave", () => hover([]));

function hover(indices) {
  const box = element("hover");
  box.hidden = !indices.length;
  if (box.hidden) return;
  const row = scatter.source.data.row[indices[0]];
  const more = indices.length > 1 ? [create("div", {}, `and ${noun(indices.length - 1, view().noun)} more at this place`)] : [];
  box.replaceChildren(create("b", {}, nameOf(row)), ...described(row).map(text => create("div", {}, text)), ...more);
  const left = Math.min(pointer.x + 14, innerWidth - box.offsetWidth - 8);
  const top = pointer.y + 18 + box.offsetHeight > innerHeight ? pointer.y - box.offsetHeight - 12 : pointer.y + 18;
  Object.assign(box.style, { left: `${Math.max(4, left)}px`, top: `${Math.max(4, top)}px` });
}

/** Arrow keys go through the points from left to right, and say each. */
let step = -1;
element("plot").addEventListener("keydown", event => {
  const { x, y, row } = scatter.source.data;
  if (event.key === "Enter" && row[step] !== undefined) open(itemOf(row[step]));
  if (!["ArrowRight", "ArrowLeft"].includes(event.key) || !row.length) return;
  event.preventDefault();
  scatter.order ??= [...row.keys()].sort((a, b) => x[a] - x[b] || y[a] - y[b]);
  const at = scatter.order.indexOf(step) + (event.key === "ArrowRight" ? 1 : -1);
  step = scatter.order[(at + row.length) % row.length];
  const frame = element("plot").getBoundingClientRect();
  pointer = { x: frame.left + 60, y: frame.top + 40 };
  scatter.marked.data = { x: [x[step]], y: [y[step]], colour: [theme("ink")], marker: ["circle"] };
  hover([step]);
});
addEventListener("keydown", event => {
  if (event.key === "Escape") { hover([]); open(null); }
  if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) { event.preventDefault(); element("search").focus(); }
});
