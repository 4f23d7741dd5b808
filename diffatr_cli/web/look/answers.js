/* answers */

function verdict(title, ...paragraphs) {
  $("verdict").className = "";
  $("verdict").replaceChildren(...(title ? [make("h1", {}, ...title)] : []), ...paragraphs.map(text => make("p", {}, text)));
}

function welcome() {
  browse();
  if (asked) return;
  if (state.files) {
    verdict(["Describe a sound in your own words."], `${count(state.files, "recording")} ${state.files === 1 ? "lies" : "lie"} ready to be heard.`);
    $("verdict").append(make("p", {class: "hint keyed"}, make("kbd", {}, "Enter"), " searches", make("kbd", {}, "/"), " comes back here", make("kbd", {}, "?"), " shows all keys"));
  }
  else if (state.indexing) verdict(["Listening to your recordings for the first time."], "You can ask as soon as the first of them are known.");
  else verdict(["There is nothing to hear here yet."], state.problem || "Put recordings into the folder, then refresh.");
}

function clear() {
  hits = []; chosen = -1;
  list.hidden = true;
  selectNone();
  list.replaceChildren();
  fold(Infinity);
  $("more").hidden = true;
  verdict("");
  stopWay();
  $("way").hidden = true;
  $("columns").classList.remove("two", "weak");
}

function show(answer, question) {
  seen.disconnect();
  hits = answer.hits;
  list.hidden = !hits.length;
  chosen = -1;
  const weak = !(answer.certain || question.collection);
  $("columns").classList.toggle("weak", weak);
  list.replaceChildren(...hits.map((hit, i) => row(hit, i, answer.calibrated, weak || Boolean(question.collection))));
  keepSelection(top_ > first(question));
  $("more").dataset.none = question.collection ? hits.length >= answer.all : hits.length < top_ || hits.length >= answer.files - (question.key ? 1 : 0) || top_ >= 100;
  question.filtered = Boolean(answer.filters?.length);
  const unnamed = hits.findIndex(hit => hit.by === "sound"), least = Math.min(.5, Math.max(...hits.map(hit => hit.score)) / 2);
  const promising = hits.findLastIndex((hit, i) => !i || hit.by === "name" || hit.score >= least) + 1;
  fold(top_ > first(question) ? Infinity : weak ? (unnamed < 0 ? hits.length : unnamed) : answer.calibrated ? promising : Infinity);
  const title = question.key ? ["More like ", make("em", {}, make("bdi", {}, question.name))] : question.file ? ["What sounds like ", make("em", {}, make("bdi", {}, question.name))] : null;
  if (question.collection) {
    tellCollection(answer);
    say(count(answer.all, "sound"));
    for (const element of list.querySelectorAll(".hit")) seen.observe(element);
    return;
  }
  if (!hits.length) {
    if (state.indexing && !answer.files) verdict(["Nothing is known yet."], "The recordings are being listened to; the answer comes as soon as the first are known.");
    else if (question.filtered && !answer.files) verdict(title || ["Nothing was found."], "No file fits the filters.");
    else if (question.by === "name") verdict(["Nothing was found."], "No name and no metadata has these words.");
    else verdict(title || ["Nothing was found."], answer.files > 1 ? "No recording could be compared with it." : `There is no other recording ${question.filtered ? "that fits the filters" : "in the folder"}.`);
  } else if (answer.verdict === "negated") {
    verdict(["This names what you do not want."], "The model looks for what is named, also where the text says not.");
  } else if (answer.verdict === "unknown") {
    verdict(["No sound by that name was learned."], answer.remark.replace(/^[^;]*; n/, "N"));
  } else if (weak) {
    verdict(["Nothing here sounds like that."], ...(likely ? ["These are called so."] : []));
    $("verdict").className = "nothing";
  } else verdict(title || (question.not ? ["Without what sounds like ", make("em", {}, make("bdi", {}, question.not))] : null));
  offer(answer);
  if (answer.note) $("verdict").append(make("p", {}, answer.note));
  say(hits.length ? `${likely ? count(Math.min(likely, hits.length), "sound") : "None"} of ${answer.files.toLocaleString("en")}${likely ? ", best first" : ""} · ${answer.seconds < 0.1 ? Math.max(1, Math.round(answer.seconds * 1000)) + " ms" : answer.seconds.toFixed(1) + " s"}` : "No sounds.");
  for (const element of list.querySelectorAll(".hit")) seen.observe(element);
}

/* What was probably meant, as a button. */
function offer(answer) {
  const {negation, suggestion} = answer;
  const meant = negation?.wanted ? {text: negation.wanted, not: negation.unwanted} : suggestion ? {text: suggestion} : null;
  if (!meant) return;
  if (meant.not && $("by").value === "name") meant.by = "both";
  meant.text = [meant.text, ...answer.filters].join(" ");
  const told = meant.not ? `Search for “${meant.text}” without “${meant.not}”` : `Search for “${meant.text}”`;
  $("verdict").append(make("p", {}, make("button", {type: "button", id: "meant", onclick: () => ask(meant)}, told)));
}

/* What a score says, for those who point at it or choose it. */
function means(hit, calibrated) {
  if (!calibrated) return "A score that only ranks: higher is nearer to what you asked for.";
  const ten = Math.round(hit.score * 10);
  return `Of ten sounds with this percentage, about ${ten === 0 ? "none is" : ten === 1 ? "one is" : ten === 10 ? "all are" : `${ten} are`} what was asked for.`;
}

function explain(i, calibrated) {
  const article = hits[i].parts.article, there = article.querySelector(".meaning");
  if (there) there.remove();
  else article.querySelector(".meta").after(make("p", {class: "meaning", role: "status"}, means(hits[i], calibrated)));
}

/* What is known of a file: text, never anything else. */
function facts(hit) {
  const {format, channels, rate, date, metadata} = hit.facts, layout = {1: "mono", 2: "stereo"}[channels] || (channels ? `${channels} channels` : null);
  const known = [["format", format], ["channels", layout], ["sample rate", rate ? `${(rate / 1000).toLocaleString("en")} kHz` : null], ["date", date], ...Object.entries(metadata)];
  return make("details", {class: "facts"}, make("summary", {}, "About the file"),
    make("dl", {}, ...known.filter(([, value]) => value).flatMap(([name, value]) => [make("dt", {}, make("bdi", {}, name)), make("dd", {}, make("bdi", {}, value))])));
}

/* Show so many hits; the rest is a button away. */
function fold(count_) {
  likely = count_;
  const rest = Math.max(0, hits.length - likely);
  [...list.children].forEach((item, i) => { item.hidden = i >= likely; });
  $("near").hidden = !rest;
  $("near").textContent = `Nearest, but probably not: ${count(rest, "sound")}`;
  $("near").setAttribute("aria-expanded", "false");
  $("more").hidden = Boolean(rest) || $("more").dataset.none === "true";
}

const unfold = () => { fold(Infinity); for (const hit of hits) { seen.unobserve(hit.parts.article); if (!hit.parts.image.src) seen.observe(hit.parts.article); } };

/* Where a picture was pressed. Choosing its hit moves the list, so that what is let go may be another element. */
let pressed = null;
addEventListener("pointerdown", () => { pressed = null; }, {capture: true});
list.addEventListener("click", event => {
  const where = pressed;
  pressed = null;
  if (where && !(event.shiftKey || event.ctrlKey || event.metaKey)) play(where.i, where.second);
});

function row(hit, i, calibrated, weak) {
  const dot = hit.name.lastIndexOf("."), stem = dot > 0 ? hit.name.slice(0, dot) : hit.name, suffix = dot > 0 ? hit.name.slice(dot) : "";
  const cryptic = hit.folder && !/\p{L}{3}/u.test(stem);  // 0012, A3, 2024-05-01: the folder says more
  const folder = cryptic ? hit.folder.split(/[/\\]/).pop() : "";
  const [from, to] = hit.view, part = second => Math.min(1, Math.max(0, (second - from) / (to - from || 1)));
  const percent = hit.score < .01 ? "< 1" : hit.score > .99 ? "> 99" : Math.round(hit.score * 100);
  const score = weak ? "" : calibrated ? `${percent} %` : hit.score.toFixed(3);
  const sound = make("div", {class: "sound", onpointerdown: event => {
    const box = sound.getBoundingClientRect();
    pressed = {i, second: from + (event.clientX - box.left) / box.width * (to - from)};
  }});
  const image = make("img", {alt: `Spectrogram of ${hit.name}, ${clock(from)} to ${clock(to, true)}, the hit at ${place(hit)}`, onerror: () => image.classList.add("gone")});
  const source = make("source", {media: "(prefers-color-scheme: dark)"});
  const wave = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  wave.setAttribute("preserveAspectRatio", "none");
  wave.setAttribute("aria-hidden", "true");
  const before = make("div", {class: "shade"}), after = make("div", {class: "shade"}), mark = make("div", {class: "window"}), needle = make("div", {class: "needle", hidden: ""});
  before.style.left = 0; before.style.width = `${100 * part(hit.start)}%`;
  after.style.right = 0; after.style.width = `${100 * (1 - part(hit.end))}%`;
  mark.style.left = before.style.width; mark.style.right = after.style.width;
  sound.append(make("picture", {}, source, image), wave, before, after, mark, needle);
  const meta = make("p", {class: "meta number", id: `meta-${i}`});
  if (asked?.text) meta.append(make("span", {class: `found by-${hit.by}`}, {sound: "by sound", name: "by name", both: "by sound and name"}[hit.by]));
  if (hit.folder) meta.append(make("bdi", {}, hit.folder), " · ");
  meta.append(hit.end - hit.start < hit.seconds - .05 ? `${place(hit)} of ${clock(hit.seconds, true)}` : clock(hit.seconds, true));
  const article = make("div", {class: "hit", role: "gridcell", "aria-selected": "false", tabindex: i ? -1 : 0, "aria-labelledby": `rank-${i} name-${i} score-${i}`, "aria-describedby": `meta-${i}`, onfocusin: () => choose(i, {focus: false}), onpointerdown: event => { if (!event.shiftKey) choose(i, {focus: false}); }, onmousedown: event => { if (event.shiftKey) event.preventDefault(); }, onclick: event => pick(i, event)},
    make("span", {class: "rank number", id: `rank-${i}`}, String(hit.rank)),
    make("h2", {class: "name", id: `name-${i}`}, ...(folder ? [make("bdi", {class: "of"}, folder), make("span", {}, " / ")] : []), make("bdi", {}, stem, make("span", {}, suffix))),
    make("span", {class: "score number", id: `score-${i}`}, ...(score ? [make("button", {type: "button", tabindex: -1, "aria-label": `${score}. ${means(hit, calibrated)}`, title: means(hit, calibrated), onclick: () => explain(i, calibrated)}, score)] : [])),
    meta, sound,
    make("p", {class: "axis number", "aria-hidden": "true"}, make("span", {}, clock(from)), make("span", {}, clock(to, true))),
    make("div", {class: "actions keyed"},
      make("button", {type: "button", class: "play", onclick: () => toggle(i)}, make("span", {}, "Play"), make("kbd", {"aria-hidden": "true"}, "Enter")),
      make("button", {type: "button", class: "loop", "aria-pressed": String(looped), onclick: loop}, "Loop", make("kbd", {"aria-hidden": "true"}, "l")),
      make("button", {type: "button", class: "speed", onclick: faster}, make("span", {}, speedText()), make("kbd", {"aria-hidden": "true"}, "s")),
      make("button", {type: "button", class: "level", "aria-pressed": String(Boolean(levels?.on)), onclick: level}, "Level", make("kbd", {"aria-hidden": "true"}, "v")),
      make("button", {type: "button", class: "like", onclick: () => like(i)}, "More like this", make("kbd", {"aria-hidden": "true"}, "m")),
      make("button", {type: "button", class: "copy", onclick: () => copy(i)}, make("span", {}, "Copy path"), make("kbd", {"aria-hidden": "true"}, "c")),
      ...waysOut(hit, i)),
    ...(hit.facts ? [facts(hit)] : []));
  hit.parts = {article, image, source, wave, needle};
  return make("div", {class: "line", role: "row"}, article);
}

/* Pictures are asked for when their hit comes near the screen. */
const seen = new IntersectionObserver(entries => {
  for (const entry of entries) {
    const hit = hits.find(each => each.parts.article === entry.target);
    if (!entry.isIntersecting || !hit) continue;
    seen.unobserve(entry.target);
    const part = `start=${hit.view[0]}&end=${hit.view[1]}`;
    hit.parts.source.srcset = `/spectrogram/${hit.key}?${part}&theme=dark`;
    hit.parts.image.src = `/spectrogram/${hit.key}?${part}&theme=light`;
    get(`/api/outline/${hit.key}?${part}`).then(answer => draw(hit, answer.outline)).catch(() => {});
  }
}, {rootMargin: "400px"});

function draw(hit, outline) {
  const n = outline.length, peaks = outline.map(([low, high]) => Math.max(high, -low)).sort((a, b) => a - b), loudest = Math.max(50, peaks.at(-1));
  hit.loud = peaks[Math.floor(.9 * (n - 1))];  // one crack does not make a quiet sound a loud one
  if (sounding?.hit === hit) matchLevel();
  const shape = (a, b) => {
    const above = [], below = [];
    for (let i = a; i < b; i++) {
      const [low, high] = outline[i];
      above.push(`${i},${(-Math.max(high / loudest, .02)).toFixed(3)}`, `${i + 1},${(-Math.max(high / loudest, .02)).toFixed(3)}`);
      below.unshift(`${i + 1},${(-Math.min(low / loudest, -.02)).toFixed(3)}`, `${i},${(-Math.min(low / loudest, -.02)).toFixed(3)}`);
    }
    return `M${above.concat(below).join("L")}Z`;
  };
  const [from, to] = hit.view, column = second => Math.min(n, Math.max(0, Math.round((second - from) / (to - from || 1) * n)));
  const a = Math.min(column(hit.start), n - 1), b = Math.max(column(hit.end), a + 1);
  hit.parts.wave.setAttribute("viewBox", `0 -1 ${n} 2`);
  for (const [name, d] of [["wave-all", shape(0, n)], ["wave-in", shape(a, b)]]) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", name);
    path.setAttribute("d", d);
    hit.parts.wave.append(path);
  }
}

function choose(i, {focus = true} = {}) {
  if (!hits.length) return;
  i = Math.min(hits.length - 1, Math.max(0, i));
  if (i >= likely) {
    if (!focus || (i === 0 && chosen < 0)) return;  // folded away, and nobody went there
    unfold();
  }
  if (i !== chosen) {
    for (const [j, hit] of hits.entries()) {
      hit.parts.article.classList.toggle("chosen", j === i);
      hit.parts.article.tabIndex = j === i ? 0 : -1;
      if (j === i) hit.parts.article.setAttribute("aria-current", "true");
      else hit.parts.article.removeAttribute("aria-current");
    }
    chosen = i;
    prepareAround(i);
    drawWay();
  }
  if (focus) {
    const article = hits[i].parts.article;
    article.focus({preventScroll: true});
    article.scrollIntoView({block: "nearest", behavior: still.matches ? "auto" : "smooth"});
  }
}

function like(i) {
  const hit = hits[i];
  if (hit) ask({key: hit.key, start: hit.start, name: hit.name, within: input.value});
}

async function copy(i) {
  const hit = hits[i];
  if (!hit) return;
  try {
    await navigator.clipboard.writeText(hit.path);
  } catch {  // a page that is not on this machine has no clipboard of its own
    const text = make("textarea", {readonly: "", class: "unseen"}), back = document.activeElement;
    text.value = hit.path;
    document.body.append(text);
    text.select();
    const done = document.execCommand("copy");
    text.remove();
    back?.focus({preventScroll: true});
    if (!done) return trouble(`The browser gives no access to the clipboard. The path is ${hit.path}`);
  }
  const label = hit.parts.article.querySelector(".copy span");
  label.textContent = "Copied";
  setTimeout(() => { label.textContent = "Copy path"; }, 1600);
  say(`Copied ${hit.path}`);
}
