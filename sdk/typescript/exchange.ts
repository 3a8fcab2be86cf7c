/**
 * Downloads adapters and uploads updates with the generated client, and tells how much memory that took:
 * `node --expose-gc exchange.js EXCHANGES streamed | whole`. The last exchange is measured; those before it
 * warm up. While it streams, garbage is collected all the time: else some 40 MB of it may lie about, however
 * large the body is.
 */
import { createHash } from "node:crypto";
import { existsSync, openAsBlob, readFileSync } from "node:fs";
import { createClient } from "./generated/client/index.js";
import { getRoundAdapter, putUpdate } from "./generated/sdk.gen.js";
import type { PutUpdateData } from "./generated/types.gen.js";
import { streamingFetch } from "./streaming.js";

type Exchange = {
  server: string; round_id: string; update_id: string; file: string; adapter_sha256: string; update_sha256: string;
  download_headers: Record<string, string>; upload_headers: PutUpdateData["headers"];
};

const [told, way] = process.argv.slice(2);
const exchanges: Exchange[] = JSON.parse(readFileSync(told ?? "", "utf8"));
const clientOf = (one: Exchange) => createClient({ baseUrl: one.server, fetch: streamingFetch });

async function download(one: Exchange): Promise<void> {
  const { data, error } = await getRoundAdapter({
    client: clientOf(one), path: { round_id: one.round_id }, headers: one.download_headers,
    parseAs: way === "whole" ? "blob" : "stream",
  });
  if (data === undefined) throw new Error("no adapter", { cause: error });
  // The generator types the answer as a Blob, whatever `parseAs` says.
  const parts = way === "whole" ? (data as Blob).stream() : (data as unknown as ReadableStream<Uint8Array>);
  const hash = createHash("sha256");
  for await (const part of parts) hash.update(part);
  if (hash.digest("hex") !== one.adapter_sha256) throw new Error("the adapter is not the one that was announced");
}

async function upload(one: Exchange): Promise<void> {
  // The generated type is a Blob: one that is opened from a file is read while it is sent.
  const body = way === "whole" ? new Blob([readFileSync(one.file)]) : await openAsBlob(one.file);
  const path = { round_id: one.round_id, update_id: one.update_id };
  const { data, error } = await putUpdate({ client: clientOf(one), path, headers: one.upload_headers, body });
  if (data?.sha256 !== one.update_sha256) throw new Error("no receipt", { cause: error ?? data });
}

/** The memory that this process holds, and the most that it ever held. Linux's rusage counts in what the
 *  process that started this one held; /proc does not. */
function heldBytes(): { now: number; peak: number } {
  if (!existsSync("/proc/self/status"))
    return { now: process.memoryUsage.rss(), peak: process.resourceUsage().maxRSS * 1024 };
  const told = readFileSync("/proc/self/status", "utf8");
  const bytesOf = (name: string) => 1024 * Number(new RegExp(`${name}:\\s+(\\d+)`).exec(told)?.[1]);
  return { now: bytesOf("VmRSS"), peak: bytesOf("VmHWM") };
}

const collecting = way === "streamed" ? setInterval(() => globalThis.gc?.(), 5) : undefined;
const grown: Record<string, number> = {};
for (const one of exchanges) {
  for (const [name, work] of Object.entries({ download, upload })) {
    globalThis.gc?.();
    const before = heldBytes().now;
    await work(one);
    grown[name] = heldBytes().peak - before;
  }
}
clearInterval(collecting);
console.log(JSON.stringify(grown));
