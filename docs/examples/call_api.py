import json, re, subprocess

mcp = subprocess.Popen(["broker", "mcp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {}}

def tool(name, **arguments):
    params = {"name": name, "arguments": arguments, "_meta": meta}
    print(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}),
        file=mcp.stdin, flush=True)
    result = json.loads(mcp.stdout.readline())["result"]
    text = result["content"][0]["text"]
    print(text + "\n")  # what a model reads
    return text, result.get("structuredContent")

_, access = tool("list_access", entitlement="tickets-api")
tickets = "https://" + access["entitlements"][0]["calls"][0]["hosts"][0]
tool("call_api", url=tickets + "/tickets", reason="triage of the inbox")
tool("call_api", url=tickets + "/tickets/4711/headers", reason="triage of the inbox")  # repeats the token

escalate = dict(url=tickets + "/tickets/4711/escalate", method="POST", reason="the shop is closed")
text, answer = tool("call_api", **escalate)
while not answer:  # a person has to approve
    handle = re.search("req_[0-9a-v]+", text).group()
    _, state = tool("access_status", handle=handle, wait_seconds=20)
    if state["status"] not in ("pending", "approved"):
        break
    if state["status"] == "approved":
        text, answer = tool("call_api", **escalate)
