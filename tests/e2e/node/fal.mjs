// @fal-ai/client through the proxy of a server: node fal.mjs URL WEBHOOK; prints what happened as JSON.
import { createFalClient } from "@fal-ai/client";
import { attempt, kindOf } from "./outcomes.mjs";

const url = `${process.argv[2]}/api/fal/proxy`;
const fal = createFalClient({ credentials: "unused", proxyUrl: { url, when: "always" } });
const app = "fal-ai/flux/schnell";
const small = { prompt: "a cat", image_size: { width: 256, height: 256 }, num_inference_steps: 1, seed: 5 };
const long = { prompt: "a tree", image_size: "square_hd", num_inference_steps: 12, num_images: 4 };

const kinds = output => output.images.map(each => kindOf(Buffer.from(each.url.split(",")[1], "base64")));

const subscribed = async mode => {
  const states = [];
  const { data, requestId } = await fal.subscribe(app, {
    input: { ...small, num_images: 2 }, logs: true, mode, pollInterval: 100,
    onQueueUpdate: update => states.push(update),
  });
  const last = states.at(-1);
  return { kinds: kinds(data), named: requestId === last.request_id, last: last.status, logs: last.logs.length };
};

const cancelled = async () => {
  const { request_id: requestId } = await fal.queue.submit(app, { input: long, priority: "low" });
  await fal.queue.cancel(app, { requestId });
  const { status, error_type } = await fal.queue.subscribeToStatus(app, { requestId, pollInterval: 50 });
  const { error, status: code } = await attempt(() => fal.queue.result(app, { requestId }));
  return { status, error_type, error, code };
};

const bad = async () => {
  try {
    await fal.run(app, { input: { ...small, num_images: 9 } });
  } catch (error) {
    return { name: error.name, status: error.status, fields: error.fieldErrors.map(each => each.loc) };
  }
};

const streamed = async () => {
  const stream = await fal.stream(app, { input: { ...small, num_inference_steps: 12 } });
  const events = [];
  for await (const event of stream) events.push(event);
  return { widths: events.map(event => event.images[0].width), done: kinds(await stream.done()) };
};

// Two other ways to another server: the address of a request is rewritten, or fetched from elsewhere.
const rewritten = url => url.replace("https://fal.run", `${process.argv[2]}/fal/run`);
const elsewhere = [
  { requestMiddleware: async request => ({ ...request, url: rewritten(request.url) }) },
  { fetch: (url, options) => fetch(rewritten(url), options) },
];
const direct = async way => kinds((await createFalClient({ credentials: "unused", ...way }).run(app, { input: small })).data);

console.log(JSON.stringify({
  direct: await attempt(() => Promise.all(elsewhere.map(direct))),
  run: await attempt(async () => kinds((await fal.run(app, { input: small })).data)),
  several: await attempt(async () => kinds((await fal.run(app, { input: { ...small, num_images: 4 } })).data)),
  polled: await attempt(() => subscribed("polling")),
  streamedStates: await attempt(() => subscribed("streaming")),
  cancelled: await attempt(cancelled),
  bad: await bad(),
  streamed: await attempt(streamed),
  webhook: (await fal.queue.submit(app, { input: small, webhookUrl: process.argv[3] })).request_id,
}));
