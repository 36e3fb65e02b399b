// Requests. A newer request of a kind aborts the older one, here and on the server.

const client = Array.from(crypto.getRandomValues(new Uint8Array(9)), (b) => b.toString(36)).join("");
const open = new Map();

export class Superseded extends Error {}

async function parse(response) {
  if (response.ok) return response.json();
  const text = await response.json().then((t) => t.detail, () => response.statusText);
  if (response.status === 409) throw new Superseded(text);
  throw new Error(text);
}

/** `kind`: a newer request of a kind aborts the older one. */
async function call(path, kind, options = {}) {
  const controller = new AbortController();
  if (kind) {
    open.get(kind)?.abort();
    open.set(kind, controller);
  }
  try {
    const headers = { "X-Client": client, ...(options.body ? { "Content-Type": "application/json" } : {}) };
    return await parse(await fetch(path, { ...options, headers, signal: controller.signal }));
  } catch (error) {
    if (error.name === "AbortError") throw new Superseded("superseded");
    if (error instanceof TypeError) throw new Error("the server does not answer; is it still running?");
    throw error;
  } finally {
    if (open.get(kind) === controller) open.delete(kind);
  }
}

export const get = (path, kind) => call(path, kind);
export const post = (path, body, kind) => call(path, kind, { method: "POST", body: JSON.stringify(body ?? {}) });

/** Polls until a job is done; `progress` is called with its status. Throws its error. */
export async function untilDone(path, progress, begin) {
  let job = await begin();
  while (job.state === "running") {
    progress(job);
    await new Promise((r) => setTimeout(r, 400));
    job = await get(path);
  }
  if (job.state === "failed") throw new Error(job.problem);
  return job;
}
