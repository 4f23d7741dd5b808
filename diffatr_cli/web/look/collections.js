/* collections */

let collections = [], starred = new Set(), adding = [];
const markOf = (key, start) => `${key}@${start}`;
const isStarred = hit => starred.has(markOf(hit.key, hit.start));
const send = (address, document) => get(address, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(document)});
const at = (id, what = "") => `/api/collections/${encodeURIComponent(id)}${what}`;

function took(answer) {
  collections = answer.collections;
  starred = new Set(answer.starred.map(([key, start]) => markOf(key, start)));
  for (const hit of hits) hit.star.setAttribute("aria-pressed", String(isStarred(hit)));
  return answer;
}

async function lookAtCollections() {
  try { took(await get("/api/collections")); }
  catch (error) { trouble(error.message); }
}

async function star(some = these()) {
  if (!some.length) return;
  const off = some.every(isStarred), sounds = some.map(named);
  try {
    took(await send(at("favourites", off ? "/remove" : "/add"), {sounds}));
    say(`${some.length > 1 ? count(some.length, "sound") : some[0].name}: ${off ? "no favourite any more" : "favourite"}.`);
  } catch (error) { trouble(error.message); }
}

/* What the collection shown is, and what of it is gone. */
function tellCollection(answer) {
  verdict(["Collection ", make("em", {}, make("bdi", {}, answer.name))], ...(answer.all || answer.missing.length ? [] : ["There is nothing in it yet."]));
  document.title = `${answer.name} · DiffATR`;
  if (!answer.missing.length) return;
  $("verdict").append(make("p", {}, `${count(answer.missing.length, "sound")} of it ${answer.missing.length === 1 ? "is" : "are"} missing, and ${answer.missing.length === 1 ? "comes" : "come"} back with the file:`));
  $("verdict").append(make("ul", {id: "missing"}, ...answer.missing.map(each => make("li", {},
    make("span", {class: "gone"}, make("bdi", {}, each.folder ? `${each.folder}/${each.name}` : each.name), ` (${each.reason})`),
    make("button", {type: "button", "aria-label": `Take ${each.name} out of the collection`, onclick: () => removeMembers([each])}, "Take out")))));
}

async function removeMembers(some = these()) {
  if (!asked?.collection || !some.length) return;
  try {
    took(await send(at(asked.collection, "/remove"), {members: some.map(each => [each.content, each.start])}));
    selected.clear();
    await ask(asked, {push: false});
    say(`${count(some.length, "sound")} taken out of ${asked.name}. The files stay where they are.`);
  } catch (error) { trouble(error.message); }
}

/* One dialog shows the collections, and takes what is to be added to one. */
const openCollections = () => openDialog([]);
const openAdding = (some = these()) => openDialog(some);

async function openDialog(some) {
  adding = some;
  $("collections-trouble").hidden = true;
  try { took(await get("/api/collections")); }
  catch (error) { return trouble(error.message); }
  $("collections-title").textContent = adding.length ? `Add ${adding.length > 1 ? count(adding.length, "sound") : adding[0].name} to` : "Collections";
  $("collections-name").previousElementSibling.textContent = adding.length ? "A new collection" : "A new collection, empty at first";
  $("collections-name").value = "";
  listCollections();
  if (!$("collections").open) $("collections").showModal();
}

function listCollections() {
  $("collections-list").replaceChildren(...collections.map(each => make("li", {}, line(each))));
  if (!collections.length) $("collections-list").append(make("li", {}, make("p", {}, "There is none yet. A favourite makes the first one.")));
}

function line(each) {
  const called = make("button", {type: "button", class: "called", onclick: () => adding.length ? addTo(each) : openCollection(each)}, make("bdi", {}, each.name));
  const size = make("span", {class: "number"}, count(each.count, "sound"));
  if (adding.length) return make("div", {}, called, size);
  const zip = make("a", {class: "link", href: at(each.id, "/export.zip"), download: `${each.name}.zip`, "aria-label": `ZIP of ${each.name}`}, "ZIP");
  const parts = make("a", {class: "link", href: at(each.id, "/export.zip?cut=true"), download: `${each.name}.zip`, "aria-label": `Parts of ${each.name} as WAV in a ZIP`}, "Parts");
  const lists = ["m3u8", "edl", "csv"].map(kind => { const text = kind === "m3u8" ? "M3U" : kind.toUpperCase(); return make("a", {class: "link", href: at(each.id, `/export.${kind}`), download: `${each.name}.${kind}`, "aria-label": `${text} of ${each.name}`}, text); });
  return make("div", {}, called, size, ...(each.count ? [zip, parts, ...lists] : []),
    make("button", {type: "button", class: "renames", "aria-label": `Rename ${each.name}`, onclick: event => renaming(each, event.target.closest("li"))}, "Rename"),
    make("button", {type: "button", class: "deletes", "aria-label": `Delete ${each.name}`, onclick: event => deleting(each, event.target.closest("li"))}, "Delete"));
}

/* What goes wrong in the dialog is told in it. */
async function within(work) {
  $("collections-trouble").hidden = true;
  try { await work(); }
  catch (error) {
    $("collections-trouble").textContent = error.message;
    $("collections-trouble").hidden = false;
  }
}

function back(item) {
  const again = collections.findIndex(each => each.id === item.dataset.id);
  listCollections();
  ($("collections-list").children[again]?.querySelector(".called") || $("collections-name")).focus();
}

function renaming(each, item) {
  item.dataset.id = each.id;
  const name = make("input", {value: each.name, maxlength: 200, "aria-label": `New name of ${each.name}`, autocomplete: "off"});
  const form = make("form", {onsubmit: event => {
    event.preventDefault();
    within(async () => {
      took(await send(at(each.id, "/rename"), {name: name.value}));
      back(item);
      if (asked?.collection === each.id) ask(asked, {push: false});
    });
  }}, name, make("button", {type: "submit"}, "Rename"), make("button", {type: "button", onclick: () => back(item)}, "Keep"));
  item.replaceChildren(form);
  name.select();
}

function deleting(each, item) {
  item.dataset.id = each.id;
  const no = make("button", {type: "button", onclick: () => back(item)}, "Keep it");
  const yes = make("button", {type: "button", class: "sure", onclick: () => within(async () => {
    took(await send(at(each.id, "/delete"), {}));
    back(item);
    if (asked?.collection === each.id) { history.pushState(null, "", "/"); recall(); }
    say(`${each.name} is deleted. The files stay where they are.`);
  })}, "Delete it");
  item.replaceChildren(make("p", {}, "Delete ", make("bdi", {}, each.name), `, a list of ${count(each.count, "sound")}? The files stay where they are.`), make("div", {}, yes, no));
  no.focus();
}

function openCollection(each) {
  $("collections").close();
  ask({collection: each.id, name: each.name});
}

function addTo(each) {
  within(async () => {
    const before = each.count, {changed} = took(await send(at(each.id, "/add"), {sounds: adding.map(named)}));
    const more = collections.find(one => one.id === changed).count - before;
    $("collections").close();
    say(more ? `${count(more, "sound")} added to ${each.name}.` : `${each.name} has ${adding.length > 1 ? "them" : "it"} already.`);
  });
}

$("collections-new").addEventListener("submit", event => {
  event.preventDefault();
  within(async () => {
    const name = $("collections-name").value;
    took(await send("/api/collections", {name, sounds: adding.map(named)}));
    if (!adding.length) { $("collections-name").value = ""; return listCollections(); }
    $("collections").close();
    say(`${count(adding.length, "sound")} added to ${name.trim()}.`);
  });
});
$("shelf").addEventListener("click", openCollections);
$("collections-close").addEventListener("click", () => $("collections").close());
$("collections").addEventListener("click", event => { if (event.target === $("collections")) $("collections").close(); });
$("bar-star").addEventListener("click", () => star());
$("bar-add").addEventListener("click", () => openAdding());
$("bar-remove").addEventListener("click", () => removeMembers());
lookAtCollections();
