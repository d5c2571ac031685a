// The page's whole program: asks /page.json what the model can do, then talks to the API.
const $ = (id) => document.getElementById(id);
const MODES = {
  chat: { name: "Chat", label: "Your message", path: "v1/chat/completions", rows: 3 },
  translate: { name: "Translate", label: "Text", path: "v1/translate", rows: 4 },
  classify: { name: "Classify", label: "Text", path: "v1/classify", rows: 4 },
  completions: { name: "Complete", label: "Text to go on with", path: "v1/completions", rows: 4 },
  embeddings: { name: "Embed", label: "Text", path: "v1/embeddings", rows: 4 },
};
let facts, mode, turns = [], asking = null;

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

async function begin() {
  facts = await (await checked(await fetch("page.json"))).json();
  document.title = `${facts.name} · lcc serve`;
  $("name").textContent = facts.name;
  $("facts").textContent = `${facts.engine}, up to ${facts.context} tokens`;
  $("max_tokens").max = facts.max_tokens;
  $("max_tokens").value = Math.min(256, facts.max_tokens);
  const offers = Object.keys(MODES).filter((name) => facts.offers.includes(name));
  for (const name of offers) {
    const button = make("button", { type: "button", id: `mode-${name}`, textContent: MODES[name].name });
    button.addEventListener("click", () => choose(name));
    $("modes").append(button);
  }
  $("modes").hidden = offers.length < 2;
  choose(offers[0]);
}

function choose(name) {
  asking?.abort();
  mode = name;
  for (const button of $("modes").children)
    button.setAttribute("aria-pressed", String(button.id === `mode-${name}`));
  const isTask = name === "classify" || name === "translate";
  const fields = isTask ? facts.fields : ["text"];
  $("fields").replaceChildren(...fields.map((field, i) => {
    const id = i ? `input-${field}` : "input";
    const area = make("textarea", { id, rows: MODES[name].rows, required: true, autocomplete: "off" });
    area.dataset.field = field;
    area.addEventListener("keydown", sendOnEnter);
    const label = fields.length > 1 ? field : MODES[name].label;
    return make("label", { htmlFor: id }, label, area);
  }));
  const writes = name === "chat" || name === "completions";
  for (const node of document.querySelectorAll(".chat")) node.hidden = name !== "chat";
  for (const node of document.querySelectorAll(".sampled")) node.hidden = !writes;
  $("settings").hidden = !writes && name !== "translate";
  clear();
}

function clear() {
  asking?.abort();
  turns = [];
  $("talk").replaceChildren($("empty"));
  $("empty").hidden = false;
  fail("");
  $("status").textContent = "";
  $("input").focus();
}

function sendOnEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
}

function turn(who, kind) {
  const text = make("div", { className: "text" });
  const node = make("article", { className: `turn ${kind}` }, make("h2", { textContent: who }), text);
  $("empty").hidden = true;
  $("talk").append(node);
  return { node, text };
}

function measure(node, sentence) {
  node.append(make("p", { className: "measure quiet", textContent: sentence }));
}

function fail(sentence) {
  $("error").textContent = sentence;
  $("error").hidden = !sentence;
}

async function checked(reply) {
  if (reply.ok) return reply;
  let sentence = `The server answered ${reply.status}.`;
  try { sentence = (await reply.json()).error.message; } catch { /* not ours: the status must do */ }
  throw new Error(sentence);
}

const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));

function body(given) {
  const sampled = { temperature: number("temperature"), top_p: number("top_p"), seed: number("seed") };
  const written = { max_tokens: number("max_tokens"), stream: true };
  const counted = { ...sampled, ...written, stream_options: { include_usage: true } };
  const text = Object.values(given)[0];
  if (mode === "chat") {
    const system = $("system").value.trim();
    const first = system ? [{ role: "system", content: system }] : [];
    return { messages: [...first, ...turns, { role: "user", content: text }], ...counted };
  }
  if (mode === "completions") return { prompt: text, ...counted };
  const input = facts.fields.length > 1 ? [given] : [text];
  if (mode === "translate") return { input, ...written };
  return mode === "classify" ? { input } : { input: text };
}

async function send(event) {
  event.preventDefault();
  if (asking) return;
  const areas = [...$("fields").querySelectorAll("textarea")];
  const given = Object.fromEntries(areas.map((area) => [area.dataset.field, area.value]));
  if (areas.some((area) => !area.value.trim())) return;
  const asked = body(given);
  asking = new AbortController();
  const begun = performance.now();
  busy(true);
  fail("");
  turn("You", "own").text.textContent = Object.values(given).join("\n");
  const answer = turn(facts.name, "model");
  answer.node.classList.add("busy");
  answer.node.scrollIntoView({ block: "end" });
  areas.forEach((area) => { area.value = ""; });
  try {
    const reply = await checked(await fetch(MODES[mode].path, {
      method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify(asked), signal: asking.signal,
    }));
    const told = await (asked.stream ? streamed : whole)(reply, answer, begun);
    if (mode === "chat") turns.push({ role: "user", content: Object.values(given)[0] }, { role: "assistant", content: told });
    $("status").textContent = "The answer is complete.";
  } catch (error) {
    if (error.name === "AbortError") measure(answer.node, "Stopped.");
    else {
      answer.node.remove();
      areas.forEach((area) => { area.value = given[area.dataset.field]; });
      fail(error.message);
    }
  } finally {
    answer.node.classList.remove("busy");
    asking = null;
    busy(false);
  }
}

function busy(is) {
  $("send").disabled = is;
  $("stop").hidden = !is;
  $("talk").setAttribute("aria-busy", String(is));
  if (is) $("status").textContent = "Waiting for the model …";
  else $("input").focus();
}

async function streamed(reply, answer, begun) {
  let first = null, usage = null, told = "";
  for await (const event of events(reply.body)) {
    if (event.error) throw new Error(event.error.message);
    usage = event.usage ?? usage;
    const choice = event.choices ? event.choices[0] : event;
    const piece = choice?.delta?.content ?? choice?.text ?? "";
    if (!piece) continue;
    first ??= performance.now();
    told += piece;
    const stays = innerHeight + scrollY < document.body.scrollHeight - 80;
    answer.text.textContent = told;
    if (!stays) answer.node.scrollIntoView({ block: "end" });
  }
  const end = performance.now();
  const count = usage?.completion_tokens ?? 0;
  const speed = count > 1 && first !== null ? (count - 1) / ((end - first) / 1000) : 0;
  const wait = ((first ?? end) - begun) / 1000;
  measure(answer.node, `${count} tokens, ${speed.toFixed(1)} tokens/s, the first after ${wait.toFixed(2)} s`);
  return told;
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const whole = held.split("\n\n");
    held = whole.pop();
    for (const event of whole) {
      const data = event.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function whole(reply, answer, begun) {
  const told = await reply.json();
  const one = told.data[0];
  if (one.probabilities) {
    answer.text.textContent = one.label;
    answer.node.append(shares(one));
  } else {
    const shown = one.embedding.slice(0, 8).map((value) => value.toFixed(4)).join("  ");
    answer.text.textContent = `${one.embedding.length} numbers: ${shown} …`;
  }
  measure(answer.node, `${told.usage.prompt_tokens} tokens read in ${((performance.now() - begun) / 1000).toFixed(2)} s`);
  return answer.text.textContent;
}

function shares(one) {
  const rows = Object.entries(one.probabilities).sort((a, b) => b[1] - a[1]).map(([label, share]) => make("tr",
    { className: label === one.label ? "best" : "" },
    make("th", { scope: "row", textContent: label }),
    make("td", { className: "bar" }, make("progress", { max: 1, value: share, ariaLabel: label })),
    make("td", { textContent: `${(100 * share).toFixed(1)} %` })));
  return make("table", {}, make("caption", { className: "quiet", textContent: "Probability of each class" }),
    make("tbody", {}, ...rows));
}

$("form").addEventListener("submit", send);
$("stop").addEventListener("click", () => asking?.abort());
$("clear").addEventListener("click", clear);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") asking?.abort(); });
begin().catch((error) => fail(error.message));
