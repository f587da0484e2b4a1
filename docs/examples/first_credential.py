import json, os, ssl, subprocess, sys
from urllib import error, request

url, tls = os.environ["BROKER_URL"], ssl.create_default_context(cafile=os.environ["BROKER_CA"])

def call(method, path, body=None):
    svid = subprocess.check_output(["broker", "svid", "jwt", "--audience", url], text=True).strip()
    headers = {"Authorization": "Bearer " + svid, "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body else None
    sent = request.Request(url + path, data, headers, method=method)
    return json.load(request.urlopen(sent, context=tls, timeout=60))

try:
    answer = call("POST", "/v1/credentials", {"entitlement": "tickets-api",
        "scopes": ["tickets:close"], "justification": "duplicate of INC-4711"})
    while answer.get("status") == "pending":  # a person has to approve; each call waits for news
        answer = call("GET", f"/v1/requests/{answer['id']}?wait=30s&after={answer['version']}")
    if "secret" not in answer:
        answer = call("POST", f"/v1/requests/{answer['id']}/credentials")
    print(answer["type"], "credential until", answer["expires_at"])  # it is in answer["secret"]
    call("POST", f"/v1/leases/{answer['lease']}/revoke", {"reason": "done"})
except error.HTTPError as refused:
    sys.exit(json.load(refused)["detail"])
