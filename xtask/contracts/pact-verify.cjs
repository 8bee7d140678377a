// Verifies a pact of messages with Pact's own verifier, driven by its library for JavaScript.
//
//     node pact-verify.cjs PACT MESSAGES
//
// MESSAGES is a JSON file with what the provider sends for each interaction, by its description:
// `{"order-confirmed.v1": {"body": …, "metadata": {"type": "order-confirmed.v1"}}}`. The verifier asks for them over
// loopback. What it says to people goes to stdout as it says it, and after it each mismatch as a line of JSON, with
// `interaction`, `path` (of the body) or `key` (of the metadata), and `mismatch`, its words. The exit code is 1 if the
// provider breaks the pact.

// Before the library is loaded: it reports to its makers how it is used.
process.env.PACT_DO_NOT_TRACK = 'true';

const { readFileSync } = require('node:fs');
const { Verifier } = require('@pact-foundation/pact');

/** How long the verifier waits for a message: the machine may be busy. */
const REQUEST_MS_MAX = 60_000;

const read = (file) => JSON.parse(readFileSync(file, 'utf8'));

/** Whether the verifier itself came to an end, and what it found then. */
async function verify(verifier) {
  try {
    await verifier.verifyProvider();
    return [];
  } catch (error) {
    if (!error.message.startsWith('{')) throw error;
    return JSON.parse(error.message).errors;
  }
}

async function main(pactFile, messagesFile) {
  if (!messagesFile) throw new Error('name two files: node pact-verify.cjs PACT MESSAGES');
  const { provider, interactions } = read(pactFile);
  if (!interactions?.length) throw new Error(`${pactFile}: there is no interaction to verify`);
  const sent = read(messagesFile);
  const missing = interactions.find(({ description }) => !(description in sent));
  if (missing) throw new Error(`${messagesFile}: there is no message for \`${missing.description}\``);
  const messages = Object.entries(sent).map(([description, { body, metadata }]) => [
    description,
    async () => ({ __pactMessageMetadata: { contentType: 'application/json', ...metadata }, message: Buffer.from(JSON.stringify(body)) }),
  ]);
  const states = interactions.flatMap(({ providerStates }) => providerStates ?? []);
  const verifier = new Verifier({
    provider: provider.name,
    pactUrls: [pactFile],
    messageProviders: Object.fromEntries(messages),
    // The messages are there already, so no state has to be brought about.
    stateHandlers: Object.fromEntries(states.map(({ name }) => [name, async () => undefined])),
    timeout: REQUEST_MS_MAX,
    logLevel: 'warn',
  });
  const errors = await verify(verifier);
  for (const { interaction, mismatch } of errors) {
    for (const found of mismatch?.mismatches ?? [mismatch]) console.log(JSON.stringify({ interaction, ...found }));
  }
  process.exitCode = errors.length > 0 ? 1 : 0;
}

// Until everything has been verified.
process.exitCode = 2;
main(...process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(2);
});
