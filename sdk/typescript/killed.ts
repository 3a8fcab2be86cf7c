/**
 * The client of client.ts, killed where it hurts: `node killed.js FOLDER prepared | sending`. It trains other
 * bytes each time, so that a second training that got out would show, and prints what was trained.
 */
import { createHash, randomInt } from "node:crypto";
import { readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { fetchRound, nextAssignments, openClient, prepareUpdate, submitUpdate, type Train } from "./client.js";
import { trainPlaceholder } from "./client.js";

const trainSomething: Train = async (manifest, adapter) => {
  const changes = await trainPlaceholder(manifest, adapter);
  for (const values of changes.values()) values.forEach((_, at) => (values[at] = randomInt(1, 1000) / 1000));
  return changes;
};

const [folder, point] = process.argv.slice(2);
if (folder === undefined || (point !== "prepared" && point !== "sending")) throw new Error("FOLDER prepared | sending");
const session = openClient(folder);
const [assignment] = await nextAssignments(session);
if (assignment === undefined) throw new Error("no round waits for this client");
const round = await fetchRound(session, folder, assignment);
await prepareUpdate(session, round, trainSomething);
writeSync(1, createHash("sha256").update(readFileSync(join(round.folder, "update.safetensors"))).digest("hex"));
// Up to its first wait it puts on the disk what it is about to send; whether a byte of it leaves is left open.
if (point === "sending") void submitUpdate(session, round);
process.kill(process.pid, "SIGKILL");
