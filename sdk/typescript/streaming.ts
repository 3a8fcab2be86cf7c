/**
 * A `fetch` that sends a body at the pace of its reader. Node 20's own keeps an upload whole: it takes the
 * body's parts as fast as they come and waits for nobody. Give this one to the generated client as `fetch`.
 */
import { once } from "node:events";
import * as http from "node:http";
import * as https from "node:https";
import { Readable } from "node:stream";
import type { ReadableStream } from "node:stream/web";

/** The size of a body that is sent has to be among the headers, as Content-Length. */
export const streamingFetch: typeof fetch = async (input, init) => {
  const asked = new Request(input, init);
  const call = asked.url.startsWith("https:") ? https.request : http.request;
  const request = call(asked.url, { method: asked.method, headers: Object.fromEntries(asked.headers) });
  const answered = once(request, "response"); // throws what breaks before the answer
  request.on("error", () => undefined);
  if (asked.body === null) request.end();
  else Readable.fromWeb(asked.body as ReadableStream).on("error", (fault) => request.destroy(fault)).pipe(request);
  const [answer] = (await answered) as [http.IncomingMessage];
  const headers = new Headers();
  for (const [name, values] of Object.entries(answer.headersDistinct))
    for (const value of values ?? []) headers.append(name, value);
  const status = answer.statusCode ?? 0;
  const body = [204, 304].includes(status) ? null : (Readable.toWeb(answer) as BodyInit);
  return new Response(body, { status, headers });
};
