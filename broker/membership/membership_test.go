package membership_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/membership"
	"accessbroker.internal/issuers/issuertest"
	"accessbroker.internal/store"
)

// A directory is a system with one group in memory.
type directory struct {
	mu      sync.Mutex
	members map[string]bool
	gone    bool

	before func(op string) error // fails an operation before it happens
	after  func(op string) error // fails one that happened, as when its answer is lost
	exists bool                  // Add reports members that exist
}

func newDirectory() *directory { return &directory{members: map[string]bool{}} }

func (d *directory) do(op string, f func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.before != nil {
		if err := d.before(op); err != nil {
			return err
		}
	}
	if d.gone {
		return membership.ErrGone
	}
	if err := f(); err != nil {
		return err
	}
	if d.after != nil {
		return d.after(op)
	}
	return nil
}

func (d *directory) Find(_ context.Context, _ any, name string) (membership.Place, error) {
	return membership.Place{Group: "1", Member: name, GroupName: "Sales", MemberName: name}, nil
}

func (d *directory) Contains(_ context.Context, p membership.Place) (has bool, err error) {
	err = d.do("contains", func() error { has = d.members[p.Member]; return nil })
	return has, err
}

func (d *directory) Add(_ context.Context, p membership.Place) (added bool, err error) {
	err = d.do("add", func() error {
		added = !d.exists || !d.members[p.Member]
		d.members[p.Member] = true
		return nil
	})
	return added, err
}

func (d *directory) Remove(_ context.Context, p membership.Place) error {
	return d.do("remove", func() error { delete(d.members, p.Member); return nil })
}

// set changes the group as someone else would.
func (d *directory) set(member string, is bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if delete(d.members, member); is {
		d.members[member] = true
	}
}

func (d *directory) has(member string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.members[member]
}

// A fixture is an issuer of memberships over a store and a directory.
type fixture struct {
	*directory
	t      testing.TB
	store  *store.Store
	failed func() error // fails the next update of the store, if it returns an error
	ledger *membership.Ledger
	issuer *membership.Issuer
}

const holder = "spiffe://acme.test/agent/triage"

func newFixture(t testing.TB) *fixture {
	f := &fixture{directory: newDirectory(), t: t, store: issuertest.Store(t)}
	f.restart()
	t.Cleanup(func() {
		// The leases of this test have no requests, which the verifier reports.
		report, err := verify.Verify(context.Background(), f.store.Source(), verify.Options{})
		if report == nil {
			t.Fatal(err)
		}
		for _, p := range report.Problems {
			if strings.HasPrefix(string(p.Kind), "membership.") {
				t.Errorf("the log does not verify: %v", &p)
			}
		}
	})
	return f
}

// Update implements broker.Store.
func (f *fixture) Update(ctx context.Context, reads []broker.Key, do func(broker.Tx) error) error {
	if f.failed != nil {
		if err := f.failed(); err != nil {
			return err
		}
	}
	return f.store.Update(ctx, reads, do)
}

// View implements broker.Store.
func (f *fixture) View(ctx context.Context, do func(broker.Tx) error) error {
	return f.store.View(ctx, do)
}

// restart forgets everything that is in memory alone.
func (f *fixture) restart() {
	f.ledger = membership.New(membership.Config{
		Store: f, List: store.MembershipsIn(f.store).List, Pauses: []time.Duration{0},
		May: func(_ context.Context, c broker.Caller, _ broker.Action) bool {
			return c.Actor.Kind == broker.KindOperator
		},
	})
	f.issuer = f.newIssuer("directory")
}

func (f *fixture) newIssuer(name string) *membership.Issuer {
	return membership.NewIssuer(membership.IssuerConfig{
		Name: name, At: "here", Directory: f.directory, Ledger: f.ledger,
		Names:    membership.Names{Accounts: map[string]string{holder: "triage"}},
		Describe: func(any) string { return "member of Sales" },
	})
}

// open stores a lease that is being issued, as the broker does before Issue.
func (f *fixture) open() broker.Lease {
	f.t.Helper()
	l := issuertest.Lease(time.Now())
	l.Holder, l.Issuer, l.Status, l.Revocation, l.Persists = holder, "directory", broker.LeaseIssuing, broker.RevokedImmediate, true
	l.Deadline = time.Now().Add(broker.IssueDeadline)
	prepared, err := f.issuer.Prepare(f.t.Context(), f.order(l))
	if err != nil {
		f.t.Fatalf("Prepare: %v", err)
	}
	l.Handle = prepared.Handle
	f.put(audit.LeaseOpened, l)
	return l
}

// put stores a lease with a record.
func (f *fixture) put(kind audit.Kind, l broker.Lease) {
	f.t.Helper()
	r := audit.Record{Kind: kind, Lease: &audit.LeaseFacts{ID: l.ID.String(), Issuer: l.Issuer, Expires: l.Expires}}
	_, err := broker.Write(context.Background(), f.store, []broker.Key{l.ID}, r, func(tx broker.Tx) error { tx.Put(&l); return nil })
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) order(l broker.Lease) broker.Order {
	return broker.Order{Lease: l, Entitlement: &broker.Entitlement{Name: "sales", System: "crm"}}
}

// issue opens a lease and issues it.
func (f *fixture) issue() broker.Lease {
	f.t.Helper()
	l := f.open()
	if _, _, err := f.issuer.Issue(f.t.Context(), f.order(l)); err != nil {
		f.t.Fatalf("Issue: %v", err)
	}
	return l
}

// end ends a lease as the broker does: the issuer first, then the lease.
func (f *fixture) end(l broker.Lease) {
	f.t.Helper()
	if err := f.issuer.Revoke(f.t.Context(), l); err != nil {
		f.t.Fatalf("Revoke: %v", err)
	}
	l.Status, l.Ended = broker.LeaseRevoked, time.Now()
	f.put(audit.LeaseRevoked, l)
}

// changes returns the changes of memberships in the log, such as "claimed added".
func (f *fixture) changes() (changes []string) {
	f.t.Helper()
	for item, err := range f.store.Source().Items(context.Background()) {
		if err != nil {
			f.t.Fatal(err)
		}
		r, err := audit.Decode(item.Leaf)
		if err != nil {
			f.t.Fatal(err)
		}
		if kind, ok := strings.CutPrefix(string(r.Kind), "membership."); ok {
			changes = append(changes, kind+" "+r.Membership.Change)
		}
	}
	return changes
}

func (f *fixture) wantChanges(want ...string) {
	f.t.Helper()
	if got := f.changes(); !slices.Equal(got, want) {
		f.t.Errorf("got the changes %q, want %q", got, want)
	}
}

func (f *fixture) wantMember(want bool) {
	f.t.Helper()
	if got := f.has("triage"); got != want {
		f.t.Errorf("member: got %t, want %t", got, want)
	}
}

// row returns the only membership.
func (f *fixture) row() *broker.Membership {
	f.t.Helper()
	page, _, err := f.ledger.List(f.t.Context(), operator(), broker.MembershipQuery{})
	if err != nil || len(page) != 1 {
		f.t.Fatalf("got %d memberships, %v", len(page), err)
	}
	return page[0]
}

func (f *fixture) compare() {
	f.t.Helper()
	if err := f.issuer.Compare(f.t.Context()); err != nil {
		f.t.Fatalf("Compare: %v", err)
	}
}

func operator() broker.Caller {
	return broker.Self(broker.Identity{ID: "operator", Kind: broker.KindOperator}, time.Now())
}

func TestMembershipLastsAsLongAsItsLease(t *testing.T) {
	f := newFixture(t)
	l := f.issue()
	f.wantMember(true)
	f.end(l)
	f.wantMember(false)
	if err := f.issuer.Revoke(t.Context(), l); err != nil { // the answer to the first call may have been lost
		t.Errorf("a repeated Revoke: %v", err)
	}
	f.wantChanges("claimed added", "released removed")
}

func TestExistingMembershipStays(t *testing.T) {
	f := newFixture(t)
	f.set("triage", true)
	first, second := f.issue(), f.issue()
	f.end(first)
	f.end(second)
	f.wantMember(true)
	f.compare()
	f.wantChanges("claimed existing", "claimed existing", "released existing", "released existing")
}

// Two leases of one membership, also of different issuers of the same system.
func TestLastOverlappingLeaseRemovesTheMember(t *testing.T) {
	f := newFixture(t)
	first := f.issue()
	other := f.newIssuer("second-directory")
	second := f.open()
	if _, _, err := other.Issue(t.Context(), f.order(second)); err != nil {
		t.Fatal(err)
	}
	f.restart()
	f.end(first)
	f.wantMember(true)
	f.restart()
	f.end(second)
	f.wantMember(false)
	f.wantChanges("claimed added", "claimed shared", "released shared", "released removed")
}

// The broker may have ended a lease before its issuer is called, or the time is over. The
// issuer must not add the member then: nothing would remove it.
func TestEndedLeaseAddsNoOne(t *testing.T) {
	for name, change := range map[string]func(*broker.Lease){
		"revoking": func(l *broker.Lease) { l.Status = broker.LeaseRevoking },
		"revoked":  func(l *broker.Lease) { l.Status = broker.LeaseRevoked },
		"too late": func(l *broker.Lease) { l.Deadline = time.Now().Add(-time.Nanosecond) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			l := f.open()
			ended := l
			change(&ended)
			f.put(audit.LeaseRevoking, ended)
			if _, _, err := f.issuer.Issue(t.Context(), f.order(l)); !errors.Is(err, broker.ErrIssuerUnavailable) {
				t.Errorf("Issue: got %v", err)
			}
			f.wantMember(false)
			f.wantChanges()
		})
	}
}

// The process dies, or an answer is lost, at each step of Issue and Revoke. After the
// restart the broker revokes the lease, which always removes the member.
func TestEveryStepMayFail(t *testing.T) {
	died := errors.New("the process died")
	steps := 0
	for _, op := range []string{"contains", "add", "remove", "write"} {
		for nth := 1; nth <= 3; nth++ {
			for _, happened := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %d happened=%t", op, nth, happened), func(t *testing.T) {
					f := newFixture(t)
					l := f.open()
					failing, count := true, 0
					fail := func(at string) error {
						if at != op || !failing {
							return nil
						}
						if count++; count == nth {
							return fmt.Errorf("%w: %w", broker.ErrIssuerUnavailable, died)
						}
						return nil
					}
					if happened {
						f.after = fail
					} else {
						f.before = fail
						f.failed = func() error { return fail("write") }
					}
					_, _, issuing := f.issuer.Issue(t.Context(), f.order(l))
					revoking := f.issuer.Revoke(t.Context(), l)
					if errors.Is(issuing, died) || errors.Is(revoking, died) {
						steps++
					}
					failing = false
					f.restart()
					f.end(l)
					f.wantMember(false)
					page, _, err := f.ledger.List(t.Context(), operator(), broker.MembershipQuery{})
					if err != nil || len(page) > 1 || len(page) == 1 && len(page[0].Claims) > 0 {
						t.Errorf("after the end: got %+v, %v", page, err)
					}
				})
			}
		}
	}
	if steps < 9 {
		t.Errorf("only %d steps failed", steps)
	}
}

// The directory is read-only or down at the end: the lease is not over, and a later
// attempt ends it.
func TestFailedRemovalIsNoEnd(t *testing.T) {
	f := newFixture(t)
	l := f.issue()
	f.before = func(op string) error {
		if op == "remove" {
			return broker.ErrIssuerRefused
		}
		return nil
	}
	for range 3 {
		if err := f.issuer.Revoke(t.Context(), l); !errors.Is(err, broker.ErrIssuerRefused) {
			t.Errorf("Revoke: got %v", err)
		}
	}
	f.wantMember(true)
	f.wantChanges("claimed added")
	f.before = nil
	f.end(l)
	f.wantMember(false)
}

// A system that accepts a change without making it confirms nothing.
func TestUnconfirmedChangeFails(t *testing.T) {
	f := newFixture(t)
	l := f.issue()
	f.after = func(op string) error {
		if op == "remove" {
			f.members["triage"] = true
		}
		return nil
	}
	if err := f.issuer.Revoke(t.Context(), l); !errors.Is(err, broker.ErrIssuerUnavailable) {
		t.Errorf("Revoke: got %v", err)
	}
	f.after = nil
	f.end(l)
	f.after = func(op string) error {
		if op == "add" {
			delete(f.members, "triage")
		}
		return nil
	}
	next := f.open()
	if _, _, err := f.issuer.Issue(t.Context(), f.order(next)); !errors.Is(err, broker.ErrIssuerUnavailable) {
		t.Errorf("Issue: got %v", err)
	}
	f.after = nil
	f.end(next)
}

func TestGroupOrMemberIsGone(t *testing.T) {
	f := newFixture(t)
	l := f.issue()
	f.gone = true
	f.end(l)
	f.wantChanges("claimed added", "released gone")
	next := f.open()
	if _, _, err := f.issuer.Issue(t.Context(), f.order(next)); !errors.Is(err, broker.ErrIssuerRefused) {
		t.Errorf("Issue: got %v", err)
	}
}

// Someone adds the member between the broker's reading and its change. A system that
// states that the member is not new shows it.
func TestFasterMemberStays(t *testing.T) {
	f := newFixture(t)
	f.exists = true
	f.before = func(op string) error {
		if op == "add" {
			f.members["triage"] = true
		}
		return nil
	}
	l := f.issue()
	f.before = nil
	f.end(l)
	f.wantMember(true)
	f.wantChanges("claimed added", "accepted existing", "released existing")
}

func TestComparisonReportsDifferences(t *testing.T) {
	f := newFixture(t)
	l := f.issue()
	f.compare()
	f.set("triage", false)
	f.compare()
	f.compare()
	if m := f.row(); m.Difference != broker.RemovedEarly || m.Since.IsZero() {
		t.Errorf("removed early: got %+v", m)
	}
	f.wantMember(false) // the broker does not undo what someone meant
	f.set("triage", true)
	f.compare()
	if m := f.row(); m.Difference != broker.NoDifference {
		t.Errorf("restored: got %+v", m)
	}
	f.set("triage", false)
	f.end(l)
	f.set("triage", true)
	f.compare()
	if m := f.row(); m.Difference != broker.AddedAgain || !m.Until().IsZero() {
		t.Errorf("added again: got %+v", m)
	}
	f.wantChanges("claimed added", "differs removed_early", "differs resolved", "released absent", "differs added_again")
	// A lease leaves alone what someone else added, and hides no difference.
	f.end(f.issue())
	f.wantMember(true)
	if m := f.row(); m.Difference != broker.AddedAgain {
		t.Errorf("after another lease: got %+v", m)
	}
	f.set("triage", false)
	f.compare()
	if m := f.row(); m.Difference != broker.NoDifference || m.Until().IsZero() {
		t.Errorf("removed at last: got %+v", m)
	}
}

// A new lease of a member who was removed early adds the member again, and the record
// shows both.
func TestNewLeaseRestoresARemovedMember(t *testing.T) {
	f := newFixture(t)
	first := f.issue()
	f.set("triage", false)
	second := f.issue()
	f.wantMember(true)
	f.end(first)
	f.end(second)
	f.wantMember(false)
	f.wantChanges("claimed added", "differs removed_early", "claimed added", "released shared", "released removed")
}

func TestAbandonedMembershipIsReported(t *testing.T) {
	f := newFixture(t)
	l := f.issue()
	l.Status = broker.LeaseAbandoned
	f.put(audit.LeaseAbandoned, l)
	f.compare()
	m := f.row()
	if m.Difference != broker.LeftBehind {
		t.Fatalf("got %+v", m)
	}
	if _, err := f.ledger.Accept(t.Context(), broker.Self(broker.Identity{ID: holder, Kind: broker.KindAgent}, time.Now()), m.ID, "mine"); !errors.Is(err, broker.ErrSessionRequired) {
		t.Errorf("accepted by a workload: got %v", err)
	}
	if _, err := f.ledger.Accept(t.Context(), operator(), m.ID, " "); !errors.Is(err, broker.ErrInvalidRequest) {
		t.Errorf("accepted without a reason: got %v", err)
	}
	// A later lease ends what the abandoned one left behind.
	f.end(f.issue())
	f.wantMember(false)
	f.compare()
	f.wantChanges("claimed added", "differs left_behind", "claimed shared", "released removed", "differs resolved")
}

func TestAcceptedMembershipIsNoLongerTheBrokers(t *testing.T) {
	f := newFixture(t)
	f.end(f.issue())
	f.set("triage", true)
	f.compare()
	m, err := f.ledger.Accept(t.Context(), operator(), f.row().ID, "it is in sales now")
	if err != nil || !m.Existing || m.Difference != broker.NoDifference {
		t.Fatalf("got %+v, %v", m, err)
	}
	f.compare()
	f.end(f.issue())
	f.wantMember(true)
	if _, err := f.ledger.Accept(t.Context(), operator(), m.ID, "again"); !errors.Is(err, broker.ErrInvalidRequest) {
		t.Errorf("accepted twice: got %v", err)
	}
	f.wantChanges("claimed added", "released removed", "differs added_again", "accepted added_again", "claimed existing", "released existing")
}

// A claim whose lease has ended, because only the end of the lease could be recorded, is
// found by the comparison.
func TestComparisonReleasesForgottenClaims(t *testing.T) {
	f := newFixture(t)
	l := f.issue()
	l.Status = broker.LeaseRevoked
	f.put(audit.LeaseRevoked, l)
	f.compare()
	f.wantMember(false)
	f.wantChanges("claimed added", "released removed")
}

func TestComparisonFailsWithItsSystem(t *testing.T) {
	f := newFixture(t)
	f.issue()
	var compared []error
	f.ledger = membership.New(membership.Config{
		Store: f, List: store.MembershipsIn(f.store).List,
		Compared: func(_ string, err error, _ time.Time) { compared = append(compared, err) },
	})
	f.issuer = f.newIssuer("directory")
	f.before = func(string) error { return broker.ErrIssuerUnavailable }
	if err := f.issuer.Compare(t.Context()); !errors.Is(err, broker.ErrIssuerUnavailable) || len(compared) != 1 || compared[0] == nil {
		t.Errorf("got %v, compared %v", err, compared)
	}
}

// Memberships that always fail do not keep the ones behind them from being compared.
func TestComparisonContinuesBehindFailures(t *testing.T) {
	f := newFixture(t)
	f.issue()
	row := f.row()
	var rows []*broker.Membership
	for i := range byte(7) {
		r := *row
		r.ID = broker.MembershipID{i + 1}
		rows = append(rows, &r)
	}
	f.ledger = membership.New(membership.Config{
		Store: f, Compared: func(string, error, time.Time) {},
		List: func(_ context.Context, q broker.MembershipQuery) ([]*broker.Membership, error) {
			return rows[q.After[0]:], nil
		},
	})
	f.issuer = f.newIssuer("directory")
	calls := 0
	f.before = func(string) error {
		if calls++; calls <= 5 {
			return broker.ErrIssuerUnavailable
		}
		return nil
	}
	for i, want := range []int{5, 2, 7} { // five fail; the two behind them; all
		before := calls
		if err := f.issuer.Compare(t.Context()); (err != nil) != (i == 0) {
			t.Errorf("pass %d: got %v", i, err)
		}
		if got := calls - before; got != want {
			t.Errorf("pass %d compared %d memberships, want %d", i, got, want)
		}
	}
}

// Leases come and go at random, with failures. At each end of all leases the member is
// gone, and while a lease is active, the member is there.
func TestRandomLeasesKeepTheMemberExactlyAsLong(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	f := newFixture(t)
	var mu sync.Mutex
	f.before = func(string) error {
		mu.Lock()
		defer mu.Unlock()
		if random.IntN(8) == 0 {
			return broker.ErrIssuerUnavailable
		}
		return nil
	}
	f.after = f.before
	var group sync.WaitGroup
	issued := 0
	for range 24 {
		l := f.open()
		group.Go(func() {
			_, _, err := f.issuer.Issue(context.Background(), f.order(l))
			if err == nil {
				mu.Lock()
				issued++
				mu.Unlock()
				if !f.has("triage") {
					t.Error("a lease is active, and the member is not there")
				}
			}
			for f.issuer.Revoke(context.Background(), l) != nil {
			}
		})
	}
	group.Wait()
	f.before, f.after = nil, nil
	f.wantMember(false)
	if issued < 3 {
		t.Errorf("only %d leases were issued", issued)
	}
}

func TestNamesOfMembers(t *testing.T) {
	f := newFixture(t)
	ana := &broker.Account{Person: "login/ana", Email: "ana@acme.test", EmailVerified: true}
	eve := &broker.Account{Person: "login/eve", Email: "ana@acme.test"}
	r := audit.Record{Kind: audit.SessionOpened}
	if _, err := broker.Write(t.Context(), f.store, nil, r, func(tx broker.Tx) error { tx.Put(ana); tx.Put(eve); return nil }); err != nil {
		t.Fatal(err)
	}
	issuer := membership.NewIssuer(membership.IssuerConfig{
		At: "here", Directory: f.directory, Ledger: f.ledger,
		Names: membership.Names{
			Accounts: map[string]string{holder: "triage", "corp/bob": "robert"},
			People:   map[string]membership.Source{"login": membership.FromEmail, "corp": membership.FromSubject},
		},
	})
	for id, want := range map[string]string{
		holder: "triage", "spiffe://acme.test/agent/other": "", "login/ana": "ana@acme.test", "login/eve": "", "login/unknown": "",
		"corp/bob": "robert", "corp/cy": "cy", "elsewhere/ana": "",
	} {
		l := broker.Lease{Holder: id}
		p, err := issuer.Prepare(t.Context(), f.order(l))
		switch {
		case want == "" && !errors.Is(err, broker.ErrIssuerRefused):
			t.Errorf("%s: got %s, %v, want a refusal", id, p.Handle, err)
		case want != "" && (err != nil || !strings.Contains(string(p.Handle), `"member":"`+want+`"`)):
			t.Errorf("%s: got %s, %v, want %s", id, p.Handle, err, want)
		}
	}
}
