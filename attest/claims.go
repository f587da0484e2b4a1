package attest

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"accessbroker.internal/broker"
)

// Limits of a person's claims.
const (
	maxSubject  = 255 // bytes, of ASCII (OpenID Connect Core 1.0, section 2)
	maxGroups   = 256
	maxGroup    = 256 // bytes
	maxDisplay  = 128 // bytes of a name or an address
	maxSessions = 255 // bytes of a sid
)

// personClaims holds the claims of an ID token or a UserInfo response.
type personClaims struct {
	raw map[string]json.RawMessage
}

func parseClaims(payload json.RawMessage) (personClaims, error) {
	var c personClaims
	if err := json.Unmarshal(payload, &c.raw); err != nil || c.raw == nil {
		return c, errors.New("the claims are not a JSON object")
	}
	return c, nil
}

// text returns a claim that must be a string, or "" if it is absent.
func (c personClaims) text(name string) (string, error) {
	value, ok := c.raw[name]
	if !ok {
		return "", nil
	}
	var s string
	if err := json.Unmarshal(value, &s); err != nil {
		return "", fmt.Errorf("the claim %q is not a string", name)
	}
	return s, nil
}

// seconds returns a claim that must be a NumericDate, or the zero time if it is
// absent or null.
func (c personClaims) seconds(name string) (time.Time, error) {
	value, ok := c.raw[name]
	if !ok || string(value) == "null" {
		return time.Time{}, nil
	}
	at, err := numericDate(value)
	if err != nil {
		return time.Time{}, fmt.Errorf("the claim %q is %w", name, err)
	}
	return at.UTC(), nil
}

// groups returns the values of the groups claim and whether the claim is present.
// It rejects distributed claims (OpenID Connect Core, section 5.6.2), such as the
// groups overage of Entra ID: with some of a person's groups missing, forbids
// would not apply.
func (c personClaims) groups(name string) (values []string, present bool, err error) {
	if name == "" {
		return nil, true, nil
	}
	var elsewhere map[string]json.RawMessage
	if raw, ok := c.raw["_claim_names"]; ok && json.Unmarshal(raw, &elsewhere) == nil && elsewhere[name] != nil {
		return nil, false, fmt.Errorf("the claim %q is distributed (_claim_names): configure the provider to put only the relevant groups into the token", name)
	}
	value, ok := c.raw[name]
	if !ok {
		return nil, false, nil
	}
	var one string
	if json.Unmarshal(value, &one) == nil {
		values = []string{one}
	} else if json.Unmarshal(value, &values) != nil {
		return nil, false, fmt.Errorf("the claim %q is neither a string nor a list of strings", name)
	}
	if len(values) > maxGroups {
		return nil, false, fmt.Errorf("the claim %q has %d groups, more than %d: configure the provider to claim only the relevant groups", name, len(values), maxGroups)
	}
	for _, v := range values {
		if len(v) > maxGroup || !utf8.ValidString(v) {
			return nil, false, fmt.Errorf("the claim %q has a group that is not UTF-8 or has more than %d bytes", name, maxGroup)
		}
	}
	return values, true, nil
}

// checkSubject returns an error unless sub is visible ASCII of at most maxSubject
// bytes (OpenID Connect Core, section 2). Two IDs that look the same must not
// differ.
func checkSubject(sub string) error {
	if sub == "" || len(sub) > maxSubject || strings.IndexFunc(sub, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		return fmt.Errorf("the subject is not 1 to %d visible ASCII characters", maxSubject)
	}
	return nil
}

// display returns s without unprintable characters and of at most maxDisplay
// bytes. It is for texts that people see and no decision depends on.
func display(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(s, ""))
	for len(s) > maxDisplay {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}

// person returns the person that the claims c of the subject sub describe.
func (p *provider) person(sub string, c personClaims, groups []string, now time.Time) (*broker.Person, error) {
	out := &broker.Person{Provider: p.cfg.Name, Groups: groups, Claimed: now}
	name, err1 := c.text("name")
	email, err2 := c.text("email")
	var manager string
	var err3 error
	if p.cfg.ManagerClaim != "" {
		manager, err3 = c.text(p.cfg.ManagerClaim)
	}
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	if manager != "" {
		if err := checkSubject(manager); err != nil {
			return nil, fmt.Errorf("the claim %q: %w", p.cfg.ManagerClaim, err)
		}
		out.Manager = p.cfg.Name + "/" + manager
	}
	out.Name, out.Email = display(name), display(email)
	return out, checkSubject(sub)
}
