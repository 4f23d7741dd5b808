/* asking */

const first = question => question.collection ? 50 : 10;  // how many are shown before somebody wants more

async function ask(question, {top = first(question), push = true} = {}) {
  const mine = ++turn;
  const slow = setTimeout(() => document.body.classList.add("busy"), 120);
  trouble("");
  if (question.by === "name") question.not = null;  // a name has no sound that could be unwanted
  asked = question;
  top_ = top;
  if (push) remember(question);
  if (question.text && question.text !== input.value) input.value = question.text;
  else if (!question.text) input.value = question.within || "";
  $("browse").hidden = true;
  if (question.text) $("by").value = question.by ||= $("by").value;
  document.title = `${question.text || question.name}${question.not ? `, not ${question.not}` : ""} · DiffATR`;
  try {
    let answer;
    if (question.text) answer = await get(`/api/search?top=${top}${words(question)}`);
    else if (question.collection) answer = await get(`/api/collections/${encodeURIComponent(question.collection)}?top=${top}`);
    else if (question.key) answer = await get(`/api/like/${question.key}?top=${top}&start=${question.start}${fieldOf(question)}`);
    else {
      if (question.file.size > state.upload) {
        throw new Error(`${question.name}: larger than ${Math.floor(state.upload / 1048576)} MB. Drop a shorter piece of it.`);
      }
      say(`Listening to ${question.name} …`);
      answer = await get(`/api/sound?top=${top}&name=${encodeURIComponent(question.name.toWellFormed?.() ?? question.name)}${fieldOf(question)}`, {method: "POST", body: question.file});
    }
    if (mine !== turn) return;
    const from = hits.length;
    if (question.collection) question.name = answer.name;
    if (!question.text && answer.filters && input.value === (question.within || "")) input.value = question.within = answer.filters.join(" ");  // what holds of it
    show(answer, question);
    if (question.text && top === first(question)) keepRecent(question);
    if (top > first(question)) choose(Math.min(from, hits.length - 1));
    else if (!question.text) choose(0);
    else if (hits.length) choose(0, {focus: document.activeElement !== input});
    if (top === first(question)) watch(question);
  } catch (error) {
    if (mine !== turn) return;
    clear();
    say("");
    trouble(error.message);
    if (error.at && (question.text || question.within) === input.value) { input.focus(); input.setSelectionRange(...letters(input.value, error.at)); }
  } finally {
    clearTimeout(slow);
    if (mine === turn) document.body.classList.remove("busy");
  }
}

/* The search field goes along with a sound, for its filters. */
const fieldOf = question => question.within?.trim() ? `&within=${encodeURIComponent(question.within)}` : "";

/* Places in a text, which the server counts in letters, as the browser counts them. */
const letters = (text, places) => places.map(place => [...text].slice(0, place).join("").length);
const words = question => `&q=${encodeURIComponent(question.text)}` + (question.by && question.by !== "both" ? `&by=${question.by}` : "") + (question.not ? `&not=${encodeURIComponent(question.not)}` : "");

function remember(question) {
  if (question.text) history.pushState(null, "", words(question).replace("&", "?"));
  else if (question.collection) history.pushState(null, "", `?collection=${encodeURIComponent(question.collection)}`);
  else if (question.key) history.pushState(null, "", `?like=${question.key}&start=${question.start}&name=${encodeURIComponent(question.name)}${fieldOf(question)}`);
  else history.pushState(null, "", "/");
}

function recall() {
  const address = new URLSearchParams(location.search);
  if (address.has("q") && address.get("q").trim()) ask({text: address.get("q"), not: address.get("not")?.trim() || null, by: ["sound", "name"].find(by => by === address.get("by")) || "both"}, {push: false});
  else if (address.has("collection")) ask({collection: address.get("collection"), name: "Collection"}, {push: false});
  else if (address.has("like")) ask({key: address.get("like"), start: +address.get("start") || 0, name: address.get("name") || "this", within: address.get("within") || ""}, {push: false});
  else { turn++; asked = null; input.value = ""; document.title = "DiffATR"; clear(); say(""); welcome(); }
}
