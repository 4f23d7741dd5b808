/* listening */

const refused = new Set();  // what this browser could not play after all
let sounding = null;  // {hit, direct, offset}: offset is where in its recording the sound that plays begins

/* Where a sound comes from: its file, or, where the browser plays no such file, a WAV of the part in view. */
function sourceOf(hit) {
  const direct = Boolean(hit.type && audio.canPlayType(hit.type) && !refused.has(hit.key));
  return {direct, address: direct ? `/clip/${hit.key}` : `/wav/${hit.key}?start=${hit.view[0]}&end=${hit.view[1]}`, offset: direct ? 0 : hit.view[0]};
}

const play = (i, from) => playHit(hits[i], from);

function playHit(hit, from) {
  const {direct, address, offset} = sourceOf(hit), second = Math.max(0, from - offset), before = audio;
  if (sounding) quiet();
  stopRing();
  sounding = {hit, direct, offset, from};
  if (audio.dataset.address !== address || audio.error) {
    const ready = standby.get(address);
    if (ready && !ready.error) {
      standby.delete(address);
      audio = ready;
      if (Math.abs(audio.currentTime - second) > .01) audio.currentTime = second;
    } else {
      audio.dataset.address = address;
      audio.src = `${address}#t=${second}`;  // the browser goes there before the first sound
    }
  } else audio.currentTime = second;
  audio.playbackRate = SPEEDS[speed];
  matchLevel();
  audio.play().catch(error => { if (error.name === "NotAllowedError") say("The browser lets nothing sound before you click or press a key."); });
  if (hit.parts) prepareAround(hits.indexOf(hit));
  if (before === audio) return;
  before.pause();  // after the other has begun
  standBy(before);
}

const toggle = i => toggleHit(hits[i]);

function toggleHit(hit) {
  if (sounding && hit === sounding.hit && !audio.paused) audio.pause();
  else if (sounding && hit === sounding.hit && !audio.ended && !audio.error) audio.play().catch(() => {});
  else playHit(hit, hit.start);
}

function quiet() {
  if (sounding.hit.parts) sounding.hit.parts.needle.hidden = true;
  label(sounding.hit, "Play");
}

/* What may be played next is fetched into elements of its own, at the place where it will begin. Each may hold a connection to the
   server, of which a browser has six: so there are few. */
const STANDBY = 2, standby = new Map();
let preparing = 0;

function prepare(hit) {
  const {address, offset} = sourceOf(hit);
  if (audio.dataset.address === address) return;
  const there = standby.get(address);
  if (there) { standby.delete(address); standby.set(address, there); return; }  // the last to go
  const element = new Audio();
  element.preload = "auto";
  element.preservesPitch = true;
  element.defaultPlaybackRate = SPEEDS[speed];
  element.dataset.address = address;
  element.src = `${address}#t=${Math.max(0, hit.start - offset)}`;
  attend(element);
  if (levels) throughGain(element);
  standBy(element);
}

function standBy(element) {
  if (element.dataset.address) standby.set(element.dataset.address, element);
  while (standby.size > STANDBY) {
    const [address, oldest] = standby.entries().next().value;
    standby.delete(address);
    oldest.removeAttribute("src");  // lets its connection go
    oldest.load();
  }
}

/* The neighbours of a hit, once the keys rest on it for a moment. */
function prepareAround(i) {
  clearTimeout(preparing);
  if (!sounding || navigator.connection?.saveData) return;  // nobody listens yet, or every byte counts
  preparing = setTimeout(() => { for (const hit of [hits[i - 1], hits[i + 1]]) if (hit) prepare(hit); }, 100);
}

/* Go to a hit by a key; where one plays, the next one plays then. */
function goAlong(i) {
  const going = sounding?.hit.parts && !audio.paused, before = chosen;
  move(i);
  if (going && chosen !== before) play(chosen, hits[chosen].start);
}

function jump(seconds) {
  if (ring) audio.currentTime = ringPlace() - sounding.offset;
  stopRing();
  audio.currentTime = Math.max(0, audio.currentTime + seconds);
}

const SPEEDS = [1, .5, .75, 1.25, 1.5, 2];
let looped = false, speed = 0, levels = null;
const speedText = () => `${SPEEDS[speed].toLocaleString("en")}×`;
const everywhere = (what, does) => { for (const button of list.querySelectorAll(`.${what}`)) does(button); };

function loop() {
  looped = !looped;
  if (looped) startRing();
  else if (ring) { audio.currentTime = ringPlace() - sounding.offset; stopRing(); }
  everywhere("loop", button => button.setAttribute("aria-pressed", String(looped)));
  say(looped ? "Each hit plays over and over." : "Sounds play to their end.");
}

function faster() {
  speed = (speed + 1) % SPEEDS.length;
  for (const element of [audio, ...standby.values()]) {
    element.preservesPitch = true;
    element.defaultPlaybackRate = element.playbackRate = SPEEDS[speed];
  }
  if (SPEEDS[speed] === 1) startRing();
  else stopRing();
  everywhere("speed", button => { button.firstChild.textContent = speedText(); });
}

/* A page may begin this only by somebody's hand. */
let mixed = null;
function mixer() {
  if (!mixed) {
    const context = new AudioContext(), gain = context.createGain();
    gain.connect(context.destination);
    mixed = {context, gain};
  }
  mixed.context.resume();
  return mixed;
}

const throughGain = element => levels.context.createMediaElementSource(element).connect(levels.gain);

/* A hit over and over: Web Audio joins its end to its beginning without a gap, and the element that keys and buttons steer goes
   along unheard. Slower or faster the element itself goes back, which takes a moment: Web Audio has no speed at the same pitch. */
let ring = null;  // {hit, source, began, from}: what sounds over and over, since when by its clock, from which second of it
const rings = new Map();  // decoded parts, by the names of their hits; a promise while one comes
const ringPlace = () => ring.hit.start + (ring.context.currentTime - ring.began + ring.from) % ring.source.buffer.duration;

function startRing() {
  if (ring || !looped || !sounding || audio.paused || SPEEDS[speed] !== 1) return;
  const {hit, offset} = sounding, name = named(hit), {context, gain} = mixer(), buffer = rings.get(name), now = audio.currentTime + offset;
  if (!buffer) {
    const coming = fetch(partOf(hit)).then(answer => answer.ok ? answer.arrayBuffer() : Promise.reject(answer.status)).then(bytes => context.decodeAudioData(bytes));
    rings.set(name, coming);
    if (rings.size > 4) rings.delete(rings.keys().next().value);
    coming.then(decoded => { rings.set(name, decoded); startRing(); }).catch(() => {});  // the element goes on looping
  }
  if (!(buffer instanceof AudioBuffer) || now < hit.start - .05 || now >= hit.end) return;
  const source = context.createBufferSource(), from = Math.max(0, now - hit.start) % buffer.duration;
  source.buffer = buffer;
  source.loop = true;
  source.connect(gain);
  source.start(0, from);
  audio.muted = true;
  ring = {hit, source, context, from, began: context.currentTime};
}

function stopRing() {
  if (!ring) return;
  ring.source.stop();
  ring.source.disconnect();
  ring = null;
  audio.muted = false;
}

/* The sound goes through the gain from the first time on that levels are to be equal. */
function level() {
  if (levels) levels.on = !levels.on;
  else {
    levels = {...mixer(), on: true};
    for (const element of [audio, ...standby.values()]) throughGain(element);
  }
  matchLevel();
  everywhere("level", button => button.setAttribute("aria-pressed", String(levels.on)));
  say(levels.on ? "All sounds are equally loud." : "Sounds are as loud as they were recorded.");
}

function matchLevel() {
  if (!levels) return;
  levels.context.resume();
  const loud = sounding?.hit.loud;
  levels.gain.gain.value = levels.on && loud ? Math.min(16, Math.max(1 / 16, 250 / loud)) : 1;  // peaks at a quarter of full scale
}

function label(hit, text) {
  if (hit.parts) hit.parts.article.querySelector(".play span").textContent = text;
  else if ($("map-what").dot === hit) $("map-toggle").textContent = text;
}

function needle() {
  if (!sounding) return;
  const {hit, offset} = sounding, [from, to] = hit.view, elements = audio.currentTime + offset;
  if (looped && !audio.paused && elements >= hit.end - .02 && elements < hit.end + .5) audio.currentTime = hit.start - offset;
  if (!hit.parts) { if (!audio.paused && looped) requestAnimationFrame(needle); return; }
  const now = ring ? ringPlace() : elements;
  const part = (now - from) / (to - from || 1);
  hit.parts.needle.hidden = part < 0 || part > 1 || audio.readyState < 1;
  hit.parts.needle.style.left = `${100 * part}%`;
  if (!audio.paused) requestAnimationFrame(needle);
}
/* What an element tells counts while it is the one that plays. */
function attend(element) {
  const on = (event, does) => element.addEventListener(event, () => { if (element === audio && sounding) does(); });
  on("playing", () => { label(sounding.hit, "Pause"); startRing(); needle(); });
  on("pause", () => { if (!audio.ended) stopRing(); label(sounding.hit, "Play"); });
  on("seeked", () => { startRing(); needle(); });
  on("ended", () => {
    if (looped && ring) { audio.currentTime = sounding.hit.start - sounding.offset; audio.play().catch(() => {}); return; }
    if (looped) return playHit(sounding.hit, sounding.hit.start);
    quiet();
    sounding = null;
  });
  on("error", async () => {
    const {hit, direct, from} = sounding, address = audio.dataset.address;
    quiet();
    sounding = null;
    try {
      const answer = await fetch(address, {headers: {Range: "bytes=0-0"}});
      if (!answer.ok) throw new Error((await answer.json()).error);
      if (!direct) throw new Error(`${hit.name}: this browser cannot play it.`);
      refused.add(hit.key);
      if (!sounding) playHit(hit, from);
    } catch (error) {
      trouble(error.message);
    }
  });
}
attend(audio);
