// Looks at HTML files in a real browser, as on a phone and on a desk, by day and by night, and asks axe whether people can
// use what is there.
//
//     node axe.cjs CHROMIUM FOLDER|- PAGE...
//
// Each violation of an axe rule is a line of JSON on stdout: the page, the view, the rule, its impact, what it asks for, and
// each element with what is wrong there. The exit code is 1 if one is serious or critical. If FOLDER is not `-`, a picture
// of each view of each page is put there. The browser is driven by its own protocol over a pipe, so it
// ends with this program, and it finds no host: a page that needs one is shown without.

const { spawn } = require('node:child_process');
const { mkdirSync, mkdtempSync, rmSync, writeFileSync } = require('node:fs');
const { tmpdir } = require('node:os');
const { basename, extname, join, resolve } = require('node:path');
const { pathToFileURL } = require('node:url');
const axe = require('axe-core');

const SIZES = { phone: [390, 844], desktop: [1280, 800] };
const SCHEMES = ['light', 'dark'];
const REFUSED = ['serious', 'critical'];
/** The height of a picture, at most. */
const PICTURE_PIXELS_MAX = 8000;
/** How long one view of a page may take: under a second on two idle cores. */
const VIEW_MS_MAX = 60_000;

/** A browser without a window; `send` calls a method of the DevTools protocol, `once` waits for an event. */
class Browser {
  #calls = new Map();
  #events = new Map();
  #last = 0;
  #stderr = '';
  /** Why it cannot be asked any more. */
  #broken;

  constructor(program, folder) {
    const flags = [
      '--headless',
      '--remote-debugging-pipe',
      `--user-data-dir=${folder}`,
      '--host-resolver-rules=MAP * ~NOTFOUND',
      ...['--disable-gpu', '--disable-quic', '--disable-sync', '--disable-dev-shm-usage', '--disable-extensions'],
      ...['--disable-background-networking', '--disable-component-update', '--no-first-run', '--hide-scrollbars'],
      // Chromium refuses root its sandbox; the pages are the tests' own.
      ...(process.getuid?.() === 0 ? ['--no-sandbox'] : []),
    ];
    this.process = spawn(program, flags, { stdio: ['ignore', 'ignore', 'pipe', 'pipe', 'pipe'] });
    this.process.stderr.on('data', (text) => (this.#stderr = (this.#stderr + text).slice(-4000)));
    this.process.on('error', (error) => this.#fail(error));
    this.ended = new Promise((done) => this.process.on('close', done));
    this.ended.then((code) => this.#fail(new Error(`${program} ended with ${code}: ${this.#stderr}`)));
    const [, , , to, from] = this.process.stdio;
    // A pipe breaks when the browser ends, which says why.
    for (const pipe of [to, from]) pipe.on('error', () => {});
    let text = '';
    from.setEncoding('utf8').on('data', (more) => {
      const messages = (text + more).split('\0');
      text = messages.pop();
      messages.forEach((message) => this.#take(JSON.parse(message)));
    });
  }

  send(method, params = {}, sessionId = undefined) {
    return new Promise((done, failed) => {
      if (this.#broken) return failed(this.#broken);
      this.#calls.set(++this.#last, { done, failed, method });
      this.process.stdio[3].write(JSON.stringify({ id: this.#last, method, params, sessionId }) + '\0');
    });
  }

  once(event, sessionId) {
    const heard = new Promise((done, failed) => this.#events.set(`${event} ${sessionId}`, { done, failed }));
    // Whoever waits for it is told, and else nobody has to be.
    heard.catch(() => {});
    return heard;
  }

  /** Ends it at once. */
  kill(why) {
    this.#fail(new Error(why));
    this.process.kill('SIGKILL');
  }

  #take({ id, error, result, method, params, sessionId }) {
    if (id === undefined) return this.#events.get(`${method} ${sessionId}`)?.done(params);
    const call = this.#calls.get(id);
    this.#calls.delete(id);
    if (error) call.failed(new Error(`${call.method}: ${error.message}`));
    else call.done(result);
  }

  #fail(error) {
    this.#broken ??= error;
    [...this.#calls.values(), ...this.#events.values()].forEach(({ failed }) => failed(this.#broken));
  }
}

/** What axe finds in a page at one size in one colour scheme, and a picture of it if asked for. */
async function look(browser, page, [width, height], scheme, picture) {
  const { targetId } = await browser.send('Target.createTarget', { url: 'about:blank' });
  const { sessionId } = await browser.send('Target.attachToTarget', { targetId, flatten: true });
  const send = (method, params) => browser.send(method, params, sessionId);
  const evaluate = async (expression) => {
    const { result, exceptionDetails: thrown } = await send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
    if (thrown) throw new Error(`${page}: ${thrown.exception?.description ?? thrown.text}`);
    return result.value;
  };
  await send('Page.enable');
  await send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: width < 600 });
  // Nothing moves: what is half shown would be judged half shown.
  const features = [{ name: 'prefers-color-scheme', value: scheme }, { name: 'prefers-reduced-motion', value: 'reduce' }];
  await send('Emulation.setEmulatedMedia', { features });
  const loaded = browser.once('Page.loadEventFired', sessionId);
  const { errorText } = await send('Page.navigate', { url: pathToFileURL(resolve(page)).href });
  if (errorText) throw new Error(`${page}: ${errorText}`);
  await loaded;
  await evaluate('document.fonts.ready.then(() => true)');
  await evaluate(`${axe.source}; true`);
  const { violations } = await evaluate(`axe.run(document, { resultTypes: ['violations'] })`);
  if (picture) {
    const { cssContentSize: content } = await send('Page.getLayoutMetrics');
    const clip = { x: 0, y: 0, width, height: Math.min(Math.max(content.height, height), PICTURE_PIXELS_MAX), scale: 1 };
    const { data } = await send('Page.captureScreenshot', { clip, captureBeyondViewport: true });
    writeFileSync(picture, Buffer.from(data, 'base64'));
  }
  await browser.send('Target.closeTarget', { targetId });
  return violations;
}

async function lookAtAll(browser, pages, pictures) {
  let isRefused = false;
  if (pictures) mkdirSync(pictures, { recursive: true });
  for (const [number, page] of pages.entries()) {
    for (const [size, pixels] of Object.entries(SIZES)) {
      for (const scheme of SCHEMES) {
        const name = `${number + 1}-${basename(page, extname(page))}-${size}-${scheme}.png`;
        const alarm = setTimeout(() => browser.kill(`${page}: not shown within ${VIEW_MS_MAX} ms`), VIEW_MS_MAX);
        const violations = await look(browser, page, pixels, scheme, pictures && join(pictures, name));
        clearTimeout(alarm);
        for (const { id, impact, help, nodes } of violations) {
          const elements = nodes.map(({ target, failureSummary }) => ({ element: target.join(' '), says: failureSummary }));
          console.log(JSON.stringify({ page, view: `${size} ${scheme}`, rule: id, impact, help, elements }));
          isRefused ||= REFUSED.includes(impact);
        }
      }
    }
  }
  return isRefused;
}

async function main([program, pictures, ...pages]) {
  if (pages.length === 0) throw new Error('name a page: node axe.cjs CHROMIUM FOLDER|- PAGE...');
  // Named as the tests' folders are, which sweep what the killed leave behind.
  const folder = mkdtempSync(join(tmpdir(), `tidings-test-${process.pid}-chromium-`));
  const browser = new Browser(program, folder);
  try {
    const isRefused = await lookAtAll(browser, pages, pictures === '-' ? undefined : pictures);
    process.exitCode = isRefused ? 1 : 0;
  } finally {
    browser.send('Browser.close').catch(() => browser.process.kill('SIGKILL'));
    await browser.ended;
    rmSync(folder, { recursive: true, force: true, maxRetries: 10 });
  }
}

// Until everything has been looked at.
process.exitCode = 2;
main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exit(2);
});
