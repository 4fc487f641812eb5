"use strict";
// The page can be read without this script. It adds two things: tables that sort by the buttons of
// their headers, and the values of a point or a bar beside the pointer. It also takes tables that
// need no scrolling out of the way of the Tab key.
const regions = document.querySelectorAll(".scroll");
function skipWholeTables() {
  for (const region of regions) {
    region.tabIndex = region.scrollWidth > region.clientWidth ? 0 : -1;
  }
}
addEventListener("resize", skipWholeTables);
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const ascending = header.getAttribute("aria-sort") !== "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortRows(table.tBodies[0], column, ascending);
      document.getElementById("sorted").textContent =
        `${table.caption.textContent}: sorted by ${button.textContent}, ` +
        (ascending ? "ascending" : "descending");
    });
  });
}

function sortRows(body, column, ascending) {
  const key = (row) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort(([a], [b]) => {
    const order = typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true });
    return ascending ? order : -order;
  });
  body.append(...rows.map(([, row]) => row));
}

skipWholeTables();

const tip = document.getElementById("tip");
for (const mark of document.querySelectorAll(".tipped")) {
  // The browser would show the title as a second tooltip, and only after a while.
  const title = mark.querySelector("title");
  mark.dataset.tip = title.textContent;
  title.remove();
}
document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") tip.hidden = true;
});

function show(event) {
  const mark = event.target instanceof Element ? event.target.closest(".tipped") : null;
  tip.hidden = mark === null;
  if (mark === null) return;
  tip.textContent = mark.dataset.tip;
  const left = Math.min(event.pageX + 12, scrollX + document.documentElement.clientWidth - tip.offsetWidth - 4);
  const above = event.pageY - tip.offsetHeight - 12;
  tip.style.left = `${Math.max(scrollX + 4, left)}px`;
  tip.style.top = `${above < scrollY ? event.pageY + 16 : above}px`;
}
