// Keys on the screen, for a box that has no others. `[kiosk] screen_keys` shows them.
const ROWS = {
  en: ["qwertyuiop", "asdfghjkl", "zxcvbnm?"],
  de: ["qwertzuiopü", "asdfghjklöä", "yxcvbnmß?"],
  fr: ["azertyuiop", "qsdfghjklm", "éèàçwxcvbn?"],
  es: ["qwertyuiop", "asdfghjklñ", "áéíóúzxcvbnm¿?"],
};

export function keys(language, input, say) {
  const rows = (ROWS[language] ?? ROWS.en).map((row) => [...row].map((key) => button(key, () => insert(input, key))));
  const remove = button("⌫", () => { input.value = input.value.slice(0, -1); });
  remove.setAttribute("aria-label", say("delete"));
  const space = button(say("space"), () => insert(input, " "));
  space.className = "wide";
  return [...rows, [space, remove]].map((row) => {
    const line = document.createElement("div");
    line.append(...row);
    return line;
  });
}

function insert(input, text) { input.setRangeText(text, input.selectionStart, input.selectionEnd, "end"); }

function button(name, press) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = name;
  made.onclick = press;
  return made;
}
