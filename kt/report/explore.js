// The data of the page: columns as explore.py packs them, the three kinds of points, filters, front and CSV.
"use strict";

const study = JSON.parse(document.getElementById("data").textContent);
const NONE = "–", UNKNOWN = "unknown";

function numbered({ codes, width }) {
  const raw = Uint8Array.from(atob(codes), letter => letter.charCodeAt(0));
  return width === 1 ? raw : new (width === 2 ? Uint16Array : Uint32Array)(raw.buffer);
}

/** A column as rows need it: `at(row)` is a number (NaN where there is none) or a text (null). Unpacked when used. */
function column(facts, rows) {
  let codes, floats;
  const made = { ...facts, rows };
  made.code = row => (codes ??= numbered(facts))[row];
  made.at = facts.kind === "number"
    ? row => {
        if (!facts.floats) return facts.values[made.code(row)] ?? NaN;
        floats ??= new Float32Array(Uint8Array.from(atob(facts.floats), letter => letter.charCodeAt(0)).buffer);
        return floats[row];
      }
    : row => facts.values[made.code(row)];
  return made;
}

/** The same column seen from another table: `to(row)` is the row of the column's own. */
const through = (found, to, more) => ({
  ...found, ...more, at: row => found.at(to(row)), code: row => found.code(to(row)),
});

const computed = (facts, at) => ({ ...facts, at });

function table(name) {
  const columns = new Map(study[name].columns.map(facts => [facts.key, column(facts, study[name].rows)]));
  return { name, rows: study[name].rows, columns };
}

const models = table("models"), pairs = table("pairs"), transfers = table("transfers");
const modelNames = models.columns.get("name").values;
const pairOf = numbered(study.transfers.columns[0]);
const teacherOf = numbered(study.pairs.columns[0]), studentOf = numbered(study.pairs.columns[1]);
const gapKey = study.words.gap;

/** Number of a pair by teacher and student. */
const pairNumber = new Map();
for (let row = 0; row < pairs.rows; row++) pairNumber.set(teacherOf[row] * models.rows + studentOf[row], row);
const findPair = (teacher, student) => pairNumber.get(teacher * models.rows + student);

/** Transfers of every pair, by number. */
const transfersOf = new Map();
pairOf.forEach((pair, row) => transfersOf.get(pair)?.push(row) ?? transfersOf.set(pair, [row]));

const GAPS = ["weaker", "equal", "stronger"];
const within = `${study.words.within} ${study.words.short}`;
const gapWords = { weaker: `weaker by over ${within}`, equal: `equal within ${within}`, stronger: `stronger by over ${within}` };

/** Columns of models seen from pairs, the gap as a text, and whether the two are alike. */
function ofPairs(to) {
  const made = new Map();
  for (const [role, of] of [["teacher", teacherOf], ["student", studentOf]]) {
    for (const [key, found] of models.columns) {
      if (key === "name") continue;
      const seen = { key: `${role}.${key}`, label: `${role}: ${found.label}`, derived: true };
      made.set(seen.key, through(found, row => of[to(row)], seen));
    }
  }
  const gap = pairs.columns.get(gapKey), near = study.words.within + 1e-9;
  if (gap) {
    const code = row => { const value = gap.at(to(row)); return value < -near ? 0 : value > near ? 2 : 1; };
    const facts = { key: "gap", label: "teacher’s strength", kind: "text", derived: true };
    made.set("gap", { ...facts, values: GAPS, code, at: row => GAPS[code(row)] });
  }
  for (const key of ["kind", "family"]) {
    const found = models.columns.get(key);
    if (!found) continue;
    const values = [`same ${key}`, `other ${key}`];
    const code = row => (found.code(teacherOf[to(row)]) === found.code(studentOf[to(row)]) ? 0 : 1);
    const facts = { key: `same_${key}`, label: `${key} of both`, kind: "text", derived: true };
    made.set(facts.key, { ...facts, values, code, at: row => values[code(row)] });
  }
  return made;
}

function roles(to) {
  return ["teacher", "student"].map(role => {
    const of = role === "teacher" ? teacherOf : studentOf;
    return [role, { key: role, label: role, kind: "name", values: modelNames, code: row => of[to(row)], at: row => modelNames[of[to(row)]] }];
  });
}

const own = (found, names) => [...found].filter(([key]) => !names.includes(key));
const views = {
  transfers: {
    title: "Transfers", noun: "transfer", rows: transfers.rows,
    pair: row => pairOf[row],
    columns: new Map([
      ...roles(row => pairOf[row]), ...own(transfers.columns, ["pair"]),
      ...own(pairs.columns, ["teacher", "student", ...transfers.columns.keys()])
        .map(([key, found]) => [key, through(found, row => pairOf[row])]),
      ...ofPairs(row => pairOf[row]),
    ]),
  },
  pairs: {
    title: "Scored pairs", noun: "pair", rows: pairs.rows, pair: row => row,
    columns: new Map([...roles(row => row), ...own(pairs.columns, ["teacher", "student"]), ...ofPairs(row => row)]),
  },
  models: { title: "Models", noun: "model", rows: models.rows, columns: new Map(models.columns) },
};

/** Whether the row is of an ensemble, whose student is not trained. */
const together = row => study.ensembles.includes(transfers.columns.get("method").at(row));

/** Columns of models from the transfers of some methods: the best teacher's and the means of both roles. */
function addOutcomes(allowed) {
  const after = transfers.columns.get(study.words.after), delta = transfers.columns.get("delta");
  if (!after || !delta) return;
  const fill = () => new Float64Array(models.rows).fill(NaN), zero = () => new Float64Array(models.rows);
  const best = fill(), bestRow = new Int32Array(models.rows).fill(-1);
  const sums = { teacher: zero(), student: zero() }, counts = { teacher: zero(), student: zero() };
  for (let row = 0; row < transfers.rows; row++) {
    if (!allowed(row) || together(row)) continue;
    const pair = pairOf[row], value = after.at(row);
    const who = { teacher: teacherOf[pair], student: studentOf[pair] };
    for (const role in sums) {
      sums[role][who[role]] += delta.at(row);
      counts[role][who[role]]++;
    }
    if (!(value <= best[who.student]) && !Number.isNaN(value)) [best[who.student], bestRow[who.student]] = [value, row];
  }
  const mean = role => row => sums[role][row] / counts[role][row];
  const unit = models.columns.get(study.words.key)?.unit ?? "", { metric, short, digits } = study.words;
  const number = { kind: "number", digits };
  const signed = { ...number, unit: short, signed: true };
  const put = (facts, at) => views.models.columns.set(facts.key, computed(facts, at));
  put({ ...number, key: "best_after", unit, label: `student’s ${metric} after transfer, best teacher` }, row => best[row]);
  put({ ...signed, key: "delta_as_student", label: "transfer delta as student, mean" }, mean("student"));
  put({ ...signed, key: "delta_as_teacher", label: "transfer delta as teacher, mean" }, mean("teacher"));
  put({ kind: "number", unit: "", key: "transfers", label: "transfers as student" }, row => counts.student[row]);
  put({ kind: "name", key: "best_teacher", label: "best teacher" }, row => (bestRow[row] < 0 ? null : modelNames[teacherOf[pairOf[bestRow[row]]]]));
  for (const control of study.controls) {
    put({ ...signed, key: `delta_${control.method}`, label: `transfer delta of the control ${control.method}` }, row => control.delta[row] ?? NaN);
  }
}

/** A number with fixed decimals, exact ties to even: as Python prints it in the report. */
function fixed(value, digits) {
  const exact = value.toFixed(60), cut = exact.slice(0, exact.indexOf(".") + 1 + digits);
  const tie = /^50*$/.test(exact.slice(cut.length)), even = "02468".includes(cut.replace(/\.$/, "").at(-1));
  return tie && even ? cut.replace(/\.$/, "") : value.toFixed(digits);
}

/** A number as the report prints it. */
function shown(found, value, unit = true) {
  if (found.kind !== "number") return value ?? NONE;
  if (!Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  const text = found.digits !== undefined ? fixed(size, found.digits)
    : Number.isInteger(value) ? size.toLocaleString("en", { useGrouping: !found.key?.endsWith("year") })
    : String(Number(size.toPrecision(4)));
  const sign = value < 0 && Number(text) !== 0 ? "−" : found.signed ? "+" : "";
  return sign + text + (unit && found.unit ? ` ${found.unit}` : "");
}

/** Rows of a view that pass the filters; `filters` maps keys of columns to a value, and `text` is searched in names. */
function filtered(view, filters, text) {
  const checks = Object.entries(filters).flatMap(([key, value]) => {
    const found = view.columns.get(key);
    if (!value || !found) return [];
    const wanted = found.values.findIndex(name => (name ?? UNKNOWN) === value);
    return [row => found.code(row) === wanted];
  });
  const sides = text.toLowerCase().split(/→|>/).map(side => side.trim());
  if (sides.some(side => side)) {
    const names = modelNames.map(name => name.toLowerCase());
    const whole = side => sides.length > 1 && names.includes(side); // of a pair, a whole name is that model alone
    const hits = sides.map(side => names.map(name => (whole(side) ? name === side : name.includes(side))));
    if (!view.pair) checks.push(row => hits.some((hit, at) => sides[at] && hit[row]));
    else if (sides.length > 1) checks.push(row => hits[0][teacherOf[view.pair(row)]] && hits[1][studentOf[view.pair(row)]]);
    else checks.push(row => hits[0][teacherOf[view.pair(row)]] || hits[0][studentOf[view.pair(row)]]);
  }
  const rows = [];
  for (let row = 0; row < view.rows; row++) if (checks.every(check => check(row))) rows.push(row);
  return rows;
}

/** Rows that no other one beats: none has less of x and as much of y, or as little of x and more of y. */
function paretoFront(rows, x, y) {
  const order = rows.filter(row => Number.isFinite(x(row)) && Number.isFinite(y(row))).sort((a, b) => x(a) - x(b) || y(b) - y(a));
  let best = -Infinity;
  return order.filter(row => y(row) > best && ((best = y(row)), true));
}

/** The rows as CSV, with the names of columns that docs/tables.md has, and every digit. */
function csv(view, rows) {
  const columns = [...view.columns.values()].filter(found => !found.derived);
  const quote = text => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const cell = (found, value) => {
    if (found.kind !== "number") return quote(value ?? "");
    if (!Number.isFinite(value)) return "";
    return String(found.floats ? shortest(value) : value);
  };
  const lines = rows.map(row => columns.map(found => cell(found, found.at(row))).join(","));
  return [columns.map(found => found.key).join(","), ...lines, ""].join("\n");
}

/** The shortest number that is the same float32. */
function shortest(value) {
  for (let digits = 6; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === value) return short;
  }
  return value;
}

/** The classes that a pair's teacher leads on, most first: name, images that it alone gets right, that the student does. */
const leads = (() => {
  if (!study.leads) return () => null;
  const many = numbered(study.leads.many), listed = numbered(study.leads.listed);
  const classes = numbered(study.leads.class), gained = numbered(study.leads.gained), lost = numbered(study.leads.lost);
  const starts = new Uint32Array(listed.length + 1);
  listed.forEach((count, pair) => { starts[pair + 1] = starts[pair] + count; });
  return pair => {
    const rows = [];
    for (let at = starts[pair]; at < starts[pair + 1]; at++) {
      const name = study.classes[classes[at]] ?? `class ${classes[at]}`;
      rows.push({ name, of: study.sizes[classes[at]], gained: gained[at], lost: lost[at] });
    }
    return { many: many[pair], rows };
  };
})();
