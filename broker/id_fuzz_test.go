package broker

import (
	"testing"
	"time"
)

// FuzzID reads arbitrary IDs. Each has one spelling.
func FuzzID(f *testing.F) {
	f.Add(NewRequestID(time.Unix(0, 0)).String())
	f.Add(NewLeaseID(time.Unix(1<<40, 0)).String())
	f.Add("req_0000000000000000000000000v")
	f.Add("REQ_00000000000000000000000000")
	f.Fuzz(func(t *testing.T, text string) {
		if id, err := ParseRequestID(text); err == nil && (id.String() != text || id.IsZero()) {
			t.Fatalf("%q is read as the request %q", text, id)
		}
		if id, err := ParseLeaseID(text); err == nil && (id.String() != text || id.IsZero()) {
			t.Fatalf("%q is read as the lease %q", text, id)
		}
	})
}

// FuzzNames reads arbitrary SPIFFE IDs and trust domains.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"spiffe://acme.test/agent/triage", "spiffe://ACME.test/agent", "spiffe://acme.test/agent//x", "spiffe://acme.test/%62", "acme.test", "spiffe://acme.test/../x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		domain, path, err := ParseSPIFFEID(text)
		if err != nil {
			return
		}
		joined := "spiffe://" + domain
		if path != "" {
			joined += "/" + path
		}
		if joined != text || CheckTrustDomain(domain) != nil || len(text) > maxSPIFFEID {
			t.Fatalf("%q is read as %q and %q", text, domain, path)
		}
	})
}
