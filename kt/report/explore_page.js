// Around the plot: controls, the list of rows, one pair or model in detail, and the state in the address.
"use strict";

const itemOf = row => (view().pair ? { pair: view().pair(row) } : { model: row });

function tell() {
  const { noun: word } = view(), some = chosen.length;
  element("count").textContent = `${rows.length.toLocaleString("en")} of ${noun(view().rows, word)} shown${some ? `, ${some.toLocaleString("en")} selected` : ""}`;
  element("save").textContent = some ? `Save ${some.toLocaleString("en")} selected as CSV` : `Save ${rows.length.toLocaleString("en")} as CSV`;
  const { x, y } = scatter.found, of = state.front && !some ? rows.filter(row => front.has(row)) : some ? chosen : rows;
  const value = row => y.at(row), known = of.filter(row => y.kind !== "number" || Number.isFinite(value(row)));
  const listed = y.kind === "number" ? known.sort((a, b) => value(b) - value(a)) : known;
  const first = listed.length > SHOWN_ROWS ? `, the first ${SHOWN_ROWS}` : "";
  const what = state.front && !some ? "On the Pareto front" : some ? "Selected" : "Shown";
  element("listed").textContent = `${what}: ${noun(listed.length, word)}, highest first${first}`;
  const head = create("tr", {}, create("th", { scope: "col" }, word), ...[y, x].map(found => create("th", { scope: "col", className: found.kind === "number" ? "number" : "" }, titled(found))));
  const body = listed.slice(0, SHOWN_ROWS).map(row => create("tr", {},
    create("th", { scope: "row" }, link(nameOf(row), itemOf(row))),
    ...[y, x].map(found => create("td", { className: found.kind === "number" ? "number" : "" }, withError({ ...found, unit: "" }, row)))));
  element("rows").replaceChildren(create("thead", {}, head), create("tbody", {}, ...body));
  note();
}

function note() {
  const { over, seeds, examples, metric } = study.words, words = [];
  if (scatter.missing) words.push(`${noun(scatter.missing, view().noun)} without a value on these axes.`);
  if (state.view === "transfers") words.push(`A point is a mean over ${seeds === 1 ? "its seed" : `its seeds (up to ${seeds})`}; ± is one standard error over ${over}. Controls, which have no teacher, stand beside each transfer: compare its delta with theirs.`);
  else words.push(`± is one standard error over ${over}.`);
  if ([state.x, state.y].includes("best_after")) words.push(`The best teacher is chosen on the test ${examples.replace("test ", "")} themselves: its ${metric} reads too high, the more so the more teachers were tried.`);
  if (state.front) words.push("The front joins the points that no other beats: none has less of the horizontal value and as much of the vertical one.");
  element("note").textContent = words.join(" ");
}

const link = (text, item) => create("button", { type: "button", className: "link", onclick: () => open(item) }, text);
const facts = list => create("dl", {}, ...list.flatMap(([name, value]) => [create("dt", {}, name), create("dd", {}, value)]));

function grid(headings, lines) {
  const cell = (value, at) => create(at ? "td" : "th", at ? { className: "number" } : { scope: "row" }, value);
  const head = create("tr", {}, ...headings.map((text, at) => create("th", { scope: "col", className: at ? "number" : "" }, text)));
  return create("div", { className: "box", tabIndex: 0 }, create("table", {}, create("thead", {}, head), create("tbody", {}, ...lines.map(line => create("tr", {}, ...line.map(cell))))));
}

function open(item) {
  opened = item;
  const box = element("detail");
  const help = `Select a point or a row to see a pair${study.leads ? " with its classes" : ""}, or a model as teacher and as student. Drag over points to select several.`;
  box.replaceChildren(...(!item ? [create("p", { className: "soft" }, help)] : item.pair !== undefined ? pairDetail(item.pair) : modelDetail(item.model)));
  box.scrollTop = 0;
  mark();
  keep();
}

/** Labels and values of a row; a standard error stands behind its value. */
const measured = (columns, row) => columns.filter(found => !found.key.endsWith("_se") && found.kind !== "model")
  .map(found => [found.label, withErrorOf(columns, found, row)]).filter(([, text]) => text !== NONE);
const ofTransfer = (key, row) => { const found = transfers.columns.get(key); return found ? shown(found, found.at(row), false) : NONE; };
const delta = row => `${ofTransfer("delta", row)} ± ${ofTransfer("delta_se", row)}`;

/** The metric of a model, with its standard error. */
const metricOf = model => withErrorOf([...models.columns.values()], models.columns.get(study.words.key), model);

/** Accuracies and flips of both directions, as `kt pair` begins. */
function headOf(teacher, student, pair, back) {
  const flips = row => { const found = pairs.columns.get("pos_flips"); return found && row !== undefined ? withErrorOf([...pairs.columns.values()], found, row) : NONE; };
  const { metric } = study.words;
  return facts([[`teacher’s ${metric}`, metricOf(teacher)], [`student’s ${metric}`, metricOf(student)], ["positive flips (teacher better)", flips(pair)], ["negative flips (student better)", flips(back)]].filter(([, text]) => text !== NONE));
}

/** Every method that was tried on a pair, the largest delta first, and the controls of its student. */
function outcomes(done, student) {
  const at = (key, row) => transfers.columns.get(key)?.at(row) ?? NaN;
  const points = { kind: "number", signed: true, digits: study.words.digits }, percent = { kind: "number", digits: 0, unit: "%" };
  const both = (value, error) => (Number.isFinite(value) ? shown(points, value) + (Number.isFinite(error) ? ` ± ${shown({ ...points, signed: false }, error)}` : "") : NONE);
  const methods = [...done].sort((a, b) => at("delta", b) - at("delta", a)).map(row => [at("method", row), both(at("delta", row), at("delta_se", row)), both(at("beyond", row), at("beyond_se", row)), shown(percent, at("transfer_rate", row)), at("seeds", row)]);
  const controls = study.controls.filter(control => control.seeds[student]).map(control => [`${control.method} (control)`, both(control.delta[student], control.delta_se[student] ?? NaN), NONE, NONE, control.seeds[student]]);
  return grid(["method", `delta ± SE, ${study.words.short}`, "beyond its control", "transfer rate", "seeds"], [...methods, ...controls]);
}

function classesOf(found) {
  const count = found.many === 1 ? "1 class" : `${found.many ? found.many.toLocaleString("en") : "no"} classes`;
  const made = [create("h3", {}, `The teacher knows ${count} better${found.rows.length < found.many ? `; the first ${found.rows.length}` : ""}`)];
  if (!found.rows.length) return made;
  const sized = study.sizes.length > 0, whole = number => number.toLocaleString("en");
  const lines = found.rows.map(({ name, of, gained, lost }) => [name, ...(sized ? [whole(of)] : []), whole(gained), whole(lost), shown({ kind: "number", signed: gained > lost }, gained - lost)]);
  made.push(grid(["class", ...(sized ? [study.words.counted] : []), "only the teacher right", "only the student right", "lead"], lines));
  return [...made, create("p", { className: "soft" }, `Counted in ${study.words.counted}, before any transfer.`)];
}

function pairDetail(pair) {
  const teacher = teacherOf[pair], student = studentOf[pair], back = findPair(student, teacher);
  const made = [create("h2", {}, link(modelNames[teacher], { model: teacher }), " → ", link(modelNames[student], { model: student }))];
  if (back !== undefined) made.push(create("p", { className: "soft" }, link("the other way round", { pair: back })));
  made.push(headOf(teacher, student, pair, back));
  const found = leads(pair);
  if (found) made.push(...classesOf(found));
  const done = transfersOf.get(pair) ?? [];
  made.push(create("h3", {}, "Transfer"));
  if (!done.length) made.push(create("p", { className: "soft" }, "No transfer of this pair has finished."));
  else made.push(outcomes(done, student), create("p", { className: "soft" }, `Means over seeds. The first ± is over ${study.words.over}, the second over seeds. The control of methods with labels is finetune, that of the others self, trained with the same seeds; ensembles have none.`));
  const all = measured([...pairs.columns.values()], pair);
  made.push(create("details", { open: true }, create("summary", {}, "Measures of the pair"), facts(all)));
  return made;
}

function modelDetail(model) {
  const columns = [...views.models.columns.values()].filter(found => found.key !== "name");
  const outcomes = measured(columns.filter(found => !models.columns.has(found.key)), model);
  const made = [create("h2", {}, modelNames[model]), facts([...measured([models.columns.get(study.words.key)], model), ...outcomes])];
  for (const [role, mine, other] of [["student", studentOf, teacherOf], ["teacher", teacherOf, studentOf]]) {
    const done = [];
    for (let row = 0; row < transfers.rows; row++) {
      if (mine[pairOf[row]] === model && (!state.method || transfers.columns.get("method").at(row) === state.method)) done.push(row);
    }
    const found = transfers.columns.get("delta");
    done.sort((a, b) => found.at(b) - found.at(a));
    made.push(create("h3", {}, `${view().pair ? (role === "student" ? "□ " : "△ ") : ""}As ${role}: ${noun(done.length, "transfer")}${state.method ? `, ${state.method}` : ""}${done.length > SHOWN_ROWS ? `; the first ${SHOWN_ROWS}` : ""}`));
    if (done.length) made.push(grid([role === "student" ? "teacher" : "student", ...(state.method ? [] : ["method"]), `delta ± SE, ${study.words.short}`, "beyond control"], done.slice(0, SHOWN_ROWS).map(row => [link(modelNames[other[pairOf[row]]], { pair: pairOf[row] }), ...(state.method ? [] : [transfers.columns.get("method").at(row)]), delta(row), ofTransfer("beyond", row)])));
  }
  made.push(create("h3", {}, "Properties"), facts(measured([...models.columns.values()].filter(found => found.key !== "name"), model)));
  return made;
}

// controls

function options(select, list, value) {
  select.replaceChildren(...list.map(([key, text]) => create("option", { value: key }, text)));
  select.value = value;
}

function controls() {
  element("views").replaceChildren(
    ...Object.entries(views).filter(([, found]) => found.rows).map(([name, found]) => {
      const button = create("button", { type: "button", onclick: () => change({ ...start(name), method: state.method }) }, `${found.title} (${found.rows.toLocaleString("en")})`);
      button.setAttribute("aria-pressed", state.view === name);
      return button;
    }),
    ...(views.models.columns.has("best_after") ? [create("button", { type: "button", id: "best", onclick: () => change({ ...start("models"), y: "best_after", front: "1", method: state.method }) }, `Pareto front: ${study.words.metric} after transfer`)] : []),
  );
  const columns = [...view().columns.values()];
  for (const axis of ["x", "y"]) options(element(axis), columns.map(found => [found.key, titled(found)]), state[axis]);
  const coloured = COLOURED[state.view].map(key => view().columns.get(key)).filter(Boolean);
  options(element("colour"), [["", "one colour"], ...coloured.map(found => [found.key, found.label])], state.colour);
  element("front").checked = Boolean(state.front);
  const label = (text, control, className = "") => create("label", { className }, text, control);
  const search = create("input", { type: "search", id: "search", value: state.search, placeholder: view().pair ? "name, or teacher > student" : "name" });
  search.setAttribute("list", "names");
  const names = create("datalist", { id: "names" }, ...modelNames.map(name => create("option", { value: name })));
  const filters = FILTERS[state.view].map(key => [key, key === "method" ? transfers.columns.get("method") : view().columns.get(key)]).filter(([, found]) => found && found.values.length > 1);
  element("filters").replaceChildren(label("search (key /)", search, "wide"), names, ...filters.map(([key, found]) => {
    const select = create("select", { id: key, name: key });
    const word = value => (key === "gap" ? gapWords[value] : value ?? UNKNOWN);
    options(select, [["", "all"], ...found.values.map(value => [value ?? UNKNOWN, word(value)])], state[key] ?? "");
    return label(state.view === "models" && key === "method" ? "transfer method" : found.label, select);
  }));
}

element("form").addEventListener("submit", event => event.preventDefault());
element("form").addEventListener("input", event => {
  const { id, type, checked, value } = event.target;
  change({ ...state, [id]: type === "checkbox" ? (checked ? "1" : "") : value }, ["x", "y"].includes(id) ? "axes" : "rows");
});
element("reset").addEventListener("click", () => { opened = null; change(start(Object.keys(views).find(name => views[name].rows))); });
element("save").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([csv(view(), chosen.length ? chosen : rows)], { type: "text/csv" }));
  create("a", { href: url, download: `${state.view}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
});

/** Shows another state: all of it, other `axes`, or only other `rows`. */
function change(next, what = "all") {
  const method = state?.method;
  state = next;
  if (method !== state.method || what === "all") {
    const code = transfers.columns.get("method").values.indexOf(state.method);
    addOutcomes(row => code < 0 || transfers.columns.get("method").code(row) === code);
  }
  for (const axis of ["x", "y"]) if (!view().columns.has(state[axis])) state[axis] = start(state.view)[axis];
  if (what === "all") controls();
  const filters = Object.fromEntries(FILTERS[state.view].filter(key => state.view !== "models" || key !== "method").map(key => [key, state[key]]));
  rows = filtered(view(), filters, state.search);
  chosen = [];
  step = -1;
  if (what === "rows" && scatter) { scatter.found = { x: view().columns.get(state.x), y: view().columns.get(state.y) }; scatter.order = undefined; fill(); } else build();
  tell();
  if (opened) open(opened);
  keep();
}

/** The state is part of the address, so that it can be sent to others and survives a reload; browsers limit how often. */
let later;
function keep() {
  clearTimeout(later);
  later = setTimeout(writeAddress, 200);
}

function writeAddress() {
  const open = opened ? { [opened.pair === undefined ? "model" : "pair"]: opened.pair === undefined ? modelNames[opened.model] : `${modelNames[teacherOf[opened.pair]]}>${modelNames[studentOf[opened.pair]]}` } : {};
  const { method, ...others } = state;
  const kept = { ...Object.fromEntries(Object.entries(others).filter(([, value]) => value)), method, ...open };
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}

function restore() {
  const { model, pair, ...found } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const name = views[found.view]?.rows ? found.view : Object.keys(views).find(key => views[key].rows);
  if (model && modelNames.includes(model)) opened = { model: modelNames.indexOf(model) };
  const numbers = pair?.split(">").map(part => modelNames.indexOf(part)) ?? [];
  if (numbers.length === 2 && findPair(...numbers) !== undefined) opened = { pair: findPair(...numbers) };
  return { ...start(name), ...found, view: name };
}

function about() {
  const { models: count, scored, failed } = study.words;
  const words = [`${noun(count, "model")}, ${noun(scored, "scored pair")}, ${noun(transfersOf.size, "pair")} with a finished transfer by ${noun(taught.length, "method")}.`];
  if (failed) words.push(`${noun(failed, "failed training")} left out.`);
  if (pairs.rows < scored) words.push(`This page holds ${pairs.rows.toLocaleString("en")} of the scored pairs: those with a transfer first, the others at random. The tables have all.`);
  element("about").textContent = words.join(" ");
}

element("narrow").open = matchMedia("(min-width: 40rem)").matches;
Bokeh.logger.set_level("warn"); // it greets on the console otherwise
about();
change(restore());
open(opened);
dark.addEventListener("change", () => change(state, "axes"));
scatter.drawn.then(() => document.documentElement.setAttribute("data-ready", ""));
