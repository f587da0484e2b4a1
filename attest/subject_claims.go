package attest

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
)

// A subjectKind is a kind of token with which a person lets a caller act on their behalf.
type subjectKind struct {
	method   broker.Method
	noun     string
	typ      string        // of its header
	lifetime time.Duration // from now to exp
}

// The kinds. The draft's own examples of ID-JAGs live for minutes, and each is used once, so
// that their IDs are stored until they expire. Access tokens are used for as long as a
// provider lets them be.
var subjectKinds = map[broker.Method]subjectKind{
	broker.MethodIDJAG:       {broker.MethodIDJAG, "ID-JAG", "oauth-id-jag+jwt", time.Hour},
	broker.MethodAccessToken: {broker.MethodAccessToken, "access token", "at+jwt", 24 * time.Hour},
}

func (k subjectKind) fail(cause Cause, detail string) error {
	return &Failure{k.method, cause, "the " + k.noun + " " + detail}
}

// Limits of the claims of such tokens.
const (
	maxClaimText = 512 // bytes of an identifier
	maxResources = 16
	maxResource  = 2048 // bytes
)

// subjectClaims are the claims of a token of a person, apart from those about the person.
type subjectClaims struct {
	personClaims
	issuer, subject, audience  string
	client, id, tenant         string // client and tenant may be empty
	issued, notBefore, expires time.Time
	scopes                     []string // nil: the token does not bound them
	resources                  []string // nil: any
}

// readSubjectClaims parses the token of a person as strictly as JWT-SVIDs are parsed. Nothing
// in the result is trustworthy until the signature is verified.
func (k subjectKind) readSubjectClaims(signed *jwks.Signed) (c subjectClaims, err error) {
	// RFC 8725, section 3.11; RFC 9068, section 4. RFC 7515, section 4.1.9, allows the prefix.
	if strings.TrimPrefix(signed.Type, "application/") != k.typ {
		return c, k.fail(CauseType, "must have the typ "+k.typ+": an ID token or another token does not let anyone act for a person")
	}
	if c.personClaims, err = parseClaims(signed.Payload); err != nil {
		return c, k.fail(CauseMalformed, "has a malformed payload: it must be JSON without duplicate members")
	}
	for name := range c.raw {
		if err := checkCase(name); err != nil {
			return c, k.fail(CauseMalformed, "has a claim whose name another parser may take for another one: "+err.Error())
		}
	}
	// Claims of ID tokens, logout tokens and security events, whatever the header says.
	for _, name := range []string{"nonce", "at_hash", "c_hash", "events"} {
		if c.raw[name] != nil {
			return c, k.fail(CauseType, "has the claim "+name+" of another kind of token")
		}
	}
	for name, into := range map[string]*string{"iss": &c.issuer, "sub": &c.subject, "client_id": &c.client, "jti": &c.id, "tenant": &c.tenant} {
		if *into, err = c.text(name); err != nil || len(*into) > maxClaimText || c.raw[name] != nil && *into == "" {
			return c, k.fail(CauseMalformed, "has a "+name+" that is not a string of 1 to 512 bytes")
		}
	}
	if c.audience = c.only("aud"); c.audience == "" {
		return c, k.fail(CauseAudience, "must have exactly one audience: another one could replay it")
	}
	if err := k.readClient(&c); err != nil {
		return c, err
	}
	if err := k.readTimes(&c); err != nil {
		return c, err
	}
	return c, k.readBounds(&c)
}

// only returns the only value of a claim that is a string or a list; empty: there is another
// number of values.
func (c personClaims) only(name string) string {
	raw := []byte(c.raw[name])
	if list, ok := strictjson.Elements(raw); ok && len(list) == 1 {
		raw = list[0]
	}
	return text(raw)
}

// readClient checks who may present the token, and whom it is about.
func (k subjectKind) readClient(c *subjectClaims) error {
	azp, err := c.text("azp")
	switch {
	case err != nil || len(azp) > maxClaimText:
		return k.fail(CauseMalformed, "has a malformed azp")
	case k.method == broker.MethodAccessToken && c.client == "":
		c.client = azp // of providers that name the client as ID tokens do
	case azp != "" && azp != c.client:
		return k.fail(CauseActor, "names two clients, in client_id and azp")
	}
	switch {
	case c.client == "":
		return k.fail(CauseActor, "has no client_id, so that anyone could use it")
	case c.subject == "":
		return k.fail(CauseMalformed, "has no sub")
	case c.subject == c.client: // RFC 9068, section 2.2: a client that acts for itself
		return k.fail(CauseClaims, "is of the client itself, not of a person")
	case c.id == "" && k.method == broker.MethodIDJAG:
		return k.fail(CauseMalformed, "has no jti, without which it could be used twice")
	}
	return nil
}

func (k subjectKind) readTimes(c *subjectClaims) (err error) {
	for name, into := range map[string]*time.Time{"exp": &c.expires, "iat": &c.issued, "nbf": &c.notBefore} {
		if *into, err = c.seconds(name); err != nil {
			return k.fail(CauseMalformed, "has a malformed "+name+": it must be in seconds (RFC 7519, section 2)")
		}
	}
	c.expires = c.expires.Truncate(time.Second)
	if c.expires.IsZero() || c.issued.IsZero() {
		return k.fail(CauseMalformed, "needs exp and iat")
	}
	return nil
}

// readBounds reads what the token limits its use to.
func (k subjectKind) readBounds(c *subjectClaims) error {
	if c.raw["authorization_details"] != nil {
		return k.fail(CauseMalformed, "has authorization_details, which the broker does not accept from providers")
	}
	if c.raw["aud_tenant"] != nil {
		return k.fail(CauseTenant, "is for a tenant of the broker (aud_tenant), which has none")
	}
	list, ok := c.list("resource")
	if !ok || len(list) > maxResources || slices.ContainsFunc(list, func(r string) bool { return r == "" || len(r) > maxResource }) {
		return k.fail(CauseMalformed, "has a resource that is neither a URI nor a list of at most 16")
	}
	c.resources = list
	scope, err := c.text("scope")
	switch {
	case err != nil:
		return k.fail(CauseMalformed, "has a scope that is not a string")
	case c.raw["scope"] == nil:
		return nil
	}
	if c.scopes = strings.Split(scope, " "); slices.Contains(c.scopes, "") {
		return k.fail(CauseMalformed, "has a malformed scope: single spaces separate scopes (RFC 6749, section 3.3)")
	}
	if k.method == broker.MethodAccessToken {
		c.scopes = withoutOpenID(c.scopes)
	}
	return nil
}

// withoutOpenID returns the scopes apart from those of OpenID Connect Core, sections 3.1.2.1,
// 5.4 and 11. They are about the provider's own endpoints, and bound nothing at the broker; nil
// if there are no others.
func withoutOpenID(scopes []string) (others []string) {
	for _, scope := range scopes {
		if !slices.Contains([]string{"openid", "profile", "email", "address", "phone", "offline_access"}, scope) {
			others = append(others, scope)
		}
	}
	return others
}

// list returns the strings of a claim that is a string or a list of strings; nil if it is
// absent. ok is false for any other claim, and for an empty list.
func (c personClaims) list(name string) (values []string, ok bool) {
	raw, present := c.raw[name]
	if !present {
		return nil, true
	}
	elements, isList := strictjson.Elements(raw)
	if !isList {
		elements = []json.RawMessage{raw}
	}
	for _, one := range elements {
		value, isText := strictjson.Text(one)
		if !isText {
			return nil, false
		}
		values = append(values, value)
	}
	return values, len(values) > 0
}
