// Brings a service up to date that was added after the facts: tells it, and only it, about the
// orders of a customer that were confirmed before.
//
//   node replay.js CUSTOMER-ID [QUEUE]
//
// The facts go to the newcomer's own queue through the default exchange, so nobody else hears them
// again. Each carries its order's id, which is its identity: an order the newcomer knows already,
// or a second run of this program, changes nothing.

const amqp = require('amqplib');

const shop = process.env.SHOP_URL || 'http://127.0.0.1:8080';

async function* confirmedOrders(customerId) {
  let page = `/orders?customerId=${encodeURIComponent(customerId)}`;
  while (page) {
    const response = await fetch(new URL(page, shop));
    if (!response.ok) throw new Error(`${page}: ${response.status} ${await response.text()}`);
    for (const order of await response.json()) {
      if (order.status === 'CONFIRMED') yield order;
    }
    page = (response.headers.get('link') || '').match(/<([^>]+)>; rel="next"/)?.[1];
  }
}

async function main() {
  const [customerId, queue = 'loyalty.order-confirmed.v1'] = process.argv.slice(2);
  if (!customerId) throw new Error('say whose orders: node replay.js CUSTOMER-ID [QUEUE]');

  const connection = await amqp.connect(process.env.AMQP_URL || 'amqp://localhost');
  const channel = await connection.createConfirmChannel();
  // A queue that is not there is an error, here and now.
  await channel.checkQueue(queue);
  let count = 0;
  for await (const { orderId, amount } of confirmedOrders(customerId)) {
    const fact = { orderId, amount, customerId };
    channel.sendToQueue(queue, Buffer.from(JSON.stringify(fact)), { persistent: true });
    count += 1;
  }
  await channel.waitForConfirms();
  console.log(`told ${queue} about ${count} order(s) of ${customerId}`);
  await connection.close();
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
