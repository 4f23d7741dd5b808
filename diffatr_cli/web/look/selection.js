/* choosing several */

const MOST = 200;  // that one address can name
const selected = new Map();  // hits by the name that the server knows them by
let anchor = 0;  // where a row of chosen ones begins
const named = hit => `${hit.key}-${hit.start}-${hit.end}`;

/* What a key or a button acts on: what is chosen, in the order of the list, or else the sound that the keys are at. */
const these = () => selected.size ? [...selected.values()] : hits.slice(Math.max(0, chosen), Math.max(0, chosen) + 1);

function showSelection() {
  const order = new Map(hits.map((hit, i) => [named(hit), i]));
  const sorted = [...selected].sort(([one], [other]) => order.get(one) - order.get(other));
  selected.clear();
  for (const [name, hit] of sorted) selected.set(name, hit);
  for (const hit of hits) {
    const on = selected.has(named(hit));
    hit.parts.article.classList.toggle("selected", on);
    hit.parts.article.setAttribute("aria-selected", String(on));
  }
  $("bar").hidden = !selected.size;
  $("bar-count").textContent = `${selected.size.toLocaleString("en")} chosen` + (selected.size > MOST ? `; up to ${MOST} can be taken out at a time` : "");
  $("bar-remove").hidden = !asked?.collection;
  addressBar();
}

function tellSelection() {
  showSelection();
  say(selected.size ? `${count(selected.size, "sound")} chosen.` : "Nothing chosen.");
}

/* After more of the same list has come: the hits are other objects now. */
function keepSelection(same) {
  const before = new Set(same ? selected.keys() : []);
  selected.clear();
  for (const hit of hits) if (before.has(named(hit))) selected.set(named(hit), hit);
  if (!same) anchor = 0;
  showSelection();
}

function selectNone() {
  const any = selected.size;
  selected.clear();
  if (any) tellSelection();
}

function flip(i) {
  const hit = hits[i];
  if (!hit) return;
  if (!selected.delete(named(hit))) selected.set(named(hit), hit);
  anchor = i;
  tellSelection();
}

function extend(i) {
  i = Math.min(hits.length - 1, i);
  if (!selected.size) anchor = Math.max(0, chosen);
  choose(i);
  selected.clear();
  for (const hit of hits.slice(Math.min(anchor, i), Math.max(anchor, i) + 1)) selected.set(named(hit), hit);
  tellSelection();
}

function move(i) {
  selectNone();
  anchor = Math.min(hits.length - 1, Math.max(0, i));
  choose(i);
}

function selectAll() {
  for (const hit of hits.slice(0, likely || hits.length)) selected.set(named(hit), hit);
  tellSelection();
}

function pick(i, event) {
  if (event.target.closest("a, button, input")) return;
  if (event.shiftKey) extend(i);
  else if (event.ctrlKey || event.metaKey) flip(i);
  else if (!pressed) move(i);
}

/* Keys with Ctrl or Cmd. */
function steerSelection(event) {
  const steps = {ArrowDown: 1, ArrowUp: -1}[event.key];
  if (!hits.length || !(event.key === "a" || steps || (event.key === " " && event.ctrlKey))) return;
  event.preventDefault();
  if (event.key === "a") selectAll();
  else if (steps) choose(Math.max(0, chosen + steps));
  else flip(Math.max(0, chosen));
}

$("bar-none").addEventListener("click", () => { selectNone(); choose(Math.max(0, chosen)); });
