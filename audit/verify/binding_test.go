package verify

import (
	"strings"
	"testing"

	"accessbroker.internal/audit"
)

func TestBindingIsChecked(t *testing.T) {
	const dpop, mtls, either = "binding dpop", "binding mtls", "binding dpop or mtls"
	one, other := audit.Digest{1}, audit.Digest{2}
	for name, test := range map[string]struct {
		manner, method string
		filed, lease   audit.Digest
		want           string
	}{
		"nothing demanded":       {"comment", "jwt-svid", audit.Digest{}, audit.Digest{}, ""},
		"key":                    {dpop, "jwt-svid", one, one, ""},
		"no key":                 {dpop, "x509-svid", audit.Digest{}, audit.Digest{}, "policy demands a binding (dpop)"},
		"certificate":            {mtls, "x509-svid", audit.Digest{}, audit.Digest{}, ""},
		"no certificate":         {mtls, "jwt-svid", one, one, "policy demands a binding (mtls)"},
		"either, by key":         {either, "jwt-svid", one, one, ""},
		"either, by certificate": {either, "x509-svid", audit.Digest{}, audit.Digest{}, ""},
		"neither":                {either, "jwt-svid", audit.Digest{}, audit.Digest{}, "policy demands a binding (dpop or mtls)"},
		"impossible":             {"binding impossible", "x509-svid", one, one, "policy demands a binding (impossible)"},
		"another key":            {"", "jwt-svid", one, other, "another key than that of the request"},
		"collected with a key":   {"", "jwt-svid", audit.Digest{}, other, ""},
	} {
		q := &request{key: test.filed}
		got := q.checkBinding(&audit.Record{Caller: &audit.Party{Method: test.method}, Decision: &audit.DecisionFacts{Manner: []string{"comment", test.manner}}, Lease: &audit.LeaseFacts{Key: test.lease}})
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}
