// Reads cases as lines of JSON and writes the answers of scim-patch and
// scim2-parse-filter, each as a line of JSON.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { join } from "node:path";

const load = createRequire(join(process.env.SCIM_MODULES, "x.js"));
const { scimPatch, patchBodyValidation } = load("scim-patch");
const { parse, filter } = load("scim2-parse-filter");

function answer({ document, patch, expression }) {
  try {
    if (expression !== undefined) {
      return { matches: filter(parse(expression))(document) };
    }
    patchBodyValidation(patch);
    return { document: scimPatch(document, patch.Operations, { mutateDocument: false, treatMissingAsAdd: true }) };
  } catch (error) {
    return { error: String(error.message ?? error) };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(JSON.stringify(answer(JSON.parse(line))) + "\n");
}
