package attest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
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

// parseClaims parses a JSON object strictly. A claim with the value null counts as
// absent, as many providers mean it.
func parseClaims(payload []byte) (personClaims, error) {
	raw, err := strictjson.Object(payload, maxDepth)
	if err != nil {
		return personClaims{}, fmt.Errorf("the document of the claims %w", err)
	}
	maps.DeleteFunc(raw, func(_ string, value json.RawMessage) bool { return string(value) == "null" })
	return personClaims{raw}, nil
}

// text returns a claim that must be a string, or "" if it is absent.
func (c personClaims) text(name string) (string, error) {
	value, ok := c.raw[name]
	if !ok {
		return "", nil
	}
	s, ok := strictjson.Text(value)
	if !ok {
		return "", fmt.Errorf("the claim %q is not a string", name)
	}
	return s, nil
}

// seconds returns a claim that must be a NumericDate, or the zero time if it is
// absent.
func (c personClaims) seconds(name string) (time.Time, error) {
	value, ok := c.raw[name]
	if !ok {
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
	if err := c.notElsewhere(name); err != nil {
		return nil, false, err
	}
	value, ok := c.raw[name]
	if !ok {
		return nil, false, nil
	}
	list, ok := strictjson.Elements(value)
	if !ok {
		list = []json.RawMessage{value}
	}
	if len(list) > maxGroups {
		return nil, false, fmt.Errorf("the claim %q has %d groups, more than %d: configure the provider to claim only the relevant groups", name, len(list), maxGroups)
	}
	for _, one := range list {
		group, ok := strictjson.Text(one)
		if !ok {
			return nil, false, fmt.Errorf("the claim %q is neither a string nor a list of strings", name)
		}
		if !isGroup(group) {
			return nil, false, fmt.Errorf("the claim %q has a group that is empty, has more than %d bytes, or begins, ends or is written with invisible characters", name, maxGroup)
		}
		values = append(values, group)
	}
	return values, true, nil
}

// notElsewhere returns an error if the provider keeps the claim elsewhere. Entra ID sets
// hasgroups where a token has no room for a reference.
func (c personClaims) notElsewhere(name string) error {
	if raw, ok := c.raw["_claim_names"]; ok {
		elsewhere, err := strictjson.Object(raw, maxDepth)
		if err != nil {
			return errors.New("the claim \"_claim_names\" is not an object")
		}
		if elsewhere[name] != nil {
			return fmt.Errorf("the claim %q is distributed (_claim_names): configure the provider to put only the relevant groups into the token", name)
		}
	}
	if raw, ok := c.raw["hasgroups"]; ok && c.raw[name] == nil && string(raw) != "false" {
		return fmt.Errorf("the claim %q is not in the token (hasgroups): configure the provider to put only the relevant groups into the token", name)
	}
	return nil
}

// isGroup reports whether a group can be compared with those that the operator wrote.
func isGroup(group string) bool {
	visible := func(r rune) bool { return r == ' ' || unicode.IsGraphic(r) && !unicode.IsSpace(r) }
	return group != "" && len(group) <= maxGroup && strings.TrimSpace(group) == group && !strings.ContainsFunc(group, func(r rune) bool { return !visible(r) })
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

// person returns the person that the claims c of the subject sub describe. The name is
// only shown, and so is an address that the provider does not vouch for. Without a manager, no one can approve as the manager. So a
// malformed value of these is dropped, and does not keep the person out.
func (p *provider) person(sub string, c personClaims, groups []string, now time.Time) (*broker.Person, error) {
	out := &broker.Person{Provider: p.cfg.Name, Groups: groups, Claimed: now}
	out.Name = display(p.optional(c, "name", nil))
	email := p.optional(c, "email", nil)
	out.Email = display(email)
	out.EmailVerified = email != "" && out.Email == email && string(c.raw["email_verified"]) == "true"
	if p.cfg.ManagerClaim != "" {
		if manager := p.optional(c, p.cfg.ManagerClaim, checkSubject); manager != "" {
			out.Manager = p.cfg.Name + "/" + manager
		}
	}
	if p.cfg.SponsorClaim != "" {
		if sponsor := p.optional(c, p.cfg.SponsorClaim, checkSubject); sponsor != "" {
			out.Sponsor = p.cfg.Name + "/" + sponsor
		}
	}
	var err error
	if out.StatesEnd = p.cfg.EndsClaim != ""; out.StatesEnd {
		// An end that cannot be read must not become access without end.
		if out.Ends, err = c.end(p.cfg.EndsClaim); err != nil {
			return nil, err
		}
	}
	return out, checkSubject(sub)
}

// end returns a claim that is a NumericDate, a time (RFC 3339) or a day, whose end it is then;
// zero if it is absent or an empty text.
func (c personClaims) end(name string) (time.Time, error) {
	text, err := c.text(name)
	if err != nil {
		return c.seconds(name)
	}
	if text == "" {
		return time.Time{}, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at.UTC().Truncate(time.Second), nil
	}
	at, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return at, fmt.Errorf("the claim %q is neither a NumericDate nor a time (RFC 3339) nor a day", name)
	}
	return at.AddDate(0, 0, 1), nil
}

// optional returns the text of a claim, or "" if it is malformed or check returns an
// error. The log names the claim, at first as a warning, and never its value.
func (p *provider) optional(c personClaims, name string, check func(string) error) string {
	value, err := c.text(name)
	if err == nil && value != "" && check != nil {
		err = check(value)
	}
	if err == nil {
		return value
	}
	level := slog.LevelDebug
	if _, again := p.dropped.LoadOrStore(name, true); !again {
		level = slog.LevelWarn
	}
	p.log.Log(context.Background(), level, "the claim is dropped because its value is malformed", "provider", p.cfg.Name, "claim", name)
	return ""
}
