// Sorts the OPs by the column whose heading is pressed, once more for the other way round. Without it the table reads as it is.
"use strict";
const table = document.querySelector(".ops"), body = table.tBodies[0];
const key = (row, column) => {
  const text = row.cells[column].textContent.trim(), number = parseFloat(text);
  return column > 1 && !/^\d{4}-/.test(text) && !Number.isNaN(number) ? number : text;
};
const compare = (a, b) =>
  (a === "-") - (b === "-") || (typeof a === typeof b ? (a < b ? -1 : +(a > b)) : typeof a === "number" ? -1 : 1);
[...table.tHead.rows[0].cells].forEach((heading, column) => {
  const button = document.createElement("button");
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = [...body.rows].map((row) => [key(row, column), row]);
    const last = (k) => k === "-";  // what is unknown comes last either way
    keyed.sort(([a], [b]) => (down && !last(a) && !last(b) ? -1 : 1) * compare(a, b));
    body.append(...keyed.map(([, row]) => row));
  });
});
