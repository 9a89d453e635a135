// Show the rows that all filters let through; a target without any row is hidden as a whole.
(() => {
  const form = document.querySelector(".filters");
  if (!form) return;
  const rows = [...document.querySelectorAll("tr[data-target]")];
  const wants = (row, name) => !form.elements[name].value || row.dataset[name] === form.elements[name].value;
  const update = () => {
    const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.dataset.text.toLowerCase();
      const fits = ["target", "layer", "direction", "kernel"].every(name => wants(row, name))
        && (!form.elements.faults.checked || row.dataset.faults !== "")
        && words.every(word => text.includes(word));
      row.hidden = !fits;
      shown += fits;
    }
    for (const section of document.querySelectorAll("section.target")) {
      const target = form.elements.target.value;
      section.hidden = target !== "" && section.dataset.target !== target;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length} kernels`;
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", event => event.preventDefault());
  update();
})();
// Plots were drawn while the page was still being laid out: let them measure their boxes again.
addEventListener("load", () => dispatchEvent(new Event("resize")));
