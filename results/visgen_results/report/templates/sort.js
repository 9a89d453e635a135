// Sort a table by a column; cells without a number stay last either way.
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const th = button.closest("th"), body = th.closest("table").tBodies[0], up = th.ariaSort !== "ascending";
  const key = row => row.cells[th.cellIndex].dataset.v ?? row.cells[th.cellIndex].textContent.trim();
  const order = (a, b) => a === "" || b === "" ? (a === "") - (b === "") : (up ? 1 : -1) * (a - b || (isNaN(a - b) ? a.localeCompare(b) : 0));
  [...body.rows].sort((a, b) => order(key(a), key(b))).forEach(row => body.append(row));
  th.parentNode.querySelectorAll("th").forEach(other => other.ariaSort = other === th ? (up ? "ascending" : "descending") : "none");
}));
