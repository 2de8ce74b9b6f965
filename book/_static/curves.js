/* Curves of the reader's own, for the page "Explore alpha": a file is read, checked and searched here, in the
   browser. The checks and their sentences are those of experiment/curves.py. */
const COLUMNS = ["alpha", "supported_loss", "patching_loss", "supported_accuracy", "patching_accuracy"];
const ROLES = ["supported", "patching"];
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const short = (x) => (isFinite(x) ? String(+x.toPrecision(6)) : "inf");

/* Return a file as a pair of the page, or throw an Error whose message is for the reader. */
async function readOwn(file) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error("the file is not UTF-8; save it as CSV in UTF-8");
  }
  return /\.json$/i.test(file.name) ? ofRecord(text) : ofTable(text, file.name);
}

function ofTable(text, name) {
  const curves = checked(rowsOfText(text));
  const pair = drawn(curves, "zero_shot");
  const samples = curves.alphas.map((alpha, i) => [alpha, pair.sampled[0][i] + pair.sampled[1][i]]);
  const best = samples.reduce((low, sample) => (sample[1] < low[1] ? sample : low));
  const root = quinticRoot(samples);
  const quintic = total(pair.at(root)) < best[1] ? root : best[0];
  const alphas = { zero_shot: 0, grid: best[0], quintic, fine_tuned: 1 };
  for (const [key, alpha] of Object.entries(alphas)) pair.points[key] = { alpha, losses: pair.at(alpha) };
  return { ...pair, labels: ROLES.map((role) => `${role} task of ${name}`),
    said: "The searches know the samples only: between them, losses are those of a smooth curve." };
}

/* What a run has found of a pair is shown as it stands in its file. */
function ofRecord(text) {
  let record, pair;
  try {
    record = JSON.parse(text);
    pair = drawn(checked(rowsOfRecord(record)), record.normalisation);
    for (const [key, point] of Object.entries(record.test)) {
      const found = record.solutions[key];
      const alpha = found?.alpha ?? point.alpha;
      const losses = found?.trace.find((row) => row[0] === alpha)?.[2] ?? pair.at(alpha);
      pair.points[key] = { alpha, losses, accuracies: ROLES.map((role) => point[role].accuracy) };
    }
    pair.labels = ROLES.map((role) => `${record.labels[role]} (your file)`);
    if (!pair.points.quintic || ![...Object.values(pair.points)].every(({ losses, accuracies }) =>
      [...losses, ...accuracies].every(Number.isFinite))) throw new TypeError("numbers are missing");
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
    throw new Error("the file is no results file of a pair; give results/RUN/pairs/SUPPORTED-PATCHING.json, or a CSV");
  }
  return pair;
}

function rowsOfText(text) {
  const lines = text.split(/\r\n|\n|\r/).map((line, i) => [`line ${i + 1}`, line])
    .filter(([, line]) => line.trim() && !line.startsWith("#"));
  const cells = (line) => [...`,${line}`.matchAll(/,\s*(?:"((?:[^"]|"")*)"|([^,]*))/g)]
    .map(([, quoted, plain]) => (quoted ?? plain).trim());
  const [where, first] = lines[0] ?? ["line 1", ""];
  const header = first ? cells(first) : [];
  if (header.length === 1) throw new Error(`${where} has one column, '${first}'; separate columns by commas, not semicolons or tabs, and write decimals with points`);
  const missing = COLUMNS.filter((name) => !header.includes(name));
  if (missing.length) throw new Error(`${where} lacks ${missing.join(", ")}; the header names ${COLUMNS.join(", ")}, in any order`);
  const used = [...COLUMNS, ...ROLES.map((role) => `${role}_classes`)].filter((name) => header.includes(name));
  return lines.slice(1).map(([where, line]) => {
    const row = cells(line);
    if (row.length !== header.length) throw new Error(`${where} has ${row.length} fields, the header ${header.length}; write decimals with points, not commas, and every field`);
    return [where, Object.fromEntries(used.map((name) => {
      const cell = row[header.lastIndexOf(name)];
      if (!NUMBER.test(cell)) throw new Error(`${where}: ${name} is '${cell}'; give a plain number with a decimal point, such as 0.05`);
      return [name, Number(cell)];
    }))];
  });
}

function rowsOfRecord({ curves }) {
  return curves.alphas.map((alpha, i) => {
    const row = { alpha };
    for (const role of ROLES) {
      for (const kind of ["loss", "accuracy"]) row[`${role}_${kind}`] = curves[role][kind][i];
      row[`${role}_classes`] = curves[role].classes;
    }
    if (!Object.values(row).every(Number.isFinite)) throw new TypeError("a number is missing");
    return [`sample ${i + 1}`, row];
  });
}

function checked(rows) {
  const curves = { alphas: [] };
  let last = -Infinity;
  for (const role of ROLES) curves[role] = { loss: [], accuracy: [], classes: rows[0]?.[1][`${role}_classes`] };
  for (const [where, row] of rows) {
    const { alpha } = row;
    if (!(0 <= alpha && alpha <= 1)) throw new Error(`${where}: alpha is ${short(alpha)}; it goes from 0 (zero-shot) to 1 (fine-tuned), so divide it by its range`);
    if (!(alpha > last)) throw new Error(`${where}: alpha is ${short(alpha)} after ${short(last)}; sort the rows by alpha, and keep one of each`);
    if (!curves.alphas.length && alpha) throw new Error(`${where}: the first alpha is ${short(alpha)}; add the zero-shot end, 0`);
    curves.alphas.push((last = alpha));
    for (const role of ROLES) {
      const [loss, accuracy, classes] = ["loss", "accuracy", "classes"].map((kind) => row[`${role}_${kind}`]);
      if (!(0 < loss && loss < Infinity)) throw new Error(`${where}: ${role}_loss is ${short(loss)}; the curve between samples is one of logarithms, so give a mean above 0, in nats`);
      if (!(0 <= accuracy && accuracy <= 1)) throw new Error(`${where}: ${role}_accuracy is ${short(accuracy)}; give a fraction from 0 to 1, so divide per cent by 100`);
      if (classes !== curves[role].classes || classes < 2 || classes % 1 > 0) throw new Error(`${where}: ${role}_classes is ${short(classes)}; give one whole number above 1, the same in each row`);
      curves[role].loss.push(loss);
      curves[role].accuracy.push(accuracy);
    }
  }
  if (curves.alphas.length < 6) throw new Error(`there are ${curves.alphas.length} alphas; a quintic needs 6, so add some`);
  if (last < 1) throw new Error(`the last alpha is ${short(last)}; add the fine-tuned end, 1`);
  return curves;
}

/* A pair as the page's own are, without its answers; `at` gives both normalised losses at any alpha. */
function drawn({ alphas, ...curves }, kind) {
  const scales = ROLES.map((role) => {
    const { loss, classes } = curves[role], low = Math.min(...loss);
    const scale = { zero_shot: [0, loss[0]], log_classes: [0, Math.log(classes)], minmax: [low, Math.max(...loss) - low], none: [0, 1] }[kind];
    return (value) => (value - scale[0]) / scale[1];
  });
  const splines = ROLES.map((role) => spline(alphas, curves[role].loss.map(Math.log)));
  const at = (alpha) => ROLES.map((role, k) => {
    const i = alphas.indexOf(alpha);
    return scales[k](i < 0 ? Math.exp(splines[k](alpha)) : curves[role].loss[i]);
  });
  const byRole = (places) => ROLES.map((_, k) => places.map((alpha) => at(alpha)[k]));
  const dense = [...new Set([...alphas, ...Array.from({ length: 101 }, (_, i) => i / 100)])].sort((a, b) => a - b);
  return { alphas, dense, at, losses: byRole(dense), sampled: byRole(alphas), points: {},
    accuracies: ROLES.map((role) => curves[role].accuracy) };
}

const total = ([kept, gained]) => kept + gained;

/* The cubic spline through all points whose third derivative jumps at neither second knot: scipy's CubicSpline. */
function spline(x, y) {
  const n = x.length, dx = x.slice(1).map((b, i) => b - x[i]), rise = dx.map((d, i) => (y[i + 1] - y[i]) / d);
  const [first, last] = [x[2] - x[0], x[n - 1] - x[n - 3]];
  const [a, b] = [dx[0], dx[1]], [c, d] = [dx[n - 3], dx[n - 2]];
  const rows = x.map((_, i) => { // below, on and above the diagonal, and the right side
    if (i === 0) return [0, b, first, ((a + 2 * first) * b * rise[0] + a * a * rise[1]) / first];
    if (i === n - 1) return [last, c, 0, (d * d * rise[n - 3] + (2 * last + d) * c * rise[n - 2]) / last];
    return [dx[i], 2 * (dx[i] + dx[i - 1]), dx[i - 1], 3 * (dx[i] * rise[i - 1] + dx[i - 1] * rise[i])];
  });
  for (let i = 1; i < n; i++) {
    const share = rows[i][0] / rows[i - 1][1];
    rows[i][1] -= share * rows[i - 1][2];
    rows[i][3] -= share * rows[i - 1][3];
  }
  const slope = Array(n);
  for (let i = n - 1; i >= 0; i--) slope[i] = (rows[i][3] - (i < n - 1 ? rows[i][2] * slope[i + 1] : 0)) / rows[i][1];
  return (at) => {
    const i = Math.max(0, Math.min(n - 2, x.findIndex((knot) => knot > at) - 1)), h = dx[i], t = (at - x[i]) / h;
    return (1 - t) ** 2 * ((1 + 2 * t) * y[i] + t * h * slope[i]) + t * t * ((3 - 2 * t) * y[i + 1] - (1 - t) * h * slope[i + 1]);
  };
}

/* The lowest point, in the smallest bracket, of the polynomial through the six samples around the lowest one:
   paintlib.solver.quintic, whose `window` chooses them. */
function quinticRoot(samples) {
  const low = Math.min(...samples.map(([, value]) => value)), n = samples.length;
  const lowest = samples.flatMap(([, value], i) => (value === low ? [i] : []));
  const left = samples[Math.max(lowest[0] - 1, 0)][0], right = samples[Math.min(lowest.at(-1) + 1, n - 1)][0];
  let first = Math.max(lowest[0] - 1, 0), last = Math.min(lowest[0] + 1, n - 1);
  const centre = (samples[first][0] + samples[last][0]) / 2;
  while (last - first < 5) {
    const down = first ? centre - samples[first - 1][0] : Infinity;
    const up = last < n - 1 ? samples[last + 1][0] - centre : Infinity;
    const tied = Math.abs(down - up) <= 1e-9;
    if (tied ? samples[first - 1][1] <= samples[last + 1][1] : down < up) first--;
    else last++;
  }
  const six = samples.slice(first, last + 1), factors = six.map(([, value]) => value);
  for (let k = 1; k < 6; k++) { // Newton's divided differences
    for (let i = 5; i >= k; i--) factors[i] = (factors[i] - factors[i - 1]) / (six[i][0] - six[i - k][0]);
  }
  const polynomial = (at) => factors.reduceRight((sum, factor, i) => sum * (at - six[i][0]) + factor, 0);
  const steps = Array.from({ length: 1001 }, (_, i) => left + (i / 1000) * (right - left));
  const best = steps.reduce((a, b) => (polynomial(b) < polynomial(a) ? b : a));
  let [a, b] = [Math.max(left, best - (right - left) / 1000), Math.min(right, best + (right - left) / 1000)];
  for (let i = 0; i < 60; i++) {
    const [c, d] = [a + (b - a) / 3, b - (b - a) / 3];
    if (polynomial(c) < polynomial(d)) b = d;
    else a = c;
  }
  return (a + b) / 2;
}
