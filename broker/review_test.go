package broker_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

func glass(scopes ...string) broker.Ask {
	ask := read(scopes...)
	ask.BreakGlass = true
	return ask
}

// Whoever breaks the glass gets at once what that is for, and no more; it is
// marked, and has to be reviewed.
func TestBreakGlass(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support") @justification("required")`)
	if _, err := w.broker.Ask(t.Context(), agent(noon), glass("tickets:close"), broker.Again{}, noon); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("a scope that no permit breaks the glass for: %v", err)
	}
	if _, err := w.broker.Ask(t.Context(), workload("spiffe://acme.test/batch", noon), glass("tickets:read"), broker.Again{}, noon); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("whom no permit breaks the glass for: %v", err)
	}
	if _, err := w.broker.Ask(t.Context(), agent(noon), glass("tickets:read"), broker.Again{}, noon); !errors.Is(err, broker.ErrJustificationRequired) {
		t.Errorf("other permits' obligations: %v", err)
	}
	ask := glass("tickets:read")
	ask.Justification = "the till is on fire"
	issued, _, err := w.broker.AskAndCollect(t.Context(), agent(noon), ask, broker.Again{}, noon)
	if err != nil {
		t.Fatal(err)
	}
	r := issued.Request
	if !r.BreakGlass || !r.ReviewDue.Equal(noon.Add(time.Hour)) || len(r.ReviewPlaces()) == 0 {
		t.Errorf("%+v", r)
	}
	groups := []string{}
	for _, p := range r.ReviewPlaces() {
		groups = append(groups, p.Group)
	}
	slices.Sort(groups)
	if !slices.Equal(groups, []string{"security", "support"}) {
		t.Errorf("reviewed by %v", groups) // the approvals that it went without are the review's
	}
	marked := 0
	for _, record := range w.records(t) {
		if record.Request != nil && record.Request.BreakGlass {
			marked++
		}
	}
	if marked == 0 {
		t.Error("nothing in the log says that the glass was broken")
	}
	finding := broker.Vote{Approve: true, Digest: r.Digest, Comment: "it was"}
	for name, test := range map[string]struct {
		who  broker.Identity
		v    broker.Vote
		want error
	}{
		"who answers for the agent": {approver("ana", noon), finding, broker.ErrOwnRequest},
		"the agent":                 {agent(noon), finding, broker.ErrSessionRequired},
		"somebody of no group":      {approver("zoe", noon), finding, broker.ErrNotFound},
		"without words":             {approver("dan", noon), broker.Vote{Approve: true, Digest: r.Digest}, broker.ErrCommentRequired},
		"of another digest":         {approver("dan", noon), broker.Vote{Approve: true, Comment: "x"}, broker.ErrStaleDigest},
	} {
		if _, err := w.broker.Review(t.Context(), test.who, r.ID, test.v, noon); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	if _, err := w.broker.Review(t.Context(), approver("dan", noon), r.ID, finding, noon); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Review(t.Context(), approver("dan", noon), r.ID, finding, noon); !errors.Is(err, broker.ErrAlreadyVoted) {
		t.Errorf("twice: %v", err)
	}
	finding.Approve = false
	closed, err := w.broker.Review(t.Context(), approver("cleo", noon), r.ID, finding, noon)
	if err != nil || closed.Reviewed.IsZero() {
		t.Fatalf("the last verdict: %+v, %v", closed, err)
	}
	if _, err := w.broker.Review(t.Context(), approver("ben", noon), r.ID, finding, noon); !errors.Is(err, broker.ErrNoReview) {
		t.Errorf("after it was closed: %v", err)
	}
	kinds := w.kinds(t)
	if n := len(kinds); kinds[n-2] != audit.ReviewGiven || kinds[n-1] != audit.ReviewClosed {
		t.Errorf("the log says %v", kinds)
	}
}

// An unreviewed use that is overdue takes the next one away, until it is
// reviewed.
func TestOverdueReviewBlocksTheNextUse(t *testing.T) {
	w := peopleWorld(t, ``)
	issued, _, err := w.broker.AskAndCollect(t.Context(), agent(noon), glass("tickets:read"), broker.Again{}, noon)
	if err != nil {
		t.Fatal(err)
	}
	due := issued.Request.ReviewDue
	before := due.Add(-time.Second)
	if _, _, err := w.broker.AskAndCollect(t.Context(), agent(before), glass("tickets:read"), broker.Again{}, before); err != nil {
		t.Errorf("before it is due: %v", err)
	}
	if _, _, err := w.broker.AskAndCollect(t.Context(), agent(due), glass("tickets:read"), broker.Again{}, due); !errors.Is(err, broker.ErrReviewOverdue) {
		t.Errorf("on the instant: %v", err)
	}
	if _, err := w.broker.Review(t.Context(), approver("dan", due), issued.Request.ID, broker.Vote{Digest: issued.Request.Digest, Comment: "it was not"}, due); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.broker.AskAndCollect(t.Context(), agent(due), glass("tickets:read"), broker.Again{}, due); err != nil {
		t.Errorf("after the review: %v", err)
	}
}

// What waits for a person is in its inbox, and nothing else is.
func TestInbox(t *testing.T) {
	w := peopleWorld(t, `@approval("2 of support")`)
	r := w.ask(t, read("tickets:read"))
	if _, _, err := w.broker.AskAndCollect(t.Context(), agent(noon), glass("tickets:read"), broker.Again{}, noon); err != nil {
		t.Fatal(err)
	}
	inbox := func(who broker.Identity, at time.Time) (waiting, reviews int) {
		t.Helper()
		in, err := w.broker.Inbox(t.Context(), who, 10, at)
		if err != nil {
			t.Fatal(err)
		}
		return len(in.Waiting), len(in.Reviews)
	}
	for name, want := range map[string][2]int{"ben": {1, 1}, "ana": {0, 0}, "dan": {0, 1}, "zoe": {0, 0}} {
		if waiting, reviews := inbox(approver(name, noon), noon); [2]int{waiting, reviews} != want {
			t.Errorf("%s: %d wait, %d to review; want %v", name, waiting, reviews, want)
		}
	}
	if _, err := w.vote(t, approver("ben", noon), r, yes, noon); err != nil {
		t.Fatal(err)
	}
	if waiting, _ := inbox(approver("ben", noon), noon); waiting != 0 {
		t.Error("what ben said yes to still waits for him")
	}
	if waiting, _ := inbox(approver("cleo", noon), noon); waiting != 1 {
		t.Error("it waits for cleo no more")
	}
	if waiting, _ := inbox(approver("cleo", r.Lapses), r.Lapses); waiting != 0 {
		t.Error("it waits after it lapsed")
	}
	if _, err := w.broker.Inbox(t.Context(), agent(noon), 10, noon); !errors.Is(err, broker.ErrSessionRequired) {
		t.Errorf("an agent has an inbox: %v", err)
	}
}
