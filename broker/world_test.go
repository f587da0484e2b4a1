package broker_test

import (
	"context"
	"path/filepath"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/internal/storetest/tables"
	"accessbroker.internal/notify"
	"accessbroker.internal/policy"
	"accessbroker.internal/store"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// workload returns the identity that package attest would return at now.
func workload(id string, now time.Time) broker.Identity {
	return broker.Identity{
		ID: id, TrustDomain: "acme.test", Paths: broker.SPIFFEPaths(id), Kind: broker.KindWorkload,
		Proof: broker.Proof{Method: broker.MethodJWTSVID, SHA256: audit.Digest{7}, Expires: now.Add(time.Hour)},
	}
}

func agent(now time.Time) broker.Identity { return workload("spiffe://acme.test/agent/triage", now) }

// world is a broker with its real store and policy, without HTTP.
type world struct {
	broker   *broker.Broker
	sessions *session.Manager
	outbox   *notify.Outbox
	store    *store.Store
	database string // the path of the store's file
	rules    *broker.Rules
}

type worldConfig struct {
	issuers  map[string]broker.Issuer
	wrap     func(broker.Store) broker.Store
	policies string
	sources  map[string]broker.SourceRule
	observe  func(broker.Event)
	tickets  broker.Tickets
}

// testPolicies permit agents every entitlement of testCatalogue, under the
// obligations that the tests need.
const testPolicies = `
@id("agents-db")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"db");

@id("agents-tickets")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets")
unless { context.scopes.contains("tickets:close") };

@id("close-needs-people")
@approval("1 of support")
@justification("required")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets")
when { context.scopes.contains("tickets:close") };

@id("three-an-hour")
@limit("3 per 1h")
permit (principal in Path::"spiffe://acme.test/limited", action == Action::"request", resource == Entitlement::"tickets");

@id("two-at-once")
@max_active("2")
permit (principal in Path::"spiffe://acme.test/active", action == Action::"request", resource == Entitlement::"tickets");

@id("never-evil")
@reason("this path is under investigation")
forbid (principal in Path::"spiffe://acme.test/agent/evil", action, resource);
`

const testGroups = `
support: {members: [login/ana, login/ben, login/cleo], claims: [], notify: ["hook:support"]}
security: {members: [login/ben, login/dan], notify: ["hook:security", "hook:support"]}
leads: {claims: [{provider: login, group: leads}]}
agents: {members: [login/ben]}
`

func testCatalogue() broker.Catalogue {
	return broker.Catalogue{
		"db": {
			Name: "db", Issuer: "db", DefaultTTL: 10 * time.Minute, MaxTTL: time.Hour, CollectWithin: time.Hour,
			Revocation: broker.RevokedImmediate, Owner: "support", Effect: audit.Digest{1},
		},
		"tickets": {
			Name: "tickets", Issuer: "tickets", Scopes: []string{"tickets:close", "tickets:comment", "tickets:read"},
			DefaultTTL: 10 * time.Minute, MaxTTL: 15 * time.Minute, CollectWithin: time.Hour, Owner: "support",
			Revocation: broker.RevokedAtExpiry, Audience: "https://tickets.acme.test", Effect: audit.Digest{2},
			Introspectors: []string{"spiffe://acme.test/tickets"},
		},
	}
}

func testRules(t testing.TB, policies string) *broker.Rules {
	t.Helper()
	return testRulesWith(t, policies, testGroups)
}

// adopt puts other rules into force.
func (w *world) adopt(t *testing.T, policies, groups string) {
	t.Helper()
	if err := w.broker.SetRules(t.Context(), broker.Caller{At: noon}, testRulesWith(t, policies, groups)); err != nil {
		t.Fatal(err)
	}
}

func testRulesWith(t testing.TB, policies, groups string) *broker.Rules {
	t.Helper()
	return testRulesOf(t, policies, groups, []broker.WorkloadLabels{
		{Under: "spiffe://acme.test/agent", Kind: broker.KindAgent, Accountable: []string{"login/ana"}, Team: "agents"},
	})
}

func testRulesOf(t testing.TB, policies, groups string, labels []broker.WorkloadLabels) *broker.Rules {
	t.Helper()
	return rulesFor(t, policies, groups, labels, testCatalogue())
}

func rulesFor(t testing.TB, policies, groups string, labels []broker.WorkloadLabels, catalogue broker.Catalogue) *broker.Rules {
	t.Helper()
	engine, err := policy.Load(policy.Inputs{
		FS: fstest.MapFS{
			"all.cedar":   {Data: []byte(policies)},
			"groups.yaml": {Data: []byte(groups)},
		},
		Catalogue: catalogue, HomeDomain: "acme.test", TrustDomains: []string{"acme.test"}, Providers: []string{"login", "corp"}, TicketStates: []string{"open", "implementing"}, TicketWindows: true, Labels: labels,
	})
	if err != nil {
		t.Fatal(err)
	}
	return engine.Rules()
}

func newWorld(t testing.TB, cfg worldConfig) *world {
	t.Helper()
	_, measured := t.(*testing.B)
	path := filepath.Join(t.TempDir(), "broker.db")
	s, err := store.Open(t.Context(), store.Config{URL: tables.URL(t, path), Reserve: 1 << 16, NoSync: !measured})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	check.OpenLog(t, s, noon)
	w := &world{store: s, database: path}
	if cfg.issuers == nil {
		cfg.issuers = map[string]broker.Issuer{}
	}
	if cfg.policies == "" {
		cfg.policies = testPolicies
	}
	w.rules = testRules(t, cfg.policies)
	var wrapped broker.Store = s
	if cfg.wrap != nil {
		wrapped = cfg.wrap(s)
	}
	w.outbox = notify.NewOutbox(notify.OutboxConfig{Store: wrapped, Observe: cfg.observe})
	var reader broker.Reader // as in production, if it matters how long it takes
	if measured {
		reader = s
	}
	w.broker = start(t, broker.Config{Store: wrapped, Reader: reader, Issuers: cfg.issuers, Observe: cfg.observe, Sources: cfg.sources, Tickets: cfg.tickets}, w.rules)
	w.sessions, err = session.New(session.Config{
		Store: wrapped, NotifiesPeople: func() bool { return w.broker.Rules().PeopleChannel }, People: func() broker.People { return w.broker.Rules().People },
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func start(t testing.TB, cfg broker.Config, rules *broker.Rules) *broker.Broker {
	t.Helper()
	b, err := broker.New(t.Context(), cfg, rules, broker.Caller{At: noon})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// restart starts another broker on the same store.
func (w *world) restart(t *testing.T, issuers map[string]broker.Issuer) *broker.Broker {
	t.Helper()
	return start(t, broker.Config{Store: w.store, Issuers: issuers, Blocks: w.store.Blocks}, w.rules)
}

// leases returns every lease.
func (w *world) leases(t *testing.T) []*broker.Lease {
	t.Helper()
	var all []*broker.Lease
	err := w.store.View(context.Background(), func(tx broker.Tx) (err error) {
		all, _, err = tx.Leases(broker.LeaseQuery{Now: noon, Limit: 1000})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// count counts the leases of a stored status.
func (w *world) count(t *testing.T, status broker.LeaseStatus) int {
	t.Helper()
	n := 0
	for _, l := range w.leases(t) {
		if l.Status == status {
			n++
		}
	}
	return n
}

// verify checks the whole log, the lists of records, and that every active lease has
// its record.
func (w *world) verify(t *testing.T) {
	t.Helper()
	report, err := verify.Verify(context.Background(), w.store.Source(), verify.Options{}) // in cleanups, too
	if report == nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		// The store's clock is real, but passkeys are enrolled by the test's clock.
		if p.Kind != audit.PasskeyEnrolled {
			t.Errorf("verifying the log: got problem %v", &p)
		}
	}
	records := w.records(t)
	w.checkLists(t, records)
	issued := map[string]bool{}
	for _, r := range records {
		if r.Kind == audit.LeaseIssued {
			issued[r.Lease.ID] = true
		}
	}
	for _, l := range w.leases(t) {
		if l.Status == broker.LeaseActive && !issued[l.ID.String()] {
			t.Errorf("lease %s: got active without a record", l.ID)
		}
	}
}

// records returns every record of the log.
func (w *world) records(t *testing.T) []audit.Record {
	t.Helper()
	all := make([]audit.Record, w.store.Head().Size)
	for i := range all {
		item, err := w.store.Record(context.Background(), int64(i)) // in cleanups, too
		if err != nil {
			t.Fatal(err)
		}
		if all[i], err = audit.Decode(item.Leaf); err != nil {
			t.Fatalf("%v: %q", err, item.Leaf)
		}
	}
	return all
}
