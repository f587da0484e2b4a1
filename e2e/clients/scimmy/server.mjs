// An independent SCIM 2.0 server for the tests of memberships: scimmy with its routers, over
// users and groups in memory. It reads a JSON document {port, token, users, groups} from its
// first argument and prints "ready" once it listens on loopback.
import express from "express";
import SCIMMY from "scimmy";
import SCIMMYRouters from "scimmy-routers";

const config = JSON.parse(process.argv[2]);
const stores = { User: new Map(), Group: new Map() };

function handlers(kind) {
    const store = stores[kind];
    const missing = (id) => new SCIMMY.Types.Error(404, null, `there is no ${kind} ${id}`);
    return {
        egress: (resource) => {
            if (resource.id) {
                if (!store.has(resource.id)) throw missing(resource.id);
                return store.get(resource.id);
            }
            const all = [...store.values()];
            return resource.filter ? resource.filter.match(all) : all;
        },
        ingress: (resource, data) => {
            const id = resource.id ?? `${kind.toLowerCase()}-${store.size + 1}`;
            if (resource.id && !store.has(id)) throw missing(id);
            const meta = store.get(id)?.meta ?? { created: new Date(), lastModified: new Date() };
            const kept = { ...JSON.parse(JSON.stringify(data)), id, meta };
            store.set(id, kept);
            return kept;
        },
        degress: (resource) => {
            if (!store.delete(resource.id)) throw missing(resource.id);
        },
    };
}

SCIMMY.Resources.declare(SCIMMY.Resources.User, handlers("User"));
SCIMMY.Resources.declare(SCIMMY.Resources.Group, handlers("Group"));

const meta = () => ({ created: new Date(), lastModified: new Date() });
for (const name of config.users) stores.User.set(`u-${name}`, { id: `u-${name}`, userName: name, active: true, meta: meta() });
for (const name of config.groups) stores.Group.set(`g-${name}`, { id: `g-${name}`, displayName: name, members: [], meta: meta() });

const app = express();
app.use("/scim/v2", new SCIMMYRouters({
    type: "bearer",
    handler: (request) => {
        if (request.header("Authorization") !== `Bearer ${config.token}`) throw new Error("wrong token");
        return "broker";
    },
}));
app.listen(config.port, "127.0.0.1", () => console.log("ready"));
