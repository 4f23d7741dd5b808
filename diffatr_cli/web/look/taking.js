/* getting sounds out */

let carrying = false;  // something is being dragged from here: it is not dropped here

const fileOf = hit => `/take/${hit.key}`;
const partOf = hit => `/take/${hit.key}?start=${hit.start}&end=${hit.end}`;
const bundle = (some, kind, cut) => `/export.${kind}?title=${encodeURIComponent(title())}&cut=${cut}&query=${encodeURIComponent((asked?.text || "").slice(0, 200).toWellFormed?.() ?? "")}&${some.map(hit => `sound=${named(hit)}`).join("&")}`;
const title = () => (asked?.text || asked?.name || "sounds").slice(0, 60).toWellFormed?.() ?? "sounds";
const partName = hit => `${hit.name.replace(/\.[^.]*$/, "")} ${clock(hit.start).replaceAll(":", ".")}.wav`;

/* Chromium hands the file behind DownloadURL to other programs; those that know addresses take that. */
function carry(event, address, name, type) {
  const url = new URL(address, location.href).href;
  event.dataTransfer.effectAllowed = "copy";
  event.dataTransfer.setData("DownloadURL", `${type}:${name.replace(/[:/\\]/g, "_")}:${url}`);
  event.dataTransfer.setData("text/uri-list", url);
  carrying = true;
}
addEventListener("dragend", () => { carrying = false; });

function carryHit(event, hit, cut) {
  if (selected.size > 1 && selected.has(named(hit))) carry(event, bundle(these(), "zip", cut), `${title()}.zip`, "application/zip");
  else if (cut) carry(event, partOf(hit), partName(hit), "audio/wav");
  else carry(event, fileOf(hit), hit.name, hit.type || "application/octet-stream");
}

function waysOut(hit, i) {
  const key = name => make("kbd", {"aria-hidden": "true"}, name), grip = () => make("span", {class: "grip", "aria-hidden": "true"}, "⠿");
  const link = (name, cut, address, called, letter) => make("a", {class: `link ${name}`, href: address, download: called, draggable: "true", title: "Download, or drag it into another program", ondragstart: event => carryHit(event, hit, cut)}, grip(), cut ? "Part as WAV" : "File", key(letter));
  const favourite = make("button", {type: "button", class: "star", "aria-pressed": String(isStarred(hit)), onclick: () => star([hit])}, "Favourite", key("f"));
  hit.star = favourite;
  return [
    link("file", false, fileOf(hit), hit.name, "e"),
    link("part", true, partOf(hit), partName(hit), "w"),
    favourite,
    make("button", {type: "button", class: "adds", onclick: () => openAdding([hit])}, "Add to …", key("a")),
    make("button", {type: "button", class: "reveal", onclick: () => reveal(i)}, "Show in folder", key("o")),
  ];
}

function download(address, name) {
  const link = make("a", {href: address, download: name});
  document.body.append(link);
  link.click();
  link.remove();
}

function take(cut) {
  const some = these();
  if (!some.length) return;
  if (some.length > MOST) return trouble(`Up to ${MOST} sounds can be taken out at a time. A collection can be exported whole.`);
  if (some.length > 1) {
    download(bundle(some, "zip", cut || $("cut").checked), `${title()}.zip`);
    say(`${count(some.length, "sound")} on the way as ZIP.`);
  } else {
    download(cut ? partOf(some[0]) : fileOf(some[0]), cut ? partName(some[0]) : some[0].name);
    say(`${some[0].name} on the way.`);
  }
}

async function reveal(i) {
  const hit = hits[i];
  if (!hit) return;
  try {
    await get(`/api/reveal/${hit.key}`, {method: "POST"});
    say(`Shown in its folder: ${hit.name}`);
  } catch (error) { trouble(error.message); }
}

/* The addresses of what is chosen. */
function addressBar() {
  for (const kind of ["zip", "m3u8", "edl", "csv"]) {
    $(`bar-${kind}`).hidden = selected.size > MOST;
    if (!selected.size || selected.size > MOST) continue;
    $(`bar-${kind}`).href = bundle(these(), kind, kind === "zip" && $("cut").checked);
    $(`bar-${kind}`).download = `${title()}.${kind}`;
  }
}
$("cut").addEventListener("change", addressBar);
$("bar-zip").addEventListener("dragstart", event => carry(event, $("bar-zip").href, $("bar-zip").download, "application/zip"));
