package supplier

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Bounds of an assessment. Lengths are in bytes.
const (
	MaxAnswer   = 2000
	MaxEvidence = 1000

	maxAnswers = 24 << 10                 // of all together
	maxValid   = 3 * 366 * 24 * time.Hour // of an assessment
)

// An Assessing is the input of an assessment.
type Assessing struct {
	Supplier   string
	Digest     audit.Digest // of the supplier as the person saw it
	Tier       broker.Tier
	ValidUntil time.Time
	Evidence   string   // an https link, or "sha256:" and 64 hexadecimal digits
	Answers    []string // in the order of the supplier's questions

	Signature *audit.SignatureFacts // of the challenge that PrepareAssess returned; nil: unsigned
	Salt      [16]byte              // of the answers, from PrepareAssess
}

// checkAssessor refuses a person who may not assess the supplier.
func (m *Manager) checkAssessor(caller broker.Caller, rules *broker.Rules, s *broker.Supplier) error {
	if s.Assessors == "" {
		return refuse(broker.ErrNotApprover, "no group assesses this supplier: set assessment.by in suppliers.yaml")
	}
	member, err := m.cfg.Broker.Facts.IsMember(caller, rules, s.Assessors)
	switch {
	case err != nil:
		return err
	case !member:
		return refuse(broker.ErrNotApprover, "you are not in the group that assesses this supplier")
	case rules.MayNotAssess(s, caller.Subject):
		return refuse(broker.ErrOwnRequest, "you may not assess a supplier that you belong to, sponsor, or whose workloads you are accountable for")
	}
	return nil
}

// check returns an error unless the input is complete and within bounds.
func (in *Assessing) check(s *broker.Supplier, now time.Time) error {
	switch {
	case in.Digest != s.Digest:
		return refuse(broker.ErrStaleDigest, "suppliers.yaml has changed since you read it: read it again")
	case in.Tier < broker.TierLow || in.Tier > broker.TierCritical:
		return refuse(broker.ErrInvalidRequest, "choose a risk: low, medium, high or critical")
	case !in.ValidUntil.After(now) || in.ValidUntil.Sub(now) > maxValid || in.ValidUntil.Nanosecond() != 0:
		return refuse(broker.ErrInvalidTTL, "valid_until must be a time in whole seconds, after now and within three years")
	case len(in.Answers) != len(s.Questions):
		return refuse(broker.ErrInvalidRequest, fmt.Sprintf("answer each of the %d questions", len(s.Questions)))
	}
	size := 0
	for i, answer := range in.Answers {
		if size += len(answer); strings.TrimSpace(answer) == "" || len(answer) > MaxAnswer || size > maxAnswers {
			return refuse(broker.ErrInvalidRequest, fmt.Sprintf("question %d needs an answer of at most %d bytes, and all answers together at most %d", i+1, MaxAnswer, maxAnswers))
		}
		if err := broker.CheckText(broker.ErrInvalidRequest, "an answer", answer, MaxAnswer); err != nil {
			return err
		}
	}
	return checkEvidence(in.Evidence)
}

// checkEvidence returns an error unless the text is a link or a hash.
func checkEvidence(text string) error {
	const advice = "evidence is an https link to the documents, or sha256: and the 64 hexadecimal digits of their hash"
	if err := broker.CheckLine(broker.ErrInvalidRequest, "evidence", text, MaxEvidence); err != nil {
		return err
	}
	if digits, ok := strings.CutPrefix(text, "sha256:"); ok {
		if sum, err := hex.DecodeString(digits); err != nil || len(sum) != len(audit.Digest{}) {
			return refuse(broker.ErrInvalidRequest, advice)
		}
		return nil
	}
	if u, err := url.Parse(text); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return refuse(broker.ErrInvalidRequest, advice)
	}
	return nil
}

// salt returns the salt of the answers: the signed one, or a new one.
func (in *Assessing) salt() [16]byte {
	if in.Salt == [16]byte{} {
		return audit.NewSalt()
	}
	return in.Salt
}

// assessment returns the row of the input.
func (in *Assessing) assessment(caller broker.Caller, s *broker.Supplier) *broker.Assessment {
	salt := in.salt()
	return &broker.Assessment{
		Supplier: broker.AssessmentKey(s.Name), ID: broker.NewAssessmentID(caller.At), By: caller.Subject.ID, At: caller.At,
		Tier: in.Tier, ValidUntil: in.ValidUntil.UTC(), Evidence: in.Evidence, Record: s.Digest, Questions: s.Questions, Answers: in.Answers,
		Salts: map[string][16]byte{"answers": salt, "evidence": salt}, Signed: in.Signature != nil, Settling: true,
	}
}

// openings returns the texts that the record commits to.
func openings(a *broker.Assessment) (map[string]audit.Opening, error) {
	type answer struct {
		Question string `json:"question"`
		Answer   string `json:"answer"`
	}
	list := []answer{}
	for i, q := range a.Questions {
		list = append(list, answer{q, a.Answers[i]})
	}
	text, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	return map[string]audit.Opening{
		"answers":  {Salt: a.Salts["answers"], Text: string(text)},
		"evidence": {Salt: a.Salts["evidence"], Text: a.Evidence},
	}, nil
}

// facts returns the assessment as records show it. The ID is not signed.
func facts(a *broker.Assessment, opened map[string]audit.Opening) *audit.SupplierFacts {
	return &audit.SupplierFacts{
		Name: string(a.Supplier), ID: a.ID, Digest: a.Record, Risk: a.Tier.String(), Until: a.ValidUntil,
		Answers: opened["answers"].Commitment(), Evidence: opened["evidence"].Commitment(),
	}
}

// prepared is an assessment that is not recorded yet.
type prepared struct {
	caller broker.Caller
	ground *broker.Ground
	row    *broker.Assessment
	facts  *audit.SupplierFacts
	opened map[string]audit.Opening
}

// prepare checks an assessment.
func (m *Manager) prepare(ctx context.Context, caller broker.Caller, in Assessing) (*prepared, error) {
	if err := caller.RequireSession(); err != nil {
		return nil, err
	}
	ground, err := m.cfg.Broker.Facts.Ground(ctx, &caller)
	if err != nil {
		return nil, err
	}
	s := ground.Rules.Suppliers.Named(in.Supplier)
	if s == nil {
		return nil, errNoSupplier
	}
	if err := m.checkAssessor(caller, ground.Rules, s); err != nil {
		return nil, err
	}
	if err := in.check(s, caller.At); err != nil {
		return nil, err
	}
	p := &prepared{caller: caller, ground: ground, row: in.assessment(caller, s)}
	if p.opened, err = openings(p.row); err != nil {
		return nil, err
	}
	p.facts = facts(p.row, p.opened)
	return p, nil
}

// PrepareAssess returns the challenge that a person's passkey signs for an assessment. It
// refuses everything that Assess would refuse.
func (m *Manager) PrepareAssess(ctx context.Context, caller broker.Caller, in Assessing) (signing *broker.Signing, err error) {
	in.Salt, in.Signature = audit.NewSalt(), nil
	p, err := m.prepare(ctx, caller, in)
	if err != nil {
		return nil, err
	}
	var account *broker.Account
	err = m.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		account, err = broker.AccountOf(tx, broker.PersonKey(caller.Subject.ID))
		return err
	})
	if err != nil {
		return nil, broker.Unavailable(err)
	}
	signing = &broker.Signing{Nonce: broker.NewNonce(), Salt: in.Salt}
	signing.Challenge = p.facts.AssessmentChallenge(caller.Subject.ID, signing.Nonce)
	signing.Credentials, err = account.Signable(caller.At)
	return signing, err
}

// Assess records a person's assessment of a supplier (POST /v1/assessments). It replaces
// the assessment before. Requests that waited for it continue, and access that policy does not
// allow with its risk ends.
func (m *Manager) Assess(ctx context.Context, caller broker.Caller, in Assessing) (a *broker.Assessment, err error) {
	err = m.cfg.Broker.Facts.Retry(func() (err error) {
		a, err = m.assessOnce(ctx, caller, in)
		return err
	})
	if err != nil {
		return nil, err
	}
	// The assessment is durable. If this fails, Run goes on.
	if err := m.settle(ctx, a.Supplier, caller.At); err != nil {
		m.cfg.Log.ErrorContext(ctx, "settling the requests that an assessment concerns", "supplier", a.Supplier, "err", err)
	}
	return a, nil
}

func (m *Manager) assessOnce(ctx context.Context, caller broker.Caller, in Assessing) (*broker.Assessment, error) {
	p, err := m.prepare(ctx, caller, in)
	if err != nil {
		return nil, err
	}
	if s := p.ground.Rules.Suppliers.Named(in.Supplier); s.Signed && in.Signature == nil {
		return nil, refuse(broker.ErrSignatureRequired, "sign with your passkey in the browser: suppliers.yaml requires it")
	}
	record := audit.Record{Kind: audit.SupplierAssessed, Caller: p.caller.Actor.Party(), Supplier: p.facts, Openings: p.opened, Signature: in.Signature}
	person := broker.PersonKey(p.caller.Subject.ID)
	err = m.write(ctx, append(p.ground.Reads(), person, p.row.Supplier), record, func(tx broker.Tx) error {
		if err := p.ground.Check(tx); err != nil {
			return err
		}
		if err := m.verify(tx, p, in.Signature); err != nil {
			return err
		}
		before, err := broker.Get[*broker.Assessment](tx, p.row.Supplier)
		if err != nil && !isNotFound(err) {
			return err
		}
		p.row.Version = 1
		if err == nil {
			p.row.Version, p.row.Notified = before.Version+1, before.Notified
		}
		tx.Put(p.row)
		return nil
	})
	return p.row, err
}

// verify verifies the signature of an assessment, if there is one, where the person's
// passkeys cannot change any more.
func (m *Manager) verify(tx broker.Tx, p *prepared, signature *audit.SignatureFacts) error {
	if signature == nil {
		return nil
	}
	account, err := broker.AccountOf(tx, broker.PersonKey(p.caller.Subject.ID))
	if err != nil {
		return err
	}
	if err := account.Verify(signature, p.facts.AssessmentChallenge(p.caller.Subject.ID, signature.Nonce), p.caller.At); err != nil {
		return err
	}
	tx.Put(account)
	return nil
}

// settle states the fact of the latest assessment of a supplier, and settles what it concerns.
// It may be repeated after an interruption.
func (m *Manager) settle(ctx context.Context, key broker.AssessmentKey, now time.Time) error {
	m.settling.Lock()
	defer m.settling.Unlock()
	a, err := m.assessment(ctx, key)
	for err == nil && a != nil && a.Settling {
		a, err = m.settleOnce(ctx, key, a, now)
	}
	return err
}

// settleOnce settles one assessment. It returns a later one of another process, whose fact it
// may have replaced, as one to settle.
func (m *Manager) settleOnce(ctx context.Context, key broker.AssessmentKey, a *broker.Assessment, now time.Time) (later *broker.Assessment, err error) {
	if now.Before(a.At) { // the call for an earlier assessment settles this one
		now = a.At
	}
	facts, name := m.cfg.Broker.Facts, string(key)
	fact := broker.Fact{
		Source: broker.AssessmentSource, State: broker.FactActive, From: a.At, Until: a.ValidUntil,
		Details: map[string]string{broker.DetailRisk: a.Tier.String(), broker.DetailAssessment: a.ID},
	}
	caller := broker.Caller{At: now}
	if err := facts.Report(ctx, caller, broker.AssessedKey(name), fact); err != nil {
		return nil, err
	}
	if err := facts.SettleAssessed(ctx, caller, name); err != nil {
		return nil, err
	}
	err = m.cfg.Store.Update(ctx, []broker.Key{key}, func(tx broker.Tx) error {
		later = nil
		stored, err := broker.Get[*broker.Assessment](tx, key)
		if err != nil {
			return err
		}
		if stored.Settling = stored.Version != a.Version; stored.Settling {
			later = stored
		}
		tx.Put(stored)
		return nil
	})
	return later, broker.Unavailable(err)
}

// assessment returns the latest assessment of a supplier; nil if there is none.
func (m *Manager) assessment(ctx context.Context, key broker.AssessmentKey) (a *broker.Assessment, err error) {
	err = m.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		a, err = broker.Get[*broker.Assessment](tx, key)
		return err
	})
	if isNotFound(err) {
		return nil, nil
	}
	return a, broker.Unavailable(err)
}
