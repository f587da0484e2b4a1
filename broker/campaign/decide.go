package campaign

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A Decision is the input of a decision on an item.
type Decision struct {
	Verdict broker.ReviewVerdict
	Digest  audit.Digest // of the permission that the person saw
	Left    []string     // of narrow: the parts that remain
	Reason  string

	Signature *audit.SignatureFacts // of the challenge that Prepare returned; nil: unsigned
	Salt      [16]byte              // of the reason, from Prepare
}

// A ballot is a decision that is not recorded yet.
type ballot struct {
	caller     broker.Caller
	ground     *broker.Ground
	campaign   *broker.Campaign
	item       *broker.ReviewItem // as it will be
	before     broker.ReviewStatus
	permission broker.Permission
	signature  *audit.SignatureFacts
	of         int // items that were decided together; zero: only this one
}

// Decide records a decision on an item. A decision that ends or narrows a permission takes
// effect before Decide returns.
func (m *Manager) Decide(ctx context.Context, caller broker.Caller, key broker.ReviewItemKey, d Decision) (item *broker.ReviewItem, err error) {
	err = retry(func() error {
		b, err := m.prepare(ctx, caller, key, d)
		if err != nil {
			return err
		}
		if b.item.Signed && d.Signature == nil { // last, because a signature would not mend another fault
			return refuse(broker.ErrSignatureRequired, "sign with your passkey in the browser: this access review requires it")
		}
		item = b.item
		return m.record(ctx, b)
	})
	if err != nil {
		return nil, err
	}
	return item, m.takeEffect(ctx, caller, item)
}

// takeEffect enforces a decision that is recorded. If it fails, the loop does it.
func (m *Manager) takeEffect(ctx context.Context, caller broker.Caller, i *broker.ReviewItem) error {
	if i.Status != broker.ReviewEnded && i.Status != broker.ReviewNarrowed {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	if i.Permission.Kind != broker.PermissionGrant {
		return m.enforce(ctx, caller.At)
	}
	id, err := broker.ParseRequestID(i.Permission.Name)
	if err != nil {
		return err
	}
	if err = m.cfg.EndGrant(ctx, caller, id, "an access review ended this grant: "+i.Decision.Reason); err != nil {
		m.unended.Store(true)
	}
	return err
}

// enforce puts the recorded suspensions in force.
func (m *Manager) enforce(ctx context.Context, now time.Time) error {
	err := m.cfg.Enforce(ctx, now)
	m.behind.Store(err != nil)
	return err
}

// Prepare returns the challenge that the caller's passkey signs for a decision.
func (m *Manager) Prepare(ctx context.Context, caller broker.Caller, key broker.ReviewItemKey, d Decision) (*broker.Signing, error) {
	d.Salt = audit.NewSalt()
	b, err := m.prepare(ctx, caller, key, d)
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
	s := &broker.Signing{Nonce: broker.NewNonce(), Salt: d.Salt}
	s.Challenge = b.facts().Challenge(caller.Subject.ID, s.Nonce)
	s.Credentials, err = account.Signable(caller.At)
	return s, err
}

// open returns an item that waits for a decision, with its campaign.
func (m *Manager) open(ctx context.Context, key broker.ReviewItemKey, now time.Time) (*broker.Campaign, *broker.ReviewItem, error) {
	c, err := get[*broker.Campaign](ctx, m, key.Campaign)
	if err != nil {
		return nil, nil, err
	}
	if key.Number < 1 || key.Number > c.Counts.Items || c.Status == broker.CampaignBuilding || c.Status == broker.CampaignDiscarded {
		return nil, nil, broker.ErrNotFound
	}
	i, err := get[*broker.ReviewItem](ctx, m, key)
	if err != nil {
		return nil, nil, err
	}
	return c, i, waits(c, i, now)
}

// waits refuses a decision on an item that does not wait for one.
func waits(c *broker.Campaign, i *broker.ReviewItem, now time.Time) error {
	switch {
	case i.Status == broker.ReviewGone:
		return refuse(broker.ErrReviewEnded, "the rules no longer have this permission: nothing is left to decide")
	case !i.Status.Waits() && i.Decision.Person != "":
		return refuse(broker.ErrAlreadyVoted, i.Decision.Person+" decided on this item already")
	case c.Status != broker.CampaignOpen || !now.Before(c.Deadline):
		return refuse(broker.ErrReviewEnded, "the access review ended at "+c.Deadline.UTC().Format(time.RFC3339)+": what no one reviewed is disabled, and two people can restore it")
	case !i.Status.Waits():
		return refuse(broker.ErrReviewEnded, "this item is closed")
	}
	return nil
}

// prepare turns a decision into a ballot, or refuses it.
func (m *Manager) prepare(ctx context.Context, caller broker.Caller, key broker.ReviewItemKey, d Decision) (*ballot, error) {
	if err := caller.RequireSession(); err != nil {
		return nil, err
	}
	ground, err := m.cfg.Ground(ctx, &caller)
	if err != nil {
		return nil, err
	}
	c, i, err := m.open(ctx, key, caller.At)
	if err != nil {
		return nil, err
	}
	b, err := m.prepareItem(ctx, caller, m.assigner(ground.Rules, &c.Plan), c, i, d)
	if err == nil {
		b.ground = ground
	}
	return b, err
}

// prepareItem is prepare for an item that was read.
func (m *Manager) prepareItem(ctx context.Context, caller broker.Caller, a *assigner, c *broker.Campaign, i *broker.ReviewItem, d Decision) (*ballot, error) {
	p, err := m.permission(ctx, a.rules, i, d.Digest, caller.At)
	if err != nil {
		return nil, err
	}
	if err := a.authorize(caller, &p); err != nil {
		return nil, err
	}
	if err := checkDecision(&p, &d); err != nil {
		return nil, err
	}
	b := &ballot{caller: caller, campaign: c, item: i, before: i.Status, permission: p, signature: d.Signature}
	i.Digest, i.Signed = d.Digest, c.Plan.Signed || p.Signed
	if i.Status == broker.ReviewSecond {
		i.First = i.Decision
	}
	i.Decision = broker.ReviewDecision{
		Verdict: d.Verdict, Person: caller.Subject.ID, Accounts: caller.Subject.Accounts, Digest: d.Digest, Left: d.Left, Reason: d.Reason,
		Salt: d.Salt, Signed: d.Signature != nil, At: caller.At,
	}
	if d.Salt == [16]byte{} {
		i.Decision.Salt = audit.NewSalt()
	}
	i.Status, i.Closed = statusOf[d.Verdict], caller.At
	return b, nil
}

var statusOf = map[broker.ReviewVerdict]broker.ReviewStatus{
	broker.VerdictKeep: broker.ReviewKept, broker.VerdictNarrow: broker.ReviewNarrowed, broker.VerdictEnd: broker.ReviewEnded,
}

// permission returns the permission of an item if it is what the person saw.
func (m *Manager) permission(ctx context.Context, rules *broker.Rules, i *broker.ReviewItem, seen audit.Digest, now time.Time) (broker.Permission, error) {
	p, ok, err := m.find(ctx, rules, i.Permission, now)
	switch {
	case err != nil:
		return p, err
	case !ok:
		return p, refuse(broker.ErrStaleDigest, "the rules no longer have this permission: read the access review again")
	case p.Digest() != seen:
		return p, refuse(broker.ErrStaleDigest, "this is not what you saw: the rules changed, so read item "+fmt.Sprint(i.Number)+" again")
	}
	return p, nil
}

// authorize refuses callers who may not decide on a permission.
func (a *assigner) authorize(caller broker.Caller, p *broker.Permission) error {
	if a.conflict(caller.Subject, p) {
		return refuse(broker.ErrOwnAccess, "you use this permission, alone or through a group, or you are accountable for a workload that does: another person must decide")
	}
	reviewer, fallback := a.assign(p)
	ok, claimed := a.reviews(caller.Subject, reviewer)
	stale := caller.Subject.Person != nil && caller.Subject.Person.Directory == "" && caller.At.Sub(caller.Subject.Person.Claimed) > broker.ClaimsFor
	switch {
	case stale && claimed && a.rules.Groups[reviewer.Group].Claimed:
		return refuse(broker.ErrLoginStale, "your groups were last confirmed too long ago: log in again")
	case !ok && fallback:
		return refuse(broker.ErrNotReviewer, "the fallback group "+reviewer.Group+" decides on this item, because no other reviewer is eligible")
	case !ok:
		return refuse(broker.ErrNotReviewer, "the "+reviewer.String()+" decides on this item")
	}
	return nil
}

// checkDecision refuses a decision that is not complete.
func checkDecision(p *broker.Permission, d *Decision) error {
	if err := broker.CheckText(broker.ErrInvalidRequest, "reason", d.Reason, broker.MaxComment); err != nil {
		return err
	}
	d.Left = slices.Compact(slices.Sorted(slices.Values(d.Left)))
	switch {
	case statusOf[d.Verdict] == 0:
		return refuse(broker.ErrInvalidRequest, "the decision is keep, narrow or end")
	case strings.TrimSpace(d.Reason) == "":
		return refuse(broker.ErrCommentRequired, "state the reason: every decision of an access review has one")
	case d.Verdict != broker.VerdictNarrow && len(d.Left) > 0:
		return refuse(broker.ErrInvalidRequest, "only narrow names the parts that remain")
	case d.Verdict != broker.VerdictNarrow:
		return nil
	case len(p.Parts) < 2:
		return refuse(broker.ErrInvalidRequest, "this permission has no parts, so it cannot be narrowed: keep it or end it")
	case len(d.Left) == 0 || len(d.Left) >= len(p.Parts):
		return refuse(broker.ErrInvalidRequest, "narrow leaves some parts and removes others: name those that remain, or keep or end the permission")
	}
	for _, part := range d.Left {
		if !slices.Contains(p.Parts, part) {
			return refuse(broker.ErrInvalidRequest, fmt.Sprintf("the permission has no %s %q", p.Part, part))
		}
	}
	return nil
}

// facts returns what the record of a ballot states.
func (b *ballot) facts() *audit.CampaignFacts {
	f, d := itemFacts(b.campaign, b.item), &b.item.Decision
	f.Verdict, f.Left, f.Seed, f.Second = string(d.Verdict), d.Left, d.Seed, b.item.Status == broker.ReviewSecond
	f.Items = int64(b.of)
	f.Reason = audit.Opening{Salt: d.Salt, Text: d.Reason}.Commitment()
	return f
}

// entry returns the record of a ballot.
func (b *ballot) entry() audit.Record {
	d := &b.item.Decision
	return audit.Record{
		Kind: audit.CampaignDecided, Caller: b.caller.Actor.Party(), Campaign: b.facts(), Signature: b.signature,
		Openings: map[string]audit.Opening{"reason": {Salt: d.Salt, Text: d.Reason}},
	}
}

// suspension returns the suspension that a decision or a deadline causes; nil: none. The end
// of a grant is not a suspension.
func suspension(i *broker.ReviewItem, since time.Time) *broker.SuspensionRow {
	cause := map[broker.ReviewStatus]string{
		broker.ReviewEnded: broker.SuspendedEnded, broker.ReviewNarrowed: broker.SuspendedNarrowed, broker.ReviewDisabled: broker.SuspendedUnreviewed,
	}[i.Status]
	if cause == "" || i.Permission.Kind == broker.PermissionGrant {
		return nil
	}
	s := &broker.SuspensionRow{SuspensionKey: broker.SuspensionKey(i.Permission), Cause: cause, Item: i.ReviewItemKey, Since: since}
	if i.Status == broker.ReviewNarrowed {
		s.Left = i.Decision.Left
	}
	return s
}

// suspend puts a suspension, unless it is nil. It never loosens one that is in force: only two
// people do.
func suspend(tx broker.Tx, s *broker.SuspensionRow) error {
	if s == nil {
		return nil
	}
	before, err := broker.Get[*broker.SuspensionRow](tx, s.SuspensionKey)
	switch {
	case ignoreNotFound(err) != nil:
		return err
	case err == nil && before.Lifted.IsZero() && len(before.Left) == 0:
		return nil // all of it is suspended
	case err == nil && before.Lifted.IsZero() && len(s.Left) > 0:
		s.Left = slices.DeleteFunc(slices.Clone(s.Left), func(part string) bool { return !slices.Contains(before.Left, part) })
	}
	tx.Put(s)
	return nil
}

// record writes a ballot with its effect, in one transaction.
func (m *Manager) record(ctx context.Context, b *ballot) error {
	return m.recordAll(ctx, b.caller, b.ground, b.campaign.ID, []*ballot{b})
}

// recordAll writes ballots on items of one campaign. The rules, the person's standing, the
// items and the campaign must be as they were when the ballots were prepared.
func (m *Manager) recordAll(ctx context.Context, caller broker.Caller, ground *broker.Ground, id broker.CampaignID, list []*ballot) error {
	reads := append(ground.Reads(), id, broker.PersonKey(caller.Subject.ID))
	records := make([]audit.Record, len(list))
	for i, b := range list {
		reads, records[i] = append(reads, b.item.ReviewItemKey, broker.SuspensionKey(b.item.Permission)), b.entry()
	}
	return m.write(ctx, reads, records, func(tx broker.Tx) error {
		if ground.Check(tx) != nil {
			return errOvertaken
		}
		c, err := broker.Get[*broker.Campaign](tx, id)
		if err != nil {
			return err
		}
		for _, b := range list {
			if err := b.apply(tx, c); err != nil {
				return err
			}
		}
		tx.Put(c)
		return nil
	})
}

// apply writes one ballot in a transaction.
func (b *ballot) apply(tx broker.Tx, c *broker.Campaign) error {
	stored, err := broker.Get[*broker.ReviewItem](tx, b.item.ReviewItemKey)
	if err != nil {
		return err
	}
	if stored.Status != b.before || c.Status != broker.CampaignOpen {
		return errOvertaken
	}
	if err := b.verify(tx); err != nil {
		return err
	}
	c.Counts.Move(b.before, b.item.Status)
	if err := suspend(tx, suspension(b.item, b.caller.At)); err != nil {
		return err
	}
	tx.Put(b.item)
	return nil
}

// verify verifies the signature of a ballot, if there is one, where the person's passkeys
// cannot change any more.
func (b *ballot) verify(tx broker.Tx) error {
	if b.signature == nil {
		return nil
	}
	account, err := broker.AccountOf(tx, broker.PersonKey(b.caller.Subject.ID))
	if err != nil {
		return err
	}
	if err := account.Verify(b.signature, b.facts().Challenge(b.caller.Subject.ID, b.signature.Nonce), b.caller.At); err != nil {
		return err
	}
	tx.Put(account)
	return nil
}

func ignoreNotFound(err error) error {
	if errors.Is(err, broker.ErrNotFound) {
		return nil
	}
	return err
}
