/* from noise to answer */

let way = null, step = 0, running = 0, wayTurn = 0;

/* The panel stands folded below the answer; what it shows is asked for when somebody opens it. */
function watch(question) {
  wayTurn++;
  stopWay();
  way = null;
  const wanted = Boolean(question.text && state.diffuses && hits.length && !question.filtered);
  $("way").hidden = !wanted;
  $("columns").classList.toggle("two", wanted);
  if (wanted && $("way").open) fetchWay(question);
}

async function fetchWay(question) {
  const mine = ++wayTurn;
  $("lead").textContent = "";
  try {
    const answer = await get(`/api/trajectory?q=${encodeURIComponent(question.text)}`);
    if (mine !== wayTurn || !answer.levels.length) return;
    way = answer;
    const all = answer.x0_hat.flat();
    way.high = Math.max(...all, 1e-6);
    way.low = Math.min(...all, 0);
    way.peaks = answer.x.map(values => Math.max(...values.map(Math.abs), 1e-6));
    const steps = way.levels.length, last = way.x0_hat[steps - 1], favourite = way.clips[last.indexOf(Math.max(...last))], first = way.clips[0];
    $("scrub").max = steps - 1;
    $("lead").textContent = `The list leads with ${hits[0].name}. ` + (favourite.key === first.key
      ? `So do the words alone (cosine) and diffusion.`
      : `By the words alone (cosine), ${first.name} would; diffusion takes ${favourite.name} for the answer.`);
    $("legend").textContent = `Diffusion begins with noise and settles in ${count(steps, "step")} on what fits your words. Each bar is one of ${count(way.clips.length, "recording")}, from left to right as the cosine has them; the taller, the more it is taken for the answer. The chosen sound is orange, those in the list dark.`;
    if (still.matches) goTo(steps - 1);
    else { goTo(0); runWay(); }
  } catch (error) {
    if (mine === wayTurn) $("lead").textContent = error.message;
  }
}

function goTo(at) {
  step = Math.min(way.levels.length - 1, Math.max(0, at));
  $("scrub").value = Math.round(step);
  drawWay();
}

function runWay() {
  if (!way) return;
  stopWay();
  if (step >= way.levels.length - 1) step = 0;
  const began = performance.now(), from = step, last = way.levels.length - 1, pace = Math.min(last / 3.2, 16);  // steps a second
  $("run").textContent = "Pause";
  const tick = now => {
    goTo(from + Math.max(0, now - began) / 1000 * pace);
    if (step < last) running = requestAnimationFrame(tick);
    else stopWay();
  };
  running = requestAnimationFrame(tick);
}

function stopWay() {
  cancelAnimationFrame(running);
  running = 0;
  $("run").textContent = "Play";
}

function drawWay() {
  if (!way || $("way").hidden || !$("way").open) return;
  const i = Math.floor(step), j = Math.min(i + 1, way.levels.length - 1), part = step - i;
  const mix = (a, b) => a + (b - a) * part, blend = name => way[name][i].map((value, n) => mix(value, way[name][j][n]));
  const key = hits[chosen]?.key, shown = new Set(hits.map(hit => hit.key));
  const x = blend("x"), x0 = blend("x0_hat"), peak = mix(way.peaks[i], way.peaks[j]);
  bars($("chart-x"), x, -peak, peak, key, shown);
  bars($("chart-x0"), x0, way.low, way.high, key, shown);
  const near = Math.round(step), best = way.x0_hat[near].indexOf(Math.max(...way.x0_hat[near]));
  $("scale-x").textContent = `±${peak.toPrecision(2)}`;
  $("scale-x0").textContent = `0–${way.high.toPrecision(2)}`;
  const text = `Step ${near + 1} of ${way.levels.length}, noise level ${way.levels[near] + 1}: ${way.clips[best].name} leads with ${way.x0_hat[near][best].toFixed(2)}`;
  $("now").textContent = text;
  $("scrub").setAttribute("aria-valuetext", text);
  $("chart-x").setAttribute("aria-label", `Bars of x_k at step ${near + 1} of ${way.levels.length}`);
  $("chart-x0").setAttribute("aria-label", text);
}

function bars(canvas, values, low, high, key, shown) {
  const scale = devicePixelRatio || 1, width = Math.round(canvas.clientWidth * scale), height = Math.round(canvas.clientHeight * scale);
  if (!width) return;
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const style = getComputedStyle(document.documentElement), colour = name => style.getPropertyValue(name).trim();
  const ink = colour("--ink"), faint = colour("--faint"), accent = colour("--accent"), context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  const each = width / values.length, gap = each > 3 * scale ? Math.min(each * .28, 3 * scale) : 0, zero = height * high / (high - low || 1);
  context.fillStyle = colour("--line");
  context.fillRect(0, Math.min(height - scale, Math.round(zero - scale / 2)), width, scale);
  values.forEach((value, n) => {
    const clip = way.clips[n], tall = value / (high - low || 1) * height;
    context.fillStyle = clip.key === key ? accent : shown.has(clip.key) ? ink : faint;
    context.fillRect(n * each + gap / 2, zero - Math.max(tall, 0), Math.max(each - gap, 1), Math.max(Math.abs(tall), scale));
  });
}

for (const canvas of [$("chart-x"), $("chart-x0")]) {
  const under = event => {
    const box = canvas.getBoundingClientRect();
    return way?.clips[Math.min(way.clips.length - 1, Math.floor((event.clientX - box.left) / box.width * way.clips.length))];
  };
  canvas.addEventListener("pointermove", event => { canvas.title = under(event)?.name || ""; });
  canvas.addEventListener("click", event => {
    const clip = under(event), i = hits.findIndex(hit => hit.key === clip?.key);
    if (i >= 0) choose(i);
    else if (clip) say(`${clip.name} is not among the sounds shown.`);
  });
}
$("run").addEventListener("click", () => { if (running) stopWay(); else runWay(); });
$("scrub").addEventListener("input", () => { stopWay(); goTo(+$("scrub").value); });
$("way").addEventListener("toggle", () => {
  if (!$("way").open) stopWay();
  else if (!way && asked?.text) fetchWay(asked);
  else drawWay();
});
dark.addEventListener("change", drawWay);
addEventListener("resize", drawWay);
