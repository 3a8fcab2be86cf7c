/**
 * A training client in one file, to start from: it enrols, fetches a round, trains, sends, and after a kill
 * sends the same bytes. What it signs is told in docs/wire.md; it needs nothing but Node. Once compiled:
 * `node client.js enrol INVITATION FOLDER DATASET`, then `node client.js run FOLDER [--once]`.
 * It adds no noise and keeps no privacy ledger. It therefore takes part only in runs that claim no privacy
 * (trust `none`), and refuses all others: `requireUnderstood`.
 */
import * as crypto from "node:crypto";
import { once } from "node:events";
import * as fs from "node:fs";
import * as http from "node:http";
import * as https from "node:https";
import { cpus, totalmem } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { checkServerIdentity, type PeerCertificate } from "node:tls";
import { pathToFileURL } from "node:url";

type Key = crypto.KeyObject;
export type Tensor = { name: string; shape: number[]; trained: boolean };
export type Manifest = {
  version: number; tensors: Tensor[]; buffered?: unknown; privacy: { trust: string };
  lora: { method: string; rank: number }; aggregation: { mode: string; wire_dtype?: string };
  training: { control_variates?: string };
};
export type Assignment = {
  round_id: string; run_id: string; number: number; rank: number | null;
  manifest_sha256: string; adapter_sha256: string;
};
export type Config = { server: string; ca: string | null; pins: string[]; client_id: string };
export type Round = { folder: string; assignment: Assignment; manifest: Manifest };
export type Changes = ReadonlyMap<string, Float32Array>;
export type Train = (manifest: Manifest, adapter: Buffer) => Changes | Promise<Changes>;

/** THE PLACE FOR YOUR TRAINING: how each trained tensor changed. This placeholder learns nothing. */
export const trainPlaceholder: Train = (manifest) =>
  new Map(trainedOf(manifest).map((one) => [one.name, new Float32Array(sizeOf(one))]));
const trainedOf = ({ tensors }: { tensors: Tensor[] }) => tensors.filter((one) => one.trained);
const sizeOf = ({ shape }: Tensor) => shape.reduce((a, b) => a * b, 1);

// ---- What is signed and sent, byte by byte (docs/wire.md; vectors.test.ts) ----
const b64u = (bytes: Uint8Array) => Buffer.from(bytes).toString("base64url");
const sha256 = (bytes: Uint8Array | string) => crypto.createHash("sha256").update(bytes).digest();
const signed = (text: string | Uint8Array, key: Key) => crypto.sign(null, Buffer.from(text), key);
const xOf = (key: Key) => crypto.createPublicKey(key).export({ format: "jwk" }).x ?? "";
const jwkOf = (key: Key) => ({ crv: "Ed25519", kty: "OKP", x: xOf(key) });
const fresh = () => ({ at: Math.floor(Date.now() / 1000), id: crypto.randomUUID() as string });
export const enrolmentProof = (key: Key, token: string) =>
  b64u(signed(Buffer.concat([Buffer.from(`dpfl-enrol-v1\0${token}\0`), Buffer.from(xOf(key), "base64url")]), key));

function jwt(key: Key, head: object, claims: object): string {
  const text = [head, claims].map((part) => b64u(Buffer.from(JSON.stringify(part)))).join(".");
  return `${text}.${b64u(signed(text, key))}`;
}
export const assertion = (key: Key, client: string, aud: string, { at, id } = fresh()) =>
  jwt(key, { alg: "EdDSA", typ: "JWT" }, { iss: client, sub: client, aud, iat: at, exp: at + 240, jti: id });

export function possession(key: Key, htm: string, htu: string, token: string | null, { at, id } = fresh()) {
  const claims = { htm, htu, iat: at, jti: id, ...(token === null ? {} : { ath: b64u(sha256(token)) }) };
  return jwt(key, { alg: "EdDSA", jwk: jwkOf(key), typ: "dpop+jwt" }, claims);
}

export function signedHeaders(key: Key, client: string, target: string, body: Uint8Array, { at, id } = fresh()) {
  const digest = `sha-256=:${sha256(body).toString("base64")}:`;
  const told = '("@method" "@target-uri" "content-digest" "content-length")'
    + `;created=${at};keyid="${client}";alg="ed25519";nonce="${id}";tag="dpfl-update"`;
  const lines = ['"@method": PUT', `"@target-uri": ${target}`, `"content-digest": ${digest}`,
    `"content-length": ${body.length}`, `"@signature-params": ${told}`];
  return {
    "Content-Type": "application/octet-stream", "Content-Digest": digest, "Content-Length": `${body.length}`,
    "Signature-Input": `dpfl=${told}`, Signature: `dpfl=:${signed(lines.join("\n"), key).toString("base64")}:`,
  };
}

/** A safetensors file of exactly the manifest's trained tensors. */
export function updateFile(manifest: { tensors: Tensor[] }, changes: Changes): Buffer {
  const head: Record<string, object> = {};
  const parts: Uint8Array[] = [];
  let at = 0;
  for (const tensor of trainedOf(manifest).sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const values = changes.get(tensor.name) ?? new Float32Array();
    if (values.length !== sizeOf(tensor) || !values.every(Number.isFinite)) throw new Error(`bad ${tensor.name}`);
    head[tensor.name] = { dtype: "F32", shape: tensor.shape, data_offsets: [at, (at += values.byteLength)] };
    parts.push(new Uint8Array(values.buffer, values.byteOffset, values.byteLength)); // little-endian, as Node is
  }
  if (changes.size !== parts.length) throw new Error("training made other tensors than the run wants");
  const text = Buffer.from(JSON.stringify(head));
  const blanks = Buffer.alloc(-text.length & 7, " ");
  const length = new Uint8Array(new BigUint64Array([BigInt(text.length + blanks.length)]).buffer);
  return Buffer.concat([length, text, blanks, ...parts]);
}

// ---- Files: whole and on the disk as soon as they have their name; none is ever replaced ----
function writeOnce(path: string, content: Uint8Array | string): void {
  const draft = `${path}.${crypto.randomUUID()}`;
  fs.writeFileSync(draft, content, { flag: "wx", mode: 0o600, flush: true });
  fs.linkSync(draft, path); // refused where the name is taken
  fs.unlinkSync(draft);
  const folder = fs.openSync(dirname(path), "r");
  fs.fsyncSync(folder);
  fs.closeSync(folder);
}
const readJson = (path: string) => JSON.parse(fs.readFileSync(path, "utf8"));
function keptOr<T>(path: string, make: () => T): T {
  if (!fs.existsSync(path)) writeOnce(path, JSON.stringify(make()));
  return readJson(path);
}

// ---- Talking to the server ----
type Headers = () => Record<string, string>;
type Ask = { body?: Uint8Array | (() => string); limit?: number; isPublic?: boolean; headers?: Headers };
type Reply = { status: number; headers: http.IncomingHttpHeaders; body: Buffer };
const [PATIENCE_MS, RETRIED] = [300_000, [429, 502, 503, 504, 507]];
const BROKEN = ["ECONNREFUSED", "ECONNRESET", "EPIPE", "ETIMEDOUT", "ENOTFOUND", "EAI_AGAIN"];

export class Session {
  private readonly proving = crypto.generateKeyPairSync("ed25519").privateKey; // dies with the process
  private readonly agent: http.Agent;
  private token = { value: "", until: 0 };

  constructor(private readonly config: Config, private readonly key: Key) {
    const { protocol, hostname } = new URL(config.server);
    if (protocol !== "https:" && hostname !== "127.0.0.1") throw new Error("without TLS only this machine is called");
    const pinned = (host: string, shown: PeerCertificate) => {
      const key = new crypto.X509Certificate(shown.raw).publicKey.export({ format: "der", type: "spki" });
      const isPinned = config.pins.includes(`sha256//${sha256(key).toString("base64")}`);
      return checkServerIdentity(host, shown) ?? (isPinned ? undefined : new Error("this is not the pinned server"));
    };
    const tls = { minVersion: "TLSv1.3", maxCachedSessions: 0, checkServerIdentity: pinned } as const;
    this.agent = protocol === "http:" ? new http.Agent() : new https.Agent({ ...tls, ca: config.ca ?? undefined });
  }

  get = (path: string, limit = 16 << 20) => this.ask("GET", path, { limit });
  post = (path: string, body: () => string, headers: Headers) =>
    this.ask("POST", path, { body, isPublic: true, headers });
  /** After any doubt the same bytes, each time signed anew: a nonce serves once. */
  put = (path: string, body: Uint8Array) => this.ask("PUT", path, {
    body, headers: () => signedHeaders(this.key, this.config.client_id, this.config.server + path, body),
  });

  private async access(): Promise<string> {
    if (this.token.until > Date.now()) return this.token.value;
    const address = `${this.config.server}/v1/tokens`;
    const kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
    const fields = () => `grant_type=client_credentials&client_assertion_type=${kind}`
      + `&client_assertion=${assertion(this.key, this.config.client_id, address)}`; // exchanged once: each try anew
    const form = "application/x-www-form-urlencoded";
    const headers = () => ({ "Content-Type": form, DPoP: possession(this.proving, "POST", address, null) });
    const told = JSON.parse(`${(await this.post("/v1/tokens", fields, headers)).body}`);
    this.token = { value: told.access_token, until: Date.now() + told.expires_in * 800 };
    return this.token.value;
  }

  private async ask(method: string, path: string, ask: Ask): Promise<Reply> {
    const until = Date.now() + PATIENCE_MS;
    for (let pauseS = 0.5, isRenewed = false; ; pauseS = Math.min(pauseS * 2, 30)) {
      const reply = await this.once(method, path, ask)
        .catch((error) => (BROKEN.includes(error.code) && Date.now() < until ? null : Promise.reject(error)));
      if (reply !== null && reply.status < 300) return reply;
      const isStale = reply?.status === 401 && !ask.isPublic && !isRenewed;
      if (isStale) [this.token.until, isRenewed] = [0, true];
      else if (reply !== null && (!RETRIED.includes(reply.status) || Date.now() > until)) throw refused(reply);
      else await sleep(1000 * Math.min(Number(reply?.headers["retry-after"]) || pauseS, 120));
    }
  }

  private async once(method: string, path: string, ask: Ask): Promise<Reply> {
    const address = this.config.server + path;
    const headers = ask.headers?.() ?? {};
    if (!ask.isPublic) {
      const token = await this.access();
      headers.Authorization = `DPoP ${token}`;
      headers.DPoP = possession(this.proving, method, address.replace(/\?.*/, ""), token);
    }
    const call = address.startsWith("https:") ? https.request : http.request;
    const request = call(address, { method, headers, agent: this.agent, timeout: 60_000 });
    request.on("timeout", () => request.destroy(Object.assign(new Error("no answer"), { code: "ETIMEDOUT" })));
    const answered = once(request, "response"); // throws what breaks before the answer
    request.on("error", () => undefined);
    request.end(typeof ask.body === "function" ? ask.body() : ask.body);
    const [answer] = (await answered) as [http.IncomingMessage];
    const parts: Buffer[] = [];
    let size = 0;
    for await (const part of answer) {
      if ((size += part.length) > (ask.limit ?? 16 << 20)) throw new Error("the server's answer is too large");
      parts.push(part);
    }
    return { status: answer.statusCode ?? 0, headers: answer.headers, body: Buffer.concat(parts) };
  }
}

/** The server's refusal with its stable code; its text without control characters. */
function refused({ status, body }: Reply): Error {
  const told = body.at(0) === 0x7b ? JSON.parse(`${body}`) : {};
  const text = `refused [${told.code ?? status}]: ${told.detail ?? told.title ?? ""}`;
  return new Error(text.replace(/[^ -~]/g, " ").slice(0, 300));
}

// ---- Enrolment ----
function readInvitation(path: string): Omit<Config, "client_id"> & { token: string } {
  const { sums, ...told } = readJson(path);
  for (const [name, value] of Object.entries<string | number | null | string[]>(told)) {
    const flat = JSON.stringify(value, null, 1).replace(/\n */g, " ").replace(/^\[ (.*) \]$/, "[$1]"); // "a", "b"
    const ascii = flat.replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
    if (sha256(ascii).toString("hex").slice(0, 32) !== sums?.[name]) throw new Error(`${path} is damaged: ${name}`);
  }
  if (told.format !== "dpfl-invitation" || told.version !== 1) throw new Error(`${path} is no invitation`);
  if (Date.parse(told.expires_at) <= Date.now()) throw new Error("the invitation expired: ask for a new one");
  return told;
}

/** Asked again after a kill or a lost answer, with the same folder, it ends in the same client. */
export async function enrol(invitationFile: string, folder: string, dataset: string): Promise<void> {
  const { server, ca, pins, token } = readInvitation(invitationFile);
  fs.mkdirSync(join(folder, "rounds"), { recursive: true, mode: 0o700 });
  if (fs.existsSync(join(folder, "config.json"))) throw new Error(`${folder} is an enrolled client already`);
  keptOr(join(folder, "key.json"), () => crypto.generateKeyPairSync("ed25519").privateKey.export({ format: "jwk" }));
  const key = keyOf(folder);
  const session = new Session({ server, ca, pins, client_id: "" }, key);
  const reply = await session.post("/v1/clients", () => JSON.stringify({
    enrolment_token: token, name: dataset, population: dataset, public_key: xOf(key),
    proof: enrolmentProof(key, token), capability: { memory_bytes: totalmem(), cpu_count: cpus().length || 1 },
  }), () => ({ "Content-Type": "application/json" }));
  const { client_id } = JSON.parse(`${reply.body}`);
  writeOnce(join(folder, "config.json"), JSON.stringify({ server, ca, pins, client_id }));
}

const keyOf = (folder: string) => crypto.createPrivateKey({ key: readJson(join(folder, "key.json")), format: "jwk" });
export const openClient = (folder: string) => new Session(readJson(join(folder, "config.json")), keyOf(folder));

// ---- One round ----
/** Refuse what this client does not do justice to. Before `local` may pass, add the noise that the manifest
 *  prices and a durable ledger of what your data have spent: what was sent cannot be taken back. */
function requireUnderstood({ version, privacy, lora, aggregation, training, buffered }: Manifest, rank: number): void {
  if (privacy.trust !== "none") throw new Error(`trust ${privacy.trust}: this client adds no noise, and sends nothing`);
  const isPlain = aggregation.mode === "plain" && (aggregation.wire_dtype ?? "float32") === "float32";
  const isUsual = ["ffa", "fedit"].includes(lora.method) && rank === lora.rank && !buffered;
  if (version !== 1 || !isPlain || !isUsual || (training.control_variates ?? "none") !== "none")
    throw new Error("the run asks for what this client does not do: another LoRA method, rank, dtype or mode");
}

export async function fetchRound(session: Session, clientFolder: string, assignment: Assignment): Promise<Round> {
  const name = `${assignment.run_id}-${assignment.number}`;
  if (!/^[0-9a-f-]{36}-\d+$/.test(name)) throw new Error("the assignment is of no round"); // it names a folder
  const folder = join(clientFolder, "rounds", name);
  fs.mkdirSync(folder, { recursive: true, mode: 0o700 });
  const raw = (await session.get(`/v1/runs/${assignment.run_id}/manifest`)).body; // comes as it was hashed
  if (sha256(raw).toString("hex") !== assignment.manifest_sha256) throw new Error("not the announced manifest");
  const manifest: Manifest = JSON.parse(`${raw}`);
  requireUnderstood(manifest, assignment.rank ?? manifest.lora.rank);
  const begun = keptOr(join(folder, "round.json"), () => assignment);
  if (begun.adapter_sha256 !== assignment.adapter_sha256) throw new Error("the round is from another adapter now");
  return { folder, assignment, manifest };
}

/** Train, unless there is a finished update: that one is the round's, whatever became of the process. */
export async function prepareUpdate(session: Session, { folder, assignment, manifest }: Round, train: Train) {
  if (fs.existsSync(join(folder, "update.safetensors"))) return;
  if (fs.existsSync(join(folder, "spent.json"))) throw new Error("the update is gone after its sending began");
  const adapter = (await session.get(`/v1/rounds/${assignment.round_id}/adapter`, 2 ** 32)).body;
  if (sha256(adapter).toString("hex") !== assignment.adapter_sha256) throw new Error("not the announced adapter");
  writeOnce(join(folder, "update.safetensors"), updateFile(manifest, await train(manifest, adapter)));
}

/** Say on the disk what is sent, and only then send it: from the first byte on there is no other update. */
export async function submitUpdate(session: Session, { folder, assignment }: Round): Promise<string> {
  const body = fs.readFileSync(join(folder, "update.safetensors"));
  const digest = sha256(body).toString("hex");
  const spent = keptOr(join(folder, "spent.json"), () => ({ sha256: digest }));
  if (spent.sha256 !== digest) throw new Error("the update changed after its sending began: nothing is sent");
  const hex = sha256(`${assignment.round_id} ${digest}`).toString("hex"); // the same bytes again: the same id
  const id = hex.replace(/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*$/, "$1-$2-8$3-8$4-$5");
  const reply = await session.put(`/v1/rounds/${assignment.round_id}/updates/${id}`, body);
  const receipt = keptOr(join(folder, "receipt.json"), () => JSON.parse(`${reply.body}`));
  if (receipt.sha256 !== digest) throw new Error("the server's receipt is for other bytes");
  return digest;
}

export const nextAssignments = async (session: Session): Promise<Assignment[]> =>
  JSON.parse(`${(await session.get("/v1/assignments?wait=20")).body}`).items;
async function run(folder: string, isOnce: boolean): Promise<void> {
  for (const session = openClient(folder); ; ) {
    for (const assignment of await nextAssignments(session)) {
      const round = await fetchRound(session, folder, assignment);
      await prepareUpdate(session, round, trainPlaceholder);
      console.log(`round ${assignment.number} sent: ${await submitUpdate(session, round)}`);
      if (isOnce) return;
    }
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const [command, first, second, third] = process.argv.slice(2);
  const work = command === "enrol" && first && second && third ? enrol(first, second, third)
    : command === "run" && first ? run(first, second === "--once") : Promise.reject(new Error("enrol or run?"));
  work.catch((error: Error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}
