// Package mapping maps the claims of workload tokens to SPIFFE IDs, by the rules of an
// operator.
//
// A rule names what claims must be, by value, and a SPIFFE ID in which claims may stand for
// whole segments of the path. No rule has patterns: a text is equal to a value of the rule,
// byte by byte, or it is another one. So no claim can reach across a segment, and no
// spelling of a name, such as one in another case or of similar letters, is taken for it.
package mapping

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
)

// Bounds of a rule.
const (
	MaxRules  = 1024 // of an issuer
	maxClaims = 32   // of a rule, and of an object in it
	maxValues = 256  // of a claim
	maxText   = 1024 // bytes of a value or a name
	maxDepth  = 4    // of objects
)

// A Value is a value that a claim may have: a text, a truth value or a whole number. Values
// of two kinds are never equal: "1" is not 1. The zero Value is the empty text.
type Value struct {
	kind byte // 0: text, 't': truth value, 'n': whole number
	text string
}

// Text returns a text.
func Text(s string) Value { return Value{text: s} }

// Truth returns a truth value.
func Truth(b bool) Value { return Value{kind: 't', text: fmt.Sprint(b)} }

// Whole returns a whole number.
func Whole(n int64) Value { return Value{kind: 'n', text: fmt.Sprint(n)} }

// IsText reports whether v is a text.
func (v Value) IsText() bool { return v.kind == 0 }

// String returns the value as the operator wrote it.
func (v Value) String() string {
	if v.kind == 0 {
		return fmt.Sprintf("%q", v.text)
	}
	return v.text
}

// valueOf returns the value of a claim, which is strict JSON. ok is false for null, objects,
// lists, and numbers that are not whole or that JSON parsers round.
func valueOf(raw []byte) (v Value, ok bool) {
	if text, isText := strictjson.Text(raw); isText {
		return Text(text), true
	}
	switch text := string(raw); {
	case text == "true", text == "false":
		return Value{kind: 't', text: text}, true
	case isWhole(text):
		return Value{kind: 'n', text: text}, true
	}
	return Value{}, false
}

// isWhole reports whether the text is a whole number of at most 15 digits in its one
// canonical form.
func isWhole(text string) bool {
	digits := strings.TrimPrefix(text, "-")
	if digits == "" || len(digits) > 15 || digits[0] == '0' && text != "0" {
		return false
	}
	return !strings.ContainsFunc(digits, func(r rune) bool { return r < '0' || r > '9' })
}

// A Want is what a claim must be: one of Values or, if Members is not nil, an object with
// claims of its own.
type Want struct {
	Values  []Value
	Members map[string]Want
}

// A Rule is a rule as the operator wrote it.
type Rule struct {
	Claims   map[string]Want
	SPIFFEID string // may contain ${claim} and ${/claim/member} as segments of its path
}

// A Compiled is a valid rule. It is immutable.
type Compiled struct {
	claims   map[string]Want
	domain   string
	segments []segment
}

// A segment is a segment of the path of a SPIFFE ID.
type segment struct {
	literal string
	claim   []string // whose value is the segment; nil: literal is
}

// Compile checks a rule.
func Compile(r Rule) (*Compiled, error) {
	if bounds := slices.DeleteFunc(slices.Collect(maps.Keys(r.Claims)), func(name string) bool { return slices.Contains(ofEveryToken, name) }); len(bounds) == 0 {
		return nil, errors.New("the rule has no condition on a claim that tells workloads apart, so that every token of the issuer would match: require claims by value")
	}
	if err := checkClaims(r.Claims, maxDepth); err != nil {
		return nil, err
	}
	c := &Compiled{claims: r.Claims}
	return c, c.parseID(r.SPIFFEID)
}

// ofEveryToken are claims that say nothing about the workload.
var ofEveryToken = []string{"iss", "aud", "exp", "nbf", "iat", "jti"}

func checkClaims(claims map[string]Want, depth int) error {
	if depth == 0 || len(claims) > maxClaims {
		return fmt.Errorf("a rule has at most %d claims, nested at most %d deep", maxClaims, maxDepth)
	}
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		w := claims[name]
		if name == "" || len(name) > maxText {
			return fmt.Errorf("the name of a claim has 1 to %d bytes", maxText)
		}
		if w.Members != nil {
			if len(w.Members) == 0 {
				return fmt.Errorf("the claim %s needs at least one member", name)
			}
			if err := checkClaims(w.Members, depth-1); err != nil {
				return err
			}
			continue
		}
		if len(w.Values) == 0 || len(w.Values) > maxValues {
			return fmt.Errorf("the claim %s needs 1 to %d values", name, maxValues)
		}
		for i, v := range w.Values {
			if v.IsText() && v.text == "" || len(v.text) > maxText || slices.Contains(w.Values[:i], v) {
				return fmt.Errorf("the claim %s needs values of 1 to %d bytes, each once", name, maxText)
			}
		}
	}
	return nil
}

// parseID parses the SPIFFE ID of a rule.
func (c *Compiled) parseID(id string) error {
	filled := make([]string, 0, 8)
	for part := range splitSegments(id) {
		name, isClaim := strings.CutPrefix(part, "${")
		if !isClaim || !strings.HasSuffix(name, "}") {
			if strings.Contains(part, "${") {
				return notWhole(part)
			}
			c.segments = append(c.segments, segment{literal: part})
			filled = append(filled, part)
			continue
		}
		if name = strings.TrimSuffix(name, "}"); strings.ContainsAny(name, "${}") {
			return notWhole(part)
		}
		claim, err := parsePath(name)
		if err != nil {
			return err
		}
		c.segments = append(c.segments, segment{claim: claim})
		filled = append(filled, "x")
	}
	domain, path, err := broker.ParseSPIFFEID(strings.Join(filled, "/"))
	switch {
	case err != nil:
		return err
	case path == "":
		return errors.New("the SPIFFE ID names a trust domain, not a workload: a path is missing")
	case len(c.segments) < 4 || c.segments[2].claim != nil:
		return errors.New("the trust domain of a SPIFFE ID can't come from a claim")
	}
	c.domain = domain
	return nil
}

func notWhole(segment string) error {
	return fmt.Errorf("%q: a claim is a whole segment of the path, such as /${repository_id}/, so that no two tokens get one ID by accident", segment)
}

// splitSegments yields the parts of a SPIFFE ID between its slashes. A slash in ${…} does
// not separate.
func splitSegments(id string) func(func(string) bool) {
	return func(yield func(string) bool) {
		from, inside := 0, false
		for i := range len(id) {
			switch {
			case !inside && strings.HasPrefix(id[i:], "${"):
				inside = true
			case inside && id[i] == '}':
				inside = false
			case !inside && id[i] == '/':
				if !yield(id[from:i]) {
					return
				}
				from = i + 1
			}
		}
		yield(id[from:])
	}
}

// parsePath parses the name of a claim or, if it begins with a slash, a JSON Pointer (RFC
// 6901) to a member of one.
func parsePath(name string) ([]string, error) {
	pointer, isPointer := strings.CutPrefix(name, "/")
	if !isPointer {
		if name == "" || len(name) > maxText {
			return nil, errors.New("write the name of a claim in ${…}")
		}
		return []string{name}, nil
	}
	parts := strings.Split(pointer, "/")
	for i, part := range parts {
		if part == "" || len(parts) > maxDepth+1 || strings.Contains(strings.NewReplacer("~0", "", "~1", "").Replace(part), "~") {
			return nil, fmt.Errorf("%q is not a JSON Pointer (RFC 6901) to a claim", name)
		}
		parts[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(part)
	}
	return parts, nil
}

// TrustDomain returns the trust domain of the rule's SPIFFE IDs.
func (c *Compiled) TrustDomain() string { return c.domain }

// Substituted returns the claims that the SPIFFE ID is made of, as paths.
func (c *Compiled) Substituted() (list [][]string) {
	for _, s := range c.segments {
		if s.claim != nil {
			list = append(list, s.claim)
		}
	}
	return list
}

// Requires reports whether the rule has a condition on a claim.
func (c *Compiled) Requires(name string) bool { _, ok := c.claims[name]; return ok }

// Wants returns the conditions of the rule. The caller must not change them.
func (c *Compiled) Wants() map[string]Want { return c.claims }

// Overlaps reports whether two rules may make the same SPIFFE ID.
func (c *Compiled) Overlaps(other *Compiled) bool {
	if len(c.segments) != len(other.segments) {
		return false
	}
	for i, s := range c.segments {
		o := other.segments[i]
		if s.claim == nil && o.claim == nil && s.literal != o.literal {
			return false
		}
	}
	return true
}

// matches reports whether the claims are what the rule requires. A claim that is absent, or
// of another kind, is not.
func matches(wants map[string]Want, claims map[string]json.RawMessage) bool {
	for name, w := range wants {
		raw, ok := claims[name]
		if !ok {
			return false
		}
		if w.Members != nil {
			members, err := strictjson.Object(raw, maxNesting)
			if err != nil || !matches(w.Members, members) {
				return false
			}
			continue
		}
		if v, ok := valueOf(raw); !ok || !slices.Contains(w.Values, v) {
			return false
		}
	}
	return true
}

// maxNesting bounds the nesting of a claim.
const maxNesting = 16

// A SegmentError means that a claim cannot be a segment of a SPIFFE ID.
type SegmentError struct{ Claim string }

func (e *SegmentError) Error() string {
	return fmt.Sprintf("the claim %q cannot be a segment of a SPIFFE ID: it must be a text of a-z, A-Z, 0-9, '.', '-' and '_', or a whole number", e.Claim)
}

// Errors of Map.
var (
	ErrNoRule    = errors.New("no rule maps these claims to a SPIFFE ID")
	ErrAmbiguous = errors.New("rules map these claims to several SPIFFE IDs")
	ErrTooLong   = errors.New("the SPIFFE ID would be too long")
)

// Map returns the SPIFFE ID of claims, which are strict JSON. All rules that match must make
// the same ID.
func Map(rules []*Compiled, claims map[string]json.RawMessage) (string, error) {
	found := ""
	for _, c := range rules {
		if !matches(c.claims, claims) {
			continue
		}
		id, err := c.fill(claims)
		switch {
		case err != nil:
			return "", err
		case found != "" && found != id:
			return "", ErrAmbiguous
		}
		found = id
	}
	if found == "" {
		return "", ErrNoRule
	}
	return found, nil
}

// fill makes the SPIFFE ID of the rule.
func (c *Compiled) fill(claims map[string]json.RawMessage) (string, error) {
	parts := make([]string, len(c.segments))
	for i, s := range c.segments {
		if parts[i] = s.literal; s.claim == nil {
			continue
		}
		text, ok := lookup(claims, s.claim)
		// The one check of segments is that of package broker.
		if ok && !strings.Contains(text, "/") {
			_, _, err := broker.ParseSPIFFEID("spiffe://" + c.domain + "/" + text)
			ok = err == nil
		}
		if !ok || text == "" || strings.Contains(text, "/") {
			return "", &SegmentError{strings.Join(s.claim, "/")}
		}
		parts[i] = text
	}
	id := strings.Join(parts, "/")
	if _, _, err := broker.ParseWorkloadID(id); err != nil { // only its length can be wrong
		return "", ErrTooLong
	}
	return id, nil
}

// lookup returns the text or the whole number at a path.
func lookup(claims map[string]json.RawMessage, path []string) (string, bool) {
	for _, name := range path[:len(path)-1] {
		members, err := strictjson.Object(claims[name], maxNesting)
		if err != nil {
			return "", false
		}
		claims = members
	}
	v, ok := valueOf(claims[path[len(path)-1]])
	return v.text, ok && v.kind != 't' && !(v.kind == 'n' && v.text[0] == '-')
}
