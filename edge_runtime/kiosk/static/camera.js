// A picture for the next question.
const EDGE = 1024; // longest side, in pixels: models look at less

export class Camera {
  constructor(box, view, button) { this.box = box; this.view = view; this.button = button; }

  static get there() { return Boolean(navigator.mediaDevices?.getUserMedia); }

  // Shows what it sees, from when the button works; raises if it may not be used, or if there is none.
  async open() {
    const video = {width: {ideal: 1280}, height: {ideal: 960}, facingMode: {ideal: "environment"}};
    this.stream = await navigator.mediaDevices.getUserMedia({video});
    this.view.srcObject = this.stream;
    this.button.disabled = true;
    this.box.showModal();
    await this.view.play();
    if (this.view.requestVideoFrameCallback) await new Promise((seen) => this.view.requestVideoFrameCallback(seen));
    this.button.disabled = false;
    this.button.focus();
  }

  // What it sees now, as a data URI.
  snap() {
    const {videoWidth: width, videoHeight: height} = this.view;
    const part = Math.min(1, EDGE / Math.max(width, height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(width * part);
    canvas.height = Math.round(height * part);
    canvas.getContext("2d").drawImage(this.view, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/jpeg", 0.9);
  }

  close() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = this.view.srcObject = null;
    if (this.box.open) this.box.close();
  }
}
