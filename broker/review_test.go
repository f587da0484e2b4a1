package broker_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/softkey"
)

func breakGlass(scopes ...string) broker.Ask {
	ask := read(scopes...)
	ask.BreakGlass = true
	return ask
}

// Break-glass access is granted at once, only for the scopes of a @break_glass
// permit. It is logged as such and must be reviewed.
func TestBreakGlass(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support") @justification("required")`)
	if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), breakGlass("tickets:close"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("a scope without a break-glass permit: got %v, want %v", err, broker.ErrDenied)
	}
	if _, err := w.broker.Ask(t.Context(), broker.Self(workload("spiffe://acme.test/batch", noon), noon), breakGlass("tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrDenied) {
		t.Errorf("a requester without a break-glass permit: got %v, want %v", err, broker.ErrDenied)
	}
	if _, err := w.broker.Ask(t.Context(), broker.Self(agent(noon), noon), breakGlass("tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrJustificationRequired) {
		t.Errorf("obligations of other permits: got %v, want %v", err, broker.ErrJustificationRequired)
	}
	ask := breakGlass("tickets:read")
	ask.Justification = "the till is on fire"
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), ask, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	r := issued.Request
	if !r.BreakGlass || !r.ReviewDue.Equal(noon.Add(time.Hour)) || len(r.ReviewProgress()) == 0 {
		t.Errorf("got %+v, want a break-glass use with a review due at 13:00", r)
	}
	groups := []string{}
	for _, p := range r.ReviewProgress() {
		groups = append(groups, p.Group)
	}
	slices.Sort(groups)
	if !slices.Equal(groups, []string{"security", "support"}) {
		t.Errorf("got reviewers %v, want the break-glass group and the skipped approvers", groups)
	}
	logged := 0
	for _, record := range w.records(t) {
		if record.Request != nil && record.Request.BreakGlass {
			logged++
		}
	}
	if logged == 0 {
		t.Error("got no record of the break-glass use")
	}
	verdict := broker.Vote{Approve: true, Digest: r.Digest, Comment: "it was"}
	for name, test := range map[string]struct {
		who  broker.Identity
		v    broker.Vote
		want error
	}{
		"the accountable person": {approver("ana", noon), verdict, broker.ErrOwnRequest},
		"the agent":              {agent(noon), verdict, broker.ErrSessionRequired},
		"a person in no group":   {approver("zoe", noon), verdict, broker.ErrNotFound},
		"without a comment":      {approver("dan", noon), broker.Vote{Approve: true, Digest: r.Digest}, broker.ErrCommentRequired},
		"with another digest":    {approver("dan", noon), broker.Vote{Approve: true, Comment: "x"}, broker.ErrStaleDigest},
	} {
		if _, err := w.broker.Review(t.Context(), broker.Self(test.who, noon), r.ID, test.v); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
	if _, err := w.broker.Review(t.Context(), broker.Self(approver("dan", noon), noon), r.ID, verdict); err != nil {
		t.Fatal(err)
	}
	if _, err := w.broker.Review(t.Context(), broker.Self(approver("dan", noon), noon), r.ID, verdict); !errors.Is(err, broker.ErrAlreadyVoted) {
		t.Errorf("reviewing twice: got %v, want %v", err, broker.ErrAlreadyVoted)
	}
	verdict.Approve = false
	closed, err := w.broker.Review(t.Context(), broker.Self(approver("cleo", noon), noon), r.ID, verdict)
	if err != nil || closed.Reviewed.IsZero() {
		t.Fatalf("last verdict: got %+v, %v, want a closed review", closed, err)
	}
	if _, err := w.broker.Review(t.Context(), broker.Self(approver("ben", noon), noon), r.ID, verdict); !errors.Is(err, broker.ErrNoReview) {
		t.Errorf("after the review was closed: got %v, want %v", err, broker.ErrNoReview)
	}
	kinds := w.kinds(t)
	if n := len(kinds); kinds[n-2] != audit.ReviewGiven || kinds[n-1] != audit.ReviewClosed {
		t.Errorf("got records %v, want the two verdicts at the end", kinds)
	}
}

// An overdue review blocks further break-glass use until it is done.
func TestOverdueReviewBlocksTheNextUse(t *testing.T) {
	w := peopleWorld(t, ``)
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), breakGlass("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	due := issued.Request.ReviewDue
	before := due.Add(-time.Second)
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(before), before), breakGlass("tickets:read"), broker.IdempotencyKey{}); err != nil {
		t.Errorf("before it is due: %v", err)
	}
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(due), due), breakGlass("tickets:read"), broker.IdempotencyKey{}); !errors.Is(err, broker.ErrReviewOverdue) {
		t.Errorf("when it is due: got %v, want %v", err, broker.ErrReviewOverdue)
	}
	if _, err := w.broker.Review(t.Context(), broker.Self(approver("dan", due), due), issued.Request.ID, broker.Vote{Digest: issued.Request.Digest, Comment: "it was not"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(due), due), breakGlass("tickets:read"), broker.IdempotencyKey{}); err != nil {
		t.Errorf("after the review: %v", err)
	}
}

// An inbox lists exactly the requests and reviews that wait for the person.
func TestInbox(t *testing.T) {
	w := peopleWorld(t, `@approval("2 of support")`)
	r := w.ask(t, read("tickets:read"))
	if _, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(noon), noon), breakGlass("tickets:read"), broker.IdempotencyKey{}); err != nil {
		t.Fatal(err)
	}
	inbox := func(who broker.Identity, at time.Time) (waiting, reviews int) {
		t.Helper()
		in, err := w.broker.Inbox(t.Context(), broker.Self(who, at), broker.InboxQuery{})
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range in.Groups {
			if g.Review {
				reviews += len(g.Requests)
			} else {
				waiting += len(g.Requests)
			}
		}
		return waiting, reviews
	}
	for name, want := range map[string][2]int{"ben": {1, 1}, "ana": {0, 0}, "dan": {0, 1}, "zoe": {0, 0}} {
		if waiting, reviews := inbox(approver(name, noon), noon); [2]int{waiting, reviews} != want {
			t.Errorf("%s: got %d requests and %d reviews, want %v", name, waiting, reviews, want)
		}
	}
	if _, err := w.vote(t, approver("ben", noon), r, yes, noon); err != nil {
		t.Fatal(err)
	}
	if waiting, _ := inbox(approver("ben", noon), noon); waiting != 0 {
		t.Errorf("inbox of ben after his vote: got %d requests, want 0", waiting)
	}
	if waiting, _ := inbox(approver("cleo", noon), noon); waiting != 1 {
		t.Errorf("inbox of cleo: got %d requests, want 1", waiting)
	}
	if waiting, _ := inbox(approver("cleo", r.Lapses), r.Lapses); waiting != 0 {
		t.Errorf("inbox after the lapse: got %d requests, want 0", waiting)
	}
	if _, err := w.broker.Inbox(t.Context(), broker.Self(agent(noon), noon), broker.InboxQuery{}); !errors.Is(err, broker.ErrSessionRequired) {
		t.Errorf("inbox of an agent: got %v, want %v", err, broker.ErrSessionRequired)
	}
}

// If policy requires signed approvals, every verdict of the review must be signed,
// too, by a passkey of the reviewer that counts.
func TestSignedReview(t *testing.T) {
	w := peopleWorld(t, signedPolicy)
	bens, dans := w.enrols(t, "ben", noon), w.enrols(t, "dan", noon)
	later := noon.Add(tomorrow)
	bensNew := w.enrols(t, "ben", later)
	w.enrols(t, "cleo", later)
	issued, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(later), later), breakGlass("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	r := issued.Request
	review := func(name string, v broker.Vote) error {
		v.Digest = r.Digest
		_, err := w.broker.Review(t.Context(), broker.Self(approver(name, later), later), r.ID, v)
		return err
	}
	for verdict, v := range map[string]broker.Vote{"justified": {Approve: true, Comment: "it burned"}, "unjustified": {Comment: "it burned"}} {
		if err := review("ben", v); !errors.Is(err, broker.ErrSignatureRequired) {
			t.Errorf("%s, unsigned: got %v, want %v", verdict, err, broker.ErrSignatureRequired)
		}
	}
	if _, err := w.broker.PrepareReview(t.Context(), broker.Self(approver("cleo", later), later), r.ID, broker.Vote{Digest: r.Digest, Comment: "it burned"}); !errors.Is(err, broker.ErrSignatureRequired) || !strings.Contains(err.Error(), "counts from") {
		t.Errorf("with a passkey that does not count yet: got %v, want %v and its start", err, broker.ErrSignatureRequired)
	}
	for name, v := range map[string]broker.Vote{
		"without a comment": {Digest: r.Digest}, "with another digest": {Comment: "it burned"}, "with a ttl": {Digest: r.Digest, Comment: "it burned", TTL: time.Minute},
	} {
		if _, err := w.broker.PrepareReview(t.Context(), broker.Self(approver("ben", later), later), r.ID, v); err == nil {
			t.Errorf("preparing a verdict %s: got no error", name)
		}
	}
	prepare := func(name string, v broker.Vote) *broker.Signing {
		s, err := w.broker.PrepareReview(t.Context(), broker.Self(approver(name, later), later), r.ID, v)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	good := broker.Vote{Approve: true, Digest: r.Digest, Comment: "it burned"}
	s := prepare("ben", good)
	good.Salt, good.Signature = s.Salt, signedBy(t, bens, s)

	approval := audit.ApprovalFacts{Decision: "justified", Digest: r.Digest, Comment: audit.Opening{Salt: s.Salt, Text: good.Comment}.Commitment()}
	asApproval := broker.Signing{Nonce: s.Nonce, Challenge: approval.Challenge("login/ben", r.ID.String(), s.Nonce)}

	// The signature covers every part of the verdict.
	for name, change := range map[string]func(*broker.Vote){
		"with another comment":                   func(v *broker.Vote) { v.Comment = "it smoked" },
		"reversed":                               func(v *broker.Vote) { v.Approve = false },
		"with another salt":                      func(v *broker.Vote) { v.Salt[0] ^= 1 },
		"with another nonce":                     func(v *broker.Vote) { v.Signature.Nonce[0] ^= 1 },
		"with another person's passkey":          func(v *broker.Vote) { v.Signature.Credential = dans.ID },
		"without user verification":              func(v *broker.Vote) { v.Signature.AuthenticatorData[32] = softkey.Present },
		"as an approval":                         func(v *broker.Vote) { v.Signature = signedBy(t, bens, &asApproval) },
		"with a passkey that does not count yet": func(v *broker.Vote) { v.Signature = signedBy(t, bensNew, s) },
	} {
		bad, signature := good, *good.Signature
		signature.AuthenticatorData = slices.Clone(signature.AuthenticatorData)
		bad.Signature = &signature
		change(&bad)
		if err := review("ben", bad); !errors.Is(err, broker.ErrSignatureRequired) {
			t.Errorf("%s: got %v, want %v", name, err, broker.ErrSignatureRequired)
		}
	}
	if err := review("dan", good); !errors.Is(err, broker.ErrSignatureRequired) {
		t.Errorf("another person's signature: got %v, want %v", err, broker.ErrSignatureRequired)
	}
	if err := review("ben", good); err != nil {
		t.Fatal(err)
	}
	if err := review("ben", good); !errors.Is(err, broker.ErrAlreadyVoted) {
		t.Errorf("reviewing twice: got %v, want %v", err, broker.ErrAlreadyVoted)
	}
	closing := broker.Vote{Digest: r.Digest, Comment: "it only smoked"}
	s = prepare("dan", closing)
	closing.Salt, closing.Signature = s.Salt, signedBy(t, dans, s)
	closed, err := w.broker.Review(t.Context(), broker.Self(approver("dan", later), later), r.ID, closing)
	if err != nil || closed.Reviewed.IsZero() || !closed.Verdicts[0].Signed || !closed.Verdicts[1].Signed {
		t.Fatalf("last verdict: got %+v, %v, want a closed review", closed, err)
	}

	again, _, err := w.broker.AskAndCollect(t.Context(), broker.Self(agent(later), later), breakGlass("tickets:read"), broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	good.Digest = again.Request.Digest
	if _, err := w.broker.Review(t.Context(), broker.Self(approver("ben", later), later), again.Request.ID, good); !errors.Is(err, broker.ErrSignatureRequired) {
		t.Errorf("replayed signature: got %v, want %v", err, broker.ErrSignatureRequired)
	}
	w.auditsReview(t, map[string]*softkey.Key{"login/ben": bens, "login/dan": dans})
}

// auditsReview verifies the log as an auditor who has pinned all these passkeys, and
// as one who lacks one of them.
func (w *world) auditsReview(t *testing.T, keys map[string]*softkey.Key) {
	t.Helper()
	var pins []verify.Approver
	for person, key := range keys {
		public, err := key.Public()
		if err != nil {
			t.Fatal(err)
		}
		pins = append(pins, verify.Approver{Person: person, RP: rp, Credential: key.ID, Public: public})
	}
	if report, err := verify.Verify(t.Context(), w.store.Source(), verify.Options{Approvers: pins}); err != nil || report.Signatures != int64(len(keys)) || !report.KeysPinned {
		t.Errorf("log: got %+v, %v, want %d signatures by pinned passkeys", report, err, len(keys))
	}
	if _, err := verify.Verify(t.Context(), w.store.Source(), verify.Options{Approvers: pins[1:]}); err == nil || !strings.Contains(err.Error(), "not among the approvers you gave") {
		t.Errorf("log, without one reviewer's passkey: got %v, want an unknown approver", err)
	}
	for _, r := range w.records(t) {
		if r.Kind == audit.ReviewClosed && (r.Signature == nil || r.Approval.Decision != "unjustified") {
			t.Errorf("record of the last verdict: got %+v, want it signed and unjustified", r)
		}
	}
}

// A first credential that is collected while a review is written stays the first:
// later ones end with the grant.
func TestReviewKeepsTheFirstCollection(t *testing.T) {
	var before func()
	w := hookedWorld(t, `@approval("1 of support")`, &before)
	ask := breakGlass("tickets:read")
	ask.Justification = "the till is on fire"
	r := w.ask(t, ask)
	before = func() {
		if _, err := w.broker.Collect(t.Context(), broker.Self(agent(noon), noon), r.ID, broker.IdempotencyKey{}); err != nil {
			t.Error(err)
		}
	}
	verdict := broker.Vote{Approve: true, Digest: r.Digest, Comment: "it was"}
	if _, err := w.broker.Review(t.Context(), broker.Self(approver("dan", noon), noon), r.ID, verdict); err != nil {
		t.Fatal(err)
	}
	stored, err := w.broker.Request(t.Context(), broker.Self(agent(noon), noon), r.ID)
	if err != nil {
		t.Fatal(err)
	}
	if want := noon.Add(10 * time.Minute); !stored.FirstExpires.Equal(want) || len(stored.Verdicts) != 1 {
		t.Errorf("got first expiry %s and %d verdicts, want %s and 1", stored.FirstExpires, len(stored.Verdicts), want)
	}
}
