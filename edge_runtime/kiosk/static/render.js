// An answer as models write it, with a little Markdown, as nodes: never as HTML.
const LIST = /^\s*(?:[-*•]|(\d+)[.)])\s+/;

export function rendered(text) {
  const nodes = [];
  let list = null, code = null;
  for (const line of text.split("\n")) {
    if (line.trim().startsWith("```")) {
      if (code) { code = null; continue; }
      code = element("code");
      nodes.push(element("pre", code));
      list = null;
    } else if (code) {
      code.append(`${line}\n`);
    } else if (LIST.test(line)) {
      const kind = LIST.exec(line)[1] ? "ol" : "ul";
      if (list?.localName !== kind) nodes.push(list = element(kind));
      if (kind === "ol" && !list.children.length) list.start = Number(LIST.exec(line)[1]);
      list.append(element("li", ...words(line.replace(LIST, ""))));
    } else if (line.trim()) {
      list = null;
      const heading = /^#+\s+/.test(line);
      const inside = words(line.replace(/^(#+|>)\s+/, ""));
      nodes.push(heading ? element("p", element("strong", ...inside)) : element("p", ...inside));
    }
  }
  return nodes;
}

function words(line) {
  return line.split(/(\*\*[^*]+\*\*|\*[^*\s][^*]*\*|`[^`]+`)/).filter(Boolean).map((part) => {
    if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) return element("strong", part.slice(2, -2));
    if (part.length > 2 && part.startsWith("*") && part.endsWith("*")) return element("em", part.slice(1, -1));
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) return element("code", part.slice(1, -1));
    return part;
  });
}

export function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}
