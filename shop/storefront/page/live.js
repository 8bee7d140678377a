// Follows an order by server-sent events, and comes back when the stream breaks: when the connection
// is lost, when the server is restarted, when it answers with an error for a while, when the stream
// has reached its time limit. Only `event: end` says that no more is expected.

/** The first pause before it comes back, and the longest, in milliseconds; each is twice the last. */
const PAUSE_MIN = 1_000;
const PAUSE_MAX = 15_000;

/**
 * Watches an order until it has ended or the returned function is called.
 *
 * `onOrder` gets the order each time it has changed. `onState` gets `live` while the stream is
 * there, `lost` while it is tried again, `ended` when no more is expected, and `gone` when the shop
 * does not know the order. A browser's EventSource gives up after an HTTP error, so each stream is
 * opened anew here instead.
 */
export function watchOrder(orderId, { onOrder, onState, base = "", Source = globalThis.EventSource }) {
  const path = `${base}/orders/${encodeURIComponent(orderId)}`;
  let source = null;
  let timer = null;
  let pause = PAUSE_MIN;
  let stopped = false;

  function stop() {
    stopped = true;
    clearTimeout(timer);
    source?.close();
  }

  function finish(state) {
    if (stopped) return;
    stop();
    onState(state);
  }

  function open() {
    const opened = new Source(`${path}/events`);
    source = opened;
    opened.addEventListener("order", (event) => {
      if (stopped) return;
      pause = PAUSE_MIN;
      onState("live");
      onOrder(JSON.parse(event.data));
    });
    opened.addEventListener("end", () => finish("ended"));
    opened.addEventListener("error", async () => {
      opened.close();
      if (stopped || source !== opened) return;
      source = null;
      onState("lost");
      // With jitter, so that not everybody comes back at the same moment after a restart.
      timer = setTimeout(again, pause * (0.75 + Math.random() / 2));
      pause = Math.min(pause * 2, PAUSE_MAX);
    });
  }

  async function again() {
    const answer = await fetch(path, { headers: { accept: "application/json" } }).catch(() => null);
    if (stopped) return;
    if (answer?.status === 404) finish("gone");
    else open();
  }

  open();
  return stop;
}
