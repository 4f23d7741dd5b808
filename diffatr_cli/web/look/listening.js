/* listening */

const refused = new Set();  // what this browser could not play after all
let sounding = null;  // {hit, direct, offset}: offset is where in its recording the sound that plays begins

function play(i, from) {
  const hit = hits[i];
  const direct = Boolean(hit.type && audio.canPlayType(hit.type) && !refused.has(hit.key));
  const address = direct ? `/clip/${hit.key}` : `/wav/${hit.key}?start=${hit.view[0]}&end=${hit.view[1]}`;
  const offset = direct ? 0 : hit.view[0], second = Math.max(0, from - offset);
  if (sounding) quiet();
  sounding = {hit, direct, offset, from};
  matchLevel();
  if (audio.dataset.address !== address || audio.error) {
    audio.dataset.address = address;
    audio.src = `${address}#t=${second}`;  // the browser goes there before the first sound
  } else audio.currentTime = second;
  audio.play().catch(() => {});
}

function toggle(i) {
  if (sounding && hits[i] === sounding.hit && !audio.paused) audio.pause();
  else if (sounding && hits[i] === sounding.hit && !audio.ended && !audio.error) audio.play().catch(() => {});
  else play(i, hits[i].start);
}

function quiet() {
  sounding.hit.parts.needle.hidden = true;
  label(sounding.hit, "Play");
}

const SPEEDS = [1, .5, .75, 1.25, 1.5, 2];
let looped = false, speed = 0, levels = null;
const speedText = () => `${SPEEDS[speed].toLocaleString("en")}×`;
const everywhere = (what, does) => { for (const button of list.querySelectorAll(`.${what}`)) does(button); };

function loop() {
  looped = !looped;
  everywhere("loop", button => button.setAttribute("aria-pressed", String(looped)));
  say(looped ? "Each hit plays over and over." : "Sounds play to their end.");
}

function faster() {
  speed = (speed + 1) % SPEEDS.length;
  audio.preservesPitch = true;
  audio.defaultPlaybackRate = audio.playbackRate = SPEEDS[speed];
  everywhere("speed", button => { button.firstChild.textContent = speedText(); });
}

/* The sound goes through a gain from the first time on that levels are to be equal; a page may begin that only by somebody's hand. */
function level() {
  if (levels) levels.on = !levels.on;
  else {
    const context = new AudioContext(), gain = context.createGain();
    context.createMediaElementSource(audio).connect(gain).connect(context.destination);
    levels = {context, gain, on: true};
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

const label = (hit, text) => { hit.parts.article.querySelector(".play span").textContent = text; };

function needle() {
  if (!sounding) return;
  const {hit, offset} = sounding, [from, to] = hit.view, now = audio.currentTime + offset;
  if (looped && !audio.paused && now >= hit.end - .02 && now < hit.end + .5) audio.currentTime = hit.start - offset;
  const part = (now - from) / (to - from || 1);
  hit.parts.needle.hidden = part < 0 || part > 1 || audio.readyState < 1;
  hit.parts.needle.style.left = `${100 * part}%`;
  if (!audio.paused) requestAnimationFrame(needle);
}
audio.addEventListener("playing", () => { if (sounding) { label(sounding.hit, "Pause"); needle(); } });
audio.addEventListener("pause", () => { if (sounding) label(sounding.hit, "Play"); });
audio.addEventListener("seeked", needle);
audio.addEventListener("ended", () => {
  if (sounding && looped) return play(hits.indexOf(sounding.hit), sounding.hit.start);
  if (sounding) { quiet(); sounding = null; }
});
audio.addEventListener("error", async () => {
  if (!sounding) return;
  const {hit, direct, from} = sounding, address = audio.dataset.address, i = hits.indexOf(hit);
  quiet();
  sounding = null;
  try {
    const answer = await fetch(address, {headers: {Range: "bytes=0-0"}});
    if (!answer.ok) throw new Error((await answer.json()).error);
    if (!direct || i < 0) throw new Error(`${hit.name}: this browser cannot play it.`);
    refused.add(hit.key);
    play(i, from);
  } catch (error) {
    trouble(error.message);
  }
});
