package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/attest/dpop"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/inventory"
	"accessbroker.internal/broker/session"
	"accessbroker.internal/broker/signal"
	"accessbroker.internal/broker/supplier"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/internal/storetest/tables"
	"accessbroker.internal/issuers/scim"
	"accessbroker.internal/store"
)

// A world is a server with a real broker and store, and the smallest policy and issuers
// that lead to every answer. Package brokertest tests with the real parts.
type world struct {
	tickets seenTickets
	*Server
	t     testing.TB
	store *countingStore
	log   *syncBuffer
	url   string
	spec  *spec

	crm *crm

	unchecked bool // its rows and its log do not fit together
}

// Callers. The bearer token is the caller's ID itself.
const (
	agent    = "spiffe://acme.test/agent/triage"
	other    = "spiffe://acme.test/other"
	tickets  = "spiffe://acme.test/tickets" // the resource server
	auditor  = "spiffe://acme.test/auditor"
	partner  = "spiffe://supplier.test/agent"
	operator = "operator" // as on the admin socket
)

// A countingStore counts how often the broker reads it.
type countingStore struct {
	*store.Store
	reads atomic.Int64
}

func (s *countingStore) View(ctx context.Context, f func(broker.Tx) error) error {
	s.reads.Add(1)
	return s.Store.View(ctx, f)
}

// newWorld starts a server. Its clients validate every call and answer against the
// OpenAPI document.
func newWorld(t testing.TB, change func(*Config)) *world {
	w := newQuietWorld(t, change)
	server := httptest.NewServer(w.Handler(API, OAuth, Log, MCP))
	t.Cleanup(server.Close)
	w.url = server.URL
	return w
}

// newQuietWorld returns a world without a listener.
func newQuietWorld(t testing.TB, change func(*Config)) *world {
	w := &world{t: t, log: new(syncBuffer), spec: loadSpec(t)}
	ctx := t.Context()
	_, measured := t.(*testing.B)
	s, err := store.Open(ctx, store.Config{URL: tables.URL(t, filepath.Join(t.TempDir(), "broker.db")), Reserve: 1 << 20, NoSync: !measured})
	if err != nil {
		t.Fatal(err)
	}
	w.store = &countingStore{Store: s}
	reader := w.openLog(ctx)
	t.Cleanup(func() { w.check(reader) })
	minter := &minter{}
	var b *broker.Broker
	w.crm = newCRM(t, s, func(ctx context.Context, caller broker.Caller, action broker.Action) bool {
		return b.May(ctx, caller, action)
	})
	domain := broker.Config{Store: w.store, Issuers: map[string]broker.Issuer{"crm": w.crm.issuer, "token": minter, "gone": &gone{}, "refusing": refusing{}}, Blocks: w.store.Blocks, Tickets: &w.tickets}
	b, err = broker.New(ctx, domain, testRules(), broker.Self(broker.Identity{ID: operator, Kind: broker.KindOperator}, time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	sessions, err := session.New(session.Config{Store: w.store, PasskeyWait: time.Nanosecond, NotifiesPeople: func() bool { return b.Rules().PeopleChannel }})
	if err != nil {
		t.Fatal(err)
	}
	suppliers, err := supplier.New(supplier.Config{Store: w.store, Broker: b})
	if err != nil {
		t.Fatal(err)
	}
	transmitters := signal.New(signal.Config{
		Store: w.store, Reader: store.NewSignals(s), Broker: b, Sessions: sessions, Log: slog.New(slog.DiscardHandler),
		Rules: map[string]signal.Rule{"okta": {Provider: "login", MaxAge: time.Hour, MostPercent: 1}},
	})
	sealer, err := broker.NewSealer(make([]byte, broker.SealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Broker: b, Memberships: w.crm.ledger, Sessions: sessions, Signals: transmitters, Suppliers: suppliers, Campaigns: newCampaigns(t, s, b), ReviewPatch: func(context.Context, []*broker.SuspensionRow) (string, []string, error) { return "", nil, nil }, Authenticate: authenticate, Log: reader, History: s, Inventory: inventory.New(inventory.Config{Broker: b, Store: s.Inventory()}), ExternalURL: "https://broker.acme.test",
		StatusLists: oneStatusList{},
		Keys:        func(context.Context) ([]byte, error) { return []byte(`{"keys":[]}`), nil },
		Algorithms:  func() []string { return []string{"ES256"} }, SVIDAudiences: []string{"https://broker.acme.test"},
		Sealer:         sealer,
		CallsPerSecond: 1000, CallsAtOnce: 100,
		Handlers: []Handler{{
			Pattern: "/mcp", Audience: MCP, Authenticate: func(r *http.Request) (broker.Identity, error) { return authenticate(r) }, Handler: http.HandlerFunc(echoCaller),
			Resource: &Resource{Name: "Access Broker", Scopes: []string{"access:list", "access:request"}, First: []string{"access:list"}, Providers: []string{"https://login.acme.test"}, DPoP: []string{"ES256"}},
		}},
		Logger: slog.New(slog.NewTextHandler(w.log, nil)),
	}
	if cfg.DPoP, err = dpop.New(dpop.Config{External: &url.URL{Scheme: "https", Host: "broker.acme.test"}, Secrets: [][]byte{make([]byte, 32)}}); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&cfg)
	}
	if w.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return w
}

// holdClocks stops the clocks of the limits, so that a slow machine does not refill
// them.
func (w *world) holdClocks() {
	now := time.Now()
	still := func() time.Time { return now }
	for _, a := range []*admission{w.limits.identity, w.limits.resource, w.limits.scan, w.limits.codes, w.limits.provider, w.limits.stream} {
		a.mu.Lock()
		a.clock = still
		a.mu.Unlock()
	}
	for _, turns := range []*turns{w.verifying, w.loggingIn, w.beginning, w.polling} {
		turns.mu.Lock()
		turns.clock, turns.limits.longestWait = still, time.Millisecond // no turn comes while the clock stands
		turns.mu.Unlock()
	}
	w.failures.mu.Lock()
	w.failures.clock = still
	w.failures.mu.Unlock()
}

// check verifies the audit log, the leases and the log output, and closes the store.
func (w *world) check(log *logReader) {
	if w.unchecked {
		if err := w.store.Close(); err != nil {
			w.t.Error(err)
		}
		return
	}
	note, err := log.Checkpoint(context.Background())
	if err == nil {
		err = w.store.SaveCheckpoint(context.Background(), log.Head().Size, note)
	}
	if err != nil {
		w.t.Errorf("publishing the log: %v", err)
	}
	check.Store(w.t, w.store.Store, check.Options{Key: log.public, EarlyPasskeys: true})
	check.Secrets(w.t, w.log.String(), []string{"s3cret"})
	if err := w.store.Close(); err != nil {
		w.t.Error(err)
	}
}

// openLog opens the store's audit log.
func (w *world) openLog(ctx context.Context) *logReader {
	origin := audit.NewOrigin("broker.acme.test")
	secret, public, err := audit.NewLogKey(origin)
	if err != nil {
		w.t.Fatal(err)
	}
	signer, err := audit.NewSigner(secret)
	if err != nil {
		w.t.Fatal(err)
	}
	first, err := audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: origin}}.Entry()
	if err != nil {
		w.t.Fatal(err)
	}
	key := &broker.SigningKey{ID: broker.SigningKeyID{Purpose: "log", ID: origin}, Algorithm: "Ed25519", Sealed: []byte("sealed")}
	if err := w.store.OpenLog(ctx, origin, public, key, first); err != nil {
		w.t.Fatal(err)
	}
	return &logReader{w.store.Store, signer, public}
}

// A logReader signs a new checkpoint on each call.
type logReader struct {
	*store.Store
	signer *audit.Signer
	public string
}

func (l *logReader) Checkpoint(context.Context) ([]byte, error) {
	head := l.Head()
	root, err := audit.RootAt(head.Size, l.Hashes(context.Background()))
	if err != nil {
		return nil, err
	}
	return l.signer.Sign(audit.Checkpoint{Origin: l.signer.Origin(), Size: head.Size, Root: root})
}

func (l *logReader) Prove(ctx context.Context, index int64) (*audit.Proof, error) {
	note, err := l.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	item, err := l.Record(ctx, index)
	if err != nil {
		return nil, err
	}
	return audit.Prove(index, item.Leaf, note, l.public, l.Hashes(ctx))
}

// authenticate reads the bearer token and the tokens in the body as the caller's ID.
func authenticate(r *http.Request, tokens ...string) (broker.Identity, error) {
	proofs := []string{strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")}
	proofs = slices.DeleteFunc(append(proofs, tokens...), func(p string) bool { return p == "" })
	if len(slices.Compact(slices.Clone(proofs))) > 1 {
		return broker.Identity{}, broker.ErrTwoIdentities
	}
	switch id := strings.Join(slices.Compact(proofs), ""); {
	case id == operator:
		return broker.Identity{ID: id, Kind: broker.KindOperator, Proof: broker.Proof{Method: broker.MethodAdminSocket, Expires: time.Now().Add(time.Hour)}}, nil
	case id == "panic":
		panic("with s3cret")
	case strings.HasPrefix(id, "login/"):
		return broker.Identity{
			ID: id, Kind: broker.KindPerson, Person: &broker.Person{Provider: "login", Claimed: time.Now()},
			Proof: broker.Proof{Method: broker.MethodSession, SHA256: sha256.Sum256([]byte(id)), Expires: time.Now().Add(time.Hour)},
		}, nil
	case strings.HasPrefix(id, "spiffe://acme.test/"), strings.HasPrefix(id, partner):
		domain, _, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
		return broker.Identity{
			ID: id, TrustDomain: domain, Paths: broker.SPIFFEPaths(id), Kind: broker.KindWorkload,
			Proof: broker.Proof{Method: broker.MethodJWTSVID, SHA256: sha256.Sum256([]byte(id)), Expires: time.Now().Add(time.Hour)},
		}, nil
	}
	return broker.Identity{}, fmt.Errorf("reading the proof: %w", broker.ErrUnauthenticated)
}

func testRules() *broker.Rules {
	entitlement := func(name, audience string, scopes ...string) *broker.Entitlement {
		return &broker.Entitlement{
			Name: name, Issuer: "token", Scopes: scopes, DefaultTTL: 10 * time.Minute, MaxTTL: 15 * time.Minute,
			CollectWithin: time.Hour, Binding: broker.BindingNone, Revocation: broker.RevokedAtExpiry, Audience: audience, Introspectors: []string{tickets},
		}
	}
	repository := entitlement("repository", "https://git.acme.test", "clone")
	repository.Parameters = map[string]broker.Parameter{
		"name":   {Required: true, Pattern: regexp.MustCompile(`^[a-z]+$`), Description: "of the repository"},
		"branch": {},
	}
	guardedRepository := entitlement("guarded-repository", "https://guarded.git.acme.test", "clone") // needs approvals
	guardedRepository.Parameters = repository.Parameters
	guarded := entitlement("guarded", "https://guarded.acme.test", "read") // needs approvals
	guarded.Description, guarded.Owner, guarded.ScopeTexts = "the guarded database", "dba", map[string]string{"read": "read <all> rows", "write": "change rows"}
	called := entitlement("called", "https://called.acme.test", "read")
	called.Egress = &broker.Egress{
		Inject: broker.Injection{As: api.InjectBearer}, Record: true, MaxRequest: 1 << 20, MaxAnswer: 1 << 20, Timeout: time.Minute, IdleTimeout: time.Minute,
		Allow: []broker.EgressRule{{Hosts: []string{"called.acme.test"}, Methods: []string{"GET"}, Paths: []string{"/v1/**"}}},
	}
	for _, e := range []*broker.Entitlement{guarded, repository} {
		e.Details = map[string]*broker.DetailType{"row": rowType(), "urn:acme:export": {Actions: []string{"export"}}}
	}
	suppliers := broker.NewSuppliers()
	suppliers.Add(&broker.Supplier{
		Name: "acme-data", Title: "Acme Data GmbH", Sponsor: "login/sam", Ends: time.Now().Add(40 * 24 * time.Hour).UTC().Truncate(time.Second), Providers: []string{"acme"},
		Ceiling: []string{"tickets"}, Assessors: "dba", Questions: []string{"Where is <the> data stored?"}, Digest: audit.Digest{9},
	})
	return &broker.Rules{
		Suppliers: suppliers, Campaigns: marksPlan(), Permissions: testPermissions{}, TrustDomains: []string{"acme.test", "supplier.test"}, Providers: []string{"login"},
		Groups: map[string]broker.Group{"dba": {Members: []string{"login/ben", "login/cleo"}}},
		Policy: testPolicy{}, Revision: audit.Digest{1}, Labels: []broker.WorkloadLabels{
			{Under: agent, Kind: broker.KindAgent, Team: "support", Accountable: []string{"login/ana"}},
			{Under: partner, Kind: broker.KindAgent, Accountable: []string{"login/sue"}},
		},
		Catalogue: broker.Catalogue{
			"tickets":    entitlement("tickets", "https://tickets.acme.test", "tickets:close", "tickets:read"),
			"guarded":    guarded,
			"called":     called,
			"repository": repository, "guarded-repository": guardedRepository,
			"not-tokens": entitlement("not-tokens", "", "read"),
			"crm-sales": {
				Name: "crm-sales", Issuer: "crm", DefaultTTL: 10 * time.Minute, MaxTTL: 15 * time.Minute, CollectWithin: time.Hour,
				Binding: broker.BindingNone, Revocation: broker.RevokedImmediate, Persists: true, Spec: &scim.Spec{Group: "Sales"},
			},
			"gone":    {Name: "gone", Issuer: "gone", DefaultTTL: time.Minute, MaxTTL: time.Minute, CollectWithin: time.Hour, Binding: broker.BindingNone, Revocation: broker.RevokedImmediate},
			"refused": {Name: "refused", Issuer: "refusing", DefaultTTL: time.Minute, MaxTTL: time.Minute, CollectWithin: time.Hour, Binding: broker.BindingNone, Revocation: broker.RevokedImmediate},
		},
	}
}

// signIt is the justification that makes testPolicy require signatures.
const signIt = "sign it"

// outsiders is the justification that makes testPolicy exclude the requester's team.
const outsiders = "by outsiders"

// quietly is a justification for which a denial needs no reason.
const quietly = "quietly"

// asker is a person with the permissions of an agent.
const asker = "login/ivy"

// auditingPerson may read the whole log.
const auditingPerson = "login/ada"

// testPolicy lets agents read tickets and request guarded with approval. login/cleo may
// view, revoke and block.
type testPolicy struct{}

func (testPolicy) Decide(_ context.Context, q broker.Query, _ time.Time) (broker.Decision, error) {
	d := broker.Decision{Revision: audit.Digest{1}, Policies: []string{"p"}, Reasons: []string{"agents read"}}
	switch {
	case q.Action == broker.ActionAudit:
		d.Permit = q.Principal.ID == auditor || q.Principal.ID == auditingPerson
	case q.Action == broker.ActionUsage:
		d.Permit = q.Principal.ID == "login/una"
	case q.Action == broker.ActionView:
		d.Permit = q.Principal.ID == auditor || q.Principal.ID == "login/cleo"
	case q.Action == broker.ActionBlock, q.Action == broker.ActionRevoke:
		d.Permit = q.Principal.ID == "login/cleo"
	case q.Action == broker.ActionApprove:
		d.Permit = true
	case q.Action != broker.ActionRequest || q.Entitlement == nil || q.Principal.Kind != broker.KindAgent && q.Principal.ID != asker:
	case q.BreakGlass:
		d.Permit = true
		d.Obligations.Review, d.Obligations.ReviewWithin = []broker.ApprovalNeed{{Group: "dba", Count: 1}}, time.Hour
		d.Obligations.Signed = q.Justification == signIt
	case strings.HasPrefix(q.Entitlement.Name, "guarded"):
		d.Permit = true
		d.Obligations.Approvals = []broker.ApprovalNeed{{Group: "dba", Count: 2}}
		d.Obligations.Signed = q.Justification == signIt
		d.Obligations.ExcludeTeam = q.Justification == outsiders
		d.Obligations.SilentDenial = q.Justification == quietly
	default:
		d.Permit = !slices.Contains(q.Scopes, "tickets:close")
	}
	return d, nil
}

// Permits lists a permit of agents.
func (testPolicy) Permits(who broker.Identity, _ int) (list []*broker.Permit, more bool) {
	if who.Kind != broker.KindAgent {
		return nil, false
	}
	return testPolicy{}.AllPermits(), false
}

func (testPolicy) AllPermits() []*broker.Permit {
	return []*broker.Permit{{ID: "p", File: "p.cedar", Line: 1, Reason: "agents read", Reaches: []broker.Reach{
		{Entitlement: "guarded", Scopes: []string{"read"}}, {Entitlement: "tickets", Scopes: []string{"tickets:close", "tickets:read"}},
	}}}
}

func (testPolicy) UnmeasuredGroups() []string { return nil }

// Groups lists login/ben and login/cleo in dba. Claimed groups come from the provider.
func (testPolicy) Groups(who broker.Identity) (listed, claimed []string) {
	if who.Person != nil {
		claimed = who.Person.Groups
	}
	if who.ID == "login/ben" || who.ID == "login/cleo" {
		return []string{"dba"}, claimed
	}
	return nil, claimed
}

// gone is an issuer that cannot revoke, because it is unavailable.
type gone struct{ minter }

func (*gone) Revoke(context.Context, broker.Lease) error { return broker.ErrIssuerUnavailable }

// refusing is an issuer that refuses to issue.
type refusing struct{}

func (refusing) Prepare(context.Context, broker.Order) (broker.Prepared, error) {
	return broker.Prepared{}, nil
}
func (refusing) Issue(context.Context, broker.Order) (broker.Credential, []byte, error) {
	return broker.Credential{}, nil, broker.ErrIssuerRefused
}
func (refusing) Revoke(context.Context, broker.Lease) error { return nil }

// A minter issues tokens that contain the ID of their lease.
type minter struct{}

// oneStatusList is a status list that is not signed.
type oneStatusList struct{}

const statusListName = "0cfvrr2ghtomv2mg9jd7kfs0q0"

func (oneStatusList) Token(_ context.Context, list string, _ time.Time) (string, error) {
	if list != statusListName {
		return "", fmt.Errorf("reading the list: %w", broker.ErrNotFound)
	}
	return "header.claims.signature", nil
}

func (oneStatusList) URIs(context.Context, time.Time) ([]string, error) {
	return []string{"https://broker.acme.test/oauth2/status/" + statusListName}, nil
}

func (*minter) Prepare(context.Context, broker.Order) (broker.Prepared, error) {
	return broker.Prepared{}, nil
}
func (*minter) Describe(e *broker.Entitlement, scopes []string, _ map[string]string) string {
	return "a token for " + e.Audience + " with " + strings.Join(scopes, " ")
}
func (m *minter) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	c, err := m.Mint(ctx, o.Lease)
	return c, nil, err
}
func (*minter) Revoke(context.Context, broker.Lease) error { return broker.ErrNotRevocable }

func (*minter) Mint(_ context.Context, l broker.Lease) (broker.Credential, error) {
	token := "s3cret-" + l.ID.String()
	return broker.Credential{Type: "bearer", Secret: broker.NewSecret(map[string]string{"token": token}), Expires: l.Expires, Hash: sha256.Sum256([]byte(token))}, nil
}

func (*minter) Inspect(_ context.Context, token string) (broker.LeaseID, error) {
	return broker.ParseLeaseID(strings.TrimPrefix(token, "s3cret-"))
}

// as returns a client of one caller.
func (w *world) as(id string) *api.Client {
	return &api.Client{
		BaseURL: w.url, HTTP: &http.Client{Transport: w.spec},
		Token: func(context.Context) (string, error) { return id, nil },
	}
}

// do makes a call that api.Client would not make.
func (w *world) do(method, path, contentType, body string, header ...string) *http.Response {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := w.spec.answersOnly().RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// body reads an answer's body.
func (w *world) body(resp *http.Response) []byte {
	w.t.Helper()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

// A syncBuffer is a buffer that is safe for concurrent use.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
