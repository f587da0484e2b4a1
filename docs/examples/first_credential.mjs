import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { request } from "node:https";
import { json } from "node:stream/consumers";

const { BROKER_URL: url, BROKER_CA } = process.env, ca = readFileSync(BROKER_CA);

const call = (method, path, body) => new Promise((resolve, reject) => {
  const svid = execFileSync("broker", ["svid", "jwt", "--audience", url], { encoding: "utf8" });
  const headers = { authorization: `Bearer ${svid.trim()}`, "content-type": "application/json" };
  const read = (response) => json(response).then((answer) =>
    response.statusCode < 300 ? resolve(answer) : reject(answer.detail), reject);
  request(url + path, { method, headers, ca, signal: AbortSignal.timeout(60_000) }, read)
    .on("error", reject).end(body && JSON.stringify(body));
});

try {
  let answer = await call("POST", "/v1/credentials", { entitlement: "tickets-api",
    scopes: ["tickets:close"], justification: "duplicate of INC-4711" });
  while (answer.status === "pending") // a person has to approve; each call waits for news
    answer = await call("GET", `/v1/requests/${answer.id}?wait=30s&after=${answer.version}`);
  if (!answer.secret) answer = await call("POST", `/v1/requests/${answer.id}/credentials`);
  console.log(`${answer.type} credential until ${answer.expires_at}`); // it is in answer.secret
  await call("POST", `/v1/leases/${answer.lease}/revoke`, { reason: "done" });
} catch (refused) {
  process.exitCode = 1;
  console.error(refused);
}
