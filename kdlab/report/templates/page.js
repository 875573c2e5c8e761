"use strict";
(() => {
  const all = (where, what) => [...where.querySelectorAll(what)];
  const make = (name, text, traits = {}) => Object.assign(document.createElement(name), { textContent: text }, traits);
  const status = document.getElementById("status");

  // light and dark: as the system says until the button is used
  const root = document.documentElement;
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const theme = make("button", "", { type: "button", id: "theme" });
  const name = () => { theme.textContent = isDark() ? "Light colours" : "Dark colours"; };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });
  systemDark.addEventListener("change", name);
  name();
  document.getElementById("tools").append(theme);

  // tables: a button in each head sorts; rows without a value stay last
  const read = (row, column) => {
    const cell = row.cells[column];
    if (!("v" in cell.dataset)) return cell.textContent.trim().toLowerCase() || null;
    return cell.dataset.v === "" ? null : Number(cell.dataset.v);
  };
  const sort = (table, head, order) => {
    const sign = order === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [read(row, head.cellIndex), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return typeof a === "number" && typeof b === "number" ? sign * (a - b)
        : sign * String(a).localeCompare(String(b), "en", { numeric: true });
    });
    body.append(...rows.map(([, row]) => row));
    for (const other of table.tHead.rows[0].cells) if (other.ariaSort) other.ariaSort = "none";
    head.ariaSort = order;
  };
  for (const table of all(document, "table.sortable")) {
    for (const head of table.tHead.rows[0].cells) {
      if (head.classList.contains("plain")) continue;
      const button = make("button", "", { type: "button", className: "sort" });
      button.append(...head.childNodes);
      head.append(button);
      head.ariaSort = "none";
      const first = head.dataset.first || (head.classList.contains("n") ? "descending" : "ascending");
      const second = first === "ascending" ? "descending" : "ascending";
      button.addEventListener("click", () => {
        const order = head.ariaSort === first ? second : first;
        sort(table, head, order);
        status.textContent = `sorted by ${head.innerText.replace(/\s+/g, " ")}, ${order}`;
      });
    }
  }

  // and a field above them filters: all words must stand in a row
  for (const table of all(document, "table[data-filter]")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 6) continue;
    const told = make("span", "", { className: "small muted" });
    const field = make("input", "", { type: "search", placeholder: "all words", autocomplete: "off", spellcheck: false });
    const label = make("label", `Filter ${table.dataset.filter} `, { className: "filter" });
    label.append(field, " ", told);
    table.closest(".scroll").before(label);
    const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const [row, text] of texts) {
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      told.textContent = words.length ? `${shown} of ${rows.length}` : "";
    });
  }

  // legends: a box for each series hides and shows it in the plots beside
  for (const box of all(document, ".series-box")) {
    const ticks = all(box, "input[data-series]");
    const drawn = all(box, "[data-of]").filter((one) => one.dataset.of);
    const apply = () => {
      const shown = new Set(ticks.filter((tick) => tick.checked).map((tick) => tick.dataset.series));
      for (const one of drawn) one.classList.toggle("off", !one.dataset.of.split(" ").some((of) => shown.has(of)));
    };
    for (const tick of ticks) {
      tick.hidden = false;
      tick.checked = true;
      tick.addEventListener("change", apply);
    }
    if (ticks.length < 4) continue;
    const item = make("li", "");
    for (const [text, on] of [["all", true], ["none", false]]) {
      const button = make("button", text, { type: "button" });
      button.addEventListener("click", () => { for (const tick of ticks) tick.checked = on; apply(); });
      item.append(button, " ");
    }
    box.querySelector("[data-legend]").append(item);
  }

  // commands: a button copies
  const copy = async (code) => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      return true;
    } catch {
      getSelection().selectAllChildren(code);
      return document.execCommand("copy");
    }
  };
  for (const code of all(document, "code.copy")) {
    const button = make("button", "copy", { type: "button", className: "copier", ariaLabel: "copy the command" });
    button.addEventListener("click", async () => {
      const done = await copy(code);
      button.textContent = done ? "copied" : "select";
      status.textContent = done ? "copied" : "the command is selected: copy it";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
    if (code.closest("td")) code.before(button);
    else code.after(" ", button);
  }

  // a link to something inside of a closed part opens it; print shows everything
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let one = target; one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all(document, "details:not([open])");
    for (const one of closed) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of closed) one.open = false; });
})();
