package policy

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

// FuzzScenarios reads arbitrary scenario files. A mistake names the file, and no
// malformed scenario is read.
func FuzzScenarios(f *testing.F) {
	seed, err := os.ReadFile("../deploy/policies/all_test.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte("scenarios:\n  - {name: a, principal: spiffe://acme.test/x, entitlement: e, scopes: [s], expect: permit}\n"))
	f.Add([]byte("scenarios: [{name: a, expect: permit, expect: deny}]\n---\nscenarios: []\n"))
	f.Add([]byte("a: &a [*a, *a]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := readScenarios(fstest.MapFS{"x_test.yaml": {Data: text}}, "x_test.yaml")
		if err != nil && !strings.Contains(err.Error(), "x_test.yaml") {
			t.Fatalf("%q: got %v, which does not name the file", text, err)
		}
		for _, s := range all {
			if err == nil && s.check() != nil {
				t.Fatalf("%q: got the scenario %+v", text, s)
			}
		}
	})
}
