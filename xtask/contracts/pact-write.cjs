// Writes a pact of asynchronous messages with Pact's own library for JavaScript: what the consumer `newsletter` needs
// of the provider `orders`. `pact_write.py` writes the same one with the library for Python.
//
//     node pact-write.cjs FOLDER
//
// The file is FOLDER/newsletter-orders.json. Where the libraries differ, so do the files, and whoever reads pacts must
// take both.

// Before the library is loaded: it reports to its makers how it is used.
process.env.PACT_DO_NOT_TRACK = 'true';

const { join } = require('node:path');
const { PactV4, MatchersV3 } = require('@pact-foundation/pact');

const { decimal, eachLike, integer, like, regex, string } = MatchersV3;

const MESSAGES = {
  'order-confirmed.v1': {
    orderId: string('0198c5a2-93b0-7e57-a54a-2f7b8f3c9d10'),
    amount: decimal(129.5),
    customerId: like('customer-7'),
    status: 'CONFIRMED',
  },
  'order-placed.v1': {
    orderId: string('0198c5a2-93b0-7e57-a54a-2f7b8f3c9d10'),
    currency: regex('^[A-Z]{3}$', 'EUR'),
    items: eachLike({ sku: string('TEA-SENCHA'), quantity: integer(2) }, 1),
  },
};

const metadata = (type) => ({ type, messageId: regex('^[0-9a-f-]{36}$', '0198c5a2-93b0-7e57-a54a-2f7b8f3c9d11') });

async function main(dir) {
  if (!dir) throw new Error('name a folder: node pact-write.cjs FOLDER');
  const pact = new PactV4({ consumer: 'newsletter', provider: 'orders', dir, logLevel: 'warn' });
  for (const [type, content] of Object.entries(MESSAGES)) {
    await pact
      .addAsynchronousInteraction()
      .given('an order of customer-7', { customerId: 'customer-7' })
      .expectsToReceive(type, (message) => message.withJSONContent(content).withMetadata(metadata(type)))
      .executeTest(async ({ contents }) => {
        if (!contents.content.orderId) throw new Error(`${type}: the example has no order`);
      });
  }
  console.log(JSON.stringify({ file: join(dir, 'newsletter-orders.json') }));
}

main(process.argv[2]).catch((error) => {
  console.error(error);
  process.exitCode = 2;
});
