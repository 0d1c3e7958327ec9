// Sound as the server wants it: 16-bit mono at 16 kHz, a tenth of a second at a time.
const RATE = 16000, PIECE = 1600;

class Pcm extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = sampleRate / RATE;
    this.begin();
    this.sum = this.count = this.at = 0;
  }

  begin() { this.piece = new Int16Array(PIECE); this.filled = 0; }

  process([[samples]]) {
    for (const sample of samples ?? []) { // where the context has another rate: the mean of what becomes one sample
      this.sum += sample; this.count += 1; this.at += 1;
      if (this.at < this.step) continue;
      this.at -= this.step;
      this.piece[this.filled++] = 32767 * Math.max(-1, Math.min(1, this.sum / this.count));
      this.sum = this.count = 0;
      if (this.filled === PIECE) {
        this.port.postMessage(this.piece.buffer, [this.piece.buffer]);
        this.begin();
      }
    }
    return true;
  }
}

registerProcessor("pcm", Pcm);
