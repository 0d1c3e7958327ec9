// The line to the box: `/v1/listen`, opened again whenever it is lost.
export class Line {
  constructor(hear) {
    this.hear = hear; // gets every message of the server, and {type: "away", why} while there is no line
    this.token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
    this.pause = 500;
    this.socket = null;
  }

  get open() { return this.socket?.readyState === WebSocket.OPEN; }

  connect() {
    const url = new URL("/v1/listen", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const protocols = ["edge-runtime"];
    if (/^[\w.!#$%&'*+^`|~-]+$/.test(this.token)) protocols.push(`bearer.${this.token}`);
    else if (this.token) url.searchParams.set("token", this.token);
    const socket = this.socket = new WebSocket(url, protocols);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({data}) => {
      const message = JSON.parse(data);
      if (message.type === "ready") this.pause = 500;
      this.hear(message);
    };
    socket.onclose = async () => {
      const why = await this.why();
      this.hear({type: "away", why});
      if (why === "key") return; // `connect` is called again when there is one
      setTimeout(() => this.connect(), this.pause);
      this.pause = Math.min(this.pause * 1.6, 4000);
    };
  }

  // A browser does not say why a WebSocket was refused.
  async why() {
    try {
      const {status} = await this.fetch("/v1/models");
      return status === 401 ? "key" : status === 503 ? "loading" : status === 200 ? "crowded" : "away";
    } catch {
      return "away";
    }
  }

  fetch(path, options = {}) {
    const headers = this.token ? {Authorization: `Bearer ${this.token}`, ...options.headers} : options.headers;
    return fetch(path, {...options, headers});
  }

  say(type, body = {}) {
    if (this.open) this.socket.send(JSON.stringify({type, ...body}));
    return this.open;
  }

  sound(samples) { if (this.open) this.socket.send(samples); }
}
