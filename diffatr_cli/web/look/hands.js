/* hands */

$("ask").addEventListener("submit", event => {
  event.preventDefault();
  const text = input.value.trim();
  if (text) ask({text, by: $("by").value});
});
$("by").addEventListener("change", () => { const text = input.value.trim(); if (asked?.text && text) ask({text, not: asked.not, by: $("by").value}); });
$("more").addEventListener("click", () => ask(asked, {top: asked.collection ? top_ + first(asked) : Math.min(100, top_ + 10), push: false}));
$("refresh").addEventListener("click", refresh);
$("near").addEventListener("click", () => { const first = likely; unfold(); choose(first); });
$("skipped").addEventListener("click", async () => {
  try {
    const answer = await get("/api/skipped");
    $("reasons").replaceChildren(...answer.skipped.map(each => make("li", {}, make("bdi", {}, each.path), make("p", {}, each.reason))));
    $("unread").showModal();
  } catch (error) { trouble(error.message); }
});
$("unread-close").addEventListener("click", () => $("unread").close());
$("unread").addEventListener("click", event => { if (event.target === $("unread")) $("unread").close(); });
$("help").addEventListener("click", () => $("keys").showModal());
$("close").addEventListener("click", () => $("keys").close());
$("keys").addEventListener("click", event => { if (event.target === $("keys")) $("keys").close(); });
$("file").addEventListener("change", () => {
  const file = $("file").files[0];
  if (file) ask({file, name: file.name, within: input.value});
  $("file").value = "";
});

let depth = 0;
const holdsFiles = event => !carrying && [...(event.dataTransfer?.types || [])].includes("Files");
addEventListener("dragenter", event => { if (holdsFiles(event)) { event.preventDefault(); depth++; $("drop").hidden = false; } });
addEventListener("dragover", event => { if (holdsFiles(event)) event.preventDefault(); });
addEventListener("dragleave", event => { if (holdsFiles(event) && --depth <= 0) { depth = 0; $("drop").hidden = true; } });
addEventListener("drop", event => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  depth = 0;
  $("drop").hidden = true;
  const file = event.dataTransfer.files[0];
  if (file) ask({file, name: file.name, within: input.value});
});

addEventListener("keydown", event => {
  if (event.isComposing || event.altKey || document.querySelector("dialog[open]")) return;
  if ((event.ctrlKey || event.metaKey) && event.target !== input) steerSelection(event);
  if (event.ctrlKey || event.metaKey) return;
  const target = event.target, key = event.key, control = target.closest?.("button, summary, input, a, label");
  if (target.closest?.("select")) return;
  const act = (does, ...args) => { event.preventDefault(); does(...args); };
  if (target === input) {
    if (key === "ArrowDown" && hits.length) act(choose, Math.max(0, chosen));
    else if (key === "Escape") act(() => { if (hits.length) choose(Math.max(0, chosen)); else input.blur(); });
    return;
  }
  if (key === "/") return act(() => { input.focus(); input.select(); });
  if (key === "?") return act(() => $("keys").showModal());
  if (key === "r") return act(refresh);
  if (key === "u") return act(() => $("file").click());
  if (key === "Escape") { audio.pause(); selectNone(); return; }
  if (key === "g") return act(openCollections);
  if (key === "d" && !$("way").hidden) return act(() => { if (!$("way").open || !way) $("way").open = true; else if (running) stopWay(); else runWay(); });
  if (key === "s" && hits.length) return act(faster);
  if (key === "l" && hits.length) return act(loop);
  if (key === "v" && hits.length) return act(level);
  if (!hits.length || target === $("scrub")) return;
  const here = Math.max(0, chosen);
  const goes = {j: chosen + 1, ArrowDown: chosen + 1, k: Math.max(0, chosen - 1), ArrowUp: chosen - 1, Home: 0, End: hits.length - 1}[key];
  if (goes !== undefined && event.shiftKey) act(extend, Math.max(0, goes));
  else if (key === "ArrowUp" && chosen <= 0) act(() => input.focus());
  else if (goes !== undefined) act(goAlong, goes);
  else if (key === "x") act(flip, here);
  else if (key === "e") act(take, false);
  else if (key === "w") act(take, true);
  else if (key === "f") act(star);
  else if (key === "a") act(openAdding);
  else if (key === "o" && state.local) act(reveal, here);
  else if (key === "Delete" && asked.collection) act(removeMembers);
  else if (key === "m") act(like, here);
  else if (key === "c") act(copy, here);
  else if ((key === "ArrowLeft" || key === "ArrowRight") && sounding) act(jump, key === "ArrowLeft" ? -2 : 2);
  else if ((key === "Enter" || key === " ") && !control) act(toggle, here);
});

addEventListener("popstate", recall);
if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", "/");  // the cookie has it now
input.focus();
look().then(() => { if (!asked && location.search) recall(); });  // unless somebody was quicker
