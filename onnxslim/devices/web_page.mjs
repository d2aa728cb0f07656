// Runs in the browser: loads the models of job.json with onnxruntime-web, runs them interleaved in the order that the
// job gives, and posts times and outputs. The host decides everything; what goes wrong is posted too.

const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: globalThis.Float16Array ?? Uint16Array, // what onnxruntime-web takes depends on the browser likewise
  int64: BigInt64Array,
  uint64: BigUint64Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
};

let stage = 'starting';

async function post(place, body) {
  const answer = await fetch(place, { method: 'POST', body });
  if (!answer.ok) throw new Error(`${place} was refused (${answer.status})`);
}

async function bytes(place) {
  const answer = await fetch(place);
  if (!answer.ok) throw new Error(`${place} is not there (${answer.status})`);
  return answer.arrayBuffer();
}

async function loadFeed(ort, entries) {
  const feed = {};
  for (const { name, type, dims, place } of entries) {
    feed[name] = new ort.Tensor(type, new ARRAYS[type](await bytes(place)), dims);
  }
  return feed;
}

async function loadArm(ort, model, feed) {
  const data = new Uint8Array(await bytes(model.place));
  const externalData = [];
  for (const { path, place } of model.data) externalData.push({ path, data: new Uint8Array(await bytes(place)) });
  const started = performance.now();
  const session = await ort.InferenceSession.create(data, { executionProviders: ['wasm'], externalData });
  const loadMs = performance.now() - started;
  const own = Object.fromEntries(model.inputs.map((name) => [name, feed[name]]));
  return { session, feed: own, loadMs, repeats: 1, timesMs: [], outputs: {} };
}

// The browser compiles WebAssembly twice, quickly and then well, so that early runs are slow ones.
async function warmUp(arm, job) {
  const started = performance.now();
  let runs = 0;
  while (runs < job.warmupRuns || performance.now() - started < job.warmupMs) {
    await arm.session.run(arm.feed);
    runs += 1;
  }
  let once = Infinity;
  for (let run = 0; run < job.batches; run += 1) once = Math.min(once, await timed(arm));
  arm.repeats = Math.min(1000, Math.max(1, Math.ceil(job.batchMs / Math.max(once, 1e-3)))); // for the clock's steps
}

async function timed(arm) {
  const started = performance.now();
  for (let run = 0; run < arm.repeats; run += 1) arm.outputs = await arm.session.run(arm.feed);
  return (performance.now() - started) / arm.repeats;
}

// A page has no clock of its own processor time, so that whatever else runs is in its times: the quickest counts.
async function sample(arm, job) {
  await arm.session.run(arm.feed); // not counted: it pays for the caches that others have emptied
  let best = Infinity;
  for (let batch = 0; batch < job.batches; batch += 1) best = Math.min(best, await timed(arm));
  arm.timesMs.push(best);
}

async function race(arms, job) {
  const started = performance.now();
  let told = started;
  for (let round = 0; round < job.orders.length; round += 1) {
    const spent = performance.now() - started;
    if (round >= job.least && spent > job.seconds * 1000) break;
    for (const index of job.orders[round]) await sample(arms[index], job);
    if (performance.now() - told > 1000) {
      told = performance.now();
      await post('progress', JSON.stringify({ share: Math.min(1, spent / (job.seconds * 1000)) }));
    }
  }
}

async function postOutputs(arm, index) {
  const described = [];
  for (const [number, name] of arm.session.outputNames.entries()) {
    const { type, dims, data } = arm.outputs[name];
    const plain = ArrayBuffer.isView(data);
    const place = plain ? `outputs/${index}/${number}` : null; // strings are left out
    if (plain) await post(place, data);
    described.push({ name, type, dims, place });
  }
  return described;
}

async function measure() {
  fetch('alive').catch(() => {}); // ends when this page does, which is how the host learns of a crash
  const job = JSON.parse(new TextDecoder().decode(await bytes('job.json')));
  const ort = await import('./ort/ort.wasm.min.mjs');
  ort.env.wasm.numThreads = job.threads;
  ort.env.wasm.wasmPaths = new URL('ort/', location.href).href;
  ort.env.logLevel = 'error';
  const feed = await loadFeed(ort, job.feed);
  const arms = [];
  for (const [index, model] of [...job.models, job.models[0]].entries()) {
    stage = `model ${index % job.models.length}`;
    arms.push(await loadArm(ort, model, feed));
    await warmUp(arms[index], job);
    await post('progress', JSON.stringify({ share: 0 }));
  }
  stage = 'racing';
  await race(arms, job);
  arms[0].loadMs = arms.at(-1).loadMs; // the first session of all paid for loading onnxruntime-web itself
  const sides = [];
  for (const [index, arm] of arms.slice(0, -1).entries()) {
    sides.push({ loadMs: arm.loadMs, timesMs: arm.timesMs, outputs: await postOutputs(arm, index) });
  }
  return {
    sides,
    twinMs: arms.at(-1).timesMs,
    runs: arms.slice(0, -1).map((arm) => arm.repeats),
    version: ort.env.versions?.web ?? null,
  };
}

const about = { userAgent: navigator.userAgent, isolated: self.crossOriginIsolated };
try {
  await post('result', JSON.stringify({ ...about, ...(await measure()) }));
} catch (error) {
  const message = String(error?.message ?? error);
  await post('result', JSON.stringify({ ...about, error: { stage, message } }));
}
