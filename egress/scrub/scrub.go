package scrub

import (
	"fmt"
	"io"
	"net/http"
	"slices"

	"accessbroker.internal/api"
)

// A Scrubber removes a set of secrets. It is safe for concurrent use. Its methods work
// on a Scrubber without secrets, and change nothing then.
type Scrubber struct {
	secrets []string
	needles []needle
	index   *index // nil without needles
	newest  func() *Scrubber
}

// New returns a Scrubber for secrets. It ignores secrets that are too short.
func New(secrets ...string) *Scrubber {
	list := slices.Compact(slices.Sorted(slices.Values(secrets)))
	s := &Scrubber{secrets: list, needles: needles(list)}
	if s.scrubs() {
		s.index = newIndex(s.needles)
	}
	return s
}

// Of returns a Scrubber for the secret fields of credentials.
func Of(credentials ...*api.Credential) *Scrubber {
	var list []string
	for _, c := range credentials {
		list = append(list, Secrets(c)...)
	}
	return New(list...)
}

// With returns a Scrubber for more secrets, such as the header that a call carries.
func (s *Scrubber) With(secrets ...string) *Scrubber {
	return New(slices.Concat(s.now().secrets, secrets)...)
}

// Following returns a Scrubber that removes the secrets of the newest one, also from
// answers that it has begun to read. A host can repeat a credential that is younger than
// the call that it answers.
func Following(newest func() *Scrubber) *Scrubber { return &Scrubber{newest: newest} }

// now returns the Scrubber that is in force.
func (s *Scrubber) now() *Scrubber {
	if s.newest != nil {
		return s.newest()
	}
	return s
}

// Format prints that there are secrets, whatever the verb.
func (s *Scrubber) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[scrubber]") }

// public has the fields of credentials that are no secrets, by type. All others are.
var public = map[string][]string{
	"aws":         {"access_key_id"}, // S3 shows it to everyone in presigned URLs
	"userpass":    {"username"},
	"certificate": {"certificate", "chain"},
	"data":        {"username", "access_key_id", "certificate", "chain", "signed_key"},
}

// Secrets returns the values of a credential that must not be shown.
func Secrets(c *api.Credential) (list []string) {
	if c == nil {
		return nil
	}
	for name, value := range c.Secret {
		if !slices.Contains(public[c.Type], name) {
			list = append(list, value)
		}
	}
	slices.Sort(list)
	return list
}

// String returns a text without the secrets.
func (s *Scrubber) String(in string) string {
	if s = s.now(); !s.scrubs() || len(in) < MinLength {
		return in
	}
	c := scan{s: s, last: true, text: text{whole: true}}
	b := []byte(in)
	c.run(b)
	if len(c.spans) == 0 {
		return in
	}
	c.hide(len(b))
	return string(b)
}

// Header removes the secrets from names and values, in place.
func (s *Scrubber) Header(h http.Header) { s.header(h) }

// header reports whether there were secrets.
func (s *Scrubber) header(h http.Header) (found bool) {
	for name, values := range h {
		for i, value := range values {
			values[i] = s.String(value)
			found = found || values[i] != value
		}
		if clean := s.String(name); clean != name {
			delete(h, name)
			h[clean], found = values, true
		}
	}
	return found
}

// scrubs reports whether there is anything to remove.
func (s *Scrubber) scrubs() bool { return len(s.needles) > 0 }
