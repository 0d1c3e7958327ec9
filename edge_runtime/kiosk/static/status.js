// The owner's page: how the box is, asked every five seconds.
const AGAIN_MS = 5000;
const NAMES = {weights: "weights", activations: "computing", towers: "image and audio", kv: "conversation", prefix_cache: "earlier prompts"};
const GRAPHS = [
  ["memory", "Memory in use", size], ["cpu", "Processor", (value) => `${Math.round(value)} %`],
  ["requests", "Requests in ten seconds", String], ["waiting", "Requests that wait", String],
  ["celsius", "Hottest part", (value) => `${Math.round(value)} °C`],
];
const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((found) => [found.id, found]));
let token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";

function size(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : bytes >= 1e6 ? `${Math.round(bytes / 1e6)} MB` : `${Math.round(bytes / 1e3)} kB`;
}

function span(seconds) {
  const [days, hours, minutes] = [seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60].map(Math.floor);
  return days ? `${days} d ${hours} h` : hours ? `${hours} h ${minutes} min` : `${minutes} min`;
}

function element(name, ...children) { const made = document.createElement(name); made.append(...children); return made; }

function facts(list, pairs) {
  list.replaceChildren(...Object.entries(pairs).flatMap(([name, value]) => [element("dt", name), element("dd", String(value))]));
}

function lines(list, items, none) { list.replaceChildren(...(items.length ? items : [element("li", none)])); }

function show(now) {
  at.shown.hidden = !now.model;
  well(now.trouble ?? ["", "Busy: watching slows down", "Too hot or short of memory: new requests are refused"][now.pressure?.level ?? 0]);
  if (!now.model) return;
  at.device.textContent = now.broker.device;
  at.about.textContent = `edge-runtime ${now.version}, up for ${span(now.now - now.began)}`;
  at.model.textContent = now.model.name;
  facts(at["model-facts"], {takes: now.model.modalities.join(", "), context: `${now.model.context} tokens`});
  at.queue.textContent = now.running ? `1 runs, ${now.waiting} wait` : "At rest";
  facts(at["queue-facts"], {places: now.places, ...now.outcomes});
  at.broker.textContent = now.broker.online ? "Connected" : "Not connected";
  facts(at["broker-facts"], {host: now.broker.host, port: now.broker.port});
  const heat = now.pressure.readings.filter(({unit}) => unit === "°C");
  at.heat.textContent = heat.length ? `${Math.round(Math.max(...heat.map(({value}) => value)))} °C` : "No sensor";
  facts(at["heat-facts"], Object.fromEntries(now.pressure.readings.map(({source, value, unit}) => [source, `${Math.round(value)} ${unit}`])));
  memory(now);
  at.graphs.replaceChildren(...GRAPHS.map((graph) => drawn(now, ...graph)).filter(Boolean));
  const devices = Object.entries(now.devices ?? {}).flatMap(([kind, those]) => Object.entries(those).map(([name, device]) =>
    element("li", `${name}: ${device.state ?? "there"}`, element("small", [kind.slice(0, -1), device.detail].filter(Boolean).join(": ")))));
  lines(at.devices, devices, "None is set up. Visitors' own are used in the browser.");
  const errors = now.errors.map(({at: when, says}) => {
    const time = element("time", new Date(1000 * when).toLocaleString());
    return element("li", time, says);
  });
  lines(at.errors, errors, "None since the start.");
}

function memory({plan, used, available}) {
  at.memory.textContent = plan ? `${size(used)} used of ${size(plan.total)} planned` : `${size(used)} used`;
  at.bar.hidden = !plan;
  const parts = Object.entries(NAMES).filter(([name]) => plan?.[name]);
  const whole = Math.max(plan?.total ?? 0, used);
  at.bar.setAttribute("aria-label", at.memory.textContent);
  const mark = element("b");
  mark.style.left = `calc(${100 * used / whole}% - 4px)`;
  at.bar.replaceChildren(...parts.map(([name], index) => {
    const part = element("i");
    part.className = `p${index}`;
    part.style.width = `${100 * plan[name] / whole}%`;
    return part;
  }), mark);
  const shown = parts.map(([name], index) => {
    const swatch = element("span");
    swatch.className = `swatch p${index}`;
    return element("li", swatch, `${NAMES[name]} ${size(plan[name])}`);
  });
  if (plan?.tables) shown.push(element("li", `read from the disk as needed ${size(plan.tables)}`));
  at.parts.replaceChildren(...shown, element("li", `free on the box ${size(available)}`));
}

function drawn({points, every_s: every}, key, name, written) {
  const known = points.filter((point) => point[key] !== null);
  if (!known.length) return null;
  const last = known.at(-1), top = Math.max(...known.map((point) => point[key]), key === "cpu" ? 100 : 1);
  const where = (point) => `${(360 - (last.at - point.at) / every).toFixed(1)},${(100 - 96 * point[key] / top).toFixed(1)}`;
  const path = known.map(where).join(" L");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const draw = (d, kind) => {
    const line = document.createElementNS(svg.namespaceURI, "path");
    line.setAttribute("d", d);
    line.setAttribute("class", kind);
    svg.append(line);
  };
  svg.setAttribute("viewBox", "0 0 360 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "graph");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${name}: now ${written(last[key])}, at most ${written(Math.max(...known.map((point) => point[key])))}`);
  draw("M0,4 H360 M0,52 H360", "grid");
  draw(`M${path} L360,100 L${where(known[0]).split(",")[0]},100 Z`, "area");
  draw(`M${path} h.01`, "line");
  return element("figure", element("figcaption", name, element("span", `${written(last[key])} now, top ${written(top)}`)), svg);
}

function well(trouble) {
  at.health.textContent = trouble || "All is well";
  at.health.classList.toggle("bad", Boolean(trouble));
}

async function look() {
  try {
    const answer = await fetch("/kiosk/status.json", {headers: token ? {Authorization: `Bearer ${token}`} : {}});
    if (answer.status === 401) {
      well("Not open");
      if (!at.key.open) at.key.showModal();
      return;
    }
    show(await answer.json());
  } catch {
    well("The box does not answer");
  }
  setTimeout(look, AGAIN_MS);
}

at.key.oncancel = (event) => event.preventDefault();
at["key-form"].onsubmit = () => { token = at["key-text"].value.trim(); at["key-text"].value = ""; look(); };
look();
