package verify

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// Claims are what a token states. They were verified.
type Claims struct {
	Issuer    string
	Subject   string // whose rights the token has: a SPIFFE ID, or a person such as "login/ana"
	ClientID  string // the SPIFFE ID of the workload that holds the token
	Audience  string
	ID        string // jti
	Scopes    []string
	Details   []Detail // authorization_details (RFC 9396)
	Actors    []Actor  // who acts for the subject (act), the holder first; none if the subject acts itself
	IssuedAt  time.Time
	Expires   time.Time
	Bound     Binding
	Members   map[string]json.RawMessage // all claims, by name
	status    *statusRef
	hasStatus bool
}

// An Actor acts for the subject (RFC 8693, section 4.1).
type Actor struct {
	Subject string // its sub
}

// A Detail is an element of authorization_details.
type Detail struct {
	Type string
	JSON json.RawMessage // the whole element
}

// A Binding is the confirmation of a token (cnf, RFC 7800). Empty members are absent.
type Binding struct {
	Key         string // jkt: thumbprint of a DPoP key (RFC 9449, section 6.1)
	Certificate string // x5t#S256: thumbprint of a certificate (RFC 8705, section 3.1)
	SPIFFEID    string // spiffe_id: the workload that has the certificate
}

// IsZero reports whether the token is not bound: whoever has it can use it.
func (b Binding) IsZero() bool { return b == Binding{} }

// Has reports whether the token has all the scopes.
func (c *Claims) Has(scopes ...string) bool {
	for _, s := range scopes {
		if !slices.Contains(c.Scopes, s) {
			return false
		}
	}
	return true
}

type claimsKey struct{}

// FromContext returns the claims of the call that a Handler serves, and false for any other
// context.
func FromContext(ctx context.Context) (*Claims, bool) {
	c, ok := ctx.Value(claimsKey{}).(*Claims)
	return c, ok
}

// readClaims checks the claims of a token whose signature was verified.
func (v *Verifier) readClaims(text []byte, now time.Time) (*Claims, error) {
	object, err := parseObject(text)
	if err != nil {
		return nil, invalid("its claims are not strict JSON")
	}
	c := &Claims{Members: make(map[string]json.RawMessage, len(object.fields))}
	for i := range object.fields {
		c.Members[object.fields[i].name] = object.fields[i].value.raw
	}
	for name, into := range map[string]*string{"iss": &c.Issuer, "sub": &c.Subject, "client_id": &c.ClientID, "jti": &c.ID} {
		if *into = object.textOf(name); *into == "" {
			return nil, invalid("it has no %s", name) // RFC 9068, section 2.2
		}
	}
	if c.Issuer != v.cfg.Issuer {
		return nil, invalid("it is of another issuer")
	}
	if c.Audience = audienceOf(&object); c.Audience != v.cfg.Audience {
		return nil, invalid("it is for another audience")
	}
	if err := v.readTimes(c, &object, now); err != nil {
		return nil, err
	}
	if err := c.readScope(&object); err != nil {
		return nil, err
	}
	if c.Details, err = v.readDetails(&object); err != nil {
		return nil, err
	}
	if c.Actors, err = v.readActors(&object); err != nil {
		return nil, err
	}
	if c.Bound, err = readBinding(&object); err != nil {
		return nil, err
	}
	return c, c.readStatus(&object)
}

// audienceOf returns the only audience. The broker's tokens have one: a token for several
// services could be used by one of them at the others.
func audienceOf(object *value) string {
	aud, _ := object.get("aud")
	if aud.kind == '[' && len(aud.list) == 1 {
		aud = aud.list[0]
	}
	if aud.kind != '"' {
		return ""
	}
	return aud.text
}

func (v *Verifier) readTimes(c *Claims, object *value, now time.Time) error {
	exp, okExp := object.number("exp")
	iat, okIat := object.number("iat")
	if !okExp || !okIat {
		return invalid("exp and iat must be numbers")
	}
	c.Expires, c.IssuedAt = time.Unix(exp, 0), time.Unix(iat, 0)
	if !now.Before(c.Expires.Add(v.leeway)) {
		return invalid("it has expired")
	}
	if c.IssuedAt.After(now.Add(v.leeway)) {
		return invalid("it is from the future")
	}
	if _, has := object.get("nbf"); has {
		nbf, ok := object.number("nbf")
		if !ok || time.Unix(nbf, 0).After(now.Add(v.leeway)) {
			return invalid("it is not valid yet")
		}
	}
	return nil
}

func (c *Claims) readScope(object *value) error {
	scope, err := object.optionalText("scope")
	if err != nil {
		return invalid("its scope is not a text")
	}
	if scope != "" {
		c.Scopes = strings.Split(scope, " ")
		if slices.Contains(c.Scopes, "") { // RFC 6749, section 3.3: single spaces
			return invalid("its scope is malformed")
		}
	}
	return nil
}

func (v *Verifier) readDetails(object *value) (list []Detail, err error) {
	details, has := object.get("authorization_details")
	if !has {
		return nil, nil
	}
	if details.kind != '[' {
		return nil, invalid("its authorization_details are not a list")
	}
	for i := range details.list {
		element := &details.list[i]
		kind := element.textOf("type")
		if element.kind != '{' || kind == "" {
			return nil, invalid("an element of its authorization_details has no type")
		}
		if !slices.Contains(v.cfg.DetailTypes, kind) {
			return nil, invalid("its authorization_details have a type that this service does not enforce")
		}
		list = append(list, Detail{kind, json.RawMessage(element.raw)})
	}
	return list, nil
}

// readActors reads the chain of actors, the current one first.
func (v *Verifier) readActors(object *value) (list []Actor, err error) {
	for at, has := object.get("act"); has; at, has = at.get("act") {
		if at.kind != '{' || at.textOf("sub") == "" {
			return nil, invalid("an actor has no sub")
		}
		if len(list) >= v.cfg.MaxActors {
			return nil, invalid("its chain of actors is too long")
		}
		list = append(list, Actor{at.textOf("sub")})
	}
	return list, nil
}

// readBinding reads cnf. A confirmation that this package does not know can't be checked, so
// it makes the token invalid.
func readBinding(object *value) (b Binding, err error) {
	cnf, has := object.get("cnf")
	if !has {
		return b, nil
	}
	known := map[string]*string{"jkt": &b.Key, "x5t#S256": &b.Certificate, "spiffe_id": &b.SPIFFEID}
	for i := range cnf.fields {
		into, m := known[cnf.fields[i].name], &cnf.fields[i].value
		if into == nil || m.kind != '"' || m.text == "" {
			return b, invalid("it is bound in a way that can't be checked")
		}
		*into = m.text
	}
	if b.Key == "" && b.Certificate == "" {
		return b, invalid("it is bound in a way that can't be checked")
	}
	return b, nil
}

// A statusRef is the place of a token in a status list.
type statusRef struct {
	uri   string
	index int64
}

// readStatus reads the claim status (draft-ietf-oauth-status-list-20, section 6.2).
func (c *Claims) readStatus(object *value) error {
	status, has := object.get("status")
	if c.hasStatus = has; !has {
		return nil
	}
	if status.kind != '{' {
		return invalid("its status is not an object")
	}
	list, has := status.get("status_list")
	if !has {
		return nil // another mechanism: an introspection may know it
	}
	index, ok := list.number("idx")
	uri := list.textOf("uri")
	if !ok || index < 0 || uri == "" {
		return invalid("its place in a status list is malformed")
	}
	c.status = &statusRef{uri, index}
	return nil
}
