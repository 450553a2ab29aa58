// Marks, keys and completion on the pages of lmk-shard browse. Texts are set as text, never as HTML.
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const tiles = all(".tile");
const single = one("[data-single]");
const MAX_SHOWN = 1000; // what the server takes at once
const shown = [...new Set(all("[data-key]").map((item) => item.dataset.key))].slice(0, MAX_SHOWN);
const POLL_MILLISECONDS = 2000;
const KEEPALIVE_BYTES = 60000; // browsers refuse more than 64 KB in flight

// ---- Saving: one request after the other, and nothing is shown as marked before the server has saved it.

const windowId = sessionStorage.getItem("window") ?? newId();
let chain = Promise.resolve();
let pending = 0;

function newId() {
  const id = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  sessionStorage.setItem("window", id);
  return id;
}

async function post(path, content) {
  const body = JSON.stringify({ ...content, window: windowId, shown });
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body };
  let response;
  try {
    response = await fetch(path, { ...options, keepalive: body.length < KEEPALIVE_BYTES });
  } catch {
    throw new Error("no answer from lmk-shard browse; is it still running?");
  }
  if (!response.ok) throw new Error((await response.text()).trim());
  return response.json();
}

function save(path, content, keys = []) {
  const items = keys.flatMap(itemsOf);
  const busy = (value) => items.forEach((item) => item.setAttribute("aria-busy", value));
  busy(true);
  pending += 1;
  chain = chain.then(async () => {
    try {
      const answer = await post(path, content);
      update(answer);
      say(answer.said);
      problem(answer.problem);
    } catch (error) {
      problem(`Not saved: ${error.message}`);
    } finally {
      busy(false);
      pending -= 1;
    }
  });
  return chain;
}

function look() {
  if (document.visibilityState !== "visible" || pending) return;
  chain = chain.then(async () => {
    try {
      update(await post("/look", {}));
      if (one("#problem").dataset.kind === "look") problem("");
    } catch (error) {
      if (one("#problem").hidden) problem(`Marks cannot be saved: ${error.message}`, "look");
    }
  });
}

function update(state) {
  for (const [key, mark] of Object.entries(state.marks)) {
    for (const item of itemsOf(key)) {
      item.dataset.mark = mark?.action ?? "";
      one(".mark", item).textContent = mark ? mark.text : "";
    }
  }
  for (const place of all("#marked, [data-counts]")) place.textContent = state.counts;
}

function itemsOf(key) {
  return all(`[data-key="${CSS.escape(key)}"]`);
}

function problem(text, kind = "save") {
  const box = one("#problem");
  box.dataset.kind = kind;
  one("span", box).textContent = text;
  box.hidden = !text;
}

// ---- What a mark applies to: the chosen pictures, else the one that has the focus, else the one of the page.

let current = null;
let anchor = null;

function chosen() {
  return tiles.filter((tile) => one("input", tile).checked);
}

function targets(byKey) {
  const several = chosen();
  if (several.length) return several;
  const focused = byKey && document.activeElement?.closest(".tile");
  return [focused || single].filter(Boolean);
}

function choose(tile, value) {
  one("input", tile).checked = value;
}

function chooseNone() {
  for (const tile of tiles) choose(tile, false);
  anchor = null;
  countChosen();
}

function chooseRange(from, to, value = true) {
  const [first, last] = [tiles.indexOf(from), tiles.indexOf(to)].sort((a, b) => a - b);
  for (const tile of tiles.slice(first, last + 1)) choose(tile, value);
}

function countChosen() {
  const number = chosen().length;
  one("#chosen").textContent = number ? `${number} chosen` : "";
}

function toggleAll(grid, skip = 0) {
  const members = grid ? all(".tile", grid).slice(skip) : [];
  const value = !members.every((tile) => one("input", tile).checked);
  for (const tile of members) choose(tile, value);
  countChosen();
}

// ---- Marking

function marksOf(items, mark) {
  return Object.fromEntries(items.map((item) => [item.dataset.key, mark]));
}

function saveMarks(marks) {
  const keys = Object.keys(marks);
  return save("/marks", { marks }, keys);
}

const actions = {
  exclude: (items) => saveMarks(marksOf(items, { action: "exclude" })),
  clear: (items) => saveMarks(marksOf(items, null)),
  relabel: async (items) => {
    const what = items.length === 1 ? `of the picture ${items[0].dataset.key}` : `of ${items.length} pictures`;
    const found = await askClass(what, proposals(items));
    if (found) saveMarks(marksOf(items, { action: "relabel", landmark_id: found.landmark_id }));
  },
  propose: (items) => {
    const known = items.filter((item) => item.dataset.proposed !== undefined);
    if (!known.length) return say("No class is proposed here.");
    const pairs = known.map((item) => [item.dataset.key, { action: "relabel", landmark_id: item.dataset.proposed }]);
    return saveMarks(Object.fromEntries(pairs));
  },
};

function act(name, byKey, items = targets(byKey)) {
  if (name === "undo") return save("/undo", {});
  if (name === "help") return one("#help").showModal();
  if (!items.length) return say("Choose a picture first.");
  return actions[name](items);
}

function say(text) {
  const place = one("#said");
  place.textContent = place.textContent === text ? `${text}\u00a0` : text; // what does not change is not read out
}

// ---- Completion of a class by its name or id

const relabel = { dialog: one("#relabel"), input: one("#relabel input"), list: one("#relabel-list"), active: 0 };
let options = [];
let asked = Promise.resolve();
let latest = 0;
let answerClass = () => {};

function recent() {
  return JSON.parse(sessionStorage.getItem("recent") ?? "[]");
}

function proposals(items) {
  const known = items.filter((item) => item.dataset.proposed !== undefined);
  const proposed = known.map((item) => ({
    landmark_id: item.dataset.proposed,
    name: item.dataset.proposedName,
    note: "proposed",
  }));
  const last = recent().map((found) => ({ ...found, note: "used before" }));
  return [...new Map([...last, ...proposed].map((found) => [found.landmark_id, found])).values()].reverse();
}

function askClass(what, suggestions) {
  one("#relabel-what").textContent = what;
  relabel.input.value = "";
  relabel.suggestions = suggestions;
  showOptions(suggestions);
  relabel.dialog.showModal();
  relabel.input.focus();
  return new Promise((resolve) => {
    answerClass = (found) => {
      answerClass = () => {};
      relabel.dialog.close();
      if (found) {
        const others = recent().reverse().filter((other) => other.landmark_id !== found.landmark_id);
        const names = [{ landmark_id: found.landmark_id, name: found.name }, ...others].slice(0, 5);
        sessionStorage.setItem("recent", JSON.stringify(names.reverse()));
      }
      resolve(found);
    };
  });
}

function showOptions(found) {
  options = found;
  relabel.list.replaceChildren(
    ...found.map((option, place) => {
      const item = document.createElement("li");
      const name = document.createElement("bdi");
      const more = document.createElement("small");
      name.textContent = option.name;
      more.textContent = ` ${option.landmark_id === option.name ? "" : option.landmark_id} ${option.note}`;
      item.append(name, more);
      item.id = `option-${place}`;
      item.setAttribute("role", "option");
      item.addEventListener("click", () => answerClass(option));
      return item;
    }),
  );
  activate(0);
}

function activate(place) {
  relabel.active = Math.max(0, Math.min(place, options.length - 1));
  const items = all("li", relabel.list);
  items.forEach((item, other) => item.setAttribute("aria-selected", other === relabel.active));
  if (items.length) {
    relabel.input.setAttribute("aria-activedescendant", `option-${relabel.active}`);
    items[relabel.active].scrollIntoView({ block: "nearest" });
  } else {
    relabel.input.removeAttribute("aria-activedescendant");
  }
}

async function complete() {
  const text = relabel.input.value.trim();
  const number = ++latest;
  if (!text) return showOptions(relabel.suggestions);
  try {
    const response = await fetch(`/complete?search=${encodeURIComponent(text)}`);
    if (!response.ok) throw new Error((await response.text()).trim());
    const found = await response.json();
    if (number === latest) showOptions(found);
  } catch (error) {
    if (number === latest) problem(`Classes cannot be searched: ${error.message}`);
  }
}

relabel.input.addEventListener("input", () => {
  asked = complete();
});
relabel.input.addEventListener("keydown", async (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    activate(relabel.active + (event.key === "ArrowDown" ? 1 : -1));
  } else if (event.key === "Enter") {
    event.preventDefault();
    await asked;
    if (options.length) answerClass(options[relabel.active]);
  }
});
relabel.dialog.addEventListener("close", () => answerClass(null));

// ---- Dialogs

for (const button of all('dialog button[value="cancel"]')) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
one("#problem button").addEventListener("click", () => problem(""));

const whole = one("#whole");
let wholeList = null;
for (const button of all("[data-whole]")) {
  button.addEventListener("click", () => {
    wholeList = JSON.parse(button.dataset.whole);
    one("#whole-title").textContent = button.dataset.title;
    whole.showModal();
  });
}
for (const button of all("#whole button:not([value=cancel])")) {
  button.addEventListener("click", async () => {
    whole.close();
    let mark = button.value === "clear" ? null : { action: button.value };
    if (button.value === "relabel") {
      const found = await askClass(one("#whole-title").textContent, proposals([]));
      if (!found) return;
      mark = { action: "relabel", landmark_id: found.landmark_id };
    }
    save("/marks", { list: wholeList, mark });
  });
}

// ---- The mouse

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  const tile = event.target.closest(".tile");
  if (button) act(button.dataset.do, false, tile ? [tile] : undefined);
  const link = event.target.closest("a[href]");
  if (link && pending && !event.defaultPrevented && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    go(link);
  }
});
for (const tile of tiles) {
  one("input", tile).addEventListener("click", (event) => {
    if (event.shiftKey && anchor) chooseRange(anchor, tile, event.target.checked);
    anchor = tile;
    countChosen();
  });
}
for (const button of all("[data-choose]")) {
  const grid = one(".grid", button.closest(".group, main"));
  button.addEventListener("click", () => toggleAll(grid, button.dataset.choose === "rest" ? 1 : 0));
}
for (const button of all("[data-copy]")) {
  button.addEventListener("click", async () => {
    const source = one(`#${button.dataset.copy}`);
    try {
      await navigator.clipboard.writeText(source.textContent);
      say("Copied.");
    } catch {
      getSelection().selectAllChildren(source);
      say("Press Ctrl+C to copy what is selected.");
    }
  });
}

for (const button of all("[data-post]")) {
  button.addEventListener("click", async () => {
    button.disabled = true;
    say(button.dataset.said);
    await save(button.dataset.post, {});
    button.disabled = false;
    if (one("#problem").hidden) location.reload();
  });
}

// ---- The keyboard. One picture of each grid is reached by Tab; arrows go on from there.

function focusTile(tile) {
  for (const link of all(".open", tile.closest(".grid"))) link.tabIndex = -1;
  const link = one(".open", tile);
  link.tabIndex = 0;
  link.focus();
  current = tile;
}

function tileBelow(tile, direction) {
  const from = tile.getBoundingClientRect();
  const rows = tiles
    .map((other) => ({ other, box: other.getBoundingClientRect() }))
    .map(({ other, box }) => ({ other, down: (box.top - from.top) * direction, aside: Math.abs(box.left - from.left) }))
    .filter(({ down }) => down > 1);
  return rows.sort((a, b) => a.down - b.down || a.aside - b.aside)[0]?.other;
}

const moves = {
  ArrowLeft: (tile) => tiles[tiles.indexOf(tile) - 1],
  ArrowRight: (tile) => tiles[tiles.indexOf(tile) + 1],
  ArrowUp: (tile) => tileBelow(tile, -1),
  ArrowDown: (tile) => tileBelow(tile, 1),
};
const LETTERS = { h: "ArrowLeft", j: "ArrowDown", k: "ArrowUp", l: "ArrowRight" };

function move(direction, extend) {
  const focused = document.activeElement?.closest(".tile");
  if (single && !focused) {
    return go(one({ ArrowLeft: '[rel="prev"]', ArrowRight: '[rel="next"]', ArrowUp: '[rel="up"]' }[direction] ?? "#none"));
  }
  if (!tiles.length) return false;
  const from = focused ?? current;
  const to = from ? moves[direction](from) : tiles[0];
  if (to) {
    if (extend) {
      anchor ??= from ?? to;
      for (const tile of tiles) choose(tile, false);
      chooseRange(anchor, to);
      countChosen();
    } else {
      anchor = null;
    }
    focusTile(to);
  }
  return true;
}

function go(link) {
  if (!link) return false;
  chain.then(() => {
    location.href = link.href;
  });
  return true;
}

const keys = {
  x: () => act("exclude", true),
  r: () => act("relabel", true),
  y: () => act("propose", true),
  c: () => act("clear", true),
  u: () => act("undo", true),
  "?": () => act("help", true),
  a: () => toggleAll(document.activeElement?.closest(".grid") ?? one(".grid")),
  n: () => go(one('[rel="next"]')),
  b: () => go(one('[rel="prev"]')),
  "/": () => {
    const search = one('input[type="search"]');
    if (search) search.focus();
    else location.href = "/classes";
  },
  Escape: () => (chosen().length ? chooseNone() : go(one('[rel="up"]'))),
};

function keyOf(event) {
  if (event.key.length > 1 || /^[\x20-\x7e]$/.test(event.key)) return event.key;
  return event.code.replace(/^Key/, "").toLowerCase(); // keyboards without Latin letters
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || one("dialog[open]")) return;
  if (event.target.matches("select, textarea, input:not([type=checkbox])")) return;
  const key = keyOf(event);
  const letter = key.length === 1 ? key.toLowerCase() : key;
  const direction = LETTERS[letter] ?? (key in moves ? key : null);
  if (direction) {
    if (move(direction, event.shiftKey) !== false) event.preventDefault();
  } else if (key === " " && event.target.matches(".open")) {
    event.preventDefault();
    const tile = event.target.closest(".tile");
    choose(tile, !one("input", tile).checked);
    anchor = tile;
    countChosen();
  } else if (Object.hasOwn(keys, letter) && ("?/".includes(letter) || !event.shiftKey)) {
    event.preventDefault();
    keys[letter]();
  }
});

document.addEventListener("focusin", (event) => {
  if (event.target.matches(".open")) current = event.target.closest(".tile");
});

// ---- The start of a page

for (const grid of all(".grid")) {
  const link = one(".open", grid);
  if (link) link.tabIndex = 0;
}
if (one("[data-proposed]")) for (const button of all('[data-do="propose"]')) button.hidden = false;
if (single) {
  sessionStorage.setItem("last", JSON.stringify({ key: single.dataset.key, list: one('[rel="up"]').href }));
} else {
  const last = JSON.parse(sessionStorage.getItem("last") ?? "null");
  const tile = last?.list === location.href && tiles.find((other) => other.dataset.key === last.key);
  if (tile) focusTile(tile);
  sessionStorage.removeItem("last");
}
countChosen(); // a browser that goes back keeps what was chosen
setInterval(look, POLL_MILLISECONDS);
addEventListener("focus", look);
addEventListener("pageshow", (event) => event.persisted && look());
document.addEventListener("visibilitychange", look);
addEventListener("beforeunload", (event) => pending && event.preventDefault());
document.documentElement.dataset.ready = "true";
