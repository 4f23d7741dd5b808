/* the index */

let polling = 0;
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
async function look() {
  clearTimeout(polling);
  try {
    const before = state;
    state = await get("/api/state");
    const text = $("state"), busy = Boolean(state.indexing);
    document.body.classList.toggle("local", state.local);
    $("folder").textContent = state.folders.map(each => each.split(/[/\\]/).pop() || each).join(", ");
    $("folder").title = state.folder;
    text.classList.toggle("busy", busy);
    const parts = [count(state.files, "recording")];
    if (busy) parts.unshift(state.indexing[1] ? `Indexing ${state.indexing[0].toLocaleString("en")} of ${state.indexing[1].toLocaleString("en")}` : "Looking for recordings");
    $("skipped").hidden = busy || !state.skipped;
    $("skipped").textContent = `${state.skipped.toLocaleString("en")} skipped`;
    text.textContent = parts.join(" · ");
    if (!busy && before.indexing) {
      lookAtCollections();
      if (!state.problem) say(`Up to date: ${count(state.files, "recording")}.`);
      if (asked && !hits.length && state.files) ask(asked, {push: false});
    }
    if (!busy && state.problem && state.problem !== before.problem && state.files) trouble(state.problem);
    welcome();
    if (busy || !document.hidden) polling = setTimeout(look, busy ? 700 : 10000);  // the folder is followed
  } catch (error) {
    trouble(error.message);
    polling = setTimeout(look, 5000);
  }
}

async function refresh() {
  try {
    trouble("");
    await get("/api/refresh", {method: "POST"});
    state.indexing = [0, 0];
    $("state").classList.add("busy");
    setTimeout(look, 150);
  } catch (error) { trouble(error.message); }
}
