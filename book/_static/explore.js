/* The page "Explore alpha": moves the marker, the numbers and the pictures as the slider moves.
   All data are in the page, or in a file that the reader opens, which curves.js reads. The model was asked at
   sampled alphas only; the answers' own losses are known besides, so the marker goes there, with the pictures of
   the nearest sample. */
document.addEventListener("DOMContentLoaded", async () => {
  const form = document.getElementById("explore");
  if (!form) return; // this script is loaded on every page
  const data = JSON.parse(document.getElementById("explore-data").textContent);
  const { supported, patching, alpha: slider, file } = form.elements;
  const roles = { supported, patching };
  const names = { zero_shot: "the zero-shot weights", grid: "the exhaustive search's answer",
    quintic: "the quintic's answer", log_quintic: "the log-quintic's answer", fine_tuned: "the fine-tuned weights" };
  const all = (selector) => [...form.querySelectorAll(selector)];
  const note = form.querySelector(".explore-note");
  const OWN = " own"; // stands for the reader's file among the tasks: no task has a space first
  const percent = (fraction, digits = 1) => `${(100 * fraction).toFixed(digits)}\u00a0%`;
  let pair; // the chosen one
  let at = "quintic"; // a name of a point, or a sampled alpha
  for (const each of Object.values(data.pairs)) Object.assign(each, { alphas: data.alphas, dense: data.dense });
  const views = {}; // of the charts that are drawn already

  for (const [role, select] of Object.entries(roles)) {
    select.append(...Object.entries(data.tasks[role]).map(([task, label]) => new Option(label, task)));
  }
  function draw(chart, dataset, rows) {
    if (views[chart]) views[chart].data(dataset, rows).runAsync();
    else (data.charts[chart].datasets ??= {})[dataset] = rows;
  }

  function showPair() {
    pair = data.pairs[`${supported.value}-${patching.value}`];
    if (typeof at === "number") at = pair.alphas[nearest(pair.alphas, at)];
    else if (!Object.hasOwn(pair.points, at)) at = "quintic";
    slider.max = pair.alphas.length - 1;
    for (const button of all("button")) button.hidden = !Object.hasOwn(pair.points, button.value);
    draw("losses", "curves", lines(pair.dense, withSum(pair.losses)));
    draw("losses", "answers", ["grid", "quintic", "log_quintic"].filter((name) => pair.points[name]).map((name) => {
      const { alpha, losses: [kept, gained] } = pair.points[name];
      return { line: name, alpha, value: kept + gained };
    }));
    draw("accuracies", "curves", lines(pair.alphas, pair.accuracies));
    for (const picture of all("[data-role]")) picture.hidden = own();
    for (const [role, select] of own() ? [] : Object.entries(roles)) {
      const { strip, labels, classnames, positions } = data.pictures[select.value];
      const box = form.querySelector(`.explore-pictures[data-role=${role}]`);
      box.style.setProperty("--strip", `url(${strip})`);
      box.style.setProperty("--count", labels.length);
      box.replaceChildren(...labels.map((label, i) => {
        const picture = element("div", { role: "img", ariaLabel: `test image ${positions[i] + 1}: ${classnames[label]}` });
        picture.style.setProperty("--index", i);
        return element("figure", {}, picture, element("figcaption"), element("ol"));
      }));
    }
    showAlpha();
  }

  const own = () => supported.value === OWN;

  function showAlpha() {
    const point = pair.points[at];
    const alpha = point ? point.alpha : at;
    const near = nearest(pair.alphas, alpha);
    const answers = Object.keys(names).filter((name) => pair.points[name]?.alpha === alpha);
    const known = pair.points[answers[0]];
    const now = known ? known.losses : pair.losses.map((row) => row[pair.dense.indexOf(alpha)]);
    const valid = pair.accuracies.map((row) => row[near]);
    const tested = pair.tested?.map((row) => between(pair.alphas, row, alpha)) ?? known?.accuracies;
    const sampled = (sample) => (+sample.toFixed(2) === sample ? sample.toFixed(2) : sample.toFixed(3));
    const shownAlpha = alpha === pair.alphas[near] ? sampled(alpha) : alpha.toFixed(3);

    slider.value = near;
    slider.ariaValueText = [shownAlpha, ...answers.map((name) => names[name])].join(", ");
    form.querySelector(".explore-slider b").textContent = shownAlpha;
    for (const button of all("button")) button.ariaPressed = answers.includes(button.value);

    draw("losses", "here", lines([alpha], withSum(now.map((loss) => [loss]))));
    draw("accuracies", "here", lines([pair.alphas[near]], valid.map((value) => [value])));

    const where = answers.length ? `, ${answers.map((name) => names[name]).join(" and ")}` : "";
    const off = alpha === pair.alphas[near] ? ""
      : ` ${own() ? "Accuracies" : "Validation accuracies and pictures"} are those of α\u00a0=\u00a0${sampled(pair.alphas[near])}, the nearest sample.`;
    const untested = tested ? "" : " No test accuracy is known here.";
    const said = [`α\u00a0=\u00a0${shownAlpha}${where}.${off}${untested}`, pair.said].filter(Boolean).join(" ");
    form.querySelector(".explore-numbers p").textContent = said;
    form.querySelector("th:nth-child(3)").textContent = own() ? "accuracy" : "validation accuracy";
    const rows = Object.values(roles).map((select, i) => [select.selectedOptions[0].text, now[i].toFixed(3),
      percent(valid[i]), tested ? percent(tested[i]) : "–"]);
    rows.push(["sum", (now[0] + now[1]).toFixed(3), "", ""]);
    form.querySelector(".explore-numbers tbody").replaceChildren(...rows.map(([head, ...cells]) =>
      element("tr", {}, element("th", { scope: "row" }, head), ...cells.map((cell) => element("td", {}, cell)))));

    for (const [role, select] of own() ? [] : Object.entries(roles)) showPictures(role, select.value, select.selectedOptions[0].text, near);
  }

  function showPictures(role, task, label, near) {
    const { labels, classnames } = data.pictures[task];
    const { classes, probabilities } = data.predictions[patching.value][task];
    let right = 0;
    all(`.explore-pictures[data-role=${role}] figure`).forEach((figure, i) => {
      const hit = classes[i][0][near] === labels[i];
      right += hit;
      figure.className = hit ? "right" : "wrong";
      figure.querySelector("figcaption").textContent = `${classnames[labels[i]]}: ${hit ? "✓\u00a0right" : "✗\u00a0wrong"}`;
      figure.querySelector("ol").replaceChildren(...classes[i].map((rank, k) => {
        const share = probabilities[i][k][near];
        const name = element(rank[near] === labels[i] ? "b" : "span", {}, classnames[rank[near]]);
        const row = element("li", {}, name, element("span", {}, percent(share, 0)));
        row.style.setProperty("--share", share);
        return row;
      }));
    });
    form.querySelector(`h3[data-role=${role}]`).textContent = `${label}, the ${role} task: ${right} of ${labels.length} right`;
  }

  function readAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const odd = [];
    for (const [role, select] of Object.entries(roles)) {
      const task = wanted.get(role);
      if (task !== null && Object.hasOwn(data.tasks[role], task)) select.value = task;
      else if (task !== null) odd.push(`the ${role} task “${task}”`);
      if (select.value === OWN) select.selectedIndex = 0; // a file is in no address
    }
    const alpha = wanted.get("alpha");
    if (alpha !== null && Object.hasOwn(names, alpha)) at = alpha;
    else if (/^\d*\.?\d+$/.test(alpha) && +alpha <= 1) at = +alpha;
    else if (alpha !== null) odd.push(`α = “${alpha}”`);
    const [kept, gained] = Object.values(roles).map((select) => select.selectedOptions[0].text);
    note.textContent = odd.length && `Unknown in the address: ${odd.join(", ")}. You see ${kept} + ${gained}.` || "";
    showPair();
  }

  function writeAddress() {
    note.textContent = "";
    if (own()) return history.replaceState(null, "", location.pathname + location.search);
    const choice = new URLSearchParams({ supported: supported.value, patching: patching.value, alpha: at });
    history.replaceState(null, "", `#${choice}`);
  }

  file.addEventListener("change", async () => {
    const [chosen] = file.files;
    file.value = ""; // so that a file that was mended can be opened again
    if (!chosen) return;
    let read;
    try {
      read = await readOwn(chosen);
    } catch (error) {
      note.textContent = `${chosen.name} cannot be shown: ${error.message}.`;
      return;
    }
    data.pairs[`${OWN}-${OWN}`] = read;
    Object.values(roles).forEach((select, i) => {
      const option = [...select.options].find(({ value }) => value === OWN) ?? select.appendChild(new Option("", OWN));
      option.text = read.labels[i];
      select.value = OWN;
    });
    at = "quintic";
    showPair();
    writeAddress();
  });
  slider.addEventListener("input", () => {
    at = pair.alphas[+slider.value];
    showAlpha();
  });
  form.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    at = button.value;
    showAlpha();
    writeAddress();
  });
  form.addEventListener("change", ({ target }) => {
    if (target === file) return;
    if (target !== slider) {
      const other = target === supported ? patching : supported;
      if (target.value === OWN) other.value = OWN; // both tasks of a file, or none
      else if (other.value === OWN) other.selectedIndex = 0;
      showPair();
    }
    writeAddress();
  });
  addEventListener("hashchange", readAddress);
  readAddress();
  form.hidden = false; // before drawing: a chart takes the width that it finds, and then that of each resize
  for (const [name, chart] of Object.entries(data.charts)) views[name] = await drawChart(`explore-${name}`, chart);
});

/* Draw a chart of Vega's where `id` is, in any width that it gets; the other pages use it too. */
async function drawChart(id, chart, downloadFileName = id) {
  const { view } = await vegaEmbed(`#${id}`, chart, { renderer: "svg", downloadFileName,
    actions: { export: { svg: true, png: false }, source: false, compiled: false, editor: false } });
  new ResizeObserver(() => dispatchEvent(new Event("resize"))).observe(document.getElementById(id));
  return view;
}

/* Rows of a chart: one per line and alpha. */
function lines(alphas, values) {
  return values.flatMap((row, k) =>
    row.map((value, i) => ({ line: ["supported", "patching", "sum"][k], alpha: alphas[i], value })));
}

function withSum([kept, gained]) {
  return [kept, gained, kept.map((loss, i) => loss + gained[i])];
}

function nearest(alphas, alpha) {
  const distances = alphas.map((sample) => Math.abs(sample - alpha));
  return distances.indexOf(Math.min(...distances));
}

/* The value at alpha, on the straight line between the samples on both sides. */
function between(alphas, values, alpha) {
  const right = Math.max(1, alphas.findIndex((sample) => sample >= alpha));
  const share = (alpha - alphas[right - 1]) / (alphas[right] - alphas[right - 1]);
  return values[right - 1] + share * (values[right] - values[right - 1]);
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
