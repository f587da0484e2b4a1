package egress

import (
	"encoding/base64"
	"net/http"
	"strings"

	"accessbroker.internal/api"
	"accessbroker.internal/egress/scrub"
)

const nextOperator = "ask the operator of the broker to compare the entitlement's inject rule with its issuer"

// inject adds a credential to the header of a call.
func (g *grant) inject(h http.Header, c *api.Credential) *Refusal {
	in := &g.egress.Inject
	if c.Confirm != nil {
		return refuse(CodeNoCredential, "ask the operator of the broker for an entitlement with binding: none", "The credential is bound to a key of its holder, so that a call can't carry it")
	}
	name, value, secret := "Authorization", "", ""
	switch in.As {
	case api.InjectBearer:
		secret = c.Secret[fieldOr(in.Field, "token")]
		value = "Bearer " + secret
	case api.InjectBasic:
		user := c.Secret[fieldOr(in.Username, "username")]
		if secret = c.Secret[fieldOr(in.Password, "password")]; strings.Contains(user, ":") { // RFC 7617, section 2
			return refuse(CodeNoCredential, nextOperator, "The user name of the credential has a colon")
		}
		value = "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+secret))
	case api.InjectHeader:
		secret = c.Secret[fieldOr(in.Field, "token")]
		name, value = in.Name, in.Prefix+secret
	}
	switch {
	case secret == "" || !isFieldValue(value):
		return refuse(CodeNoCredential, nextOperator, "The credential has no field that can be sent as %s", in.As)
	case !scrub.Protects(secret):
		return refuse(CodeNoCredential, "ask the operator of the broker for longer credentials", "The credential is too short to be removed from answers")
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

// further returns what a call carries in addition to the secret fields of a credential.
func (g *grant) further(c *api.Credential) []string {
	in := &g.egress.Inject
	switch in.As {
	case api.InjectBasic:
		return []string{c.Secret[fieldOr(in.Username, "username")] + ":" + c.Secret[fieldOr(in.Password, "password")]}
	case api.InjectBearer, api.InjectHeader: // any field that the operator names
		return []string{c.Secret[fieldOr(in.Field, "token")]}
	}
	return nil
}
