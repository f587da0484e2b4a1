package supplier_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/supplier"
	"accessbroker.internal/internal/softkey"
)

const days = 24 * time.Hour

// assessing is a valid assessment of acme-data.
func (w *world) assessing(tier broker.Tier, until time.Time) supplier.Assessing {
	return supplier.Assessing{
		Supplier: "acme-data", Digest: w.broker.Rules().Suppliers.Named("acme-data").Digest, Tier: tier, ValidUntil: until,
		Evidence: "https://docs.acme.test/acme-data.pdf", Answers: []string{"Frankfurt", "two people"},
	}
}

func (w *world) assess(t *testing.T, who string, tier broker.Tier, until, now time.Time) *broker.Assessment {
	t.Helper()
	a, err := w.suppliers.Assess(t.Context(), by(who, now), w.assessing(tier, until))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (w *world) request(t *testing.T, id broker.RequestID) (r *broker.Request) {
	t.Helper()
	err := w.store.View(t.Context(), func(tx broker.Tx) (err error) {
		r, err = broker.Get[*broker.Request](tx, id)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A request waits for the assessment before anything is provisioned. One assessment serves
// later requests too, until it ends or is too old.
func TestRequestWaitsForTheAssessment(t *testing.T) {
	w := newWorld(t, files{})
	issued, r, err := w.get(job(noon), "db", 0, noon)
	if err != nil || issued != nil || r.State(noon) != broker.RequestPending || !r.Awaits {
		t.Fatalf("got %+v, %+v, %v, want a request that waits", issued, r, err)
	}
	if _, again, err := w.get(job(noon), "db", 0, noon); err != nil || again.ID != r.ID {
		t.Errorf("an identical request: got %v, %v, want %v", again, err, r.ID)
	}
	if len(w.upstream.live) != 0 {
		t.Error("something was provisioned")
	}
	if got := w.announced(t, "hook:security"); got != 1 {
		t.Errorf("the assessors got %d notices, want 1", got)
	}
	if want := noon.Add(7 * days); !r.Lapses.Equal(want) {
		t.Errorf("it lapses at %v, want %v", r.Lapses, want)
	}
	list, err := w.suppliers.List(t.Context(), by("login/ben", noon))
	if err != nil || len(list) != 1 || list[0].Waiting != 1 || !list[0].MayAssess || list[0].Assessed(noon) {
		t.Errorf("got %+v, %v", list, err)
	}
	later := noon.Add(time.Hour)
	a := w.assess(t, "login/ben", broker.TierMedium, noon.Add(20*days), later)
	if got := w.request(t, r.ID); got.State(later) != broker.RequestApproved || got.Awaits {
		t.Errorf("got %+v, want an approved request", got)
	}
	first, err := w.broker.Collect(t.Context(), broker.Self(job(later), later), r.ID, broker.IdempotencyKey{})
	if err != nil {
		t.Fatal(err)
	}
	if first.Lease.Holder != job(noon).ID {
		t.Errorf("got %+v", first.Lease)
	}
	issued, r, err = w.get(job(a.ValidUntil), "db", 23*time.Hour, a.ValidUntil.Add(-time.Hour))
	if err != nil || issued == nil || !issued.Lease.Expires.Equal(a.ValidUntil) {
		t.Fatalf("a later request: got %+v, %v, want a credential until %v", issued, err, a.ValidUntil)
	}
	// At its end, exactly.
	if _, err := w.broker.Collect(t.Context(), broker.Self(job(a.ValidUntil), a.ValidUntil), r.ID, broker.IdempotencyKey{}); err == nil {
		t.Error("collected at the end of the assessment")
	}
	w.end(t, a.ValidUntil)
	if n := w.upstream.working(a.ValidUntil.Add(-time.Millisecond)); n != 0 {
		t.Errorf("%d credentials work after the end of the assessment", n)
	}
	if _, r, err := w.get(job(a.ValidUntil), "db", 0, a.ValidUntil); err != nil || !r.Awaits {
		t.Errorf("after the end of the assessment: got %+v, %v, want a request that waits", r, err)
	}
	if _, _, err := w.get(job(a.ValidUntil), "tickets", 0, a.ValidUntil); err != nil {
		t.Errorf("a permit that demands no assessment: %v", err)
	}
}

// announced returns the number of notices on a channel.
func (w *world) announced(t *testing.T, channel string) (n int) {
	t.Helper()
	err := w.store.View(t.Context(), func(tx broker.Tx) error {
		list, err := tx.Notices(broker.NoticeQuery{Channel: channel, Now: ends.AddDate(1, 0, 0), Limit: 100})
		for _, notice := range list {
			if notice.Event == broker.NoticeAssessment {
				n++
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Policy allows an age of 30 days, however long the assessment is valid.
func TestAssessmentIsTooOld(t *testing.T) {
	w := newWorld(t, files{suppliers: strings.Replace(suppliersFile, "2026-10-31", "2027-10-31", 1)})
	w.assess(t, "login/ben", broker.TierLow, noon.Add(300*days), noon)
	old := noon.Add(30 * days)
	issued, _, err := w.get(job(old), "db", 20*time.Hour, old.Add(-time.Hour))
	if err != nil || issued == nil || !issued.Lease.Expires.Equal(old) {
		t.Fatalf("got %+v, %v, want a credential until %v", issued, err, old)
	}
	if _, r, err := w.get(job(old), "db", 0, old); err != nil || !r.Awaits {
		t.Errorf("at 30 days: got %+v, %v, want a request that waits", r, err)
	}
}

func TestRiskIsTooHigh(t *testing.T) {
	w := newWorld(t, files{})
	_, waits, err := w.get(job(noon), "db", 0, noon)
	if err != nil || !waits.Awaits {
		t.Fatalf("got %+v, %v", waits, err)
	}
	w.assess(t, "login/ben", broker.TierHigh, noon.Add(20*days), noon)
	if r := w.request(t, waits.ID); r.State(noon) != broker.RequestDenied {
		t.Errorf("a request that waited: got %+v, want a denial", r)
	}
	if _, _, err := w.get(job(noon), "db", 0, noon); !errors.Is(err, broker.ErrNotAssessed) {
		t.Errorf("a new request: got %v, want %v", err, broker.ErrNotAssessed)
	}
	// A better assessment lets requests through; a worse one ends what they got.
	w.assess(t, "login/dan", broker.TierLow, noon.Add(20*days), noon)
	issued, _, err := w.get(job(noon), "db", 0, noon)
	if err != nil || issued == nil {
		t.Fatalf("after a better assessment: %+v, %v", issued, err)
	}
	if _, _, err := w.get(job(noon), "tickets", 0, noon); err != nil {
		t.Fatal(err)
	}
	w.assess(t, "login/ben", broker.TierCritical, noon.Add(20*days), noon)
	w.end(t, noon)
	if n := w.upstream.working(noon); n != 1 {
		t.Errorf("%d credentials work, want only the one that demands no assessment", n)
	}
	if _, err := w.broker.Collect(t.Context(), broker.Self(job(noon), noon), issued.Lease.Request, broker.IdempotencyKey{}); !errors.Is(err, broker.ErrFactEnded) && !errors.Is(err, broker.ErrNotAssessed) {
		t.Errorf("a collection after the worse assessment: %v", err)
	}
}

// A request with approvals waits for both, in any order.
func TestAssessmentAndApproval(t *testing.T) {
	both := cedar + `@id("both") @approval("1 of security") permit (principal in Supplier::"acme-data", action == Action::"request", resource == Entitlement::"db");`
	labels := []broker.WorkloadLabels{{Under: "spiffe://supplier.test", Kind: broker.KindWorkload, Accountable: []string{"login/ana"}}}
	for name, order := range map[string][]string{"approval first": {"approve", "assess"}, "assessment first": {"assess", "approve"}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, files{cedar: both, labels: labels})
			_, r, err := w.get(job(noon), "db", 0, noon)
			if err != nil || !r.Awaits {
				t.Fatalf("got %+v, %v", r, err)
			}
			for i, step := range order {
				if got := w.request(t, r.ID).State(noon); got != broker.RequestPending {
					t.Fatalf("before step %d: got state %v, want pending", i+1, got)
				}
				if step == "assess" {
					w.assess(t, "login/ben", broker.TierLow, noon.Add(20*days), noon)
				} else if _, err := w.broker.Vote(t.Context(), by("login/dan", noon), r.ID, broker.Vote{Approve: true, Digest: r.Digest}); err != nil {
					t.Fatal(err)
				}
			}
			if got := w.request(t, r.ID).State(noon); got != broker.RequestApproved {
				t.Errorf("got state %v, want approved", got)
			}
			if _, err := w.broker.Collect(t.Context(), broker.Self(job(noon), noon), r.ID, broker.IdempotencyKey{}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhoMayAssess(t *testing.T) {
	labels := []broker.WorkloadLabels{{Under: "spiffe://supplier.test/sync", Kind: broker.KindWorkload, Accountable: []string{"login/dan"}}}
	w := newWorld(t, files{labels: labels, suppliers: strings.Replace(suppliersFile, "sponsor: procurement", "sponsor: login/ben", 1)})
	for who, want := range map[string]error{
		"login/ana": broker.ErrNotApprover, // not in the group
		"login/ben": broker.ErrOwnRequest,  // the sponsor
		"login/dan": broker.ErrOwnRequest,  // accountable for a workload of the supplier
		"acme/kim":  broker.ErrNotApprover, // of the supplier
	} {
		if _, err := w.suppliers.Assess(t.Context(), by(who, noon), w.assessing(broker.TierLow, noon.Add(days))); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", who, err, want)
		}
	}
	if _, err := w.suppliers.Assess(t.Context(), broker.Self(agent(noon), noon), w.assessing(broker.TierLow, noon.Add(days))); !errors.Is(err, broker.ErrSessionRequired) {
		t.Errorf("an agent: %v", err)
	}
	// With both of the group in conflict, no request can wait for an assessment.
	if _, _, err := w.get(job(noon), "db", 0, noon); !errors.Is(err, broker.ErrNobodyCanApprove) {
		t.Errorf("a request that no one can assess: %v", err)
	}
	if list, err := w.suppliers.List(t.Context(), by("login/eve", noon)); err != nil || len(list) != 0 {
		t.Errorf("a stranger sees %v, %v", list, err)
	}
	if _, err := w.suppliers.Get(t.Context(), by("acme/kim", noon), "acme-data"); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a person of the supplier reads its assessment: %v", err)
	}
}

func TestAssessmentForms(t *testing.T) {
	w := newWorld(t, files{})
	for name, test := range map[string]struct {
		change func(*supplier.Assessing)
		want   error
	}{
		"another supplier":         {func(in *supplier.Assessing) { in.Supplier = "acme" }, broker.ErrNotFound},
		"another digest":           {func(in *supplier.Assessing) { in.Digest[0]++ }, broker.ErrStaleDigest},
		"no risk":                  {func(in *supplier.Assessing) { in.Tier = 0 }, broker.ErrInvalidRequest},
		"an unknown risk":          {func(in *supplier.Assessing) { in.Tier = 9 }, broker.ErrInvalidRequest},
		"valid until now":          {func(in *supplier.Assessing) { in.ValidUntil = noon }, broker.ErrInvalidTTL},
		"valid for ever":           {func(in *supplier.Assessing) { in.ValidUntil = noon.AddDate(4, 0, 0) }, broker.ErrInvalidTTL},
		"no evidence":              {func(in *supplier.Assessing) { in.Evidence = "" }, broker.ErrInvalidRequest},
		"evidence by a script":     {func(in *supplier.Assessing) { in.Evidence = "javascript:alert(1)" }, broker.ErrInvalidRequest},
		"plain http":               {func(in *supplier.Assessing) { in.Evidence = "http://docs.acme.test/a.pdf" }, broker.ErrInvalidRequest},
		"a password in the link":   {func(in *supplier.Assessing) { in.Evidence = "https://a:b@docs.acme.test/" }, broker.ErrInvalidRequest},
		"a short hash":             {func(in *supplier.Assessing) { in.Evidence = "sha256:abcd" }, broker.ErrInvalidRequest},
		"an answer too few":        {func(in *supplier.Assessing) { in.Answers = in.Answers[:1] }, broker.ErrInvalidRequest},
		"an empty answer":          {func(in *supplier.Assessing) { in.Answers[1] = " " }, broker.ErrInvalidRequest},
		"an answer that is long":   {func(in *supplier.Assessing) { in.Answers[1] = strings.Repeat("x", 2001) }, broker.ErrInvalidRequest},
		"a terminal's controls":    {func(in *supplier.Assessing) { in.Answers[1] = "a\x1b[2Jb" }, broker.ErrInvalidRequest},
		"text in another order":    {func(in *supplier.Assessing) { in.Answers[1] = "a\u202eb" }, broker.ErrInvalidRequest},
		"evidence of two lines":    {func(in *supplier.Assessing) { in.Evidence = "https://docs.acme.test/\na" }, broker.ErrInvalidRequest},
		"a signature of no key":    {func(in *supplier.Assessing) { in.Signature = &audit.SignatureFacts{Credential: []byte{1}} }, broker.ErrSignatureRequired},
		"a hash instead of a link": {func(in *supplier.Assessing) { in.Evidence = "sha256:" + strings.Repeat("ab", sha256.Size) }, nil},
	} {
		in := w.assessing(broker.TierLow, noon.Add(days))
		test.change(&in)
		if _, err := w.suppliers.Assess(t.Context(), by("login/ben", noon), in); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
	}
	signed := newWorld(t, files{suppliers: strings.Replace(suppliersFile, "by: security", "by: security\n    signed: required", 1)})
	if _, err := signed.suppliers.Assess(t.Context(), by("login/ben", noon), signed.assessing(broker.TierLow, noon.Add(days))); !errors.Is(err, broker.ErrSignatureRequired) {
		t.Errorf("unsigned: %v", err)
	}
}

// lossy fails one Update, or loses its answer.
type lossy struct {
	broker.Store
	at, step int
	persist  bool
}

var errLost = errors.New("the answer is lost")

func (s *lossy) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	if s.step++; s.at == 0 || s.step != s.at {
		return s.Store.Update(ctx, reads, f)
	}
	if s.persist {
		_ = s.Store.Update(ctx, reads, f)
	}
	return errLost
}

// An assessment that was interrupted at any step takes effect after a restart.
func TestInterruptedAssessmentGoesOn(t *testing.T) {
	struck := 0
	for at := 1; at <= 5; at++ {
		for _, persist := range []bool{false, true} {
			s := &lossy{persist: persist}
			w := newWorld(t, files{}, func(inner broker.Store) broker.Store { s.Store = inner; return s })
			_, r, err := w.get(job(noon), "db", 0, noon)
			if err != nil {
				t.Fatal(err)
			}
			s.step, s.at = 0, at
			_, err = w.suppliers.Assess(t.Context(), by("login/ben", noon), w.assessing(broker.TierLow, noon.Add(20*days)))
			recorded := err == nil || persist
			if s.step >= at {
				struck++
			}
			s.at = 0
			w.restart(t)
			if err := w.suppliers.Pass(t.Context(), noon); err != nil {
				t.Fatal(err)
			}
			want := broker.RequestPending
			if recorded {
				want = broker.RequestApproved
			}
			if got := w.request(t, r.ID).State(noon); got != want {
				t.Errorf("step %d, persisted %v: got state %v, want %v", at, persist, got, want)
			}
		}
	}
	if struck < 8 {
		t.Errorf("only %d steps were struck", struck)
	}
}

func TestBreakGlassDoesNotWait(t *testing.T) {
	w := newWorld(t, files{cedar: cedar + `@id("glass") @break_glass("security") @supplier("max_risk=low") permit (principal in Supplier::"acme-data", action == Action::"request", resource == Entitlement::"db");`})
	_, err := w.broker.Ask(t.Context(), broker.Self(job(noon), noon), broker.Ask{Entitlement: "db", BreakGlass: true}, broker.IdempotencyKey{})
	if !errors.Is(err, broker.ErrNotAssessed) {
		t.Errorf("got %v, want %v", err, broker.ErrNotAssessed)
	}
}

// A permit that demands an assessment gives nothing to someone without a supplier.
func TestAssessmentNeedsASupplier(t *testing.T) {
	w := newWorld(t, files{cedar: `@id("all") @supplier("max_risk=low") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource);`})
	if _, _, err := w.get(agent(noon), "db", 0, noon); !errors.Is(err, broker.ErrNotAssessed) {
		t.Errorf("got %v, want %v", err, broker.ErrNotAssessed)
	}
}

// A store that calls a function after an update.
type followed struct {
	broker.Store
	after func()
}

func (s *followed) Update(ctx context.Context, reads []broker.Key, f func(broker.Tx) error) error {
	err := s.Store.Update(ctx, reads, f)
	if after := s.after; err == nil && after != nil {
		s.after = nil
		after()
	}
	return err
}

// A later assessment overtakes an earlier one between its record and its effect: the later
// one decides.
func TestLaterAssessmentDecides(t *testing.T) {
	s := &followed{}
	w := newWorld(t, files{}, func(inner broker.Store) broker.Store { s.Store = inner; return s })
	_, r, err := w.get(job(noon), "db", 0, noon)
	if err != nil {
		t.Fatal(err)
	}
	s.after = func() { w.assess(t, "login/dan", broker.TierCritical, noon.Add(20*days), noon.Add(time.Second)) }
	w.assess(t, "login/ben", broker.TierLow, noon.Add(20*days), noon)
	standing, err := w.broker.Facts.Standing(t.Context(), broker.AssessedKey("acme-data"))
	if err != nil {
		t.Fatal(err)
	}
	if risk := standing.Find(broker.AssessmentSource).Details[broker.DetailRisk]; risk != "critical" {
		t.Errorf("got a risk of %q, want that of the later assessment", risk)
	}
	if got := w.request(t, r.ID).State(noon.Add(time.Second)); got == broker.RequestApproved {
		t.Error("the request that waited was approved by the assessment that no longer counts")
	}
}

// A signed assessment counts with the signature of exactly what was assessed, and its record
// shows the signature.
func TestSignedAssessment(t *testing.T) {
	w := newWorld(t, files{suppliers: strings.Replace(suppliersFile, "by: security", "by: security\n    signed: required", 1)})
	key, err := softkey.New("broker.test", "https://broker.test")
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.Public()
	if err != nil {
		t.Fatal(err)
	}
	ben := broker.PersonKey("login/ben")
	err = w.store.Update(t.Context(), []broker.Key{ben}, func(tx broker.Tx) error {
		tx.Put(&broker.Account{Person: ben, Passkeys: []broker.Passkey{{ID: key.ID, Public: public, RP: "broker.test", Enrolled: noon.Add(-2 * days), Counts: noon.Add(-days)}}})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	w.approvers = []verify.Approver{{Person: "login/ben", RP: "broker.test", Credential: key.ID, Public: public}}
	in := w.assessing(broker.TierLow, noon.Add(days))
	signing, err := w.suppliers.PrepareAssess(t.Context(), by("login/ben", noon), in)
	if err != nil || len(signing.Credentials) != 1 {
		t.Fatalf("preparing: %+v, %v", signing, err)
	}
	data, client, signature, err := key.Sign(signing.Challenge[:])
	if err != nil {
		t.Fatal(err)
	}
	in.Salt, in.Signature = signing.Salt, &audit.SignatureFacts{AuthenticatorData: data, ClientData: client, Credential: key.ID, Nonce: signing.Nonce, Signature: signature}
	for name, change := range map[string]func(*supplier.Assessing){
		"a lower risk":    func(in *supplier.Assessing) { in.Tier = broker.TierHigh },
		"another end":     func(in *supplier.Assessing) { in.ValidUntil = noon.Add(2 * days) },
		"another answer":  func(in *supplier.Assessing) { in.Answers = []string{"Paris", in.Answers[1]} },
		"other evidence":  func(in *supplier.Assessing) { in.Evidence = "https://docs.acme.test/other.pdf" },
		"another salt":    func(in *supplier.Assessing) { in.Salt[0] ^= 1 },
		"another nonce":   func(in *supplier.Assessing) { s := *in.Signature; s.Nonce[0] ^= 1; in.Signature = &s },
		"another account": nil,
	} {
		bad, who := in, "login/ben"
		if change != nil {
			change(&bad)
		} else {
			who = "login/dan"
		}
		if _, err := w.suppliers.Assess(t.Context(), by(who, noon), bad); !errors.Is(err, broker.ErrSignatureRequired) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	a, err := w.suppliers.Assess(t.Context(), by("login/ben", noon), in)
	if err != nil || !a.Signed {
		t.Fatalf("signed: %+v, %v", a, err)
	}
	signed := 0
	for i := range w.store.Head().Size {
		item, err := w.store.Record(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := audit.Decode(item.Leaf); err == nil && r.Kind == audit.SupplierAssessed && r.Signature != nil {
			signed++
		}
	}
	if signed != 1 {
		t.Errorf("%d records of signed assessments", signed)
	}
}
