package broker

import (
	"fmt"
	"time"
)

// A Retention is how long the operator keeps what has ended. Zero keeps it for good. The
// records of the log and their hashes are never deleted.
type Retention struct {
	Requests time.Duration // with the leases that they carry
	Leases   time.Duration // at most as long as requests: a lease refers to its request
	Texts    time.Duration // the free texts of requests, votes, ends and others; their hashes stay in the log
}

// The shortest retention. Approvers see the requester's last 30 days (see RequestHistory),
// limits and idempotency keys have rows of their own, and no request outlives an open review.
const (
	MinRetention     = historyPeriod
	MinTextRetention = 7 * 24 * time.Hour
)

// Prunes reports whether anything is deleted.
func (k Retention) Prunes() bool { return k != Retention{} }

// Over returns when nothing can happen to the request any more: it was decided against, it
// lapsed, or the last credential of its grant had to end. It reports false for all other
// requests, and while a review of it is open.
func (r *Request) Over(now time.Time) (at time.Time, over bool) {
	switch state := r.State(now); {
	case !r.ReviewDue.IsZero() && r.Reviewed.IsZero():
		return time.Time{}, false
	case state == RequestLapsed:
		at = r.Lapses
	case state == RequestEnded:
		at = r.Ends()
	case state == RequestDenied && r.DeniedBy == DeniedByPolicy:
		at = r.Created
	case state == RequestDenied, state == RequestWithdrawn:
		at = r.Created.Add(max(r.Waits(), AssessedFor)) // at the latest
	default:
		return time.Time{}, false
	}
	for _, a := range r.Verdicts {
		at = latest(at, a.At)
	}
	at = latest(at, r.Reviewed)
	return at, !at.After(now)
}

// Over returns when the credential of the lease stopped working and the lease had ended. It
// reports false for all other leases, and if that time is unknown.
func (l *Lease) Over(now time.Time) (at time.Time, over bool) {
	switch {
	case l.Status == LeaseFailed:
		at = l.Ended
	case l.Revocation == RevokedNever, l.Live(now):
		return time.Time{}, false
	case l.HasEnded() && l.Revocation == RevokedImmediate:
		at = l.Ended
	case l.Revocation == RevokedAtRotation && l.Rotates.IsZero(), l.Persists:
		return time.Time{}, false
	default:
		at = latest(latest(l.Ended, l.Expires), l.Rotates)
	}
	return at, !at.IsZero() && !at.After(now)
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// EraseTexts removes everything from the request that records have as commitments, and the
// salts, without which the texts cannot be guessed.
func (r *Request) EraseTexts() {
	r.Justification, r.Ticket, r.Message, r.Parameters, r.Details = "", "", "", nil, nil
	r.SourceIP, r.Salts, r.Erased = Request{}.SourceIP, nil, true
	for _, list := range [][]Approval{r.Approvals, r.Verdicts} {
		for i := range list {
			list[i].Comment, list[i].Salt = "", [16]byte{}
		}
	}
}

// EraseTexts removes the texts that the lease has from its request. It reports whether there
// were any.
func (l *Lease) EraseTexts() bool {
	had := len(l.Parameters)+len(l.Details) > 0
	l.Parameters, l.Details = nil, nil
	return had
}

// Days returns a duration in days if it is one of whole days.
func Days(d time.Duration) string {
	const day = 24 * time.Hour
	if d >= day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	return FormatDuration(d)
}

// missingRequest returns the refusal of a request that does not exist, or that the caller may
// not view. If the operator keeps requests for less time than has passed since it would have
// been filed, by its ID, the refusal states it. Every ID of that age has the same answer, so it
// reveals nothing.
func (b *Broker) missingRequest(id RequestID, now time.Time) error {
	return noLonger("request", id.Time(), b.cfg.Retention.Requests, now)
}

// missingLease is missingRequest for a lease.
func (b *Broker) missingLease(id LeaseID, now time.Time) error {
	return noLonger("lease", RequestID(id).Time(), b.cfg.Retention.Leases, now)
}

func noLonger(noun string, began time.Time, kept time.Duration, now time.Time) error {
	detail := fmt.Sprintf("there is no such %s, or you may not view it", noun)
	if kept > 0 && began.Before(now.Add(-kept)) {
		detail += fmt.Sprintf("; a %s is deleted %s after its end, and its records stay in the audit log: search the log for the id", noun, Days(kept))
	}
	return refuse(ErrNotFound, detail)
}
