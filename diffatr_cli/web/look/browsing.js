/* before anything is asked: what was searched for lately, and which kinds of sound there are */

const RECENT = "diffatr.recent", LATELY = 8, KINDS = 24;

/* What this browser alone keeps; where it keeps nothing, all works without. */
const kept = {
  read(name) { try { return JSON.parse(localStorage.getItem(name)); } catch { return null; } },
  write(name, value) { try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* no room, or not allowed */ } },
  forget(name) { try { localStorage.removeItem(name); } catch { /* nothing is there */ } },
};

function recent() {
  const found = kept.read(RECENT);
  if (!Array.isArray(found)) return [];
  const text = value => typeof value === "string" && value.trim() ? value.slice(0, 1000) : null;
  return found.filter(each => text(each?.text)).slice(0, LATELY).map(({text: words_, by, not}) => ({text: text(words_), by: ["sound", "name"].includes(by) ? by : "both", not: text(not)}));
}

function keepRecent({text, by = "both", not = null}) {
  const same = each => each.text === text && each.by === by && each.not === not;
  kept.write(RECENT, [{text, by, not}, ...recent().filter(each => !same(each))].slice(0, LATELY));
}

function showRecent() {
  const found = recent();
  $("recent").hidden = !found.length;
  $("recent-list").replaceChildren(...found.map(each => make("li", {}, make("button", {type: "button", onclick: () => ask({...each})},
    make("bdi", {}, each.text), ...(each.not ? [", not ", make("bdi", {}, each.not)] : []), ...(each.by === "both" ? [] : [make("span", {class: "aside"}, ` by ${each.by}`)])))));
}

/* The part of the page for those who have not asked yet. */
function browse() {
  $("browse").hidden = Boolean(asked) || !state.files;
  if ($("browse").hidden) return;
  showRecent();
  lookAtKinds();
  lookAtMap();
}

let kinds = null, kindsDue = 0, allKinds = false;

async function lookAtKinds() {
  if (kindsDue || kinds?.version === state.version || (kinds && state.indexing)) return;
  kindsDue = setTimeout(() => { kindsDue = 0; if (!$("browse").hidden) lookAtKinds(); }, kinds ? 5000 : 1000);
  try {
    const answer = await get("/api/kinds");
    if (!answer.ready || answer.version === kinds?.version) return;
    kinds = answer;
    showKinds();
  } catch (error) { trouble(error.message); }
}

function showKinds() {
  const found = kinds?.kinds || [];
  $("kinds").hidden = !found.length;
  $("kinds-list").replaceChildren(...found.slice(0, allKinds ? Infinity : KINDS).map(each => make("li", {}, make("button", {type: "button", onclick: () => ask({text: each.caption, by: "both"})},
    make("bdi", {}, each.label), " ", make("span", {class: "aside number", "aria-label": count(each.files, "file")}, each.files.toLocaleString("en"))))));
  $("kinds-all").hidden = allKinds || found.length <= KINDS;
  $("kinds-all").textContent = `Show all ${found.length} kinds`;
  $("kinds-of").hidden = !found.length || kinds.looked >= kinds.total;
  $("kinds-of").textContent = found.length ? `Counted in a fair sample of ${kinds.looked.toLocaleString("en")} of ${count(kinds.total, "file")}.` : "";
}

$("kinds-all").addEventListener("click", () => { allKinds = true; showKinds(); $("kinds-list").children[KINDS].firstChild.focus(); });
$("recent-clear").addEventListener("click", () => { kept.forget(RECENT); showRecent(); say("The recent searches are cleared."); input.focus(); });
