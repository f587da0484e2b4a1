# Authlib as an OAuth client of the broker, and its strict readers of metadata. It prints
# one JSON object. Arguments: the broker's URL. The JWT-SVIDs are in the environment.
import json
import os
import sys
import urllib3
from urllib.parse import urlencode

import requests
from authlib.integrations.requests_client import OAuth2Session
from authlib.jose import JsonWebKey, jwt
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from authlib.oidc.discovery import OpenIDProviderMetadata

# The broker's certificate is an X.509-SVID, which has no host name.
urllib3.disable_warnings()
url, svid = sys.argv[1], os.environ["SVID"]
out = {}


def attempt(name, run):
    try:
        out[name] = run()
    except Exception as e:
        out[name] = f"{type(e).__name__}: {e}"


def document(path):
    return requests.get(url + path, verify=False, timeout=20).json()


def validate(kind, path):
    kind(document(path)).validate()
    return "valid"


# An OpenID provider also needs an authorization endpoint and RS256, which the broker need
# not have. Every other check of the reader must pass.
def validate_openid(path):
    metadata = OpenIDProviderMetadata(document(path))
    checked = 0
    for key in metadata.REGISTRY_KEYS:
        check = getattr(metadata, "validate_" + key, None)
        if check and key not in ("authorization_endpoint", "id_token_signing_alg_values_supported"):
            check()
            checked += 1
    return "valid" if checked > 10 else f"only {checked} checks"


def assertion(client, method, uri, headers, body):
    return uri, headers, body + "&" + urlencode({
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe",
        "client_assertion": svid,
    })


attempt("oauth", lambda: validate(AuthorizationServerMetadata, "/.well-known/oauth-authorization-server"))
attempt("openid", lambda: validate_openid("/.well-known/openid-configuration"))

session = OAuth2Session(sys.argv[2], token_endpoint_auth_method="spiffe",
                        revocation_endpoint_auth_method="spiffe", scope="tickets:read")
session.verify, session.trust_env = False, False
session.register_client_auth_method(("spiffe", assertion))
token = {}


def fetch():
    token.update(session.fetch_token(url + "/oauth2/token", grant_type="client_credentials", audience="tickets-api"))
    return token["token_type"]


def verify():
    keys = JsonWebKey.import_key_set(document("/oauth2/jwks"))
    claims = jwt.decode(token["access_token"], keys)
    claims.validate()
    return claims["aud"]


attempt("token", fetch)
attempt("verified", verify)
attempt("active", lambda: session.introspect_token(url + "/oauth2/introspect", token=token["access_token"]).json()["active"])
attempt("revoked", lambda: session.revoke_token(url + "/oauth2/revoke", token=token["access_token"]).status_code)
attempt("inactive", lambda: session.introspect_token(url + "/oauth2/introspect", token=token["access_token"]).json()["active"])
print(json.dumps(out))
