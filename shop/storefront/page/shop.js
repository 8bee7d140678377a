// The storefront in the browser. It only calls the shop's HTTP API, described at /openapi.json.
// Amounts are shown as the API writes them; sums are made in whole cents.

import { watchOrder } from "/live.js";

const $ = (id) => document.getElementById(id);

/** Makes an element. Text is always text: nothing from outside is ever read as HTML. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

function picture(sku) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  const use = document.createElementNS(ns, "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", document.getElementById(sku) ? `#${sku}` : "#parcel");
  svg.append(use);
  return svg;
}

const cents = (amount) => Math.round(Number(amount) * 100);
const money = (cents) => `${Math.floor(cents / 100)}.${String(cents % 100).padStart(2, "0")}`;
const short = (id) => (id.length > 13 ? `…${id.slice(-12)}` : id);

/** Calls the API. What it answers when something is wrong becomes an error with its words. */
async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { accept: "application/json", ...options.headers } });
  } catch {
    throw new Error("The shop does not answer. Is it running?");
  }
  const body = await response.json().catch(() => null);
  if (response.ok) return { body, response };
  const parts = (body?.errors ?? []).map((error) => error.detail);
  const error = new Error([body?.detail ?? `The shop answered ${response.status}.`, ...parts].join(" "));
  error.status = response.status;
  throw error;
}

const customerId = (() => {
  const made = `c-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
  try {
    const known = localStorage.getItem("customerId");
    if (!known) localStorage.setItem("customerId", made);
    return known ?? made;
  } catch {
    return made;
  }
})();

// --- catalogue -----------------------------------------------------------------------------------

let products = new Map();

async function loadProducts() {
  const place = $("products");
  if (!products.size) {
    place.replaceChildren(...Array.from({ length: 8 }, () => h("div", { class: "skeleton" })));
  }
  try {
    const { body } = await call("/products");
    products = new Map(body.map((product) => [product.sku, product]));
    showProducts();
    showCart();
  } catch (error) {
    if (products.size) return;
    place.replaceChildren(
      h("div", { class: "trouble", role: "alert" },
        h("p", {}, `The catalogue is not there: ${error.message}`),
        h("button", { type: "button", onclick: loadProducts }, "Try again")));
  } finally {
    place.setAttribute("aria-busy", "false");
  }
}

function availability(available) {
  if (available <= 0) return ["stock none", "sold out — order it to see a cancellation"];
  if (available < 10) return ["stock few", `only ${available} left`];
  return ["stock", "in stock"];
}

function showProducts() {
  const cards = [...products.values()].map((product) => {
    const [style, words] = availability(product.available);
    return h("article", { class: product.available > 0 ? "product" : "product gone" },
      h("div", { class: "picture" }, picture(product.sku)),
      h("div", { class: "about" },
        h("h3", {}, product.name),
        h("p", { class: style }, words),
        h("div", { class: "row" },
          h("span", { class: "price" }, money(cents(product.price))),
          h("button", {
            type: "button",
            "aria-label": `Add ${product.name} to your order`,
            onclick: () => change(product.sku, 1),
          }, "Add"))));
  });
  if (cards.length) $("products").replaceChildren(...cards);
  else $("products").replaceChildren(h("p", { class: "trouble" }, "There is nothing for sale yet."));
}

// --- cart ----------------------------------------------------------------------------------------

const cart = new Map();
/** One key per attempt to place this cart: pressing twice places one order. */
let idempotencyKey = null;

function change(sku, by) {
  const quantity = Math.min((cart.get(sku) ?? 0) + by, 1000);
  if (quantity > 0) cart.set(sku, quantity);
  else cart.delete(sku);
  idempotencyKey = null;
  showCart();
}

function showCart() {
  const lines = [...cart].map(([sku, quantity]) => {
    const product = products.get(sku);
    return h("li", {},
      h("span", {}, product.name),
      h("span", { class: "stepper" },
        h("button", { type: "button", "aria-label": `One ${product.name} less`, onclick: () => change(sku, -1) }, "−"),
        h("output", {}, String(quantity)),
        h("button", { type: "button", "aria-label": `One ${product.name} more`, onclick: () => change(sku, 1) }, "+")),
      h("span", { class: "sum" }, money(cents(product.price) * quantity)));
  });
  if (lines.length) {
    const sum = [...cart].reduce((sum, [sku, quantity]) => sum + cents(products.get(sku).price) * quantity, 0);
    lines.push(h("li", { class: "total" }, h("span", {}, "Together"), h("span", { class: "sum" }, money(sum))));
  } else {
    lines.push(h("li", { class: "empty" }, "Nothing yet. Add something from the catalogue."));
  }
  $("cart").replaceChildren(...lines);
  $("place").disabled = cart.size === 0;
}

function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

$("checkout").addEventListener("input", () => { idempotencyKey = null; });
$("checkout").addEventListener("submit", async (submit) => {
  submit.preventDefault();
  const form = new FormData($("checkout"));
  idempotencyKey ??= newKey();
  $("form-error").hidden = true;
  $("place").disabled = true;
  $("place").textContent = "Placing…";
  try {
    const { body } = await call("/orders", {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": idempotencyKey },
      body: JSON.stringify({
        customerId,
        email: form.get("email").trim(),
        card: form.get("card"),
        items: [...cart].map(([sku, quantity]) => ({ sku, quantity })),
      }),
    });
    cart.clear();
    idempotencyKey = null;
    follow(body.orderId);
  } catch (error) {
    $("form-error").textContent = error.message;
    $("form-error").hidden = false;
  } finally {
    $("place").textContent = "Place order";
    showCart();
  }
});

// --- one order, live -----------------------------------------------------------------------------

const SAID_BY = {
  OrderPlaced: "orders", OrderConfirmed: "orders", OrderCancelled: "orders",
  PaymentAuthorized: "payment", PaymentDeclined: "payment", PaymentRefunded: "payment",
  StockReserved: "inventory", StockRejected: "inventory", StockReleased: "inventory",
  ShipmentBooked: "shipping", EmailSent: "notification", PointsAwarded: "loyalty",
};
const BAD = new Set(["PaymentDeclined", "StockRejected", "OrderCancelled"]);

let stopWatching = null;
let shown = { id: null, events: 0, status: null };

function follow(orderId) {
  stopWatching?.();
  shown = { id: orderId, events: 0, status: null };
  $("tracking").hidden = false;
  $("timeline").replaceChildren(h("li", { class: "waiting" }, "listening…"));
  $("facts").replaceChildren();
  $("reason").hidden = true;
  $("order-id").textContent = short(orderId);
  $("order-id").title = orderId;
  showLink("live");
  stopWatching = watchOrder(orderId, { onOrder: showOrder, onState: showLink });
  $("tracking").scrollIntoView({ block: "nearest", behavior: "smooth" });
}

/** Whether what is shown is up to date. */
function showLink(state) {
  const words = {
    lost: "The connection is lost. Reconnecting…",
    gone: "The shop does not know this order any more.",
  }[state] ?? "";
  $("link").hidden = !words;
  if ($("link").textContent !== words) $("link").textContent = words;
}

function waitingFor(order) {
  const said = new Set(order.timeline.map(({ event }) => event));
  if (order.status !== "CREATED") return null;
  const missing = [];
  if (!said.has("PaymentAuthorized") && !said.has("PaymentDeclined")) missing.push("payment");
  if (!said.has("StockReserved") && !said.has("StockRejected")) missing.push("inventory");
  return missing.length ? `waiting for ${missing.join(" and ")}…` : "deciding…";
}

function after(from, at) {
  const ms = Date.parse(at) - Date.parse(from);
  return ms < 1000 ? `+${Math.max(0, ms)} ms` : `+${(ms / 1000).toFixed(1)} s`;
}

function showOrder(order) {
  if (order.orderId !== shown.id) return;
  $("status").textContent = order.status;
  $("status").className = `badge ${order.status.toLowerCase()}`;
  $("order-amount").textContent = money(cents(order.amount));
  $("reason").hidden = !order.reason;
  $("reason").textContent = order.reason ?? "";
  const start = order.timeline[0]?.at;
  const lines = order.timeline.map(({ at, event }, index) =>
    h("li", { class: [BAD.has(event) ? "bad" : "", index >= shown.events ? "new" : ""].join(" ").trim() || null },
      h("span", {}, event.replace(/(?<=[a-z])(?=[A-Z])/g, " ").toLowerCase().replace(/^./, (first) => first.toUpperCase())),
      h("span", { class: "by" }, `said by ${SAID_BY[event] ?? "somebody new"}`),
      h("time", { class: "at", datetime: at, title: at }, index ? after(start, at) : new Date(at).toLocaleTimeString())));
  const waiting = waitingFor(order);
  if (waiting) lines.push(h("li", { class: "waiting" }, waiting));
  $("timeline").replaceChildren(...lines);
  if (order.timeline.length !== shown.events && order.status !== "CREATED") showFacts(order);
  if (order.status !== shown.status) {
    loadRecent();
    if (order.status !== "CREATED") loadProducts();
  }
  shown.events = order.timeline.length;
  shown.status = order.status;
}

/** What the other services know about the order; each may not know it (yet), and that is fine. */
async function showFacts(order) {
  const id = encodeURIComponent(order.orderId);
  const said = new Set(order.timeline.map(({ event }) => event));
  const ask = (path, when) => (when ? call(path).then(({ body }) => body, () => null) : null);
  const [payment, shipment, emails] = await Promise.all([
    ask(`/payments/${id}`, said.has("PaymentAuthorized") || said.has("PaymentDeclined")),
    ask(`/shipments/${id}`, said.has("ShipmentBooked")),
    ask(`/emails?orderId=${id}`, said.has("EmailSent")),
  ]);
  if (order.orderId !== shown.id) return;
  const facts = [];
  const fact = (name, value) => facts.push(h("dt", {}, name), h("dd", {}, value));
  if (payment) fact("Payment", `${payment.status.toLowerCase()}, ${payment.attempts} ${payment.attempts === 1 ? "attempt" : "attempts"}`);
  if (shipment) fact("Parcel", shipment.tracking);
  for (const email of emails ?? []) fact("Mail", `“${email.subject}” to ${email.to}`);
  $("facts").replaceChildren(...facts);
  loadPoints();
}

// --- recent orders -------------------------------------------------------------------------------

let recent = [];

async function loadRecent(before = null) {
  const query = new URLSearchParams({ customerId, limit: "6" });
  if (before) query.set("before", before);
  try {
    const { body, response } = await call(`/orders?${query}`);
    recent = before ? [...recent, ...body] : body;
    $("more").hidden = !response.headers.has("link");
    showRecent();
  } catch (error) {
    if (!recent.length) $("recent").replaceChildren(h("li", { class: "empty" }, `Cannot be shown: ${error.message}`));
  }
}

function showRecent() {
  if (!recent.length) {
    $("recent").replaceChildren(h("li", { class: "empty" }, "You have not ordered anything yet."));
    return;
  }
  $("recent").replaceChildren(...recent.map((order) =>
    h("li", {},
      h("button", { type: "button", onclick: () => follow(order.orderId) },
        h("code", { title: order.orderId }, short(order.orderId)),
        h("span", { class: "sum" }, money(cents(order.amount))),
        h("span", { class: `badge ${order.status.toLowerCase()}` }, order.status)))));
}

$("more").addEventListener("click", () => loadRecent(recent.at(-1)?.orderId));

async function loadPoints() {
  const known = await call(`/loyalty/${encodeURIComponent(customerId)}`).catch(() => null);
  if (known) $("points").textContent = `${known.body.points} points`;
}

// --- the bank, and how the shop is ---------------------------------------------------------------

function showBank(mode) {
  for (const button of document.querySelectorAll("[data-mode]")) {
    button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
  }
}

for (const button of document.querySelectorAll("[data-mode]")) {
  button.addEventListener("click", async () => {
    const mode = button.dataset.mode;
    try {
      await call("/bank/behaviour", {
        method: "PUT",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ mode }),
      });
      showBank(mode);
      $("bank-note").textContent = {
        ok: "The bank charges whoever can pay.",
        flaky: "Every other request fails, sometimes after the money was taken.",
        slow: "The bank takes two seconds for each answer.",
        down: "The bank does not answer. Orders are still taken, and wait.",
      }[mode];
    } catch (error) {
      $("bank-note").textContent = error.message;
    }
  });
}

async function loadHealth() {
  const [style, words] = await call("/health/ready").then(
    ({ body }) => (Object.values(body.checks).every((state) => state === "up")
      ? ["up", "everything is running"]
      : ["", "orders are taken; not all is connected"]),
    (error) => (error.status === 503 ? ["down", "orders cannot be taken now"] : ["down", "the shop does not answer"]));
  $("health").className = `health ${style}`;
  const text = $("health").querySelector(".text");
  if (text.textContent !== words) text.textContent = words;
}

showCart();
loadProducts();
loadRecent();
loadPoints();
loadHealth();
setInterval(loadHealth, 5000);
call("/bank/behaviour").then(({ body }) => showBank(body.mode), () => {});
