// Speaks with a Pact broker as Pact's own tools do.
//
//     node pact-broker.cjs publish URL VERSION FOLDER            puts the pacts in FOLDER there, as of VERSION of their consumers
//     node pact-broker.cjs verify URL VERSION PROVIDER MESSAGES  verifies what the broker says, and publishes the results
//
// MESSAGES is a JSON file as `pact-verify.cjs` takes it. The user and the password are in PACT_BROKER_USERNAME and
// PACT_BROKER_PASSWORD. What the tools say goes to stdout. The exit code is 0 if it is done, 1 if the broker refuses or
// the provider breaks a pact, and 2 if it could not begin.

// Before the library is loaded: it reports to its makers how it is used.
process.env.PACT_DO_NOT_TRACK = 'true';

const { spawnSync } = require('node:child_process');
const { readFileSync } = require('node:fs');

/** How long the verifier waits for a message: the machine may be busy. */
const REQUEST_MS_MAX = 60_000;

const { PACT_BROKER_USERNAME, PACT_BROKER_PASSWORD } = process.env;

function publish(url, version, folder) {
  const program = require.resolve('@pact-foundation/pact-cli/bin/pact-broker.js');
  const args = ['publish', folder, '--broker-base-url', url, '--consumer-app-version', version, '--branch', 'main'];
  const { status, error } = spawnSync(process.execPath, [program, ...args], { stdio: 'inherit' });
  if (error) throw error;
  return status === 0;
}

async function verify(url, version, provider, messagesFile) {
  const { Verifier } = require('@pact-foundation/pact');
  const sent = JSON.parse(readFileSync(messagesFile, 'utf8'));
  const messages = Object.entries(sent).map(([description, { body, metadata }]) => [
    description,
    async () => ({ __pactMessageMetadata: { contentType: 'application/json', ...metadata }, message: Buffer.from(JSON.stringify(body)) }),
  ]);
  const verifier = new Verifier({
    provider,
    pactBrokerUrl: url,
    pactBrokerUsername: PACT_BROKER_USERNAME,
    pactBrokerPassword: PACT_BROKER_PASSWORD,
    consumerVersionSelectors: [{ latest: true }],
    publishVerificationResult: true,
    providerVersion: version,
    providerVersionBranch: 'main',
    messageProviders: Object.fromEntries(messages),
    timeout: REQUEST_MS_MAX,
    logLevel: 'warn',
  });
  try {
    await verifier.verifyProvider();
    return true;
  } catch (error) {
    console.log(error.message);
    return false;
  }
}

async function main(verb, ...args) {
  const verbs = { publish, verify };
  if (!verbs[verb] || args.length !== verbs[verb].length) throw new Error('see the beginning of this file');
  process.exitCode = (await verbs[verb](...args)) ? 0 : 1;
}

process.exitCode = 2;
main(...process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(2);
});
