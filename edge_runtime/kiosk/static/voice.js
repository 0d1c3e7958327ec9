// Reads answers aloud while they are written: by the box's voice, else by one that this computer has itself.
const END = /[.!?…](?=\s)|[。！？]|\n/;

export class Voice {
  constructor(line, told) {
    this.line = line;
    this.told = told; // is told whether something is being said, and {failed: true}
    this.box = false;
    this.turn = 0;
    this.stop();
  }

  there(language) { return this.box || Boolean(this.local(language)); }

  local(language) {
    return window.speechSynthesis?.getVoices().find((voice) => voice.localService && voice.lang.startsWith(language));
  }

  get speaking() { return this.busy; }

  begin(language) { this.stop(); this.language = language; this.on = true; }

  push(text) {
    if (!this.on) return;
    this.rest += text;
    for (let end; (end = END.exec(this.rest));) {
      const at = end.index + end[0].length;
      this.add(this.rest.slice(0, at));
      this.rest = this.rest.slice(at);
    }
  }

  finish() { this.add(this.rest); this.rest = ""; this.on = false; }

  stop() {
    this.turn += 1;
    this.rest = "";
    this.queue = [];
    this.on = false;
    this.abort?.abort();
    this.abort = new AbortController();
    this.source?.stop();
    this.source = null;
    window.speechSynthesis?.cancel();
    this.be(false);
  }

  add(sentence) {
    const plain = sentence.replace(/[*_#`>|]+/g, " ").trim();
    if (!/[\p{L}\p{N}]/u.test(plain)) return;
    this.queue.push(this.box ? this.made(plain.slice(0, 1000)) : plain);
    if (!this.busy) this.run();
  }

  // Sound of a sentence, made while the one before it is heard.
  async made(text) {
    const body = JSON.stringify({text, language: this.language});
    try {
      const answer = await this.line.fetch("/kiosk/speech", {method: "POST", body, signal: this.abort.signal});
      if (!answer.ok) throw new Error(answer.status);
      return await answer.arrayBuffer();
    } catch (error) {
      return error;
    }
  }

  async run() {
    const turn = this.turn;
    this.be(true);
    while (turn === this.turn && this.queue.length) {
      const next = await this.queue.shift();
      if (turn !== this.turn) return;
      if (next instanceof Error) {
        this.stop();
        this.told({failed: true});
        return;
      }
      await (this.box ? this.play(next) : this.utter(next));
    }
    if (turn === this.turn) this.be(false);
  }

  async play(wav) {
    const turn = this.turn;
    this.context ??= new AudioContext();
    await this.context.resume();
    const buffer = await this.context.decodeAudioData(wav);
    if (turn !== this.turn) return;
    const source = this.source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    source.start();
    await new Promise((done) => { source.onended = done; });
  }

  utter(text) {
    const speech = new SpeechSynthesisUtterance(text);
    speech.voice = this.local(this.language) ?? null;
    speech.lang = this.language;
    return new Promise((done) => {
      speech.onend = speech.onerror = done;
      window.speechSynthesis.speak(speech);
    });
  }

  be(busy) {
    if (this.busy === busy) return;
    this.busy = busy;
    this.told({speaking: busy});
  }
}
