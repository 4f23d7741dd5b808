/* the sounds as dots, alike ones together */

const HOVER = 180;  // ms before a dot that is pointed at sounds
const PLAY = "diffatr.map.play";
const view = {x: 0, y: 0, zoom: 1};
let sounds = null, pointed = null, picked = null, mapDue = 0, waiting = 0, regions = [];

async function lookAtMap() {
  if (!$("map").open || mapDue || sounds?.version === state.version || (sounds && state.indexing)) return;
  mapDue = setTimeout(() => { mapDue = 0; if (!$("browse").hidden) lookAtMap(); }, sounds ? 5000 : 1000);
  try {
    if (!sounds) $("map-of").textContent = "The map is being drawn …";
    const answer = await get("/api/map");
    if (answer.ready && answer.version !== sounds?.version) takeMap(answer);
  } catch (error) { $("map-of").textContent = error.message; }
}

function takeMap(answer) {
  const before = picked?.key;
  sounds = answer;
  sounds.dots = answer.dots.map(([key, path, start, end, , x, y, kind]) => {
    const cut = path.lastIndexOf(answer.separator);
    return {key, name: path.slice(cut + 1), folder: cut < 0 ? "" : path.slice(0, cut), start, end, view: [start, end], type: null, x, y, kind};
  });
  regions = regionsOf(sounds.dots);
  pointed = null;
  picked = sounds.dots.find(dot => dot.key === before) || null;
  tellDot(picked);
  const shown = sounds.dots.length;
  $("map-of").textContent = shown < answer.contents ? `A fair sample of ${shown.toLocaleString("en")} of ${count(answer.contents, "different sound")}.` : count(shown, "different sound") + ".";
  $("map-body").hidden = !shown;
  fillMapList();
  drawMap();
}

/* Where each kind is named: at its dot nearest to the middle of them. */
function regionsOf(dots) {
  const middle = values => values.sort((a, b) => a - b)[values.length >> 1];
  return sounds.kinds.map((name, kind) => {
    const own = dots.filter(dot => dot.kind === kind), x = middle(own.map(dot => dot.x)), y = middle(own.map(dot => dot.y));
    const at = own.reduce((best, dot) => Math.hypot(dot.x - x, dot.y - y) < Math.hypot(best.x - x, best.y - y) ? dot : best, own[0]);
    return {name, x: at.x, y: at.y, dots: own};
  }).sort((one, other) => other.dots.length - one.dots.length);
}

const canvas = $("map-canvas");
/* Pixels of one unit, across and down: a wide screen is used, up to what still looks like the same map. */
const units = () => [Math.min(canvas.clientWidth, 1.6 * canvas.clientHeight), Math.min(canvas.clientHeight, canvas.clientWidth)].map(side => side * .46 * view.zoom);
function onScreen({x, y}) {
  const [across, down] = units();
  return [canvas.clientWidth / 2 + (x - view.x) * across, canvas.clientHeight / 2 + (y - view.y) * down];
}

function drawMap() {
  if (!sounds || !canvas.clientWidth) return;
  const scale = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = Math.round(width * scale); canvas.height = Math.round(height * scale);
  const style = getComputedStyle(document.documentElement), colour = name => style.getPropertyValue(name).trim(), context = canvas.getContext("2d");
  const hues = [0, 1, 2, 3, 4, 5].map(i => colour(`--hue-${i}`)), soft = colour("--soft"), ink = colour("--ink"), paper = colour("--paper");
  const radius = Math.min(6, Math.max(2.5, 60 / Math.sqrt(sounds.dots.length)) * Math.sqrt(view.zoom));
  const circle = (dot, r) => { context.beginPath(); context.arc(...onScreen(dot), r, 0, 2 * Math.PI); };
  context.scale(scale, scale);
  for (const dot of sounds.dots) {
    context.fillStyle = dot.kind < 0 ? soft : hues[dot.kind % hues.length];
    circle(dot, radius);
    context.fill();
  }
  context.strokeStyle = ink;
  if (picked) { context.lineWidth = 2; circle(picked, radius + 3); context.stroke(); }
  if (pointed) {
    context.fillStyle = colour("--accent");
    circle(pointed, radius + 2);
    context.fill();
    context.lineWidth = 1.5;
    context.stroke();
  }
  context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  context.textAlign = "center";
  context.lineWidth = 4;
  context.lineJoin = "round";
  context.strokeStyle = paper;
  context.fillStyle = ink;
  const taken = [];
  for (const {name, x, y} of regions) {
    const [left, top] = onScreen({x, y}), half = context.measureText(name).width / 2 + 4, middle = Math.min(width - half, Math.max(half, left)), base = top - radius - 5 < 12 ? top + radius + 14 : top - radius - 5;
    if (left < 0 || left > width || top < 0 || base > height || taken.some(each => Math.abs(each.middle - middle) < each.half + half && Math.abs(each.base - base) < 16)) continue;
    taken.push({middle, base, half});
    context.strokeText(name, middle, base);
    context.fillText(name, middle, base);
  }
}

function dotAt(x, y, reach) {
  let best = null, least = reach;
  for (const dot of sounds?.dots || []) {
    const [left, top] = onScreen(dot), away = Math.hypot(left - x, top - y);
    if (away < least) { best = dot; least = away; }
  }
  return best;
}

const kindOf = dot => dot.kind < 0 ? "" : sounds.kinds[dot.kind];

/* Point at a dot: it sounds after a moment, if it is still pointed at. */
function point(dot) {
  if (dot === pointed) return;
  pointed = dot;
  clearTimeout(waiting);
  if (dot) {
    tellDot(dot);
    if ($("map-play").checked) {
      prepare(dot);
      waiting = setTimeout(() => playHit(dot, dot.start), HOVER);
    }
  } else {
    if (sounding && sounding.hit !== picked && sounds?.dots.includes(sounding.hit)) audio.pause();
    tellDot(picked);
  }
  drawMap();
}

function pickDot(dot) {
  clearTimeout(waiting);
  const same = picked === dot && sounding?.hit === dot;
  picked = pointed = dot;
  tellDot(dot);
  if (same) toggleHit(dot);
  else if (sounding?.hit !== dot || audio.paused) playHit(dot, dot.start);
  drawMap();
}

function tellDot(dot) {
  $("map-what").hidden = !dot;
  if (!dot) return;
  $("map-name").replaceChildren(make("bdi", {}, dot.name), ...(kindOf(dot) ? [` (${kindOf(dot)})`] : []), ...(dot.folder ? [" in ", make("bdi", {}, dot.folder)] : []));
  $("map-what").dot = dot;
  $("map-toggle").textContent = sounding?.hit === dot && !audio.paused ? "Pause" : "Play";
}

const likeDot = dot => ask({key: dot.key, start: dot.start, name: dot.name, within: input.value});

function zoomTo(zoom, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const before = units(), dx = x - canvas.clientWidth / 2, dy = y - canvas.clientHeight / 2;
  view.zoom = Math.min(40, Math.max(1, zoom));
  const [across, down] = units();
  view.x += dx / before[0] - dx / across;
  view.y += dy / before[1] - dy / down;
  keepInside();
}

function keepInside() {
  view.x = Math.min(1, Math.max(-1, view.x));
  view.y = Math.min(1, Math.max(-1, view.y));
  if (view.zoom === 1) view.x = view.y = 0;
  drawMap();
}

function pan(x, y) {
  const [across, down] = units();
  view.x -= x / across;
  view.y -= y / down;
  keepInside();
}

/* The next dot that way: near, and rather straight ahead. */
function step_(dx, dy) {
  const from = pointed || picked;
  if (!from) return point(dotAt(canvas.clientWidth / 2, canvas.clientHeight / 2, Infinity));
  let best = null, least = Infinity;
  for (const dot of sounds.dots) {
    const x = dot.x - from.x, y = dot.y - from.y, along = x * dx + y * dy, across = Math.abs(x * dy - y * dx), cost = along + 2 * across;
    if (along > 0 && across <= 2 * along && cost < least) { best = dot; least = cost; }
  }
  if (!best) return;
  const [left, top] = onScreen(best);
  if (left < 20 || top < 20 || left > canvas.clientWidth - 20 || top > canvas.clientHeight - 20) { view.x = best.x; view.y = best.y; keepInside(); }
  point(best);
}

/* fingers and mouse: one drags, two zoom, a tap picks */
const fingers = new Map();
let moved = 0;
const placeIn = event => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
canvas.addEventListener("pointerdown", event => {
  canvas.setPointerCapture(event.pointerId);
  if (!fingers.size) moved = 0;
  fingers.set(event.pointerId, placeIn(event));
});
canvas.addEventListener("pointermove", event => {
  const [x, y] = placeIn(event), before = fingers.get(event.pointerId);
  if (!before) return point(dotAt(x, y, 14));
  const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
  moved += Math.hypot(x - before[0], y - before[1]);
  fingers.set(event.pointerId, [x, y]);
  if (other) {
    const apart = (a, b) => Math.max(10, Math.hypot(a[0] - b[0], a[1] - b[1]));
    zoomTo(view.zoom * apart([x, y], other) / apart(before, other), (x + other[0]) / 2, (y + other[1]) / 2);
  } else if (moved > 5) pan(x - before[0], y - before[1]);
});
const lift = event => {
  if (!fingers.delete(event.pointerId) || event.type !== "pointerup" || moved > 5 || fingers.size) return;
  const dot = dotAt(...placeIn(event), event.pointerType === "mouse" ? 14 : 24);
  if (dot) pickDot(dot);
};
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);
canvas.addEventListener("pointerleave", () => { if (!fingers.size) point(null); });
canvas.addEventListener("wheel", event => {
  if (!event.ctrlKey && document.activeElement !== $("map-view")) return;  // the page is scrolled over it
  event.preventDefault();
  zoomTo(view.zoom * Math.exp(-event.deltaY * (event.deltaMode ? .05 : .002)), ...placeIn(event));
}, {passive: false});
$("map-view").addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || !sounds) return;
  const way_ = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key], dot = pointed || picked;
  if (way_ && event.shiftKey) pan(-60 * way_[0], -60 * way_[1]);
  else if (way_) step_(...way_);
  else if (event.key === "+" || event.key === "=") zoomTo(view.zoom * 1.5, ...(dot ? onScreen(dot) : []));
  else if (event.key === "-") zoomTo(view.zoom / 1.5);
  else if (event.key === "0") zoomTo(1);
  else if ((event.key === "Enter" || event.key === " ") && dot) pickDot(dot);
  else if (event.key === "m" && dot) likeDot(dot);
  else return;
  event.preventDefault();
  event.stopPropagation();
});
$("map-view").addEventListener("blur", () => { clearTimeout(waiting); });
$("map-in").addEventListener("click", () => zoomTo(view.zoom * 1.5));
$("map-out").addEventListener("click", () => zoomTo(view.zoom / 1.5));
$("map-whole").addEventListener("click", () => zoomTo(1));
$("map-toggle").addEventListener("click", () => pickDot($("map-what").dot));
$("map-like").addEventListener("click", () => likeDot($("map-what").dot));
$("map-play").checked = kept.read(PLAY) !== false;
$("map-play").addEventListener("change", () => kept.write(PLAY, $("map-play").checked));
$("map").addEventListener("toggle", () => { if ($("map").open) { lookAtMap(); drawMap(); } });
dark.addEventListener("change", drawMap);
new ResizeObserver(drawMap).observe(canvas);

/* the same as a list, for keyboards and screen readers */

const AT_ONCE = 100;

function fillMapList() {
  const far = value => value < -.34 ? 0 : value > .34 ? 2 : 1, places = new Map();
  for (const dot of sounds.dots.filter(each => each.kind < 0)) {
    const name = [["upper left", "upper middle", "upper right"], ["left", "middle", "right"], ["lower left", "lower middle", "lower right"]][far(dot.y)][far(dot.x)];
    places.set(name, [...(places.get(name) || []), dot]);
  }
  const others = [...places].map(([name, dots]) => ({name: `${regions.length ? "Other sounds, on the" : "On the"} ${name} of the map`, dots}));
  $("map-list").replaceChildren(...[...regions, ...others].map(({name, dots}) => {
    const items = make("ul");
    const group = make("details", {ontoggle: () => { if (group.open && !items.children.length) listDots(items, dots); }}, make("summary", {}, make("bdi", {}, name), " ", make("span", {class: "aside number"}, count(dots.length, "sound"))), items);
    return make("li", {}, group);
  }));
}

function listDots(items, dots) {
  const from = items.children.length;
  items.append(...dots.slice(from, from + AT_ONCE).map(dot => make("li", {},
    make("button", {type: "button", class: "called", onclick: () => pickDot(dot)}, make("bdi", {}, dot.name), make("span", {class: "unseen"}, ", play or pause")),
    make("span", {class: "aside number"}, place(dot)),
    make("button", {type: "button", "aria-label": `More like ${dot.name}`, onclick: () => likeDot(dot)}, "More like this"))));
  if (items.children.length >= dots.length) return;
  const more = make("button", {type: "button", onclick: () => { const next = items.children.length - 1; more.parentElement.remove(); listDots(items, dots); items.children[next].querySelector("button").focus(); }}, `Show more of ${count(dots.length, "sound")}`);
  items.append(make("li", {}, more));
}
