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

// Reviews are the uses of the broken glass on one entitlement that nobody has
// reviewed yet.
type Reviews struct {
	ReviewKey
	Open map[string]time.Time // by the request's id: when the review is due
	By   map[string]string    // by the request's id: who broke the glass
}

// Key gives the row's key.
func (r *Reviews) Key() Key { return r.ReviewKey }

// How many uses of one entitlement may be unreviewed: of one requester, so that
// none keeps others out of an emergency, and of all.
const (
	maxOwnReviews = 10
	maxReviews    = 1000
)

// reviews names what breaking the glass reads.
func (r *Request) reviews() []Key {
	if !r.BreakGlass {
		return nil
	}
	return []Key{ReviewKey{r.Entitlement}}
}

// breakGlass opens the review, in the transaction that files the request.
// Whoever left an earlier use unreviewed for too long has lost the next one.
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
		if open.By[id] != r.Requester.ID {
			continue
		}
		if own++; !now.Before(due) {
			return refuse(ErrReviewOverdue, "an earlier emergency use of yours is unreviewed: its reviewers must close that first")
		}
	}
	if own >= maxOwnReviews || len(open.Open) >= maxReviews {
		return refuse(ErrReviewOverdue, "too many emergency uses of this entitlement are unreviewed: their reviewers must close some first")
	}
	r.ReviewDue = now.Add(r.Decision.Obligations.ReviewWithin)
	open.Open[r.ID.String()], open.By[r.ID.String()] = r.ReviewDue, r.Requester.ID
	tx.Put(open)
	b.notify(tx, NoticeBreakGlass, r, r.reviewers(), rules, now)
	b.notifyAt(tx, NoticeOverdue, r, r.reviewers(), rules, r.ReviewDue, now)
	return nil
}

// reviewers are the groups that have to review the request.
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
	return row, err
}

// verdict adds a person's verdict, and closes the review with the last one.
func (r *Request) verdict(a Approval, now time.Time) error {
	switch {
	case r.ReviewDue.IsZero() || !r.Reviewed.IsZero():
		return &Refusal{Err: ErrNoReview, Detail: "there is nothing to review, or it was reviewed", RequestID: r.ID}
	case a.Digest != r.Digest:
		return &Refusal{Err: ErrStaleDigest, Detail: "this is not the request that you saw: look at it again", RequestID: r.ID}
	case slices.ContainsFunc(r.Verdicts, func(b Approval) bool { return b.Person == a.Person }):
		return &Refusal{Err: ErrAlreadyVoted, Detail: "you have said so already", RequestID: r.ID}
	}
	r.Verdicts = append(slices.Clone(r.Verdicts), a)
	if _, full := assignApprovers(r.Decision.Obligations.Review, spoken(r.Verdicts)); full {
		r.Reviewed = now
	}
	r.Version++
	return nil
}

// spoken are verdicts as voices, whatever they say.
func spoken(verdicts []Approval) []Approval {
	voices := slices.Clone(verdicts)
	for i := range voices {
		voices[i].Approve = true
	}
	return voices
}

// ReviewPlaces says how many of whom have reviewed, and how many are needed.
func (r *Request) ReviewProgress() []ApprovalProgress {
	places, _ := assignApprovers(r.Decision.Obligations.Review, spoken(r.Verdicts))
	return places
}

// Review puts a person's verdict on a use of the broken glass (POST
// /v1/requests/{id}/review): whether it was justified, and why. v.Approve says
// that it was.
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
	found, rules, err := b.finding(ctx, caller, id, v)
	if err != nil {
		return nil, err
	}
	r := found.r
	// Whatever it says ends the review, so it is signed whatever it says.
	if found.a.Signed = v.Signature != nil; r.Decision.Obligations.Signed && !found.a.Signed {
		return nil, errUnsigned
	}
	if err := r.verdict(found.a, caller.At); err != nil {
		return nil, err
	}
	if err := b.closeReview(ctx, found, rules); err != nil {
		return nil, err
	}
	b.waiters.changed(id)
	return r, nil
}

// finding makes a vote a verdict, which nothing holds yet, or refuses what may
// not be said.
func (b *Broker) finding(ctx context.Context, caller Caller, id RequestID, v Vote) (found ballot, rules *Rules, err error) {
	if v.Comment == "" {
		return found, nil, refuse(ErrCommentRequired, "say what you found: a review without words is none")
	}
	r, rules, err := b.forApprover(ctx, caller, id)
	if err != nil {
		return found, nil, err
	}
	groups, err := b.mayVote(ctx, caller, rules, r, r.Decision.Obligations.Review)
	if err != nil {
		return found, nil, err
	}
	if v.Scopes != nil || v.TTL != 0 || v.Duration != 0 {
		return found, nil, refuse(ErrInvalidRequest, "a review narrows nothing: revoke what still lives")
	}
	if err := checkText(ErrInvalidRequest, "comment", v.Comment, MaxComment); err != nil {
		return found, nil, err
	}
	a := Approval{Person: caller.Subject.ID, Groups: groups, Digest: v.Digest, Approve: v.Approve, Comment: v.Comment, Salt: v.salt(), At: caller.At}
	return ballot{caller: caller, r: r, a: a, signature: v.Signature, before: r.Version}, rules, nil
}

// closeReview writes a verdict, as settle does a vote.
func (b *Broker) closeReview(ctx context.Context, v ballot, rules *Rules) error {
	r := v.r
	record := audit.Record{
		Kind: audit.ReviewGiven, Caller: v.caller.Actor.Party(), Approval: v.a.verdictFacts(), Openings: v.a.openings(), Signature: v.signature,
		Request: &audit.RequestFacts{ID: r.ID.String(), Digest: r.Digest, Entitlement: r.Entitlement},
	}
	if !r.Reviewed.IsZero() {
		record.Kind = audit.ReviewClosed
	}
	_, err := b.write(ctx, append(r.reviews(), r.ID, PersonKey(v.caller.Subject.ID), RevisionKey{}), record, func(tx Tx) error {
		if err := v.verify(tx, record.Approval.ReviewChallenge); err != nil {
			return err
		}
		stored, err := Get[*Request](tx, r.ID)
		if err != nil {
			return err
		}
		if err := checkRevision(tx, rules.Revision); err != nil {
			return err
		}
		if stored.Version != v.before {
			return errOvertaken
		}
		// A first collection does not change the version.
		r.FirstExpires = stored.FirstExpires
		if !r.Reviewed.IsZero() {
			open, err := reviews(tx, r.Entitlement)
			if err != nil {
				return err
			}
			delete(open.Open, r.ID.String())
			delete(open.By, r.ID.String())
			tx.Put(open)
			b.notify(tx, NoticeReviewed, r, r.reviewers(), rules, v.caller.At)
		}
		tx.Put(r)
		return nil
	})
	return err
}
