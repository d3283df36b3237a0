// Talks to an echo through the gateway with npm `ws`, and prints what it saw as one JSON object.
// Usage: node ws_client.js URL DEFLATE ("true" or "false")
"use strict";

const crypto = require("crypto");
const WebSocket = require("ws");

const [url, deflate] = process.argv.slice(2);
const seen = { texts: [], binaries: [], pongs: [] };
const client = new WebSocket(url, { perMessageDeflate: deflate === "true" });
const big = crypto.randomBytes(3 * 1024 * 1024);

client.on("open", () => {
  seen.extensions = client.extensions;
  client.ping("are you there");
  client.send("text, \u{1f30d}");
  client.send("in ", { fin: false });
  client.send("three ", { fin: false });
  client.send("pieces", { fin: true });
  client.send(Buffer.alloc(0));
  client.send(big);
});
client.on("pong", (payload) => seen.pongs.push(payload.toString()));
client.on("message", (data, isBinary) => {
  if (!isBinary) {
    seen.texts.push(data.toString());
    return;
  }
  seen.binaries.push(data.length);
  if (data.length === big.length) {
    seen.same = data.equals(big);
    client.close(4321, "all done");
  }
});
client.on("error", (error) => {
  seen.error = String(error);
});
client.on("close", (code, reason) => {
  seen.close = [code, reason.toString()];
  console.log(JSON.stringify(seen));
});
