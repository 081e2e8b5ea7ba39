// Tandem's page: a chat, and one input through several models side by side. It talks with its own server
// only, and keeps what was said in this browser.
"use strict";

const $ = (id) => document.getElementById(id);
const SETTINGS = ["system", "temperature", "top_p", "max_tokens", "seed", "key"];
const MOST_CONVERSATIONS = 50;

let models = [];
// The conversations, the latest first: { title, model, messages: [{ role, content, figures }] }.
let conversations = [];
let current = null;
// What stops the answers at work.
let running = null;

function load(key, fallback) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

function save(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // A browser that keeps nothing: it works all the same.
  }
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function headers() {
  const key = $("key").value;
  const out = { "Content-Type": "application/json" };
  if (key) out.Authorization = `Bearer ${key}`;
  return out;
}

async function refusal(response) {
  const body = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return null;
  });
  const error = new Error(body?.error?.message ?? `the server answered ${response.status}`);
  error.code = body?.error?.code;
  if (response.status === 401) openSettings(true);
  return error;
}

async function ask(path, body, signal) {
  const options = body
    ? { method: "POST", headers: headers(), body: JSON.stringify(body), signal }
    : { headers: headers(), signal };
  const response = await fetch(path, options);
  if (!response.ok) throw await refusal(response);
  return response;
}

// ---- Answers.

function sampling() {
  const out = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const text = $(name).value.trim();
    if (text !== "") out[name] = Number(text);
  }
  return out;
}

// Reads a stream's events, and gives each piece to `show`. Returns what the last one told.
async function stream(path, body, signal, show) {
  const start = performance.now();
  const request = { ...body, ...sampling(), stream: true, stream_options: { include_usage: true } };
  const response = await ask(path, request, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const told = { first: null, usage: null, timings: null, reason: null };
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return told;
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: {")) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      const text = choice?.delta?.content ?? choice?.text ?? "";
      const thoughts = choice?.delta?.reasoning_content ?? "";
      if (text || thoughts) {
        told.first ??= performance.now() - start;
        show(text, thoughts);
      }
      told.reason = choice?.finish_reason ?? told.reason;
      told.usage = event.usage ?? told.usage;
      told.timings = event.timings ?? told.timings;
    }
  }
}

// The answer to messages. A model without a chat template goes on with the last text instead.
async function answer(model, messages, signal, show) {
  try {
    return await stream("v1/chat/completions", { model, messages }, signal, show);
  } catch (error) {
    if (error.code !== "no_chat_template") throw error;
    const prompt = messages[messages.length - 1].content;
    return stream("v1/completions", { model, prompt }, signal, show);
  }
}

function figures(told) {
  const parts = [];
  if (told.first !== null) parts.push(`first token ${Math.round(told.first)} ms`);
  if (told.timings?.predicted_per_second) {
    parts.push(`${told.timings.predicted_n} tokens, ${told.timings.predicted_per_second.toFixed(1)} a second`);
  }
  if (told.usage) {
    const cached = told.usage.prompt_tokens_details.cached_tokens;
    parts.push(`prompt ${told.usage.prompt_tokens} tokens, ${cached} of them known`);
  }
  if (told.reason === "length") parts.push("cut at the most tokens");
  return parts.join(" · ");
}

function messagesFor(texts) {
  const system = $("system").value.trim();
  return system ? [{ role: "system", content: system }, ...texts] : texts;
}

// Runs `work` with a signal that Stop sets off.
async function run(work) {
  $("error").textContent = "";
  running = new AbortController();
  buttons();
  try {
    await work(running.signal);
  } catch (error) {
    if (error.name !== "AbortError") $("error").textContent = error.message;
  }
  running = null;
  buttons();
  memory();
}

async function memory() {
  try {
    const text = await (await ask("metrics")).text();
    const value = (name) => Number(text.match(new RegExp(`^${name} (.+)$`, "m"))?.[1] ?? 0);
    const mb = (n) => `${(n / 1e6).toFixed(0)} MB`;
    const kept = value("tandem_cache_tokens");
    $("status").textContent = `memory ${mb(value("process_resident_memory_bytes"))}, ${kept} tokens kept`;
  } catch {
    $("status").textContent = "";
  }
}

// ---- The chat.

function item(message) {
  const li = make("li", message.role);
  li.append(make("p", "who", message.role === "user" ? "You" : (message.model ?? "Model")));
  const thoughts = make("p", "thoughts", message.thoughts ?? "");
  thoughts.hidden = !message.thoughts;
  const text = make("p", "text", message.content);
  const small = make("p", "figures", message.figures ?? "");
  li.append(thoughts, text, small);
  return { li, text, thoughts, small };
}

function showConversation() {
  $("messages").replaceChildren(...current.messages.map((message) => item(message).li));
  scrollTo(0, document.body.scrollHeight);
  const options = conversations.map((conversation, i) => {
    const option = make("option", "", conversation.title || "New conversation");
    option.value = i;
    option.selected = conversation === current;
    return option;
  });
  $("history").replaceChildren(...options);
  buttons();
}

function keep() {
  const said = conversations.filter((conversation) => conversation.messages.length);
  save("conversations", said.slice(0, MOST_CONVERSATIONS));
}

function begin() {
  if (!conversations.length || conversations[0].messages.length) {
    conversations.unshift({ title: "", model: $("model").value, messages: [] });
  }
  current = conversations[0];
  showConversation();
}

async function reply() {
  const model = $("model").value;
  current.model = model;
  const texts = current.messages.map(({ role, content }) => ({ role, content }));
  const message = { role: "assistant", model, content: "", thoughts: "" };
  const shown = item(message);
  $("messages").append(shown.li);
  let told = null;
  await run(async (signal) => {
    told = await answer(model, messagesFor(texts), signal, (text, thoughts) => {
      message.content += text;
      message.thoughts += thoughts;
      shown.text.textContent = message.content;
      shown.thoughts.textContent = message.thoughts;
      shown.thoughts.hidden = !message.thoughts;
      scrollTo(0, document.body.scrollHeight);
    });
  });
  if (told) message.figures = figures(told);
  if (message.content || message.thoughts) current.messages.push(message);
  keep();
  showConversation();
}

function send(text) {
  if (!current.title) current.title = text.slice(0, 60);
  current.messages.push({ role: "user", content: text });
  showConversation();
  return reply();
}

function retry() {
  if (current.messages.at(-1)?.role === "assistant") current.messages.pop();
  showConversation();
  return reply();
}

// ---- Comparing.

function chosen() {
  return [...document.querySelectorAll("#choices input:checked")].map((box) => box.value);
}

function compare(text) {
  const columns = chosen().map((model) => {
    const article = make("article");
    const shown = item({ role: "assistant", model, content: "" });
    article.append(make("h2", "", model), shown.thoughts, shown.text, shown.small);
    return { model, article, shown };
  });
  $("columns").replaceChildren(...columns.map((column) => column.article));
  return run(async (signal) => {
    const all = columns.map(async ({ model, shown }) => {
      const show = (piece, thoughts) => {
        shown.text.textContent += piece;
        shown.thoughts.textContent += thoughts;
        shown.thoughts.hidden = !shown.thoughts.textContent;
      };
      try {
        const told = await answer(model, messagesFor([{ role: "user", content: text }]), signal, show);
        shown.small.textContent = figures(told);
      } catch (error) {
        if (error.name === "AbortError") throw error;
        shown.small.textContent = error.message;
      }
    });
    await Promise.all(all);
  });
}

// ---- The page.

const isComparing = () => !$("compare").hidden;

function buttons() {
  $("send").disabled = running !== null;
  $("stop").disabled = running === null;
  $("retry").disabled = running !== null || isComparing() || !current?.messages.length;
  for (const id of ["model", "history", "new", "forget"]) $(id).disabled = running !== null;
}

function show(view) {
  $("chat").hidden = view !== "chat";
  $("compare").hidden = view !== "compare";
  $("show-chat").setAttribute("aria-pressed", view === "chat");
  $("show-compare").setAttribute("aria-pressed", view === "compare");
  $("show-prompt").hidden = view !== "chat";
  $("retry").hidden = view !== "chat";
  save("view", view);
  buttons();
}

function openSettings(open) {
  $("settings").hidden = !open;
  $("show-settings").setAttribute("aria-expanded", open);
}

function aboutOf(model) {
  const parts = [];
  if (model.description) parts.push(model.description);
  const made = model.composition;
  if (made?.adapters) {
    const adapters = made.adapters.map(({ name, weight }) => `${weight} × ${name}`).join(" + ");
    parts.push(`${adapters} (${made.merge}${made.calibration ? `, calibrated by ${made.calibration}` : ""})`);
  }
  if (!model.parent) parts.push("the base model");
  return parts.join(" — ");
}

function describe() {
  const model = models.find((model) => model.id === $("model").value);
  $("about").textContent = model ? aboutOf(model) : "";
}

async function showPrompt() {
  const text = $("input").value || "…";
  const said = current.messages.map(({ role, content }) => ({ role, content }));
  const messages = messagesFor([...said, { role: "user", content: text }]);
  try {
    const response = await ask("apply-template", { model: $("model").value, messages });
    $("prompt-text").textContent = (await response.json()).prompt;
  } catch (error) {
    $("prompt-text").textContent = error.code === "no_chat_template" ? text : error.message;
  }
  $("prompt").showModal();
}

// Base, a plain merge and its calibrations, where the bundle has such.
function worthComparing() {
  const plain = models.find((model) => model.parent && (model.composition?.adapters?.length ?? 0) > 1 && !model.composition.calibration);
  const names = plain?.composition.adapters.map((adapter) => adapter.name).join();
  const same = models.filter((model) => model.composition?.calibration
    && model.composition.adapters.map((adapter) => adapter.name).join() === names);
  const picked = [models[0], plain, ...same].filter(Boolean).map((model) => model.id);
  return picked.length > 1 ? picked.slice(0, 4) : models.slice(0, 4).map((model) => model.id);
}

async function start() {
  const settings = load("settings", {});
  for (const name of SETTINGS) {
    if (name !== "key") $(name).value = settings[name] ?? "";
    $(name).addEventListener("change", () => {
      const entries = SETTINGS.filter((name) => name !== "key").map((name) => [name, $(name).value]);
      save("settings", Object.fromEntries(entries));
    });
  }
  $("key").addEventListener("change", list);
  $("show-chat").addEventListener("click", () => show("chat"));
  $("show-compare").addEventListener("click", () => show("compare"));
  $("show-settings").addEventListener("click", () => openSettings($("settings").hidden));
  $("show-prompt").addEventListener("click", showPrompt);
  $("model").addEventListener("change", describe);
  $("new").addEventListener("click", begin);
  $("forget").addEventListener("click", () => {
    conversations = conversations.filter((conversation) => conversation !== current);
    keep();
    begin();
  });
  $("history").addEventListener("change", () => {
    current = conversations[Number($("history").value)];
    if (models.some((model) => model.id === current.model)) $("model").value = current.model;
    describe();
    showConversation();
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("retry").addEventListener("click", retry);
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("input").value.trim();
    if (!text || running) return;
    if (isComparing()) {
      compare(text);
    } else {
      $("input").value = "";
      send(text);
    }
  });
  // Enter sends, with Shift it is a new line; an input method's Enter is its own.
  $("input").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("form").requestSubmit();
    }
  });
  conversations = load("conversations", []);
  current = conversations[0];
  if (current) showConversation();
  else begin();
  show(load("view", "chat"));
  await list();
}

// Fills the lists of models.
async function list() {
  try {
    models = (await (await ask("v1/models")).json()).data;
  } catch (error) {
    $("error").textContent = error.message;
    return;
  }
  $("error").textContent = "";
  $("model").replaceChildren(...models.map((model) => make("option", "", model.id)));
  if (models.some((model) => model.id === current.model)) $("model").value = current.model;
  const picked = worthComparing();
  $("choices").replaceChildren(...models.map((model) => {
    const label = make("label");
    const box = make("input");
    box.type = "checkbox";
    box.value = model.id;
    box.checked = picked.includes(model.id);
    label.title = aboutOf(model);
    label.append(box, ` ${model.id}`);
    return label;
  }));
  describe();
  memory();
}

start();
