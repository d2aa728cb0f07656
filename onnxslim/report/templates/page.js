const plain = text => text.normalize("NFKC").toLowerCase();
const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("n"), was = head.getAttribute("aria-sort");
      const up = was ? was === "descending" : !numeric;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keyed = [...body.rows].map(row => [numeric ? Number(value(row, column)) : value(row, column), row]);
      const words = new Intl.Collator(undefined, {numeric: true}).compare;
      keyed.sort(numeric ? (a, b) => a[0] - b[0] : (a, b) => words(a[0], b[0]));
      if (!up) keyed.reverse();
      body.append(...keyed.map(pair => pair[1]));
    });
  });
}

function searchable(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 25) return;
  const tools = document.createElement("div"), label = document.createElement("label");
  const input = document.createElement("input"), found = document.createElement("output");
  tools.className = "tools";
  label.append("Filter ", input);
  input.type = "search";
  input.placeholder = "part of a name";
  input.setAttribute("aria-label", "Filter rows of: " + table.caption.textContent.trim());
  found.setAttribute("aria-live", "polite");
  tools.append(label, found);
  (table.closest(".scroll") ?? table).before(tools);
  let texts;
  input.addEventListener("input", () => {
    const asked = plain(input.value.trim());
    texts ??= rows.map(row => plain(row.textContent));
    let count = 0;
    rows.forEach((row, index) => { row.hidden = !texts[index].includes(asked); count += !row.hidden; });
    table.classList.toggle("sought", asked !== "");
    found.textContent = asked ? `${count} of ${rows.length} rows` : "";
  });
}

function folded(table) {
  const note = (table.closest(".scroll") ?? table).nextElementSibling;
  const button = document.createElement("button"), all = table.tBodies[0].rows.length;
  button.type = "button";
  button.textContent = `Show all ${all} rows`;
  button.addEventListener("click", () => {
    const now = table.classList.toggle("fold");
    button.textContent = now ? `Show all ${all} rows` : "Show the first rows";
  });
  note.replaceChildren(button);
}

document.querySelectorAll("table.sortable").forEach(table => { sortable(table); searchable(table); });
document.querySelectorAll("table.fold").forEach(folded);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));
