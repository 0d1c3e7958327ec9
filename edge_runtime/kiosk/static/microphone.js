// The microphone: open from the first question until the visitor leaves; what it hears is dropped unless it is wanted.
export class Microphone {
  constructor(hear) { this.hear = hear; } // gets an ArrayBuffer of samples and how loud they are, 0 to 1

  static get there() { return Boolean(navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode); }

  // Raises if it may not be used, or if there is none.
  open() { return this.opening ??= this.begin().catch((error) => { this.close(); throw error; }); }

  async begin() {
    const audio = {channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true};
    const stream = await navigator.mediaDevices.getUserMedia({audio});
    this.stream = stream;
    let source;
    try {
      this.context = new AudioContext({sampleRate: 16000});
      source = this.context.createMediaStreamSource(stream);
    } catch { // Firefox wants the microphone's own rate
      this.context?.close();
      this.context = new AudioContext();
      source = this.context.createMediaStreamSource(stream);
    }
    await this.context.audioWorklet.addModule("/kiosk/pcm.js");
    await this.context.resume();
    const worklet = new AudioWorkletNode(this.context, "pcm", {numberOfOutputs: 0});
    worklet.port.onmessage = ({data}) => this.hear(data, level(new Int16Array(data)));
    source.connect(worklet);
  }

  close() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.context?.close();
    this.stream = this.context = this.opening = null;
  }
}

function level(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  const decibels = 20 * Math.log10(Math.sqrt(sum / samples.length) / 32768 + 1e-6);
  return Math.max(0, Math.min(1, (decibels + 55) / 45));
}
