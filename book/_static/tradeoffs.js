/* The page "Trade-offs": picks alpha by the reader's rule and draws it. The data, and the same rules
   in Python, are in notebooks/tradeoffs.md. */
document.addEventListener("DOMContentLoaded", async () => {
  const controls = document.getElementById("tradeoffs");
  if (!controls) return; // this script is loaded on every page
  const data = JSON.parse(document.getElementById("tradeoffs-data").textContent);
  const { pair, rule, weight, ceiling } = controls.elements;
  pair.append(...data.pairs.map(({ id, name }) => new Option(name, id)));

  const points = data.pairs.flatMap((p) => data.samples.map((alpha) => point(data, p, alpha)));
  const average = data.samples.map((alpha) => mean(points.filter((p) => p.alpha === alpha)));
  data.chart.datasets = { curves: [...points, ...average], picked: average };
  const view = await drawChart("tradeoffs-chart", data.chart, "tradeoffs");

  const settings = { pair, rule, weight, ceiling };

  function readAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const odd = [];
    for (const [name, control] of Object.entries(settings)) {
      const value = wanted.get(name), before = control.value;
      if (value === null) continue;
      control.value = value; // a select takes its own options only, a slider any number, made to fit
      if (control.options ? !control.value : +control.value !== +value) {
        control.value = before;
        odd.push(`${name} = “${value}”`);
      }
    }
    document.getElementById("tradeoffs-note").textContent =
      odd.length ? `Unknown in the address: ${odd.join(", ")}. The rest of the address is followed.` : "";
    update();
  }

  function writeAddress() {
    document.getElementById("tradeoffs-note").textContent = "";
    const choice = Object.entries(settings).filter(([name]) => !["weight", "ceiling"].includes(name) || name === rule.value);
    history.replaceState(null, "", `#${new URLSearchParams(choice.map(([name, control]) => [name, control.value]))}`);
  }

  function update() {
    for (const slider of [weight, ceiling]) {
      slider.labels[0].hidden = slider.name !== rule.value;
      slider.labels[0].querySelector("b").textContent = slider.value + (slider === ceiling ? " %" : "");
    }
    const find = rule.value === "weight"
      ? (p) => lightest(p, +weight.value)
      : (p) => underCeiling(p, +ceiling.value / 100);
    const picked = data.pairs.map((p) => point(data, p, data.alphas[find(p)]));
    const chosen = [...picked, mean(picked)].find((p) => p.pair === pair.value);
    const before = [...points, ...average].find((p) => p.pair === pair.value);
    document.getElementById("tradeoffs-result").textContent = sentence(chosen, before);
    view.signal("selected", pair.value).data("picked", [...picked, chosen]).run();
  }
  controls.addEventListener("input", update);
  controls.addEventListener("change", writeAddress);
  addEventListener("hashchange", readAddress);
  controls.hidden = false;
  readAddress();
});

/* Indices into data.alphas; curves are relative to the loss at alpha 0, as in paintlib.tradeoff. */
function lightest({ supported, patching }, weight) {
  return lowest(supported.map((kept, i) => (1 - weight) * kept + weight * patching[i]));
}

function underCeiling({ supported, patching }, ceiling) {
  return lowest(supported.map((kept, i) => (kept <= 1 + ceiling ? patching[i] : Infinity)));
}

const lowest = (values) => values.indexOf(Math.min(...values));

/* What the tasks score at alpha; accuracies are known at the samples, and `between` them by explore.js. */
function point({ samples }, { id, name, accuracy }, alpha) {
  const [supported, patching] = accuracy.map((row) => between(samples, row, alpha));
  return { pair: id, name, alpha, supported, patching };
}

function mean(points) {
  const of = (key) => points.reduce((sum, p) => sum + p[key], 0) / points.length;
  const [alpha, supported, patching] = ["alpha", "supported", "patching"].map(of);
  return { pair: "all", name: "mean of all pairs", alpha, supported, patching };
}

function sentence({ pair, alpha, supported, patching }, before) {
  const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;
  const whose = pair === "all" ? "Means, each pair at its own α*: mean " : "";
  return `${whose}α* = ${alpha.toFixed(3)}. Supported accuracy ${percent(supported)} ` +
    `(zero-shot ${percent(before.supported)}), patching accuracy ${percent(patching)} ` +
    `(zero-shot ${percent(before.patching)}).`;
}
