// Replicate's client for Node over TLS, and its check of a webhook: node replicate-tls.mjs URL WEBHOOK, which is JSON
import assert from "node:assert/strict";
import Replicate, { validateWebhook } from "replicate";

const [server, webhook] = process.argv.slice(2);
const replicate = new Replicate({ auth: "r8_unused", baseUrl: `${server}/v1` });
const input = { prompt: "a red circle", megapixels: "0.25", num_inference_steps: 1 };
const [picture] = await replicate.run("black-forest-labs/flux-schnell", { input });
assert.ok(picture.url().href.startsWith(`${server}/files/`));
assert.equal(Buffer.from(await (await picture.blob()).arrayBuffer()).subarray(8, 12).toString(), "WEBP");

const { headers, body } = JSON.parse(webhook);
const { key: secret } = await replicate.webhooks.default.secret.get();
const named = ["id", "timestamp", "signature"].map(name => [name, headers[`webhook-${name}`]]);
assert.ok(await validateWebhook({ ...Object.fromEntries(named), body, secret }));
assert.ok(!(await validateWebhook({ ...Object.fromEntries(named), body: `${body} `, secret })));
console.log("ok");
