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

// Bounds of what a provider may say of a person.
const (
	maxSubject  = 255 // bytes, of ASCII (OpenID Connect Core 1.0, section 2)
	maxGroups   = 256
	maxGroup    = 256 // bytes
	maxDisplay  = 128 // bytes of a name or an address
	maxSessions = 255 // bytes of a sid
)

// personClaims are what a provider says of a person, in an ID token or at UserInfo.
type personClaims struct {
	raw map[string]json.RawMessage
}

func parseClaims(payload json.RawMessage) (personClaims, error) {
	var c personClaims
	if err := json.Unmarshal(payload, &c.raw); err != nil || c.raw == nil {
		return c, errors.New("its claims are no JSON object")
	}
	return c, nil
}

// text gives a claim that is a string; "" if it is not there.
func (c personClaims) text(name string) (string, error) {
	value, ok := c.raw[name]
	if !ok {
		return "", nil
	}
	var s string
	if err := json.Unmarshal(value, &s); err != nil {
		return "", fmt.Errorf("the claim %q is no text", name)
	}
	return s, nil
}

// seconds gives a claim that is a time; zero if it is not there.
func (c personClaims) seconds(name string) (time.Time, error) {
	value, ok := c.raw[name]
	if !ok {
		return time.Time{}, nil
	}
	var n float64
	if err := json.Unmarshal(value, &n); err != nil || n < 0 || n > 1<<40 {
		return time.Time{}, fmt.Errorf("the claim %q is no time", name)
	}
	return time.Unix(int64(n), 0).UTC(), nil
}

// groups gives the values of the groups claim, and whether it is there. A
// provider that would have us fetch them elsewhere (a distributed claim, such as
// Entra ID's overage) is refused: half of somebody's groups is worse than none.
func (c personClaims) groups(name string) (values []string, there bool, err error) {
	if name == "" {
		return nil, true, nil
	}
	var elsewhere map[string]json.RawMessage
	if raw, ok := c.raw["_claim_names"]; ok && json.Unmarshal(raw, &elsewhere) == nil && elsewhere[name] != nil {
		return nil, false, fmt.Errorf("the provider gives the claim %q only elsewhere (_claim_names): have it put into tokens the groups that matter here", name)
	}
	value, ok := c.raw[name]
	if !ok {
		return nil, false, nil
	}
	var one string
	if json.Unmarshal(value, &one) == nil {
		values = []string{one}
	} else if json.Unmarshal(value, &values) != nil {
		return nil, false, fmt.Errorf("the claim %q is neither a text nor a list of texts", name)
	}
	if len(values) > maxGroups {
		return nil, false, fmt.Errorf("the claim %q has %d groups, more than %d: have the provider name only those that matter here", name, len(values), maxGroups)
	}
	for _, v := range values {
		if len(v) > maxGroup || !utf8.ValidString(v) {
			return nil, false, fmt.Errorf("the claim %q names a group of more than %d bytes", name, maxGroup)
		}
	}
	return values, true, nil
}

// checkSubject refuses what could not be told apart, or shown, as an ID.
func checkSubject(sub string) error {
	if sub == "" || len(sub) > maxSubject || strings.IndexFunc(sub, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		return fmt.Errorf("the subject is not 1 to %d visible ASCII characters", maxSubject)
	}
	return nil
}

// display makes text of a provider's fit to be shown: nothing is decided by it.
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

// person makes what a provider says of somebody.
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
