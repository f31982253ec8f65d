"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Files that the page holds, packed: each is unpacked and saved when it is asked for.
  for (const button of all("[data-file]")) {
    button.addEventListener("click", async () => {
      const name = button.dataset.file;
      const packed = Uint8Array.from(atob(document.querySelector(`[data-name="${name}"]`).textContent), (c) => c.charCodeAt(0));
      const whole = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).blob();
      const link = document.createElement("a");
      link.href = URL.createObjectURL(whole);
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    });
  }

  // Tables: order, filter.
  for (const table of all("table.sortable")) {
    const controls = document.querySelector(`.controls[data-for="${table.id}"]`);
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const empty = table.closest("section").querySelector(".empty");
    const find = controls.querySelector(".find");
    const choices = all(".choose", controls);
    const sort = controls.querySelector(".sort");
    let column = -1, direction = 1;

    const compare = (a, b) => {
      const [x, y] = [a.cells[column].dataset.v, b.cells[column].dataset.v];
      if (x === "" || y === "") return (x === "") - (y === ""); // what was not measured comes last either way
      const [p, q] = [Number(x), Number(y)];
      return direction * (Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y, "en", { numeric: true }) : p - q);
    };
    const order = (index, wanted) => {
      direction = wanted ?? (index === column ? -direction : 1);
      column = index;
      body.append(...[...rows].sort(compare));
      heads.forEach((head, i) => {
        if (i === column) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      });
      sort.value = String(column);
    };
    const filter = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const name = row.dataset.name.toLowerCase();
        const fits = words.every((word) => name.includes(word)) && choices.every((c) => !c.value || row.dataset[c.dataset.key] === c.value);
        row.hidden = !fits;
        shown += fits;
      }
      controls.querySelector("output").textContent = shown === rows.length ? `${rows.length} shown` : `${shown} of ${rows.length} shown`;
      empty.hidden = shown > 0;
    };
    heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => order(i)));
    sort.addEventListener("change", () => order(Number(sort.value), 1));
    controls.querySelector(".turn").addEventListener("click", () => order(Math.max(column, 0)));
    find.addEventListener("input", filter);
    choices.forEach((choice) => choice.addEventListener("change", filter));
    filter();
  }

  // One layer in a dialog.
  const dialog = document.getElementById("layer");
  if (dialog) {
    const rows = () => all("tr[data-detail]").filter((row) => !row.hidden);
    let current = null;
    const show = (row) => {
      current = row;
      const body = dialog.querySelector(".body");
      body.replaceChildren(document.getElementById(`detail-${row.dataset.detail}`).content.cloneNode(true));
      // As in the table, where a long name may break after its dots.
      dialog.querySelector("h2").replaceChildren(...row.querySelector(".open").cloneNode(true).childNodes);
      const [place, list] = [rows().indexOf(row), rows()];
      dialog.querySelector(".previous").disabled = place <= 0;
      dialog.querySelector(".next").disabled = place < 0 || place >= list.length - 1;
      if (!dialog.open) dialog.showModal();
      dialog.scrollTop = 0;
      history.replaceState(null, "", `#${encodeURIComponent(row.dataset.name)}`);
    };
    const move = (by) => {
      const next = rows()[rows().indexOf(current) + by];
      if (next) show(next);
    };
    all("tr[data-detail] .open").forEach((button) => button.addEventListener("click", () => show(button.closest("tr"))));
    dialog.querySelector(".previous").addEventListener("click", () => move(-1));
    dialog.querySelector(".next").addEventListener("click", () => move(1));
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") move(-1);
      if (event.key === "ArrowRight") move(1);
    });
    dialog.addEventListener("close", () => {
      history.replaceState(null, "", location.pathname + location.search);
      current?.querySelector(".open").focus();
    });
    let wanted = "";
    try { wanted = decodeURIComponent(location.hash.slice(1)); } catch { /* not a name */ }
    const row = all("tr[data-detail]").find((candidate) => candidate.dataset.name === wanted);
    if (row) show(row);
  }

  document.addEventListener("keydown", (event) => {
    const busy = event.target.closest("input, select, textarea, dialog") || event.ctrlKey || event.metaKey || event.altKey;
    const find = document.querySelector(".find");
    if (event.key === "/" && !busy && find) { event.preventDefault(); find.focus(); }
  });
})();
