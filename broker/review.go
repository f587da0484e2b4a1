package broker

import (
	"context"
	"slices"
	"time"

	"accessbroker.internal/audit"
)

// A ReviewKey names the open reviews of an entitlement.
type ReviewKey struct{ Entitlement string }

func (ReviewKey) isKey() {}

// Reviews are the break-glass uses of one entitlement that are not reviewed
// yet.
type Reviews struct {
	ReviewKey
	Open map[string]time.Time // when the review is due, by request id
	By   map[string]string    // the requester, by request id
	For  map[string]string    // on whose behalf, by request id, if not the requester's own
}

// Key returns the row's key.
func (r *Reviews) Key() Key { return r.ReviewKey }

// Bounds of the unreviewed uses of one entitlement: by one requester, so that no
// requester locks others out in an emergency, and by all.
const (
	maxOwnReviews = 10
	maxReviews    = 1000
)

// reviews returns the keys that breakGlass reads.
func (r *Request) reviews() []Key {
	if !r.BreakGlass {
		return nil
	}
	return []Key{ReviewKey{r.Entitlement}}
}

// concerns reports whether an earlier use counts for a requester: its own and, if it acts on
// behalf of another, those by and for that one, through anyone. What agents do on behalf of a
// person never locks the person out.
func (r *Reviews) concerns(id string, request *Request) bool {
	if d := request.Delegation; d != nil && (d.Subject.Is(r.By[id]) || d.Subject.Is(r.For[id])) {
		return true
	}
	return request.Requester.Is(r.By[id])
}

// breakGlass opens the review, in the transaction that files the request. A
// requester with an overdue review is refused.
func (b *Broker) breakGlass(tx Tx, r *Request, now time.Time) error {
	if !r.BreakGlass {
		return nil
	}
	rules := b.rules.Load()
	open, err := reviews(tx, r.Entitlement)
	if err != nil {
		return err
	}
	own := 0
	for id, due := range open.Open {
		if !open.concerns(id, r) {
			continue
		}
		if own++; !now.Before(due) {
			return refuse(ErrReviewOverdue, "your earlier break-glass use is unreviewed: its reviewers must close that review first")
		}
	}
	if own >= maxOwnReviews || len(open.Open) >= maxReviews {
		return refuse(ErrReviewOverdue, "too many break-glass uses of this entitlement are unreviewed: their reviewers must close some first")
	}
	r.ReviewDue = now.Add(r.Decision.Obligations.ReviewWithin)
	open.Open[r.ID.String()], open.By[r.ID.String()] = r.ReviewDue, r.Requester.ID
	if subject := r.subject(); subject != "" {
		open.For[r.ID.String()] = subject
	}
	tx.Put(open)
	b.notify(tx, NoticeBreakGlass, r, r.reviewers(), rules, now)
	b.notifyAt(tx, NoticeOverdue, r, r.reviewers(), rules, r.ReviewDue, now)
	return nil
}

// reviewers returns the groups that review the request.
func (r *Request) reviewers() (names []string) {
	for _, need := range r.Decision.Obligations.Review {
		names = append(names, need.Group)
	}
	return names
}

func reviews(tx Tx, entitlement string) (*Reviews, error) {
	row, err := Get[*Reviews](tx, ReviewKey{entitlement})
	if isNotFound(err) {
		row, err = &Reviews{ReviewKey: ReviewKey{entitlement}}, nil
	}
	if err == nil && row.Open == nil {
		row.Open = map[string]time.Time{}
	}
	if err == nil && row.By == nil {
		row.By = map[string]string{}
	}
	if err == nil && row.For == nil {
		row.For = map[string]string{}
	}
	return row, err
}

// verdict adds a person's verdict, and closes the review with the last one.
func (r *Request) verdict(a Approval, now time.Time) error {
	switch {
	case r.ReviewDue.IsZero() || !r.Reviewed.IsZero():
		return &Refusal{Err: ErrNoReview, Detail: "no review is open for this request", RequestID: r.ID}
	case a.Digest != r.Digest:
		return &Refusal{Err: ErrStaleDigest, Detail: "this is not the request that you saw: read it again", RequestID: r.ID}
	case slices.ContainsFunc(r.Verdicts, func(b Approval) bool { return b.sameVoter(&a) }):
		return &Refusal{Err: ErrAlreadyVoted, Detail: "you have decided already", RequestID: r.ID}
	}
	r.Verdicts = append(slices.Clone(r.Verdicts), a)
	if _, full := assignApprovers(r.Decision.Obligations.Review, asApprovals(r.Verdicts)); full {
		r.Reviewed = now
	}
	r.Version++
	return nil
}

// asApprovals returns the verdicts as approvals, so that each of them counts.
func asApprovals(verdicts []Approval) []Approval {
	voices := slices.Clone(verdicts)
	for i := range voices {
		voices[i].Approve = true
	}
	return voices
}

// ReviewProgress returns the progress of the review by group.
func (r *Request) ReviewProgress() []ApprovalProgress {
	progress, _ := assignApprovers(r.Decision.Obligations.Review, asApprovals(r.Verdicts))
	return progress
}

// Review adds a person's verdict on a break-glass use (POST
// /v1/requests/{id}/review). v.Approve means that the use was justified.
func (b *Broker) Review(ctx context.Context, caller Caller, id RequestID, v Vote) (r *Request, err error) {
	if err := caller.RequireSession(); err != nil {
		return nil, err
	}
	err = b.retry(func() (err error) {
		r, err = b.reviewOnce(ctx, caller, id, v)
		return err
	})
	return r, err
}

func (b *Broker) reviewOnce(ctx context.Context, caller Caller, id RequestID, v Vote) (*Request, error) {
	found, err := b.prepareVerdict(ctx, caller, id, v)
	if err != nil {
		return nil, err
	}
	r := found.request
	found.approval.Signed = v.Signature != nil
	if err := r.verdict(found.approval, caller.At); err != nil {
		return nil, err
	}
	// Every verdict counts towards closing the review, so every verdict is signed.
	if r.Decision.Obligations.Signed && !found.approval.Signed {
		return nil, errUnsigned
	}
	if err := b.recordVerdict(ctx, found); err != nil {
		return nil, err
	}
	b.waiters.changed(id)
	return r, nil
}

// prepareVerdict turns a vote into a verdict that is not recorded yet, or
// refuses it.
func (b *Broker) prepareVerdict(ctx context.Context, caller Caller, id RequestID, v Vote) (ballot, error) {
	if v.Comment == "" {
		return ballot{}, refuse(ErrCommentRequired, "state what you found in comment: a review needs one")
	}
	r, rules, err := b.requestToDecide(ctx, &caller, id)
	if err != nil {
		return ballot{}, err
	}
	groups, err := b.authorizeVote(ctx, caller, rules, r, r.Decision.Obligations.Review)
	if err != nil {
		return ballot{}, err
	}
	if v.Scopes != nil || v.TTL != 0 || v.Duration != 0 {
		return ballot{}, refuse(ErrInvalidRequest, "a review cannot narrow: revoke the credentials that are still valid")
	}
	if err := CheckText(ErrInvalidRequest, "comment", v.Comment, MaxComment); err != nil {
		return ballot{}, err
	}
	ground, err := b.stand(ctx, rules, caller.Subject, time.Time{}, caller.At)
	if err != nil {
		return ballot{}, err
	}
	a := Approval{Person: caller.Subject.ID, Accounts: caller.Subject.Accounts, Groups: groups, Digest: v.Digest, Approve: v.Approve, Comment: v.Comment, Salt: v.salt(), At: caller.At}
	return ballot{caller: caller, rules: rules, request: r, approval: a, signature: v.Signature, before: r.Version, ground: ground}, nil
}

// recordVerdict writes a verdict, and closes the review with the last one.
func (b *Broker) recordVerdict(ctx context.Context, v ballot) error {
	r := v.request
	record := audit.Record{
		Kind: audit.ReviewGiven, Approval: v.approval.verdictFacts(),
		Request: &audit.RequestFacts{ID: r.ID.String(), Digest: r.Digest, Entitlement: r.Entitlement},
	}
	if !r.Reviewed.IsZero() {
		record.Kind = audit.ReviewClosed
	}
	return b.recordBallot(ctx, v, record, record.Approval.ReviewChallenge, append(r.reviews(), r.ID), func(tx Tx, stored *Request) error {
		// A first collection does not change the version.
		r.FirstExpires, r.FirstLease = stored.FirstExpires, stored.FirstLease
		if r.Reviewed.IsZero() {
			return nil
		}
		open, err := reviews(tx, r.Entitlement)
		if err != nil {
			return err
		}
		delete(open.Open, r.ID.String())
		delete(open.By, r.ID.String())
		delete(open.For, r.ID.String())
		tx.Put(open)
		b.notify(tx, NoticeReviewed, r, r.reviewers(), v.rules, v.caller.At)
		return nil
	})
}
