package egress

import (
	"encoding/base64"
	"net/http"
	"strings"

	"accessbroker.internal/api"
)

const nextOperator = "ask the operator of the broker to compare the entitlement's inject rule with its issuer"

// inject adds a credential to the header of a call.
func (g *grant) inject(h http.Header, c *api.Credential) *Refusal {
	in := &g.egress.Inject
	if c.Confirm != nil {
		return refuse(CodeNoCredential, "ask the operator of the broker for an entitlement with binding: none", "The credential is bound to a key of its holder, so that a call can't carry it")
	}
	name, value := "Authorization", ""
	switch in.As {
	case api.InjectBearer:
		if token := c.Secret[fieldOr(in.Field, "token")]; token != "" {
			value = "Bearer " + token
		}
	case api.InjectBasic:
		user, password := c.Secret[fieldOr(in.Username, "username")], c.Secret[fieldOr(in.Password, "password")]
		if password != "" && !strings.Contains(user, ":") { // RFC 7617, section 2
			value = "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
		}
	case api.InjectHeader:
		if field := c.Secret[fieldOr(in.Field, "token")]; field != "" {
			name, value = in.Name, in.Prefix+field
		}
	}
	if value == "" || !isFieldValue(value) {
		return refuse(CodeNoCredential, nextOperator, "The credential has no field that can be sent as %s", in.As)
	}
	h.Set(name, value)
	return nil
}

func fieldOr(name, usual string) string {
	if name == "" {
		return usual
	}
	return name
}

// publicFields are fields of credentials that are no secrets. They can be short words,
// such as a user's name, which an answer may contain.
var publicFields = []string{"username", "access_key_id", "certificate", "chain", "lease_id"}

// minSecret is the length below which a field that is not injected is not removed from
// answers: a shorter one would match by chance.
const minSecret = 8

// secretsOf returns the texts of a credential that no answer may contain.
func (g *grant) secretsOf(c *api.Credential) (secrets []string) {
	in := &g.egress.Inject
	injected := map[string]bool{fieldOr(in.Field, "token"): true, fieldOr(in.Password, "password"): true}
	for name, value := range c.Secret {
		public := false
		for _, field := range publicFields {
			public = public || field == name
		}
		if value != "" && (injected[name] || !public && len(value) >= minSecret) {
			secrets = append(secrets, value)
		}
	}
	if in.As == api.InjectBasic {
		secrets = append(secrets, c.Secret[fieldOr(in.Username, "username")]+":"+c.Secret[fieldOr(in.Password, "password")])
	}
	return secrets
}
