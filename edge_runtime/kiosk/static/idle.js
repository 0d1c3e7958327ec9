// Notices that nobody is there any more. Clock of its own, a look every second.
export const GRACE_S = 20; // between the question whether anybody is there and the end (WCAG 2.2.1 asks for this long)

export class Idle {
  constructor(ask, left, leave) { // called when to ask; with the seconds that are left, or null: somebody is there; at the end
    Object.assign(this, {ask, left, leave, limit: Infinity, since: performance.now(), asking: false});
    setInterval(() => this.look(), 1000);
    for (const event of ["pointerdown", "keydown", "input", "wheel"]) addEventListener(event, () => this.asking || this.stir(), {capture: true, passive: true});
  }

  stir() {
    this.since = performance.now();
    if (this.asking) { this.asking = false; this.left(null); }
  }

  look() {
    const over = (performance.now() - this.since) / 1000 - this.limit;
    if (over < 0) return;
    if (over >= GRACE_S) { this.asking = false; this.leave(); return; }
    if (!this.asking) { this.asking = true; this.ask(); }
    this.left(Math.ceil(GRACE_S - over));
  }
}
