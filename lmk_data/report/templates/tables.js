"use strict";
// Each table is followed by its rows as JSON, drawn as text, never as HTML.
for (const table of document.querySelectorAll("table.sortable")) {
  const { columns, rows } = JSON.parse(table.nextElementSibling.textContent);
  new DataTable(table, {
    columns: columns.map(({ name, number, integer, sorts }) => ({
      title: name,
      className: number ? "number" : "",
      render: integer ? DataTable.render.number(",", ".", 0) : DataTable.render.text(),
      type: sorts,
    })),
    data: rows,
    autoWidth: false,
    deferRender: true,
    order: [],
    orderClasses: false,
    pageLength: 25,
    language: { search: "Search" },
  });
}
