// What was asked and answered, on the screen alone.
import {element, rendered} from "/kiosk/render.js";

export class Turns {
  constructor(log, say) { this.log = log; this.say = say; this.clear(); }

  get empty() { return !this.log.childElementCount; }

  get open() { return this.turn !== null; }

  clear() { this.log.replaceChildren(); this.turn = null; }

  // A question; what was being answered is over.
  begin(question, picture) {
    this.interrupt();
    const said = element("p"), answer = element("div"), turn = element("article");
    turn.className = "turn"; said.className = "said"; answer.className = "answer";
    turn.append(said, answer);
    this.log.append(turn);
    this.turn = {turn, said, answer, text: "", drawn: false};
    this.ask(question, picture);
    const dots = element("span", element("i"), element("i"), element("i"));
    dots.className = "dots";
    answer.append(dots);
    this.log.setAttribute("aria-busy", "true");
    turn.scrollIntoView({block: "start"});
  }

  ask(question, picture) {
    const {said} = this.turn;
    const parts = [];
    if (picture) {
      const image = element("img");
      image.src = picture; image.alt = this.say("picture");
      parts.push(image);
    } else if (said.firstChild?.localName === "img") {
      parts.push(said.firstChild);
    }
    if (question) parts.push(element("span", question));
    said.replaceChildren(...parts);
  }

  add(text) {
    if (!this.turn) return;
    this.turn.text += text;
    if (this.turn.drawn) return;
    this.turn.drawn = true;
    requestAnimationFrame(() => this.draw());
  }

  draw() {
    if (!this.turn) return;
    const {log} = this, {answer} = this.turn;
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 160;
    this.turn.drawn = false;
    const text = this.turn.text.trim();
    answer.className = `answer ${text.length < 90 ? "short" : text.length < 260 ? "medium" : ""}`;
    if (text) answer.replaceChildren(...rendered(text));
    if (follows && answer.offsetHeight > log.clientHeight * 0.6) log.scrollTop = log.scrollHeight;
  }

  end(text) {
    if (!this.turn) return;
    if (text !== undefined) this.turn.text = text;
    this.draw();
    this.close();
  }

  // It will not be answered to its end.
  interrupt() {
    if (!this.turn) return;
    this.draw();
    const {turn, answer, text} = this.turn;
    if (text.trim()) {
      const note = element("p", this.say("interrupted"));
      note.className = "note";
      turn.append(note);
    } else {
      answer.replaceChildren();
      turn.remove();
    }
    this.close();
  }

  close() { this.turn = null; this.log.setAttribute("aria-busy", "false"); }
}
