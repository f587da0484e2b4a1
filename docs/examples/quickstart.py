import json, os, ssl, subprocess, urllib.request

url = os.environ["BROKER_URL"]
tls = ssl.create_default_context(cafile=os.environ["BROKER_CA"])
svid = subprocess.check_output(
    ["broker", "svid", "jwt", "--audience", url], text=True).strip()
request = urllib.request.Request(
    url + "/v1/credentials",
    json.dumps({"entitlement": "tickets-api", "scopes": ["tickets:read"],
                "justification": "my first program"}).encode(),
    {"Authorization": "Bearer " + svid, "Content-Type": "application/json"})
with urllib.request.urlopen(request, context=tls, timeout=30) as answer:
    credential = json.load(answer)
print("a", credential["type"], "token until", credential["expires_at"])
