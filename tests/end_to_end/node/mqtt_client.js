// Publishes over WebSocket with npm `mqtt` and prints what it received as one JSON object.
// Usage: node mqtt_client.js URL
"use strict";

const mqtt = require("mqtt");

const seen = { messages: [] };
const client = mqtt.connect(process.argv[2], { reconnectPeriod: 0, protocolVersion: 5 });
const big = "x".repeat(200000);

client.on("connect", () => {
  client.subscribe("room/+", { qos: 1 }, () => {
    client.publish("room/1", "first", { qos: 0 });
    client.publish("room/2", big, { qos: 1 });
    client.publish("room/3", "last", { qos: 2 });
  });
});
client.on("message", (topic, payload) => {
  seen.messages.push([topic, payload.length]);
  if (seen.messages.length === 3) {
    client.end(false, {}, () => console.log(JSON.stringify(seen)));
  }
});
client.on("error", (error) => {
  console.log(JSON.stringify({ error: String(error) }));
  process.exit(1);
});
