// put, get and watch with grpc-js, the client library of Node.js.
//
//   node grpcjs.js DESCRIPTORS ADDRESS COUNT [CA CERT KEY]
//
// Prints one JSON object, or fails.

"use strict";

const fs = require("fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [descriptors, address, count, ca, cert, key] = process.argv.slice(2);
const buffer = fs.readFileSync(descriptors);
const loaded = loader.loadFileDescriptorSetFromBuffer(buffer, { longs: Number, enums: String });
const { etcdserverpb } = grpc.loadPackageDefinition(loaded);
const credentials = ca
  ? grpc.credentials.createSsl(...[ca, key, cert].map((path) => fs.readFileSync(path)))
  : grpc.credentials.createInsecure();
const kv = new etcdserverpb.KV(address, credentials);
const watcher = new etcdserverpb.Watch(address, credentials);

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = new Date(Date.now() + 20_000);
    client[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

async function main() {
  const total = Number(count);
  const seen = [];
  const stream = watcher.watch();
  const created = new Promise((resolve, reject) => {
    stream.on("error", reject);
    stream.on("data", (answer) => {
      if (answer.created) resolve();
      for (const event of answer.events || []) seen.push(event.kv.value.toString());
      if (seen.length === total) stream.cancel();
    });
  });
  const ended = new Promise((resolve, reject) => {
    stream.on("error", (error) => (error.code === grpc.status.CANCELLED ? resolve() : reject(error)));
  });
  ended.catch(() => {});
  stream.write({ create_request: { key: Buffer.from("js/"), range_end: Buffer.from("js0") } });
  await created;
  const large = "x".repeat(200_000);
  const puts = [];
  for (let number = 0; number < total; number += 1) {
    const value = number === 0 ? large : String(number);
    puts.push(call(kv, "put", { key: Buffer.from(`js/${number}`), value: Buffer.from(value) }));
  }
  await Promise.all(puts);
  const range = await call(kv, "range", {
    key: Buffer.from("js/"),
    range_end: Buffer.from("js0"),
  });
  await ended;
  const wanted = [...Array(total).keys()].map((number) => (number === 0 ? large : String(number)));
  const got = range.kvs.map((record) => record.value.toString());
  for (const [what, values] of [["range", got], ["watch", seen]]) {
    if (JSON.stringify([...values].sort()) !== JSON.stringify([...wanted].sort())) {
      throw new Error(`${what} does not show what was put`);
    }
  }
  console.log(JSON.stringify({ puts: total, got: got.length, watched: seen.length }));
  kv.close();
  watcher.close();
}

main().catch((error) => {
  console.error(String(error));
  process.exit(1);
});
