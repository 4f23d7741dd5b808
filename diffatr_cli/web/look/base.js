const $ = id => document.getElementById(id);
const input = $("q"), list = $("hits");
const still = matchMedia("(prefers-reduced-motion: reduce)"), dark = matchMedia("(prefers-color-scheme: dark)");
let audio = $("audio");  // the element that plays; others stand by (listening.js)
let state = {files: 0, upload: Infinity, diffuses: false, indexing: null};
let hits = [], chosen = -1, asked = null, top_ = 10, turn = 0;
let likely = Infinity;  // how many hits are shown at once; those after them are probably not what was asked for

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function clock(seconds, up = false) {
  let s = up ? Math.ceil(seconds - 1e-6) : Math.floor(seconds + 1e-6);
  const h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
  s = String(s % 60).padStart(2, "0");
  return h ? `${h}:${String(m).padStart(2, "0")}:${s}` : `${m}:${s}`;
}
const place = hit => `${clock(hit.start)}–${clock(hit.end, true)}`;
const count = (n, one, many = one + "s") => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const say = text => { $("said").textContent = text; };

async function get(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is diffatr serve still running?");
  }
  const document = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(document.error || `The server answered ${answer.status}.`), {at: document.at});
  return document;
}

function trouble(text = "") {
  if (/^[a-z]+ /.test(text) && !text.startsWith(asked?.name)) text = text[0].toUpperCase() + text.slice(1);
  $("trouble").hidden = !text;
  $("trouble").textContent = text;
}
