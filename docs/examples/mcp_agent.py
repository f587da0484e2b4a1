import json, subprocess, sys

mcp = subprocess.Popen(["broker", "mcp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {}}

def tool(name, **arguments):
    params = {"name": name, "arguments": arguments, "_meta": meta}
    print(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}),
        file=mcp.stdin, flush=True)
    result = json.loads(mcp.stdout.readline())["result"]
    print(result["content"][0]["text"] + "\n")  # what a model reads
    return result.get("structuredContent") or sys.exit(1)

tool("list_access")
access = tool("request_access", entitlement="tickets-api", scopes=["tickets:close"],
    justification="duplicate of INC-4711")
while access["status"] == "pending":  # a person has to approve
    access = tool("access_status", handle=access["handle"], wait_seconds=20)
if access["status"] == "approved":  # the credential goes to a command, not to the model
    subprocess.run(["broker", "exec", access["handle"], "--", "printenv", "BROKER_LEASE"])
    tool("release_access", handle=access["handle"], reason="the ticket is closed")
