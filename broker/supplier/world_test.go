package supplier_test

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/supplier"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/internal/storetest/tables"
	"accessbroker.internal/policy"
	"accessbroker.internal/store"
)

var (
	noon = time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	ends = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC) // of the contract in suppliersFile
)

const suppliersFile = `
acme-data:
  name: Acme Data GmbH
  sponsor: procurement
  contract: {start: 2026-01-01, end: 2026-10-31}
  trust_domains: [supplier.test]
  providers: [acme]
  ceiling: [db, tickets]
  assessment:
    by: security
    questions: [Where is the data stored?, Who may read it?]
`

const groupsFile = `
procurement: {members: [login/ana, login/ava], notify: ["hook:procurement"]}
security: {members: [login/ben, login/dan], notify: ["hook:security"]}
`

const cedar = `
@id("plain") permit (principal in Supplier::"acme-data", action == Action::"request", resource == Entitlement::"tickets");
@id("assessed") @supplier("assessed_within=30d, max_risk=medium")
permit (principal in Supplier::"acme-data", action == Action::"request", resource == Entitlement::"db");
@id("agents") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource);
@id("people") @approval("1 of security") permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets");
`

// A world is a broker with suppliers on a real store. Its cleanup verifies the log.
type world struct {
	broker    *broker.Broker
	suppliers *supplier.Manager
	store     *store.Store
	upstream  *upstream
	rules     *broker.Rules
	approvers []verify.Approver // whose passkeys count without a record
}

// files are the files beside the policies; empty ones are as above.
type files struct {
	suppliers, people, cedar string
	grace                    map[broker.Kind]time.Duration
	labels                   []broker.WorkloadLabels
	aliases                  [][]string
}

func (f files) rules(t testing.TB) *broker.Rules {
	t.Helper()
	or := func(text, usual string) []byte {
		if text == "" {
			text = usual
		}
		return []byte(text)
	}
	if f.labels == nil {
		f.labels = []broker.WorkloadLabels{{Under: "spiffe://acme.test/agent", Kind: broker.KindAgent, Accountable: []string{"login/oto"}}}
	}
	engine, err := policy.Load(policy.Inputs{
		FS: fstest.MapFS{
			"all.cedar":      {Data: or(f.cedar, cedar)},
			"groups.yaml":    {Data: []byte(groupsFile)},
			"suppliers.yaml": {Data: or(f.suppliers, suppliersFile)},
			"people.yaml":    {Data: []byte(f.people)},
		},
		Catalogue: broker.Catalogue{
			"db": {Name: "db", Issuer: "db", DefaultTTL: 10 * time.Minute, MaxTTL: 24 * time.Hour, CollectWithin: 24 * time.Hour, Revocation: broker.RevokedImmediate, Effect: audit.Digest{1}},
			"tickets": {Name: "tickets", Issuer: "db", DefaultTTL: 10 * time.Minute, MaxTTL: 24 * time.Hour, CollectWithin: 24 * time.Hour,
				Revocation: broker.RevokedImmediate, Effect: audit.Digest{2}},
			"secret": {Name: "secret", Issuer: "db", DefaultTTL: 10 * time.Minute, MaxTTL: time.Hour, CollectWithin: time.Hour, Revocation: broker.RevokedImmediate, Effect: audit.Digest{3}},
		},
		HomeDomain: "acme.test", TrustDomains: []string{"acme.test", "supplier.test"}, Providers: []string{"login", "acme"},
		Aliases: f.aliases, Labels: f.labels, OrphanGrace: f.grace,
	})
	if err != nil {
		t.Fatal(err)
	}
	return engine.Rules()
}

func newWorld(t *testing.T, f files, wrap ...func(broker.Store) broker.Store) *world {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: tables.URL(t, filepath.Join(t.TempDir(), "broker.db")), Reserve: 1 << 16, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	check.OpenLog(t, s, noon)
	w := &world{store: s, upstream: &upstream{live: map[string]time.Time{}}, rules: f.rules(t)}
	w.restart(t, wrap...)
	t.Cleanup(func() { w.verify(t) })
	return w
}

// restart starts another broker on the same store.
func (w *world) restart(t *testing.T, wrap ...func(broker.Store) broker.Store) {
	t.Helper()
	var wrapped broker.Store = w.store
	for _, f := range wrap {
		wrapped = f(wrapped)
	}
	var err error
	if w.broker, err = broker.New(t.Context(), broker.Config{Store: wrapped, Issuers: map[string]broker.Issuer{"db": w.upstream}}, w.rules, broker.Caller{At: noon}); err != nil {
		t.Fatal(err)
	}
	if w.suppliers, err = supplier.New(supplier.Config{Store: wrapped, Broker: w.broker}); err != nil {
		t.Fatal(err)
	}
}

// adopt puts other files into force.
func (w *world) adopt(t *testing.T, f files, now time.Time) {
	t.Helper()
	w.rules = f.rules(t)
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: now}, w.rules); err != nil {
		t.Fatal(err)
	}
}

func (w *world) verify(t *testing.T) {
	t.Helper()
	report, err := verify.Verify(context.Background(), w.store.Source(), verify.Options{Approvers: w.approvers})
	if report == nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		if strings.Contains(p.What, "was over, or older than policy allows") {
			continue // the times of records are of today, and those of the tests in the past
		}
		t.Errorf("the log does not verify: %v", &p)
	}
}

// end makes one pass over the facts and the due leases.
func (w *world) end(t *testing.T, now time.Time) {
	t.Helper()
	if err := w.broker.Facts.End(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Reap(t.Context(), now); err != nil {
		t.Fatal(err)
	}
}

// get files a request and collects.
func (w *world) get(who broker.Identity, entitlement string, ttl time.Duration, now time.Time) (*broker.Issued, *broker.Request, error) {
	return w.broker.AskAndCollect(context.Background(), broker.Self(who, now), broker.Ask{Entitlement: entitlement, TTL: ttl}, broker.IdempotencyKey{})
}

// count returns the number of records of a kind.
func (w *world) count(t *testing.T, kind audit.Kind) (n int) {
	t.Helper()
	report, err := verify.Verify(context.Background(), w.store.Source(), verify.Options{})
	if report == nil {
		t.Fatal(err)
	}
	return int(report.Kinds[kind])
}

func job(now time.Time) broker.Identity { return workload("spiffe://supplier.test/sync", now) }

func agent(now time.Time) broker.Identity { return workload("spiffe://acme.test/agent/triage", now) }

func workload(id string, now time.Time) broker.Identity {
	return broker.Identity{
		ID: id, TrustDomain: broker.TrustDomainOf(id), Paths: broker.SPIFFEPaths(id), Kind: broker.KindWorkload,
		Proof: broker.Proof{Method: broker.MethodJWTSVID, SHA256: audit.Digest{7}, Expires: now.Add(48 * time.Hour)},
	}
}

// person returns a person with a session, "<provider>/<subject>".
func person(id string, now time.Time) broker.Identity {
	provider, _, _ := strings.Cut(id, "/")
	return broker.Identity{
		ID: id, Kind: broker.KindPerson, Person: &broker.Person{Provider: provider, Claimed: now, Login: now},
		Proof: broker.Proof{Method: broker.MethodSession, SHA256: audit.Digest{8}, Expires: now.Add(time.Hour)},
	}
}

func by(id string, now time.Time) broker.Caller { return broker.Self(person(id, now), now) }

// An upstream issues passwords and revokes them at once.
type upstream struct {
	mu   sync.Mutex
	live map[string]time.Time // by handle
}

func (s *upstream) Prepare(_ context.Context, o broker.Order) (broker.Prepared, error) {
	return broker.Prepared{Handle: []byte(o.Lease.ID.String())}, nil
}

func (s *upstream) Issue(_ context.Context, o broker.Order) (broker.Credential, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live[string(o.Lease.Handle)] = o.Lease.Expires
	return broker.Credential{Type: "userpass", Expires: o.Lease.Expires, Hash: audit.Digest{1}, Secret: broker.NewSecret(map[string]string{"password": "p-" + o.Lease.ID.String()})}, nil, nil
}

func (s *upstream) Revoke(_ context.Context, l broker.Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, string(l.Handle))
	return nil
}

func (s *upstream) working(now time.Time) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, end := range s.live {
		if now.Before(end) {
			n++
		}
	}
	return n
}
