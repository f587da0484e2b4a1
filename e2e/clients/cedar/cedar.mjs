// Parses, validates and evaluates policies with Cedar's Rust implementation. It reads one
// JSON object from standard input and writes one to standard output.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const cedar = createRequire(import.meta.url)("@cedar-policy/cedar-wasm/nodejs");
const input = JSON.parse(readFileSync(0, "utf8"));
const texts = (errors) => errors.map((e) => e.message).join("; ");

// For each policy, why it does not parse or is not valid, or "".
const refused = input.policies.map((text) => {
  const answer = cedar.checkParsePolicySet({ staticPolicies: text });
  return answer.type === "success" ? "" : "parse: " + texts(answer.errors);
});
const parsed = {};
input.policies.forEach((text, i) => {
  if (!refused[i]) parsed["n" + i] = text;
});
const validation = cedar.validate({
  schema: input.schema,
  policies: { staticPolicies: parsed },
  validationSettings: { mode: "strict" },
});
if (validation.type !== "success") throw new Error(texts(validation.errors));
for (const e of validation.validationErrors) {
  refused[Number(e.policyId.slice(1))] = e.error.message;
}

input.sets.forEach((policies, i) => {
  const answer = cedar.preparsePolicySet("set" + i, { staticPolicies: policies });
  if (answer.type !== "success") throw new Error(texts(answer.errors));
});
const decisions = input.queries.map((q) => {
  const { set, ...call } = q;
  const answer = cedar.statefulIsAuthorized({ ...call, preparsedPolicySetId: "set" + set });
  if (answer.type !== "success") throw new Error(texts(answer.errors));
  const { decision, diagnostics } = answer.response;
  return { permit: decision === "allow", policies: diagnostics.reason.sort(), errors: diagnostics.errors.map((e) => e.policyId).sort() };
});
console.log(JSON.stringify({ refused, decisions, version: cedar.getCedarVersion() }));
