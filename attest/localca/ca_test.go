package localca_test

import (
	"testing"

	"accessbroker.internal/attest/localca"
)

// A trust domain is a name. A SPIFFE ID is refused, although go-spiffe accepts it.
func TestNewRefusesTrustDomain(t *testing.T) {
	for _, name := range []string{"", "spiffe://acme.test", "spiffe://acme.test/agent", "ACME.test", "acme.test/agent", "acme test"} {
		if _, err := localca.New(name); err == nil {
			t.Errorf("%q: got no error", name)
		}
		ca, err := localca.New("acme.test")
		if err != nil {
			t.Fatal(err)
		}
		if err := ca.Federate(name, nil); err == nil {
			t.Errorf("federating %q: got no error", name)
		}
	}
}
