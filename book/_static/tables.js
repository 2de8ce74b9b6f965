/* Tables of results can be sorted: a button in each header, first ascending, then descending. */
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.dataframe")) {
    if (table.tBodies[0]?.rows.length > 4) makeSortable(table);
  }
});

function makeSortable(table) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const way = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", way);
      sortRows(table.tBodies[0], column, way === "ascending" ? 1 : -1);
    });
  });
}

function sortRows(body, column, sign) {
  const shown = (row) => row.cells[column].textContent.trim();
  const power = (_, digits) => "e" + [...digits].map((d) => (d === "⁻" ? "-" : "⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(d))).join("");
  const plain = (text) => text.replace("−", "-").replace(/·10([⁻⁰¹²³⁴-⁹]+)/, power); // "−3", "2·10⁻⁷"
  const number = (row) => parseFloat(plain(shown(row)).replace(/^[<*\s]+|,(?=\d)/g, "")); // "1,234", "< 0.01", "+0.3 ± 0.1"
  const missing = (row) => !shown(row) || shown(row) === "–"; // comes last either way
  const numeric = [...body.rows].every((row) => missing(row) || !isNaN(number(row)));
  const compare = numeric
    ? (a, b) => number(a) - number(b)
    : (a, b) => shown(a).localeCompare(shown(b), undefined, { numeric: true });
  const rows = [...body.rows].sort((a, b) => missing(a) - missing(b) || sign * compare(a, b));
  body.append(...rows);
}
