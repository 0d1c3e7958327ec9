// The page for whoever stands in front of the box. Keeps nothing: what was said is on the screen until the visitor leaves.
import {Camera} from "/kiosk/camera.js";
import {Idle} from "/kiosk/idle.js";
import {keys} from "/kiosk/keys.js";
import {Line} from "/kiosk/line.js";
import {Microphone} from "/kiosk/microphone.js";
import {STRINGS} from "/kiosk/strings.js";
import {Turns} from "/kiosk/turns.js";
import {Voice} from "/kiosk/voice.js";

const HELD_MS = 400; // a shorter press is a tap: it begins, the next one ends
const LAST_S = 10; // of what may be said at a time: the page counts them down
const BUSY = ["thinking", "answering", "speaking"];
const PROBLEMS = {busy: "e_busy", context_length_exceeded: "e_long", too_large: "e_long", unsupported_media: "e_media", expired: "e_busy"};
const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((found) => [found.id, found]));
const root = document.documentElement;

let config = null, language = "en", modalities = [], server = "idle";
let visiting = false, recording = false, wanted = false, pressed = 0, free = false, aloud = false, picture = null;
let most = 0, until = Infinity; // seconds that may be said at a time, and when they are over

const line = new Line(heard);
const turns = new Turns(at.talk, say);
const voice = new Voice(line, ({failed}) => { if (failed) complain("e_voice"); show(); });
const camera = new Camera(at["camera-box"], at.view, at.snap);
const microphone = new Microphone((samples, level) => {
  if (!recording && !free) return;
  line.sound(samples);
  at.mic.style.setProperty("--level", level.toFixed(2));
});
const idle = new Idle(() => at.still.showModal(), left, leave);

// --- words ------------------------------------------------------------------------------------------------------------

function say(key, values = {}) {
  const said = config.strings[language]?.[key] ?? (config[key] && typeof config[key] !== "boolean" ? config[key] : STRINGS[language]?.[key] ?? STRINGS.en[key]);
  return typeof said === "string" ? said.replace(/{(\w+)}/g, (_, name) => values[name]) : said;
}

function speak(chosen) {
  language = chosen;
  root.lang = chosen;
  document.title = say("title");
  for (const found of document.querySelectorAll("[data-say]")) found.textContent = say(found.dataset.say);
  at.title.textContent = at["attract-title"].textContent = say("title");
  at.greeting.textContent = at.hello.textContent = say("greeting");
  at.touch.textContent = say("touch");
  at.talk.setAttribute("aria-label", say("talk"));
  at["attract-languages"].setAttribute("aria-label", say("language"));
  at.language.value = chosen;
  const suggested = config.strings[language]?.suggestions ?? config.suggestions;
  at.suggestions.hidden = !suggested.length;
  at.suggestions.replaceChildren(...suggested.map((text) => item("li", choice(text, () => ask(text)))));
  at.keys.hidden = !config.screen_keys;
  if (config.screen_keys) at.keys.replaceChildren(...keys(language, at.text, say));
  at.aloud.hidden = !config.speak || !voice.there(language);
  show();
}

function item(name, child) { const made = document.createElement(name); made.append(child); return made; }

function choice(text, press) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.onclick = press;
  return made;
}

function complain(key, values) { at["notice-text"].textContent = say(key, values); at.notice.hidden = false; }

function content() { at.notice.hidden = true; }

// --- what is shown ----------------------------------------------------------------------------------------------------

function show() {
  if (!config) return;
  const state = !visiting ? "attract" : voice.speaking && ["idle", "listening"].includes(server) ? "speaking" : server;
  const busy = visiting && BUSY.includes(state);
  root.dataset.state = state;
  root.toggleAttribute("data-busy", busy);
  at.attract.hidden = visiting;
  at.app.hidden = !visiting;
  at.welcome.hidden = !turns.empty;
  at.talk.hidden = turns.empty;
  const speech = hears();
  at.mic.hidden = at.free.hidden = !speech;
  at.mic.hidden &&= !busy; // there must be a way to stop
  at.camera.disabled = !(config.camera && modalities.includes("image") && Camera.there);
  at.write.disabled = !speech;
  at.ask.hidden = speech && at.write.getAttribute("aria-expanded") === "false";
  at.free.setAttribute("aria-checked", free);
  at.aloud.setAttribute("aria-pressed", aloud);
  at.picture.hidden = !picture;
  if (!["listening", "hearing"].includes(state)) at.mic.style.setProperty("--level", 0);
  const seconds = recording ? Math.max(1, Math.ceil((until - performance.now()) / 1000)) : Infinity;
  root.toggleAttribute("data-ending", seconds <= LAST_S);
  at.left.textContent = seconds <= LAST_S ? seconds : "";
  at["mic-name"].textContent = say(busy ? "mic_stop" : recording ? "mic_done" : free && server === "idle" ? "mic_listen" : "mic_ask");
  const words = {
    idle: free ? "idle_free" : speech ? "idle" : "idle_write",
    listening: free ? "listening_free" : "listening",
    answering: free ? "answering" : "answering_plain",
  }[state] ?? state;
  // Said once, not every second: somebody may have the screen read to them, beside an open microphone.
  const text = state === "attract" ? "" : seconds <= LAST_S ? say("ending", {n: Math.min(LAST_S, Math.round(most))}) : say(words);
  if (at.status.textContent !== text) at.status.textContent = text;
}

function hears() { return config.microphone && modalities.includes("audio") && Microphone.there; }

// --- the line ---------------------------------------------------------------------------------------------------------

function heard(message) {
  if (!["ready", "away"].includes(message.type)) idle.stir();
  ({
    ready, away, state, error, reset() {},
    "transcript.delta"({text}) { begun(); turns.ask((turns.turn.said.textContent ?? "") + text); },
    transcript,
    delta({text}) {
      begun();
      if (!turns.turn.text && aloud) voice.begin(language);
      turns.add(text);
      voice.push(text);
    },
    answer({text}) { turns.end(text); voice.finish(); },
    cancelled() { turns.interrupt(); voice.stop(); },
  })[message.type]?.(message);
  show();
}

function begun() { if (!turns.open) turns.begin("", take()); }

async function ready({modalities: those}) {
  modalities = those;
  const fresh = await settings();
  if (fresh && config && fresh.build !== config.build) { location.reload(); return; }
  for (const box of [at.away, at.key]) if (box.open) box.close();
  if (picture) line.say("image", {image: picture});
  if (visiting && free) listen();
  show();
}

function away({why}) {
  const lost = turns.open || recording || !turns.empty;
  recording = wanted = false;
  server = "idle";
  turns.interrupt();
  voice.stop();
  if (visiting && lost) complain("e_lost"); // the box has forgotten what was said before
  if (!config) return;
  if (why === "key") {
    if (at.away.open) at.away.close();
    if (!at.key.open) at.key.showModal();
    return;
  }
  at["away-title"].textContent = say(why);
  at["away-text"].textContent = say(`${why}_text`);
  if (at.still.open) idle.stir();
  if (!at.away.open) { camera.close(); at.away.showModal(); at["away-title"].focus(); }
}

function state({state: now, seconds}) {
  server = now;
  if (seconds) { most = seconds; until = performance.now() + 1000 * seconds; }
  if (now === "hearing") voice.stop();
  if (now === "thinking") {
    if (recording && wanted && !free) complain("e_limit", {n: Math.round(most)}); // nobody let go: it was too long
    if (recording && !free) begun();
    recording = false;
  }
}

function transcript({text}) {
  if (!text) { turns.interrupt(); complain("e_silence"); return; }
  begun();
  turns.ask(text);
}

function error({error: {code}}) {
  recording = false;
  turns.interrupt();
  voice.stop();
  complain(PROBLEMS[code] ?? "e_other");
}

// --- asking -----------------------------------------------------------------------------------------------------------

function manner() {
  const body = {};
  if (config.system) body.system = config.system;
  if (config.max_tokens) body.max_tokens = config.max_tokens;
  return body;
}

function take() { const taken = picture; picture = null; return taken; }

function ask(text) {
  content();
  voice.stop();
  if (!line.say("ask", {text, ...manner()})) return;
  turns.begin(text, take());
  at.text.value = "";
  show();
}

async function listen() {
  content();
  wanted = true;
  voice.stop();
  try {
    await microphone.open();
  } catch {
    wanted = free = false;
    complain("e_microphone");
    at.write.setAttribute("aria-expanded", "true");
    show();
    return;
  }
  if (!wanted || !visiting) return;
  recording = !free;
  until = Infinity;
  line.say("start", {hands_free: free, language, ...manner()});
  show();
}

function done() {
  wanted = false;
  if (recording) line.say("stop");
  show();
}

function stop() { voice.stop(); line.say("cancel"); turns.interrupt(); show(); }

function press() {
  pressed = performance.now();
  if (root.hasAttribute("data-busy")) { pressed = 0; stop(); return; }
  if (free) { pressed = 0; if (server === "idle") listen(); else quiet(); return; }
  if (recording) { pressed = 0; done(); return; }
  listen();
}

function release() {
  if (pressed && performance.now() - pressed > HELD_MS) done();
  pressed = 0;
}

function quiet() { wanted = false; line.say("stop"); }

// --- coming and going -------------------------------------------------------------------------------------------------

function begin(chosen = language) {
  visiting = true;
  free = config.hands_free && hears();
  aloud = config.speak;
  idle.limit = config.idle_s;
  idle.stir();
  speak(chosen);
  (at.mic.hidden ? at.text : at.mic).focus();
  if (free) listen();
}

// Nothing is left of the visitor: not here, not on the box.
function leave() {
  line.say("reset");
  voice.stop();
  microphone.close();
  camera.close();
  turns.clear();
  content();
  visiting = recording = wanted = free = false;
  picture = null;
  at["picture-shown"].removeAttribute("src");
  at.text.value = "";
  at.write.setAttribute("aria-expanded", "false");
  if (at.still.open) at.still.close();
  server = "idle";
  idle.limit = Infinity;
  speak(config.language);
  at.begin.focus();
}

function left(seconds) {
  if (seconds === null) { if (at.still.open) at.still.close(); return; }
  at["still-text"].textContent = say("still_in", {n: seconds});
}

async function settings() {
  try {
    const answer = await fetch("/kiosk/config.json");
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

async function photograph() {
  content();
  try {
    await camera.open();
  } catch {
    camera.close();
    complain("e_camera");
  }
}

function snap() {
  picture = camera.snap();
  camera.close();
  at["picture-shown"].src = picture;
  line.say("image", {image: picture});
  show();
}

function drop() { picture = null; line.say("image", {image: null}); show(); at.camera.focus(); }

// --- touch and keys ---------------------------------------------------------------------------------------------------

at.begin.onclick = () => begin();
at.over.onclick = at.leave.onclick = leave;
at.stay.onclick = () => idle.stir();
at["notice-close"].onclick = content;
at.language.onchange = () => { speak(at.language.value); if (free && server !== "idle") listen(); };
at.aloud.onclick = () => { aloud = !aloud; if (!aloud) voice.stop(); show(); };
at.camera.onclick = photograph;
at.snap.onclick = snap;
at["camera-cancel"].onclick = () => camera.close();
at["camera-box"].onclose = () => camera.close();
at["picture-drop"].onclick = drop;
at.free.onclick = () => { quiet(); free = !free; recording = false; if (free) listen(); else show(); };
at.write.onclick = () => {
  const open = at.write.getAttribute("aria-expanded") === "false";
  at.write.setAttribute("aria-expanded", open);
  show();
  if (open) at.text.focus();
};
at.ask.onsubmit = (event) => { event.preventDefault(); if (at.text.value.trim()) ask(at.text.value.trim()); };
at["key-form"].onsubmit = () => { line.token = at["key-text"].value.trim(); at["key-text"].value = ""; line.connect(); };
at.mic.onpointerdown = (event) => { if (event.button === 0) { at.mic.setPointerCapture(event.pointerId); press(); } };
at.mic.onpointerup = at.mic.onpointercancel = release;
at.mic.onclick = (event) => { if (event.detail === 0) { press(); pressed = 0; } }; // Enter, and aids that press for people
at.mic.oncontextmenu = (event) => event.preventDefault();
at.still.oncancel = () => idle.stir();
for (const box of [at.away, at.key]) box.oncancel = (event) => event.preventDefault();
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && root.hasAttribute("data-busy")) stop();
  if (event.key !== " " || ![document.body, at.mic].includes(event.target) || !visiting || !hears()) return;
  event.preventDefault();
  if (!event.repeat) press();
});
addEventListener("keyup", (event) => {
  if (event.key !== " " || ![document.body, at.mic].includes(event.target)) return;
  event.preventDefault();
  release();
});
setInterval(() => { if (recording) show(); }, 250);
window.speechSynthesis?.addEventListener?.("voiceschanged", () => config && show());

// --- the beginning ----------------------------------------------------------------------------------------------------

while (!(config = await settings())) await new Promise((later) => setTimeout(later, 1000));
for (const code of config.languages) {
  const name = config.strings[code]?.name ?? STRINGS[code]?.name ?? code;
  at.language.append(new Option(name, code));
  const button = choice(name, () => begin(code));
  button.lang = code;
  at["attract-languages"].append(button);
}
at["attract-languages"].hidden = config.languages.length < 2;
document.querySelector(".pick").hidden = config.languages.length < 2;
voice.box = config.voice;
speak(config.language);
line.connect();
