package signal_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/session"
	"accessbroker.internal/broker/signal"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/internal/storetest/tables"
	"accessbroker.internal/policy"
	"accessbroker.internal/store"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

const policies = `
@id("people")
permit (principal is Person, action == Action::"request", resource);

@id("agents")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource);

@id("operators-block")
permit (principal in Group::"security", action == Action::"block", resource);
`

// An issuer makes credentials that can be revoked.
type issuer struct{}

func (issuer) Prepare(context.Context, broker.Order) (broker.Prepared, error) {
	return broker.Prepared{Handle: []byte("handle")}, nil
}

func (issuer) Issue(_ context.Context, o broker.Order) (broker.Credential, []byte, error) {
	return broker.Credential{Type: "bearer", Secret: broker.NewSecretField("token", "s3cret"), Expires: o.Lease.Expires, Hash: audit.Digest{9}}, nil, nil
}

func (issuer) Revoke(context.Context, broker.Lease) error { return nil }

// A world is a manager on a real broker and a real store. Its cleanup verifies the log.
type world struct {
	*signal.Manager
	broker   *broker.Broker
	sessions *session.Manager
	store    *store.Store
	rule     signal.Rule
	wrap     func(broker.Store) broker.Store
	n        int
}

func newWorld(t *testing.T, rule signal.Rule) *world {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: tables.URL(t, filepath.Join(t.TempDir(), "broker.db")), Reserve: 1 << 16, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	check.OpenLog(t, s, noon)
	if rule.Provider == "" {
		rule.Provider = "login"
	}
	if rule.MaxAge == 0 {
		rule.MaxAge = 24 * time.Hour
	}
	if rule.MostPercent == 0 {
		rule.MostPercent, rule.Always = 20, 10
	}
	w := &world{store: s, rule: rule}
	w.restart(t)
	t.Cleanup(func() {
		report, err := verify.Verify(context.Background(), s.Source(), verify.Options{})
		if report == nil {
			t.Fatal(err)
		}
		for _, p := range report.Problems {
			t.Errorf("the log does not verify: %v", &p)
		}
	})
	return w
}

// restart starts another broker on the same store.
func (w *world) restart(t *testing.T) {
	t.Helper()
	groups := `security: {members: [login/sec, login/root], notify: ["hook:security"]}`
	engine, err := policy.Load(policy.Inputs{
		FS: fstest.MapFS{"all.cedar": {Data: []byte(policies)}, "groups.yaml": {Data: []byte(groups)}},
		Catalogue: broker.Catalogue{"db": {
			Name: "db", Issuer: "db", DefaultTTL: time.Hour, MaxTTL: 8 * time.Hour, CollectWithin: time.Hour, Revocation: broker.RevokedImmediate, Owner: "security", Effect: audit.Digest{1},
		}},
		HomeDomain: "acme.test", TrustDomains: []string{"acme.test"}, Providers: []string{"login", "corp"}, Channels: []string{"hook:security"},
		Labels: []broker.WorkloadLabels{{Under: "spiffe://acme.test/agent", Kind: broker.KindAgent, Accountable: []string{"login/p0"}, Team: "a"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var wrapped broker.Store = w.store
	if w.wrap != nil {
		wrapped = w.wrap(w.store)
	}
	w.broker, err = broker.New(t.Context(), broker.Config{
		Store: wrapped, Reader: w.store, Issuers: map[string]broker.Issuer{"db": issuer{}}, Blocks: w.store.Blocks,
	}, engine.Rules(), broker.Caller{At: noon})
	if err != nil {
		t.Fatal(err)
	}
	if w.sessions, err = session.New(session.Config{Store: wrapped}); err != nil {
		t.Fatal(err)
	}
	w.Manager = signal.New(signal.Config{
		Store: wrapped, Reader: store.NewSignals(w.store), Broker: w.broker, Sessions: w.sessions,
		Rules: map[string]signal.Rule{"okta": w.rule}, Log: slog.New(slog.DiscardHandler),
	})
}

func person(name string, now time.Time) broker.Identity {
	return broker.Identity{
		ID: "login/" + name, Kind: broker.KindPerson, Proof: broker.Proof{Method: broker.MethodSession, SHA256: audit.Digest{8}, Expires: now.Add(time.Hour)},
		Person: &broker.Person{Provider: "login", Claimed: now, Login: now, Name: name, Email: name + "@acme.test"},
	}
}

// logIn opens a session of a person.
func (w *world) logIn(t *testing.T, name, sid string, now time.Time) session.Token {
	t.Helper()
	token, _, err := w.sessions.Open(t.Context(), broker.NewSession{Who: person(name, now), SID: sid, Client: broker.ClientBrowser}, now)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (w *world) loggedIn(t *testing.T, token session.Token, now time.Time) bool {
	t.Helper()
	_, err := w.sessions.Peek(t.Context(), token, now)
	if err != nil && !errors.Is(err, broker.ErrUnauthenticated) {
		t.Fatal(err)
	}
	return err == nil
}

// lease collects a credential for an identity.
func (w *world) lease(t *testing.T, who broker.Identity, now time.Time) error {
	t.Helper()
	_, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(who, now), broker.Ask{Entitlement: "db", Justification: "work"}, broker.IdempotencyKey{})
	return err
}

// event returns an event about a person.
func (w *world) event(kind signal.Kind, name string, at time.Time) signal.Event {
	w.n++
	return signal.Event{Transmitter: "okta", ID: fmt.Sprintf("event-%d", w.n), Kind: kind, Issued: at, At: at, Subject: signal.Subject{Account: "login/" + name}}
}

func (w *world) apply(t *testing.T, e signal.Event, now time.Time, want signal.Outcome) {
	t.Helper()
	if got, err := w.Apply(t.Context(), e, now); err != nil || got != want {
		t.Errorf("%s of %s: got %q, %v; want %q", e.Kind, e.Subject.Account, got, err, want)
	}
}

// live returns the number of live leases after the broker has ended what it must.
func (w *world) live(t *testing.T, now time.Time) int64 {
	t.Helper()
	if err := w.broker.Facts.End(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Reap(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	n, err := store.NewSignals(w.store).CountLive(t.Context(), now)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// kinds returns the number of records by kind.
func (w *world) kinds(t *testing.T) map[audit.Kind]int {
	t.Helper()
	found := map[audit.Kind]int{}
	for i := range w.store.Head().Size {
		item, err := w.store.Record(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		r, err := audit.Decode(item.Leaf)
		if err != nil {
			t.Fatal(err)
		}
		found[r.Kind]++
	}
	return found
}

func TestSessionEvents(t *testing.T) {
	for _, kind := range []signal.Kind{signal.KindSessionRevoked, signal.KindCredentialChange} {
		t.Run(string(kind), func(t *testing.T) {
			w := newWorld(t, signal.Rule{})
			ana, other, bob := w.logIn(t, "ana", "s1", noon), w.logIn(t, "ana", "s2", noon), w.logIn(t, "bob", "s3", noon)
			if err := w.lease(t, person("ana", noon), noon); err != nil {
				t.Fatal(err)
			}
			at := noon.Add(5 * time.Minute)
			e := w.event(kind, "ana", at)
			w.apply(t, e, at, signal.Applied)
			if w.loggedIn(t, ana, at) || w.loggedIn(t, other, at) || !w.loggedIn(t, bob, at) {
				t.Error("want all sessions of ana ended, and those of bob open")
			}
			if w.live(t, at) != 1 {
				t.Error("an event about sessions ended a lease")
			}
			later := at.Add(5 * time.Minute)
			again := w.logIn(t, "ana", "s4", later)
			w.apply(t, e, later, signal.Replayed)
			if !w.loggedIn(t, again, later) {
				t.Error("a repeated event ended a later session")
			}
			// The same event under another id is about sessions that were opened before it.
			copied := e
			copied.ID = "copy"
			if _, err := w.Apply(t.Context(), copied, later); err != nil {
				t.Fatal(err)
			}
			if !w.loggedIn(t, again, later) {
				t.Error("an old event ended a later session")
			}
		})
	}
}

// An event that names one session ends it alone.
func TestOneSession(t *testing.T) {
	w := newWorld(t, signal.Rule{})
	first, second := w.logIn(t, "ana", "s1", noon), w.logIn(t, "ana", "s2", noon)
	at := noon.Add(5 * time.Minute)
	e := w.event(signal.KindSessionRevoked, "ana", at)
	e.Subject.SID = "s1"
	w.apply(t, e, at, signal.Applied)
	if w.loggedIn(t, first, at) || !w.loggedIn(t, second, at) {
		t.Error("want s1 ended and s2 open")
	}
	e = w.event(signal.KindSessionRevoked, "", at)
	e.Subject = signal.Subject{SID: "s2"}
	w.apply(t, e, at, signal.Applied)
	if w.loggedIn(t, second, at) {
		t.Error("want s2 ended")
	}
	e = w.event(signal.KindSessionRevoked, "", at)
	e.Subject = signal.Subject{SID: "s9"}
	w.apply(t, e, at, signal.UnknownSubject)
}

func TestAccountEvents(t *testing.T) {
	w := newWorld(t, signal.Rule{})
	ana := w.logIn(t, "ana", "s1", noon)
	agent := broker.Identity{ID: "spiffe://acme.test/agent/x", TrustDomain: "acme.test", Paths: broker.SPIFFEPaths("spiffe://acme.test/agent/x"), Kind: broker.KindWorkload, Proof: broker.Proof{Method: broker.MethodJWTSVID, SHA256: audit.Digest{7}, Expires: noon.Add(2 * time.Hour)}}
	for _, who := range []broker.Identity{person("ana", noon), person("ana", noon), agent} {
		if err := w.lease(t, who, noon); err != nil {
			t.Fatal(err)
		}
	}
	at := noon.Add(time.Minute)
	disabled := w.event(signal.KindAccountDisabled, "ana", at)
	w.apply(t, disabled, at, signal.Applied)
	if w.loggedIn(t, ana, at) || w.live(t, at) != 1 {
		t.Errorf("want the session and the leases of ana ended, and the agent's live; got %d leases", w.live(t, at))
	}
	if err := w.lease(t, person("ana", at), at); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("a new request: got %v", err)
	}
	w.apply(t, w.event(signal.KindAccountEnabled, "ana", at.Add(-time.Second)), at, signal.Superseded)
	later := at.Add(time.Minute)
	w.apply(t, w.event(signal.KindAccountEnabled, "ana", later), later, signal.Applied)
	w.live(t, later)
	later = later.Add(time.Second)
	if err := w.lease(t, person("ana", later), later); err != nil {
		t.Errorf("after the account was enabled: got %v", err)
	}
	w.apply(t, disabled, later, signal.Replayed)
	delayed := w.event(signal.KindAccountDisabled, "ana", at.Add(time.Second))
	w.apply(t, delayed, later, signal.Superseded)
	purged := later.Add(time.Minute)
	w.apply(t, w.event(signal.KindAccountPurged, "ana", purged), purged, signal.Applied)
	w.apply(t, w.event(signal.KindAccountEnabled, "ana", purged.Add(time.Minute)), purged.Add(time.Minute), signal.Unchanged)
	w.live(t, purged)
	after := purged.Add(2 * time.Minute)
	if err := w.lease(t, person("ana", after), after); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("after the account was purged: got %v", err)
	}
	if got := w.kinds(t); got[audit.FactEnded] != 2 || got[audit.FactChanged] != 1 {
		t.Errorf("got records %v", got)
	}
}

// Events about people whom the broker does not know change nothing, whoever they are.
func TestUnknownPeople(t *testing.T) {
	w := newWorld(t, signal.Rule{})
	before := w.store.Head().Size
	for _, kind := range signal.Kinds[:5] {
		w.apply(t, w.event(kind, "nobody", noon), noon, signal.UnknownSubject)
		e := w.event(kind, "", noon)
		e.Subject = signal.Subject{Email: "nobody@acme.test"}
		w.apply(t, e, noon, signal.UnknownSubject)
	}
	if got := w.store.Head().Size; got != before {
		t.Errorf("got %d new records, want none", got-before)
	}
	if _, err := w.Apply(t.Context(), signal.Event{Transmitter: "other", ID: "1", Kind: signal.KindAccountDisabled}, noon); err == nil {
		t.Error("an unknown transmitter: got no error")
	}
	// Someone whom the rules name is known, even without a login.
	w.apply(t, w.event(signal.KindAccountDisabled, "root", noon), noon, signal.Applied)
}

func TestEmailNamesAllWhoHaveIt(t *testing.T) {
	w := newWorld(t, signal.Rule{})
	ana := w.logIn(t, "ana", "s1", noon)
	e := w.event(signal.KindSessionRevoked, "", noon.Add(time.Minute))
	e.Subject = signal.Subject{Email: "ana@acme.test"}
	at := noon.Add(2 * time.Minute)
	w.apply(t, e, at, signal.Applied)
	if w.loggedIn(t, ana, at) {
		t.Error("want the session ended")
	}
	// Eve claims the address of bob at the provider, so that his end is ambiguous.
	bob := w.logIn(t, "bob", "s2", at)
	eve := person("eve", at)
	eve.Person.Email = "Bob@Acme.test"
	if _, _, err := w.sessions.Open(t.Context(), broker.NewSession{Who: eve, Client: broker.ClientBrowser}, at); err != nil {
		t.Fatal(err)
	}
	at = at.Add(time.Minute)
	e = w.event(signal.KindAccountDisabled, "", at)
	e.Subject = signal.Subject{Email: "BOB@acme.test"}
	w.apply(t, e, at, signal.Applied)
	if w.loggedIn(t, bob, at) {
		t.Error("want the session of bob ended")
	}
	if err := w.lease(t, eve, at); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("eve, whose address has another case: got %v", err)
	}
	if err := w.lease(t, person("bob", at), at); !errors.Is(err, broker.ErrFactEnded) {
		t.Errorf("bob: got %v", err)
	}
}

// A replay changes nothing after a restart either.
func TestReplaysAreKnownAfterARestart(t *testing.T) {
	w := newWorld(t, signal.Rule{})
	w.logIn(t, "ana", "s1", noon)
	e := w.event(signal.KindAccountDisabled, "ana", noon)
	w.apply(t, e, noon, signal.Applied)
	w.apply(t, w.event(signal.KindAccountEnabled, "ana", noon.Add(time.Minute)), noon.Add(time.Minute), signal.Applied)
	w.live(t, noon.Add(time.Minute))
	w.restart(t)
	at := noon.Add(23 * time.Hour)
	if _, err := w.store.Sweep(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	w.apply(t, e, at, signal.Replayed)
	if holds, err := w.broker.Facts.Holds(t.Context(), broker.StandingKey{Kind: broker.FactPerson, Name: "login/ana"}, at); err != nil || !holds {
		t.Errorf("got %t, %v", holds, err)
	}
}

func TestVerificationAndStatus(t *testing.T) {
	w := newWorld(t, signal.Rule{StreamID: "stream-1"})
	verification := func(state, stream string) signal.Event {
		e := w.event(signal.KindVerification, "", noon)
		e.Subject, e.State = signal.Subject{Stream: stream}, state
		return e
	}
	w.apply(t, verification("guess", "stream-1"), noon, signal.WrongState)
	for _, state := range []string{"one", "two", "three"} {
		if err := w.Expect(t.Context(), "okta", state, noon); err != nil {
			t.Fatal(err)
		}
	}
	w.restart(t)
	w.apply(t, verification("one", "stream-1"), noon, signal.WrongState) // too long ago
	answer := verification("three", "stream-1")
	w.apply(t, answer, noon, signal.Applied)
	w.apply(t, answer, noon, signal.Replayed)
	w.apply(t, verification("three", "stream-1"), noon, signal.WrongState)
	w.apply(t, verification("two", "stream-9"), noon, signal.UnknownSubject)
	w.apply(t, verification("", "stream-1"), noon, signal.Applied)

	operator := broker.Self(broker.Identity{ID: "operator", Kind: broker.KindOperator, Proof: broker.Proof{Method: broker.MethodAdminSocket, Expires: noon.Add(time.Hour)}}, noon)
	status := func(at time.Time, to string) signal.Event {
		e := w.event(signal.KindStreamUpdated, "", at)
		e.Subject, e.Status = signal.Subject{Stream: "stream-1"}, to
		return e
	}
	w.apply(t, status(noon, "paused"), noon, signal.Applied)
	heard := func() (time.Time, string) {
		list, err := w.List(t.Context(), operator)
		if err != nil || len(list) != 1 {
			t.Fatalf("got %v, %v", list, err)
		}
		return list[0].Heard, list[0].Stream
	}
	if err := w.Heard(t.Context(), "okta", noon.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if at, stream := heard(); !at.Equal(noon) || stream != "paused" {
		t.Errorf("a paused stream: got %s, %s", at, stream)
	}
	w.apply(t, status(noon.Add(-time.Minute), "enabled"), noon, signal.Superseded)
	w.apply(t, status(noon.Add(time.Hour), "enabled"), noon.Add(time.Hour), signal.Applied)
	if at, stream := heard(); !at.Equal(noon.Add(time.Hour)) || stream != "enabled" {
		t.Errorf("an enabled stream: got %s, %s", at, stream)
	}
}

// The steps are repeated after any of them failed, or was lost after it had happened.
func TestInterruptedEventIsAppliedOnce(t *testing.T) {
	for step := range 4 {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("step %d, lost %t", step, lost), func(t *testing.T) {
				w := newWorld(t, signal.Rule{})
				ana := w.logIn(t, "ana", "s1", noon)
				if err := w.lease(t, person("ana", noon), noon); err != nil {
					t.Fatal(err)
				}
				fault := &faulty{at: int64(step), lost: lost}
				w.wrap = func(s broker.Store) broker.Store { fault.Store = s; return fault }
				w.restart(t)
				fault.armed.Store(true)
				at := noon.Add(5 * time.Minute)
				e := w.event(signal.KindAccountDisabled, "ana", at)
				if _, err := w.Apply(t.Context(), e, at); err == nil {
					t.Fatalf("the fault did not strike: %d updates", fault.n.Load())
				}
				w.wrap = nil
				w.restart(t)
				got, err := w.Apply(t.Context(), e, at)
				if err != nil || !slices.Contains([]signal.Outcome{signal.Applied, signal.Unchanged, signal.Replayed}, got) {
					t.Fatalf("again: got %q, %v", got, err)
				}
				if w.loggedIn(t, ana, at) || w.live(t, at) != 0 {
					t.Errorf("want everything of ana ended, got %d leases", w.live(t, at))
				}
				w.apply(t, e, at, signal.Replayed)
				if n := w.kinds(t)[audit.FactEnded]; n != 1 {
					t.Errorf("got %d records of the end, want 1", n)
				}
			})
		}
	}
}

// faulty fails one update, or loses its answer. Its fields are atomic, because
// the loops of the broker update the store at the same time as the test.
type faulty struct {
	broker.Store
	at    int64
	lost  bool
	armed atomic.Bool
	n     atomic.Int64
}

var errFault = errors.New("fault")

func (f *faulty) Update(ctx context.Context, reads []broker.Key, g func(broker.Tx) error) error {
	if f.armed.Load() && f.n.Add(1)-1 == f.at {
		if f.lost {
			_ = f.Store.Update(ctx, reads, g)
		}
		return errFault
	}
	return f.Store.Update(ctx, reads, g)
}

// Only those who may use the kill switch see the transmitters.
func TestCallers(t *testing.T) {
	w := newWorld(t, signal.Rule{})
	workload := broker.Identity{ID: "spiffe://acme.test/agent/x", TrustDomain: "acme.test", Kind: broker.KindWorkload, Proof: broker.Proof{Method: broker.MethodJWTSVID, Expires: noon.Add(time.Hour)}}
	for _, who := range []broker.Identity{{}, workload, person("ana", noon)} {
		caller := broker.Self(who, noon)
		_, listed := w.List(t.Context(), caller)
		_, shown := w.Preview(t.Context(), caller, "okta")
		_, decided := w.Decide(t.Context(), caller, "okta", signal.Decision{Reason: "r"})
		cleared := w.Clear(t.Context(), caller, "okta", "login/ana")
		for i, err := range []error{listed, shown, decided, cleared} {
			if !errors.Is(err, broker.ErrDenied) && !errors.Is(err, broker.ErrSessionRequired) {
				t.Errorf("%q, call %d: got %v", who.ID, i, err)
			}
		}
	}
	if _, err := w.List(t.Context(), broker.Self(person("sec", noon), noon)); err != nil {
		t.Errorf("a person of the group: got %v", err)
	}
	if _, err := w.Preview(t.Context(), broker.Self(person("sec", noon), noon), "nobody"); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("an unknown transmitter: got %v", err)
	}
}

// What a transmitter stated by mistake can be taken back, but not by the person whom it
// ended.
func TestClear(t *testing.T) {
	w := newWorld(t, signal.Rule{})
	w.apply(t, w.event(signal.KindAccountPurged, "root", noon), noon, signal.Applied)
	if err := w.Clear(t.Context(), broker.Self(person("root", noon), noon), "okta", "login/root"); !errors.Is(err, broker.ErrOwnRequest) {
		t.Errorf("by the person: got %v", err)
	}
	w.live(t, noon)
	at := noon.Add(time.Minute)
	if err := w.Clear(t.Context(), broker.Self(person("sec", at), at), "okta", "login/root"); err != nil {
		t.Fatal(err)
	}
	if err := w.lease(t, person("root", at.Add(time.Second)), at.Add(time.Second)); err != nil {
		t.Errorf("got %v", err)
	}
	if err := w.Clear(t.Context(), broker.Self(person("sec", at), at), "okta", "login/root"); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("again: got %v", err)
	}
}
