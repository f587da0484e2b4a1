// Reads the answers of a service provider as JSON, and has scimmy's schemas of RFC 7643
// read each one. A value that scimmy refuses, or does not know, is a fault.
import { createRequire } from "node:module";
import { isDeepStrictEqual } from "node:util";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const load = createRequire(join(process.env.SCIM_MODULES, "x.js"));
const scimmy = load("scimmy");
const SCIMMY = scimmy.default ?? scimmy;

SCIMMY.Resources.declare(SCIMMY.Resources.User).extend(SCIMMY.Schemas.EnterpriseUser, false);
SCIMMY.Resources.declare(SCIMMY.Resources.Group);

const faults = [];
const checked = {};
const plain = (value) => JSON.parse(JSON.stringify(value));

// lost lists what an answer has and scimmy's reading does not.
function lost(have, read, path = "") {
  if (Array.isArray(have)) {
    if (!Array.isArray(read) || read.length !== have.length) return [path];
    return have.flatMap((item, i) => lost(item, read[i], `${path}/${i}`));
  }
  if (have !== null && typeof have === "object") {
    if (read === null || typeof read !== "object") return [path];
    return Object.entries(have).flatMap(([name, value]) => lost(value, read[name], `${path}/${name}`));
  }
  const times = typeof have === "string" && typeof read === "string" && /^\d{4}-\d\d-\d\dT/.test(have) && Date.parse(have) === Date.parse(read);
  return isDeepStrictEqual(have, read) || times ? [] : [path];
}

function read(where, definition, name, value) {
  checked[name] = (checked[name] ?? 0) + 1;
  try {
    const gone = lost(value, plain(definition.coerce(plain(value), "out")));
    if (gone.length > 0) faults.push(`${where}: scimmy's ${name} does not have ${gone.join(", ")}`);
  } catch (error) {
    faults.push(`${where}: ${name}: ${error.message}`);
  }
}

const schemas = new Map([
  ["urn:ietf:params:scim:schemas:core:2.0:User", ["User", SCIMMY.Schemas.User.definition]],
  ["urn:ietf:params:scim:schemas:core:2.0:Group", ["Group", SCIMMY.Schemas.Group.definition]],
  ["urn:ietf:params:scim:schemas:core:2.0:ResourceType", ["ResourceType", SCIMMY.Schemas.ResourceType.definition]],
  ["urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig", ["ServiceProviderConfig", SCIMMY.Schemas.ServiceProviderConfig.definition]],
]);

// definition compares one of our schemas with scimmy's of the same URN.
function definition(where, value) {
  checked.Schema = (checked.Schema ?? 0) + 1;
  const theirs = plain(SCIMMY.Schemas.declared(value.id)?.describe() ?? null);
  if (!theirs) return faults.push(`${where}: scimmy does not know the schema ${value.id}`);
  const compare = (mine, list, path) => {
    for (const a of mine) {
      const other = list.find((x) => x.name === a.name);
      if (!other) {
        faults.push(`${where}: ${path}${a.name} is not in the RFC's schema`);
        continue;
      }
      for (const name of ["type", "multiValued"]) {
        if (a[name] !== other[name]) faults.push(`${where}: ${path}${a.name}: ${name} is ${a[name]}, and ${other[name]} in the RFC's schema`);
      }
      if (a.subAttributes) compare(a.subAttributes, other.subAttributes ?? [], `${path}${a.name}.`);
    }
  };
  compare(value.attributes, theirs.attributes, "");
}

function check(where, value, status) {
  const urns = value.schemas ?? [];
  if (urns.includes("urn:ietf:params:scim:api:messages:2.0:ListResponse")) {
    checked.ListResponse = (checked.ListResponse ?? 0) + 1;
    const list = value.Resources ?? [];
    for (const name of ["totalResults", "startIndex", "itemsPerPage"]) {
      if (!Number.isInteger(value[name])) faults.push(`${where}: ${name} is not a number`);
    }
    if (value.itemsPerPage !== list.length) faults.push(`${where}: itemsPerPage is ${value.itemsPerPage}, with ${list.length} resources`);
    list.forEach((item, i) => check(`${where} #${i}`, item, status));
    return;
  }
  if (urns.includes("urn:ietf:params:scim:api:messages:2.0:Error")) {
    checked.Error = (checked.Error ?? 0) + 1;
    try {
      const read = plain(new SCIMMY.Messages.ErrorResponse({ ...value, schemas: undefined, status: Number(value.status) }));
      if (String(read.status) !== String(status) || (value.scimType ?? null) !== (read.scimType ?? null)) faults.push(`${where}: scimmy reads the error as ${JSON.stringify(read)}`);
    } catch (error) {
      faults.push(`${where}: error: ${error.message}`);
    }
    return;
  }
  if (urns.includes("urn:ietf:params:scim:schemas:core:2.0:Schema")) return definition(where, value);
  const found = urns.map((urn) => schemas.get(urn)).find(Boolean);
  if (!found) return faults.push(`${where}: no schema is known: ${urns}`);
  // A client that names attributes gets only those, also of the required ones.
  if (!/[?&]attributes=/.test(where)) read(where, found[1], found[0], value);
}

for (const { Method, Path, Status, Body } of JSON.parse(readFileSync(0, "utf8"))) check(`${Method} ${Path}`, Body, Status);
process.stdout.write(JSON.stringify({ Checked: checked, Faults: faults }));
