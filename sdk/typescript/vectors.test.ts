/** The client signs what the vectors of docs/wire.md say, to the byte. */
import assert from "node:assert/strict";
import { createPrivateKey } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { assertion, enrolmentProof, possession, signedHeaders, updateFile } from "./client.js";

const folder = process.env.DPFL_VECTORS ?? "";
const vector = (name: string) => JSON.parse(readFileSync(join(folder, `${name}.json`), "utf8"));
const keys = vector("keys");
const keyOf = (name: "enrolled" | "proving") => {
  const jwk = { kty: "OKP", crv: "Ed25519", d: keys[`${name}_private`], x: keys[`${name}_public`] };
  return createPrivateKey({ key: jwk, format: "jwk" });
};

test("the enrolment proof", () => {
  const told = vector("enrolment");
  assert.equal(enrolmentProof(keyOf("enrolled"), told.token), told.proof);
});

test("the assertion", () => {
  const { claims, at, assertion: told } = vector("assertion");
  assert.equal(assertion(keyOf("enrolled"), claims.iss, claims.aud, { at, id: claims.jti }), told);
});

test("the proof of possession", () => {
  const { method, target, token, at, proof } = vector("proof");
  assert.equal(possession(keyOf("proving"), method, target, token, { at, id: "proof-0001" }), proof);
});

test("the update and its signature", () => {
  const told = vector("update");
  const { target, at, headers } = vector("signature");
  const tensor = { name: told.name, shape: told.shape, trained: true };
  const body = updateFile({ tensors: [tensor] }, new Map([[told.name, Float32Array.from(told.values)]]));
  assert.equal(body.toString("base64"), told.body);
  const client = /keyid="([^"]*)"/.exec(headers["Signature-Input"])![1]!;
  assert.deepEqual(signedHeaders(keyOf("enrolled"), client, target, body, { at, id: "nonce-of-0001-xx" }), headers);
});

test("an update that is not the manifest's is refused", () => {
  const tensors = [{ name: "a", shape: [2], trained: true }, { name: "frozen", shape: [1], trained: false }];
  const made = (changes: Record<string, number[]>) => () =>
    updateFile({ tensors }, new Map(Object.entries(changes).map(([name, values]) => [name, Float32Array.from(values)])));
  assert.doesNotThrow(made({ a: [1, 2] }));
  for (const changes of [{}, { a: [1] }, { a: [1, NaN] }, { a: [1, 2], frozen: [1] }, { b: [1, 2] }])
    assert.throws(made(changes as Record<string, number[]>));
});
