package tickets_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/brokertest/check"
	"accessbroker.internal/internal/storetest/tables"
	"accessbroker.internal/policy"
	"accessbroker.internal/store"
	"accessbroker.internal/tickets"
	"accessbroker.internal/tickets/ticketstest"
)

// direct calls a handler without a network, whose waiting would stop the clock of a test.
type direct struct{ http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.ServeHTTP(w, r)
	}()
	select {
	case <-done:
		return w.Result(), nil
	case <-r.Context().Done():
		<-done
		return nil, r.Context().Err()
	}
}

// upstream is an issuer whose credentials can be ended at once.
type upstream struct {
	mu   sync.Mutex
	live map[broker.LeaseID]time.Time
}

func (*upstream) Prepare(_ context.Context, o broker.Order) (broker.Prepared, error) {
	return broker.Prepared{Handle: o.Lease.ID[:]}, nil
}

func (u *upstream) Issue(_ context.Context, o broker.Order) (broker.Credential, []byte, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.live[o.Lease.ID] = o.Lease.Expires
	return broker.Credential{Type: "userpass", Expires: o.Lease.Expires, Hash: audit.Digest{1}, Secret: broker.NewSecret(map[string]string{"username": "u", "password": "p"})}, nil, nil
}

func (u *upstream) Revoke(_ context.Context, l broker.Lease) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.live, l.ID)
	return nil
}

func (u *upstream) working() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.live)
}

const interval = time.Minute

// world is a broker with its store, its loops and a Jira, in the bubble of a test.
type world struct {
	t       *testing.T
	jira    *ticketstest.System
	issuer  *upstream
	watcher *tickets.Watcher
	broker  *broker.Broker
	store   *store.Store
	log     bytes.Buffer
	stop    func()

	mu    sync.Mutex
	looks map[string]int
}

func inWorld(t *testing.T, annotations string, do func(w *world)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, jira: ticketstest.NewJira(false), issuer: &upstream{live: map[broker.LeaseID]time.Time{}}, looks: map[string]int{}}
		for i := range 50 {
			w.jira.Put(ticketstest.Ticket{ID: fmt.Sprintf("INC-%d", i), Title: "stuck", Status: "To Do", Assignee: "5b10", Name: "Ana", From: time.Now(), Until: time.Now().Add(20 * time.Minute)})
		}
		w.start(dir, annotations)
		do(w)
		w.stop()
	})
}

// start opens the store and runs the loops.
func (w *world) start(dir, annotations string) {
	w.t.Helper()
	s, err := store.Open(w.t.Context(), store.Config{URL: tables.URL(w.t, filepath.Join(dir, "broker.db")), Reserve: 1 << 16, NoSync: true})
	if err != nil {
		w.t.Fatal(err)
	}
	if s.Fresh() {
		check.OpenLog(w.t, s, time.Now())
	}
	source, err := tickets.NewJira(tickets.JiraConfig{
		Host: tickets.Host{URL: "https://jira.acme.test", Transport: direct{w.jira}}, AssigneeBy: "accountId", From: "customfield_10501", Until: "customfield_10502",
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.store = s
	w.watcher = tickets.NewWatcher(tickets.WatcherConfig{
		Trackers: []*tickets.Tracker{{
			Name: "jira", Source: source, Pattern: regexp.MustCompile(`^(?:INC-[0-9]+)$`), People: map[string]string{"5b10": "login/ana"},
			Interval: interval, StaleAfter: 5 * time.Minute, Hook: tickets.Hook{Kind: "jira", Secret: []byte("s3cret")},
		}},
		Facts: func() tickets.Facts { return w.broker.Facts }, Log: slog.New(slog.NewTextHandler(&w.log, nil)),
		Observe: func(o tickets.Observation) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.looks[o.Outcome]++
		},
	})
	w.broker, err = broker.New(w.t.Context(), broker.Config{
		Store: s, Issuers: map[string]broker.Issuer{"db": w.issuer}, Tickets: w.watcher,
		Sources: map[string]broker.SourceRule{"tickets:jira": {StaleAfter: 5 * time.Minute, Governs: func(k broker.StandingKey) bool { return k.Kind == broker.FactTicket }}},
	}, rulesWith(w.t, annotations), broker.Caller{At: time.Now()})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	var loops sync.WaitGroup
	for _, run := range []func(context.Context) error{w.broker.Run, w.watcher.Run} {
		loops.Go(func() {
			if err := run(ctx); err != nil {
				w.t.Error(err)
			}
		})
	}
	w.stop = func() {
		cancel()
		loops.Wait()
		if err := s.Close(); err != nil {
			w.t.Error(err)
		}
	}
}

func rulesWith(t *testing.T, annotations string) *broker.Rules {
	t.Helper()
	engine, err := policy.Load(policy.Inputs{
		FS: fstest.MapFS{
			"all.cedar":   {Data: []byte(`@id("db") ` + annotations + ` permit (principal, action == Action::"request", resource == Entitlement::"db");`)},
			"groups.yaml": {Data: []byte("support: {members: [login/ben]}\n")},
		},
		Catalogue: broker.Catalogue{"db": {
			Name: "db", Issuer: "db", DefaultTTL: 30 * time.Minute, MaxTTL: time.Hour, CollectWithin: time.Hour, Revocation: broker.RevokedImmediate, Owner: "support", Effect: audit.Digest{1},
		}},
		HomeDomain: "acme.test", TrustDomains: []string{"acme.test"}, Providers: []string{"login"}, TicketStates: []string{"open"}, TicketWindows: true,
		Labels: []broker.WorkloadLabels{{Under: "spiffe://acme.test/agent", Kind: broker.KindAgent, Accountable: []string{"login/ana"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return engine.Rules()
}

// collect requests a credential for a ticket and collects it.
func (w *world) collect(ticket string) (*broker.Issued, error) {
	w.t.Helper()
	now := time.Now()
	who := broker.Identity{
		ID: "spiffe://acme.test/agent/triage", TrustDomain: "acme.test", Paths: broker.SPIFFEPaths("spiffe://acme.test/agent/triage"), Kind: broker.KindWorkload,
		Proof: broker.Proof{Method: broker.MethodJWTSVID, SHA256: audit.Digest{7}, Expires: now.Add(time.Hour)},
	}
	issued, _, err := w.broker.AskAndCollect(w.t.Context(), broker.Self(who, now), broker.Ask{Entitlement: "db", Ticket: ticket}, broker.IdempotencyKey{})
	return issued, err
}

func (w *world) mustCollect(ticket string) *broker.Issued {
	w.t.Helper()
	issued, err := w.collect(ticket)
	if err != nil {
		w.t.Fatal(err)
	}
	return issued
}

func (w *world) lease(id broker.LeaseID) *broker.Lease {
	w.t.Helper()
	l, err := w.store.Lease(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// wait lets time pass, and everything that happens in it happen.
func (w *world) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// hook sends a webhook as Jira does, and returns the status of the answer.
func (w *world) hook(body, secret string) int {
	r := httptest.NewRequest(http.MethodPost, tickets.HookPath+"jira", strings.NewReader(body))
	r.Header.Set("X-Hub-Signature", ticketstest.Sign(secret, body))
	out := httptest.NewRecorder()
	w.watcher.ServeHTTP(out, r)
	return out.Code
}

const updated = `{"webhookEvent": "jira:issue_updated", "issue": {"id": "10002", "key": "INC-7", "self": "http://169.254.169.254/"}}`

// A ticket that closes ends the access within an interval and its jitter, in the tracker's
// own time: no request and no webhook is needed.
func TestClosedTicketEndsAccessWithinAnInterval(t *testing.T) {
	for name, change := range map[string]func(*ticketstest.Ticket){
		"closed":     func(t *ticketstest.Ticket) { t.Status = "Done" },
		"reassigned": func(t *ticketstest.Ticket) { t.Assignee = "other" },
		"unassigned": func(t *ticketstest.Ticket) { t.Assignee = "" },
		"shortened":  func(t *ticketstest.Ticket) { t.Until = t.From.Add(time.Second) },
		"moved":      func(t *ticketstest.Ticket) { t.Moved = "OPS-1" },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, `@ticket_state("open") @ticket_assignee("accountable") @change_window("required")`, func(w *world) {
				issued := w.mustCollect("INC-7")
				w.wait(3 * interval)
				if w.lease(issued.Lease.ID).Status != broker.LeaseActive {
					t.Fatal("the lease ended before the ticket changed")
				}
				w.jira.Change("INC-7", change)
				w.wait(interval + interval/5 + 3*time.Second)
				if l := w.lease(issued.Lease.ID); l.Status != broker.LeaseRevoked || l.EndHow != broker.EndFact || w.issuer.working() != 0 {
					t.Errorf("got status %v, how %q, %d credentials work", l.Status, l.EndHow, w.issuer.working())
				}
				if _, err := w.collect("INC-7"); err == nil {
					t.Error("a new request: got no error")
				}
			})
		})
	}
}

// Access ends with the window, although the last look was before and the tracker is down.
func TestWindowEndsWithoutTheTracker(t *testing.T) {
	inWorld(t, `@change_window("required")`, func(w *world) {
		issued := w.mustCollect("INC-7")
		if left := time.Until(issued.Lease.Expires); left != 20*time.Minute {
			t.Errorf("the lease expires after %s, want 20m", left)
		}
		w.jira.Change("INC-7", func(t *ticketstest.Ticket) { t.Until = t.From.Add(3*time.Minute + 10*time.Second) })
		w.wait(2 * time.Minute)
		w.jira.Break(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
		w.wait(time.Minute)
		if l := w.lease(issued.Lease.ID); l.Status != broker.LeaseActive {
			t.Fatalf("it ended within the window: %v", l.Status)
		}
		w.wait(13 * time.Second)
		if l := w.lease(issued.Lease.ID); l.EndHow != broker.EndFact || l.EndedBy.Cause != broker.CauseWindowOver || w.issuer.working() != 0 {
			t.Errorf("after the window: %v %q %v", l.Status, l.EndHow, l.EndedBy)
		}
	})
}

// All grants of a ticket share one look in an interval, and looks at many tickets spread.
func TestOneLookForATicketAndInterval(t *testing.T) {
	inWorld(t, `@ticket_state("open")`, func(w *world) {
		for range 20 {
			w.mustCollect("INC-7")
		}
		if n := w.jira.Calls("INC-7"); n != 1 {
			t.Errorf("20 requests at once made %d calls, want 1", n)
		}
		for i := range 40 {
			w.mustCollect(fmt.Sprintf("INC-%d", i+8))
		}
		const intervals = 10
		before := w.jira.Calls("INC-7")
		w.wait(intervals * interval)
		if n := w.jira.Calls("INC-7") - before; n > intervals || n < intervals*4/5 {
			t.Errorf("%d calls in %d intervals", n, intervals)
		}
		w.wait(2 * time.Hour) // nothing rests on the ticket
		before = w.jira.Calls("INC-7")
		w.wait(10 * interval)
		if n := w.jira.Calls("INC-7") - before; n != 0 {
			t.Errorf("%d calls after the access ended", n)
		}
		if w.watcher.Seen("INC-7") != nil {
			t.Error("the ticket is still in memory")
		}
	})
}

// A webhook leads to a look and nothing more. One without the secret leads to nothing.
func TestWebhookIsOnlyAHint(t *testing.T) {
	inWorld(t, `@ticket_state("open")`, func(w *world) {
		issued := w.mustCollect("INC-7")
		w.wait(10 * time.Second)
		closed := strings.Replace(updated, `"id"`, `"fields": {"status": {"name": "Done", "statusCategory": {"key": "done"}}}, "id"`, 1)
		for status, secret := range map[int]string{http.StatusUnauthorized: "wrong", http.StatusNoContent: "s3cret"} {
			if got := w.hook(closed, secret); got != status {
				t.Errorf("with the secret %q: got status %d, want %d", secret, got, status)
			}
		}
		w.wait(5 * time.Second)
		if n := w.jira.Calls("INC-7"); n != 2 {
			t.Errorf("got %d calls, want one for the request and one for the webhook", n)
		}
		if l := w.lease(issued.Lease.ID); l.Status != broker.LeaseActive {
			t.Fatal("the broker believed the webhook")
		}
		// A flood of webhooks makes no more calls, and the ticket is still polled.
		for range 1000 {
			w.hook(updated, "s3cret")
			w.hook(strings.Replace(updated, "INC-7", "INC-9", 1), "s3cret") // no access rests on it
		}
		w.wait(5 * time.Second)
		if n, other := w.jira.Calls("INC-7"), w.jira.Calls("INC-9"); n != 2 || other != 0 {
			t.Errorf("after a flood: got %d calls and %d for another ticket", n, other)
		}
		w.wait(2 * interval)
		w.jira.Change("INC-7", func(t *ticketstest.Ticket) { t.Status = "Done" })
		w.hook(updated, "s3cret")
		w.wait(3 * time.Second)
		if l := w.lease(issued.Lease.ID); l.EndHow != broker.EndFact {
			t.Errorf("3 s after the webhook: %v", l.Status)
		}
	})
}

// A hint right after a look is not lost.
func TestHintAfterALook(t *testing.T) {
	inWorld(t, `@ticket_state("open")`, func(w *world) {
		issued := w.mustCollect("INC-7")
		w.jira.Change("INC-7", func(t *ticketstest.Ticket) { t.Status = "Done" })
		w.hook(updated, "s3cret")
		w.wait(3 * time.Second)
		if l := w.lease(issued.Lease.ID); l.EndHow != broker.EndFact {
			t.Errorf("got %v", l.Status)
		}
	})
}

// While the tracker is down, callers do not wait for it, nothing new is granted, and the
// leases end when its last word is stale. A tracker that answers again is used again.
func TestTrackerThatIsDown(t *testing.T) {
	inWorld(t, `@ticket_state("open")`, func(w *world) {
		issued := w.mustCollect("INC-7")
		w.jira.Break(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		w.wait(3 * time.Second)
		refused := 0
		for i := range 20 {
			if _, err := w.collect(fmt.Sprintf("INC-%d", i+8)); errors.Is(err, broker.ErrFactUnknown) {
				refused++
			}
		}
		if calls := w.jira.Calls("INC-8") + w.jira.Calls("INC-9"); refused != 20 || calls != 1 {
			t.Errorf("%d of 20 requests were refused; %d calls during the pause", refused, calls)
		}
		w.wait(5*time.Minute - 10*time.Second)
		if w.lease(issued.Lease.ID).Status != broker.LeaseActive {
			t.Error("the lease ended before stale_after")
		}
		w.wait(20 * time.Second)
		if l := w.lease(issued.Lease.ID); l.EndHow != broker.EndFact || l.EndedBy.Cause != broker.CauseStale {
			t.Errorf("the lease after stale_after: %v %q", l.Status, l.EndHow)
		}
		w.jira.Break(nil)
		w.wait(time.Minute)
		w.mustCollect("INC-7")
	})
}

// A ticket that can't be read stops no look at others, so that no one can blind the broker
// with one ticket.
func TestABadTicketStopsNoOthers(t *testing.T) {
	inWorld(t, `@ticket_state("open")`, func(w *world) {
		w.jira.Put(ticketstest.Ticket{ID: "INC-66", Title: strings.Repeat("x", 10<<20), Status: "To Do"})
		issued := w.mustCollect("INC-7")
		for range 20 {
			if _, err := w.collect("INC-66"); !errors.Is(err, broker.ErrFactUnknown) {
				t.Fatalf("got %v", err)
			}
			w.wait(3 * time.Second)
		}
		w.jira.Change("INC-7", func(t *ticketstest.Ticket) { t.Status = "Done" })
		w.wait(interval + interval/5 + 3*time.Second)
		if l := w.lease(issued.Lease.ID); l.EndHow != broker.EndFact {
			t.Errorf("got %v", l.Status)
		}
	})
}

// The change that nobody saw because the broker was down ends access at the first look
// after the start; an end of the window, at the start itself.
func TestLooksContinueAfterARestart(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, jira: ticketstest.NewJira(false), issuer: &upstream{live: map[broker.LeaseID]time.Time{}}, looks: map[string]int{}}
		for _, id := range []string{"INC-7", "INC-8", "INC-9"} {
			w.jira.Put(ticketstest.Ticket{ID: id, Status: "To Do", From: time.Now(), Until: time.Now().Add(20 * time.Minute)})
		}
		const terms = `@ticket_state("open") @change_window("required")`
		w.start(dir, terms)
		closed, short, kept := w.mustCollect("INC-7").Lease.ID, w.mustCollect("INC-8").Lease.ID, w.mustCollect("INC-9").Lease.ID
		w.jira.Change("INC-8", func(t *ticketstest.Ticket) { t.Until = t.From.Add(2 * time.Minute) })
		w.wait(interval + interval/5 + time.Second)
		w.stop()
		w.jira.Change("INC-7", func(t *ticketstest.Ticket) { t.Status = "Done" })
		time.Sleep(2 * time.Minute)
		w.start(dir, terms)
		w.wait(time.Second)
		if l := w.lease(short); l.EndHow != broker.EndFact || l.EndedBy.Cause != broker.CauseWindowOver {
			t.Errorf("the lease whose window ended: %v %q", l.Status, l.EndHow)
		}
		w.wait(interval/2 + 3*time.Second)
		if l := w.lease(closed); l.EndHow != broker.EndFact || l.EndedBy.Cause != broker.CauseTicketClosed {
			t.Errorf("the lease whose ticket closed: %v %q", l.Status, l.EndHow)
		}
		if l := w.lease(kept); l.Status != broker.LeaseActive {
			t.Errorf("the other lease: %v", l.Status)
		}
		w.stop()
	})
}

// Requests at one moment share a call, also while it runs, and none waits for ever.
func TestConcurrentRequestsShareALook(t *testing.T) {
	inWorld(t, `@ticket_state("open")`, func(w *world) {
		w.jira.Break(func(out http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			_, _ = io.WriteString(out, `{"key": "INC-7", "fields": {"status": {"name": "To Do", "statusCategory": {"key": "new"}}}}`)
		})
		var all sync.WaitGroup
		var mu sync.Mutex
		var failed []error
		for range 30 {
			all.Go(func() {
				if _, err := w.collect("INC-7"); err != nil {
					mu.Lock()
					defer mu.Unlock()
					failed = append(failed, err)
				}
			})
		}
		all.Wait()
		if n := w.jira.Calls("INC-7"); n != 1 || len(failed) > 0 {
			t.Errorf("30 requests at once made %d calls; errors %v", n, failed)
		}
		w.jira.Break(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		w.wait(3 * time.Second)
		start := time.Now()
		if _, err := w.collect("INC-9"); !errors.Is(err, broker.ErrFactUnknown) || time.Since(start) > 10*time.Second {
			t.Errorf("a tracker that hangs: got %v after %s", err, time.Since(start))
		}
	})
}

func TestTicketsOfTwoTrackers(t *testing.T) {
	trackers := []*tickets.Tracker{
		{Name: "a", Pattern: regexp.MustCompile(`^(?:[A-Z]+-[0-9]+)$`)}, {Name: "b", Pattern: regexp.MustCompile(`^(?:INC-[0-9]+)$`)},
	}
	w := tickets.NewWatcher(tickets.WatcherConfig{Trackers: trackers, Log: slog.New(slog.DiscardHandler)})
	for ticket, want := range map[string]string{"INC-7": "could belong to a or to b", "inc-7": "no ticket system of the broker"} {
		_, _, err := w.Look(t.Context(), ticket)
		if !errors.Is(err, broker.ErrFactUnknown) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", ticket, err, want)
		}
	}
	if names := tickets.StateNames(map[string][]string{"closed": {"Done"}, "implementing": {"Implement"}}); !slices.Contains(names, "open") || slices.Contains(names, "closed") || len(names) != 2 {
		t.Errorf("got states %v", names)
	}
}

// Callers can't use up what the tracker allows the broker with made-up tickets, and tickets
// that the broker knows are not refused because of them.
func TestMadeUpTicketsAreLimited(t *testing.T) {
	inWorld(t, `@ticket_state("open")`, func(w *world) {
		w.mustCollect("INC-7")
		refused := 0
		for i := range 500 {
			if _, err := w.collect(fmt.Sprintf("INC-%d", 1000+i)); !errors.Is(err, broker.ErrFactUnknown) {
				t.Fatalf("got %v", err)
			} else if strings.Contains(err.Error(), "too many tickets") {
				refused++
			}
		}
		if refused < 400 {
			t.Errorf("%d of 500 made-up tickets were refused without a call", refused)
		}
		w.mustCollect("INC-7")
		w.wait(time.Minute)
		w.mustCollect("INC-8")
	})
}
