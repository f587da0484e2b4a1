package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"accessbroker.internal/policy"
)

// A long file is parsed in parts. Its entries and the positions of its mistakes are those of
// the whole file.
func TestLongFilesAreParsedInParts(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&text, "login/p%d: {ends: 2026-12-31}\n", i)
	}
	load := func(more string) (*policy.Engine, error) {
		return policy.Load(supplierInputs(acmeData, text.String()+more))
	}
	e, err := load("")
	if err != nil || len(e.Rules().PersonEnds) != 5000 {
		t.Fatalf("got %v, want 5000 people", err)
	}
	for name, test := range map[string]struct{ more, want string }{
		"a malformed end":           {"login/last: {ends: never}\n", "people.yaml:5001:"},
		"an unknown key":            {"login/last: {end: 2026-12-31}\n", "people.yaml:5001:"},
		"a person of an early part": {"login/p7: {ends: 2026-12-31}\n", "people.yaml:5001:1: person \"login/p7\" appears twice"},
		"text that is not YAML":     {"login/last: {ends: 2026-12-31\n", "people.yaml:500"},
		"a text over several lines": {"login/last: {ends: \"2026-12-31\", sponsor: \"a\nb\"}\n", "people.yaml:5001:"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := load(test.more); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
