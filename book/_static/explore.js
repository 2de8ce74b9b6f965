/* The page "Explore alpha": moves the marker, the numbers and the pictures as the slider moves.
   All data are in the page. The model was asked at sampled alphas only; the answers' own losses and test
   accuracies are known besides, so the marker goes there, with the pictures of the nearest sample. */
document.addEventListener("DOMContentLoaded", async () => {
  const form = document.getElementById("explore");
  if (!form) return; // this script is loaded on every page
  const data = JSON.parse(document.getElementById("explore-data").textContent);
  const { supported, patching, alpha: slider } = form.elements;
  const roles = { supported, patching };
  const names = { zero_shot: "the zero-shot weights", grid: "the exhaustive search's answer",
    quintic: "the quintic's answer", log_quintic: "the log-quintic's answer", fine_tuned: "the fine-tuned weights" };
  const all = (selector) => [...form.querySelectorAll(selector)];
  const percent = (fraction, digits = 1) => `${(100 * fraction).toFixed(digits)}\u00a0%`;
  let pair; // the chosen one
  let at = "quintic"; // a name of a point, or a sampled alpha
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
    draw("losses", "curves", lines(data.dense, withSum(pair.losses)));
    draw("losses", "answers", ["grid", "quintic", "log_quintic"].map((name) => {
      const { alpha, losses: [kept, gained] } = pair.points[name];
      return { line: name, alpha, value: kept + gained };
    }));
    draw("accuracies", "curves", lines(data.alphas, pair.accuracies));
    for (const [role, select] of Object.entries(roles)) {
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

  function showAlpha() {
    const point = pair.points[at];
    const alpha = point ? point.alpha : at;
    const near = nearest(data.alphas, alpha);
    const answers = Object.keys(names).filter((name) => pair.points[name].alpha === alpha);
    const known = pair.points[answers[0]];
    const now = known ? known.losses : pair.losses.map((row) => row[data.dense.indexOf(alpha)]);
    const valid = pair.accuracies.map((row) => row[near]);
    const shownAlpha = alpha.toFixed(alpha === data.alphas[near] ? 2 : 3);

    slider.value = data.alphas[near];
    slider.ariaValueText = [shownAlpha, ...answers.map((name) => names[name])].join(", ");
    form.querySelector(".explore-slider b").textContent = shownAlpha;
    for (const button of all("button")) button.ariaPressed = answers.includes(button.value);

    draw("losses", "here", lines([alpha], withSum(now.map((loss) => [loss]))));
    draw("accuracies", "here", lines([data.alphas[near]], valid.map((value) => [value])));

    const where = answers.length ? `, ${answers.map((name) => names[name]).join(" and ")}` : "";
    const off = alpha === data.alphas[near] ? ""
      : ` Validation accuracies and pictures are those of α\u00a0=\u00a0${data.alphas[near].toFixed(2)}, the nearest sample.`;
    form.querySelector(".explore-numbers p").textContent = `α\u00a0=\u00a0${shownAlpha}${where}.${off}`;
    const rows = Object.values(roles).map((select, i) => [select.selectedOptions[0].text, now[i].toFixed(3),
      percent(valid[i]), known ? percent(known.accuracies[i]) : "–"]);
    rows.push(["sum", (now[0] + now[1]).toFixed(3), "", ""]);
    form.querySelector(".explore-numbers tbody").replaceChildren(...rows.map(([head, ...cells]) =>
      element("tr", {}, element("th", { scope: "row" }, head), ...cells.map((cell) => element("td", {}, cell)))));

    for (const [role, select] of Object.entries(roles)) showPictures(role, select.value, select.selectedOptions[0].text, near);
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
    for (const [role, select] of Object.entries(roles)) {
      if (wanted.get(role) in data.tasks[role]) select.value = wanted.get(role);
    }
    const alpha = wanted.get("alpha");
    if (alpha in names) at = alpha;
    else if (alpha && isFinite(alpha)) at = data.alphas[nearest(data.alphas, +alpha)];
    showPair();
  }

  function writeAddress() {
    const choice = new URLSearchParams({ supported: supported.value, patching: patching.value, alpha: at });
    history.replaceState(null, "", `#${choice}`);
  }

  slider.addEventListener("input", () => {
    at = data.alphas[nearest(data.alphas, +slider.value)];
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
    if (target !== slider) showPair();
    writeAddress();
  });
  addEventListener("hashchange", readAddress);
  readAddress();
  form.hidden = false; // before drawing: a chart takes the width it finds
  for (const [name, chart] of Object.entries(data.charts)) {
    const options = { renderer: "svg", downloadFileName: `explore-${name}`,
      actions: { export: { svg: true, png: false }, source: false, compiled: false, editor: false } };
    views[name] = (await vegaEmbed(`#explore-${name}`, chart, options)).view;
  }
});

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

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
