package policy_test

import (
	"context"
	"crypto/sha256"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

// noon is the time of all decisions.
var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// catalogue returns the catalogue of the sample.
func catalogue() broker.Catalogue {
	return broker.Catalogue{
		"tickets-api": {
			Name: "tickets-api", Issuer: "tickets", Owner: "support", Labels: map[string]string{"env": "prod"},
			Scopes:     []string{"tickets:close", "tickets:comment", "tickets:read"},
			DefaultTTL: 10 * time.Minute, MaxTTL: 15 * time.Minute, Effect: audit.Digest{1},
		},
		"orders-db-ro": {
			Name: "orders-db-ro", Issuer: "vault", Owner: "dba", System: "orders", Labels: map[string]string{"env": "prod"},
			MaxTTL: 30 * time.Minute, Effect: audit.Digest{2},
		},
		"reports": {
			Name: "reports", Issuer: "aws", Scopes: []string{"read", "write"}, MaxTTL: time.Hour, MinTTL: 15 * time.Minute,
			Parameters: map[string]broker.Parameter{"prefix": {MaxLength: 40, Required: true}}, Effect: audit.Digest{3},
		},
	}
}

func inputs(fsys fs.FS) policy.Inputs {
	return policy.Inputs{
		FS: fsys, Catalogue: catalogue(), HomeDomain: "acme.test", TrustDomains: []string{"acme.test", "supplier.test"},
		Providers: []string{"login"}, Channels: []string{"slack:dba", "slack:support"},
		Labels: []broker.WorkloadLabels{{Under: "spiffe://acme.test/agent", Kind: broker.KindAgent, Team: "support", Accountable: []string{"login/ana"}}},
	}
}

func load(t testing.TB, fsys fs.FS) *policy.Engine {
	t.Helper()
	e, err := policy.Load(inputs(fsys))
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return e
}

func sample(t testing.TB) *policy.Engine { return load(t, os.DirFS("testdata/sample")) }

// identity returns the identity for an id, with its labels.
func identity(id string) broker.Identity {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	if !ok {
		return broker.Identity{ID: id, Kind: broker.KindPerson}
	}
	domain, _, _ := strings.Cut(rest, "/")
	rules := broker.Rules{Labels: inputs(nil).Labels}
	return rules.WithLabels(broker.Identity{ID: id, Kind: broker.KindWorkload, TrustDomain: domain, Paths: broker.SPIFFEPaths(id)})
}

func query(id, entitlement string, scopes ...string) broker.Query {
	return broker.Query{
		Principal: identity(id), Action: broker.ActionRequest, Entitlement: catalogue()[entitlement], Scopes: scopes,
		TTL: 5 * time.Minute, Duration: time.Hour, SourceIP: netip.MustParseAddr("10.1.2.3"),
	}
}

func decide(t *testing.T, e *policy.Engine, q broker.Query) broker.Decision {
	t.Helper()
	d, err := e.Decide(context.Background(), q, noon)
	if err != nil {
		t.Fatalf("Decide: %v", err)
	}
	if d.Revision != e.Revision() {
		t.Errorf("got revision %x, want %x", d.Revision, e.Revision())
	}
	return d
}

func TestRulesReturnsInputs(t *testing.T) {
	t.Parallel()
	e := sample(t)
	r := e.Rules()
	if r.Policy != e || r.Revision != e.Revision() || len(r.Files) == 0 || len(r.Catalogue) != 3 || len(r.Labels) != 1 {
		t.Errorf("%+v", r)
	}
}

const (
	triage  = "spiffe://acme.test/agent/triage"
	billing = "spiffe://acme.test/billing/api"
)

func TestSampleDecisions(t *testing.T) {
	t.Parallel()
	e := sample(t)
	tests := []struct {
		name     string
		q        broker.Query
		permit   bool
		policies []string
	}{
		{"a permit", query(triage, "tickets-api", "tickets:read", "tickets:comment"), true, []string{"agents-read-tickets"}},
		{"another permit for one scope", query(triage, "tickets-api", "tickets:close"), true, []string{"agents-close-tickets"}},
		{"no permit", query(billing, "tickets-api", "tickets:read"), false, nil},
		{"a forbid", query(triage, "orders-db-ro"), false, []string{"no-agents-on-production-databases"}},
		{"a workload by its whole identity", query(billing, "orders-db-ro"), true, []string{"billing-reads-orders"}},
		{"a workload below the identity", query(billing+"/x", "orders-db-ro"), false, nil},
		{"a listed federated workload", query("spiffe://supplier.test/sync/a", "tickets-api", "tickets:read"), true, []string{"supplier-reads-tickets"}},
		{"another federated workload", query("spiffe://supplier.test/agent/x", "tickets-api", "tickets:read"), false, nil},
		{"a prefix that ends within a segment", query("spiffe://acme.test/agents", "tickets-api", "tickets:read"), false, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := decide(t, e, test.q)
			if d.Permit != test.permit || !slices.Equal(d.Policies, test.policies) {
				t.Errorf("got permit %v by %q, want %v by %q", d.Permit, d.Policies, test.permit, test.policies)
			}
		})
	}
}

func sum(content []byte) audit.Digest { return sha256.Sum256(content) }
