// A scripted agent with the SDK's own client: it lists its access, requests what needs an
// approval, waits for the people, lets its runtime collect, and releases the access.
//
//   node agent.mjs MODE ENTITLEMENT SCOPE stdio COMMAND [ARG ...]
//   node agent.mjs MODE ENTITLEMENT SCOPE http URL            with the access token in TOKEN
//
// MODE is the revision of the protocol: legacy, or auto. Each line of output is a JSON
// object; between them, a line of input tells it to go on.

import { createInterface } from "node:readline/promises";
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";

const [mode, entitlement, scope, kind, target, ...args] = process.argv.slice(2);
const say = (value) => console.log(JSON.stringify(value));
const input = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

const client = new Client({ name: "scripted-agent", version: "1" }, {
  versionNegotiation: { mode },
  capabilities: { elicitation: { form: {} } },
});
let forms = 0;
client.setRequestHandler("elicitation/create", async (request) => {
  forms++;
  const fields = Object.keys(request.params.requestedSchema.properties);
  return { action: "accept", content: Object.fromEntries(fields.map((f) => [f, `the ticket INC-4711 is a duplicate (${kind}, ${mode})`])) };
});

const transport = kind === "stdio"
  ? new StdioClientTransport({ command: target, args, env: process.env, stderr: "inherit" })
  : new StreamableHTTPClientTransport(new URL(target), { requestInit: { headers: { Authorization: `Bearer ${process.env.TOKEN}` } } });
await client.connect(transport);

const call = async (name, argument) => {
  const result = await client.callTool({ name, arguments: argument });
  if (result.isError) throw new Error(result.content[0].text);
  return result.structuredContent;
};

const { tools } = await client.listTools();
say({ step: "connected", server: client.getServerVersion().name, tools: tools.map((t) => t.name) });
const listing = await call("list_access", {});
say({ step: "listed", caller: listing.caller, entitlements: listing.entitlements.map((e) => e.name) });
// The user states the reason in a form, unless the client cannot show one (2025-11-25 over HTTP).
const why = kind === "http" && mode === "legacy" ? { justification: process.env.WHY } : {};
let access = await call("request_access", { entitlement, scopes: [scope], ...why });
say({ step: "requested", handle: access.handle, status: access.status, forms });
while (access.status === "pending") access = await call("access_status", { handle: access.handle, wait_seconds: 20 });
say({ step: "decided", status: access.status, collect: access.collect, text: JSON.stringify(access) });
if (access.status === "approved") {
  await input.next(); // the runtime collects
  const released = await call("release_access", { handle: access.handle, reason: "the work is done" });
  say({ step: "released", returned: released.returned.map((l) => l.status) });
}
await client.close();
process.exit(0); // the input stays open
