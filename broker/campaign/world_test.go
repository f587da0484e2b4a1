package campaign_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/campaign"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/internal/softkey"
	"accessbroker.internal/internal/storetest/tables"
	"accessbroker.internal/policy"
	"accessbroker.internal/store"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

// A world is a broker with access reviews over a real store. Its rules are files that a test
// may change.
type world struct {
	t       testing.TB
	url     string
	files   fstest.MapFS
	labels  []broker.WorkloadLabels
	store   *store.Store
	engine  *policy.Engine // without suspensions
	broker  *broker.Broker
	reviews *campaign.Manager
	left    map[string]bool   // people
	manager map[string]string // by person
	aliases [][]string

	opened    bool
	approvers []verify.Approver
	unending  error // of the end of a grant
}

const groups = `
dba: {members: [login/cleo, login/dan]}
many: {}
support: {members: [login/ana, login/ben], workloads: [spiffe://acme.test/batch]}
security: {members: [login/sam, login/sue]}
claimed: {claims: [{provider: login, group: staff}]}
`

const cedar = `
@id("agents") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api");
@id("dba-own") permit (principal in Group::"dba", action == Action::"request", resource == Entitlement::"orders-db");
@id("dba-audit") permit (principal in Group::"dba", action == Action::"audit", resource);
`

const reviews = `
quarterly:
  scope: {permits: [all]}
  reviewers: [owner]
  fallback: security
  deadline: 14d
  remind: [7d, 2d]
  escalate: [{before: 1d, to: dba}]
`

func newWorld(t testing.TB, plans string) *world {
	t.Helper()
	w := &world{
		t: t, url: tables.URL(t, filepath.Join(t.TempDir(), "broker.db")),
		files:  fstest.MapFS{"groups.yaml": {Data: []byte(groups)}, "a.cedar": {Data: []byte(cedar)}, "reviews.yaml": {Data: []byte(plans)}},
		labels: []broker.WorkloadLabels{{Under: "spiffe://acme.test/agent", Kind: broker.KindAgent, Team: "support", Accountable: []string{"login/ana"}}},
		left:   map[string]bool{}, manager: map[string]string{},
	}
	w.start(noon)
	t.Cleanup(func() { w.verify(); w.stop() })
	return w
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// load reads the rules.
func (w *world) load() {
	w.t.Helper()
	c := broker.Catalogue{
		"tickets-api": {Name: "tickets-api", Issuer: "tickets", Owner: "support", Scopes: []string{"close", "comment", "read"}, MaxTTL: time.Hour, CollectWithin: time.Hour},
		"orders-db":   {Name: "orders-db", Issuer: "tickets", Owner: "dba", Scopes: []string{"read"}, MaxTTL: time.Hour, CollectWithin: time.Hour},
	}
	e, err := policy.Load(policy.Inputs{
		FS: w.files, Catalogue: c, Labels: w.labels, HomeDomain: "acme.test", TrustDomains: []string{"acme.test"}, Providers: []string{"login", "other"}, Aliases: w.aliases,
		Channels: []string{"slack:dba"},
	})
	w.ok(err)
	w.engine = e
}

// suspended returns the engine with what is suspended at a time.
func (w *world) suspended(now time.Time) *policy.Engine {
	w.t.Helper()
	exists := func(key broker.PermissionKey) bool { _, ok := w.engine.Find(key); return ok }
	list, err := campaign.Suspended(context.Background(), store.NewCampaignRows(w.store), exists, now)
	w.ok(err)
	e, err := w.engine.Suspend(list)
	w.ok(err)
	return e
}

// enforce is what service does.
func (w *world) enforce(ctx context.Context, now time.Time) error {
	e := w.suspended(now)
	if e.Revision() == w.broker.Rules().Revision {
		return nil
	}
	return w.broker.SetRules(ctx, broker.Caller{At: now}, e.Rules())
}

// start opens the store and the broker, and settles what is overdue.
func (w *world) start(now time.Time) {
	w.t.Helper()
	ctx := context.Background()
	var err error
	_, measured := w.t.(*testing.B)
	w.store, err = store.Open(ctx, store.Config{URL: w.url, Reserve: 1 << 16, NoSync: !measured})
	w.ok(err)
	if !w.opened {
		check.OpenLog(w.t, w.store, now)
		w.opened = true
	}
	w.load()
	w.broker, err = broker.New(ctx, broker.Config{Store: w.store, Issuers: map[string]broker.Issuer{}, Reader: w.store, Blocks: w.store.Blocks}, w.suspended(now).Rules(), broker.Caller{At: now})
	w.ok(err)
	w.reviews, err = campaign.New(campaign.Config{
		Store: w.store, Rows: store.NewCampaignRows(w.store), Uses: w.store.Inventory(), Rules: w.broker.Rules, Ground: w.broker.Facts.Ground, Enforce: w.enforce, May: w.broker.May,
		EndGrant: func(ctx context.Context, caller broker.Caller, id broker.RequestID, reason string) error {
			if w.unending != nil {
				return w.unending
			}
			return broker.EndGrant(ctx, w.broker, caller, id, reason)
		},
		ManagerOf: func(person string) string { return w.manager[person] },
		Ended:     func(person string) bool { return w.left[person] },
	})
	w.ok(err)
	w.ok(w.reviews.Settle(ctx, now))
}

func (w *world) stop() {
	w.t.Helper()
	w.ok(w.store.Close())
}

// reload puts changed files in force.
func (w *world) reload(now time.Time) {
	w.t.Helper()
	w.load()
	w.ok(w.broker.SetRules(context.Background(), broker.Caller{At: now}, w.suspended(now).Rules()))
}

func (w *world) tick(now time.Time) {
	w.t.Helper()
	w.ok(w.reviews.Tick(context.Background(), now))
}

// verify checks the log.
func (w *world) verify() {
	w.t.Helper()
	if report, err := verify.Verify(context.Background(), w.store.Source(), verify.Options{Approvers: w.approvers}); err != nil && !strings.Contains(err.Error(), "checkpoint") {
		w.t.Errorf("the log does not verify: %v (%d problems)", err, len(report.Problems))
	}
}

// person returns a caller with a session. The groups are those that the provider claims.
func person(id string, at time.Time, claims ...string) broker.Caller {
	provider, _, _ := strings.Cut(id, "/")
	return broker.Self(broker.Identity{
		ID: id, Kind: broker.KindPerson, Proof: broker.Proof{Method: broker.MethodSession, Expires: at.Add(time.Hour)},
		Person: &broker.Person{Provider: provider, Groups: claims, Claimed: at, Login: at},
	}, at)
}

func operator(at time.Time) broker.Caller {
	return broker.Self(broker.Identity{ID: "operator", Kind: broker.KindOperator, Proof: broker.Proof{Method: broker.MethodAdminSocket, Expires: at.Add(time.Hour)}}, at)
}

// begin starts a campaign.
func (w *world) begin(name string, now time.Time) *broker.Campaign {
	w.t.Helper()
	c, err := w.reviews.Start(context.Background(), operator(now), name)
	w.ok(err)
	return c
}

// item returns the item of a permission.
func (w *world) item(c *broker.Campaign, permission string, now time.Time) campaign.Item {
	w.t.Helper()
	list, _, err := w.reviews.Items(context.Background(), operator(now), c.ID, campaign.ItemQuery{})
	w.ok(err)
	i := slices.IndexFunc(list, func(i campaign.Item) bool { return i.ReviewItem.Permission.String() == permission })
	if i < 0 {
		w.t.Fatalf("the campaign has no item %q: %d items", permission, len(list))
	}
	return list[i]
}

// decide decides on an item as shown.
func (w *world) decide(who broker.Caller, i campaign.Item, verdict broker.ReviewVerdict, left ...string) error {
	w.t.Helper()
	_, err := w.reviews.Decide(context.Background(), who, i.ReviewItemKey, campaign.Decision{Verdict: verdict, Digest: i.Digest, Left: left, Reason: "reviewed"})
	return err
}

// permits reports whether the rules in force permit a request.
func (w *world) permits(id, entitlement string, scopes ...string) bool {
	w.t.Helper()
	rules := w.broker.Rules()
	who := broker.Identity{ID: id, Kind: broker.KindWorkload, TrustDomain: "acme.test", Paths: broker.SPIFFEPaths(id)}
	if !strings.HasPrefix(id, "spiffe://") {
		who = person(id, noon).Subject
	}
	d, err := rules.Policy.Decide(context.Background(), broker.Query{
		Principal: rules.WithLabels(who), Action: broker.ActionRequest, Entitlement: rules.Catalogue[entitlement], Scopes: scopes, TTL: time.Minute, Duration: time.Hour,
	}, noon)
	w.ok(err)
	return d.Permit
}

func (w *world) campaign(id broker.CampaignID, now time.Time) *broker.Campaign {
	w.t.Helper()
	c, _, err := w.reviews.Campaign(context.Background(), operator(now), id)
	w.ok(err)
	return c
}

// records returns the records of a kind.
func (w *world) records(kind audit.Kind) (list []audit.Record) {
	w.t.Helper()
	for item, err := range w.store.Source().Items(context.Background()) {
		w.ok(err)
		r, err := audit.Decode(item.Leaf)
		w.ok(err)
		if r.Kind == kind {
			list = append(list, r)
		}
	}
	return list
}

// refused checks the code of a refusal.
func (w *world) refused(err, want error) {
	w.t.Helper()
	if !errors.Is(err, want) {
		w.t.Errorf("got %v, want %v", err, want)
	}
}

// passkey gives a person a passkey that counts.
func (w *world) passkey(id string) *softkey.Key {
	w.t.Helper()
	key, err := softkey.New("broker.test", "https://broker.test")
	w.ok(err)
	public, err := key.Public()
	w.ok(err)
	w.ok(w.store.Update(context.Background(), []broker.Key{broker.PersonKey(id)}, func(tx broker.Tx) error {
		tx.Put(&broker.Account{Person: broker.PersonKey(id), Passkeys: []broker.Passkey{{ID: key.ID, Public: public, RP: "broker.test", Enrolled: noon.Add(-2 * day), Counts: noon.Add(-day)}}})
		return nil
	}))
	w.approvers = append(w.approvers, verify.Approver{Person: id, RP: "broker.test", Credential: key.ID, Public: public})
	return key
}

// sign signs a decision.
func (w *world) sign(who broker.Caller, i campaign.Item, key *softkey.Key, d campaign.Decision) campaign.Decision {
	w.t.Helper()
	d.Digest = i.Digest
	s, err := w.reviews.Prepare(context.Background(), who, i.ReviewItemKey, d)
	w.ok(err)
	data, client, signature, err := key.Sign(s.Challenge[:])
	w.ok(err)
	d.Salt = s.Salt
	d.Signature = &audit.SignatureFacts{AuthenticatorData: data, ClientData: client, Credential: key.ID, Nonce: s.Nonce, Signature: signature}
	return d
}
