package verify

import (
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
)

func TestAttestationIsChecked(t *testing.T) {
	t.Parallel()
	const byToken = "oidc-token"
	for name, test := range map[string]struct {
		kind             audit.Kind
		method, attested string
		also             []string
		outlives         time.Duration
		want             string
	}{
		"an SVID":                     {audit.LeaseIssued, "x509-svid", "", nil, time.Hour, ""},
		"a token":                     {audit.LeaseIssued, byToken, "oidc", nil, 0, ""},
		"a token and its end":         {audit.LeaseIssued, byToken, "oidc", nil, time.Second, "outlives the OIDC token"},
		"the opening":                 {audit.LeaseOpened, byToken, "oidc", nil, time.Second, "outlives the OIDC token"},
		"a broker token of one":       {audit.LeaseIssued, "broker-token", "oidc", nil, time.Second, "outlives the OIDC token"},
		"a certificate and a token":   {audit.LeaseIssued, "x509-svid", "oidc", []string{"oidc-token 00"}, 0, ""},
		"a token that is not named":   {audit.LeaseIssued, byToken, "", nil, 0, "is not of its attestation"},
		"an SVID as a token":          {audit.LeaseIssued, "jwt-svid", "oidc", nil, 0, "is not of its attestation"},
		"another kind, which is open": {audit.LeaseRevoked, byToken, "oidc", nil, time.Hour, ""},
	} {
		r := audit.Record{Kind: test.kind, Caller: &audit.Party{Method: test.method, Attested: test.attested, Also: test.also, Expires: someTime}, Lease: &audit.LeaseFacts{ID: "a", Expires: someTime.Add(test.outlives)}}
		if got := checkAttested(&r); (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
		if got := newLeaseState(1).check(&r); test.want != "" && got == "" {
			t.Errorf("%s: the verifier does not report it", name)
		}
	}
}
