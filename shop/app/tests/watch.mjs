// Watches an order with the page's own live.js, outside of a browser: its EventSource, made from
// fetch as the standard says (an answer that is no stream closes it; a stream that ends or breaks is
// an error after which it would connect again, if it were not closed).
//
// node watch.mjs path/to/live.js http://127.0.0.1:8080 ORDER_ID

import { readFile } from "node:fs/promises";

class EventSource extends EventTarget {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSED = 2;
  readyState = EventSource.CONNECTING;
  #aborted = new AbortController();

  constructor(url) {
    super();
    this.#run(url);
  }

  close() {
    this.readyState = EventSource.CLOSED;
    this.#aborted.abort();
  }

  async #run(url) {
    try {
      const response = await fetch(url, { signal: this.#aborted.signal });
      const kind = response.headers.get("content-type") ?? "";
      if (response.status !== 200 || !kind.startsWith("text/event-stream")) return this.#failed(EventSource.CLOSED);
      this.readyState = EventSource.OPEN;
      let text = "";
      for await (const bytes of response.body.pipeThrough(new TextDecoderStream())) {
        text += bytes;
        const blocks = text.split("\n\n");
        text = blocks.pop();
        blocks.forEach((block) => this.#dispatch(block));
      }
    } catch {
      // As when the stream ends.
    }
    this.#failed(EventSource.CONNECTING);
  }

  #dispatch(block) {
    const fields = block.split("\n").map((line) => line.match(/^(\w+): ?(.*)$/)?.slice(1) ?? []);
    const field = (name) => fields.find(([key]) => key === name)?.[1];
    const data = field("data");
    if (data === undefined || this.readyState === EventSource.CLOSED) return;
    this.dispatchEvent(new MessageEvent(field("event") ?? "message", { data }));
  }

  #failed(state) {
    if (this.readyState === EventSource.CLOSED) return;
    this.readyState = state;
    this.dispatchEvent(new Event("error"));
  }
}

const [live, base, orderId] = process.argv.slice(2);
const source = await readFile(live, "utf8");
const { watchOrder } = await import(`data:text/javascript,${encodeURIComponent(source)}`);
let last = null;
watchOrder(orderId, {
  base,
  Source: EventSource,
  onOrder: (order) => console.log(`order ${order.status} ${order.timeline.length}`),
  onState: (state) => {
    if (state !== last) console.log(`state ${state}`);
    last = state;
  },
});
