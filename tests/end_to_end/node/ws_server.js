// An echo server with npm `ws`. Prints its port; "bye" makes it close with 4002; ends with stdin.
"use strict";

const { WebSocketServer } = require("ws");

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: 0,
  perMessageDeflate: true,
  handleProtocols: (offers) => (offers.has("second") ? "second" : false),
});
server.on("listening", () => console.log(server.address().port));
server.on("connection", (socket) => {
  socket.on("message", (data, isBinary) => {
    if (data.toString() === "bye") {
      socket.close(4002, "bye");
      return;
    }
    socket.send(data, { binary: isBinary });
  });
  socket.on("error", () => {});
});
process.stdin.on("end", () => process.exit(0));
process.stdin.resume();
