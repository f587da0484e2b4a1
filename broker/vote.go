package broker

import (
	"slices"
	"time"

	"accessbroker.internal/audit"
)

// An Approval is one person's yes or no, bound to what they saw.
type Approval struct {
	Person   string
	Groups   []string // of those that were asked, the ones the person is in
	Digest   audit.Digest
	Approve  bool
	Comment  string
	Salt     [16]byte // of the comment's commitment
	Scopes   []string // narrowed to; nil: as asked
	TTL      time.Duration
	Duration time.Duration
	Signed   bool // by a passkey, with the person verified
	At       time.Time
}

// A Vote is what a person says to a request.
type Vote struct {
	Approve  bool
	Digest   audit.Digest // of the request as the person saw it
	Comment  string
	Scopes   []string // to narrow; nil: as asked
	TTL      time.Duration
	Duration time.Duration

	Signature *audit.SignatureFacts // by a passkey, of what PrepareVote said; nil: unsigned
	Salt      [16]byte              // of the comment, as PrepareVote said
}

// salt gives the salt of the comment's commitment: the one that was signed, or a
// new one.
func (v *Vote) salt() [16]byte {
	switch {
	case v.Comment == "":
		return [16]byte{}
	case v.Signature == nil && v.Salt == [16]byte{}:
		return audit.NewSalt()
	}
	return v.Salt
}

// MaxComment is how long a comment may be, in bytes.
const MaxComment = 2000

// A Grant is what an approved request gives: what was asked, narrowed by every
// approval.
type Grant struct {
	Scopes   []string
	TTL      time.Duration
	Duration time.Duration
}

// Grant is what would be, or was, granted.
func (r *Request) Grant() Grant {
	g := Grant{r.Scopes, r.TTL, r.Duration}
	for _, a := range r.Approvals {
		if a.Approve {
			g = g.narrow(a)
		}
	}
	return g
}

func (g Grant) narrow(a Approval) Grant {
	if a.Scopes != nil {
		g.Scopes = slices.DeleteFunc(slices.Clone(g.Scopes), func(s string) bool { return !slices.Contains(a.Scopes, s) })
	}
	if a.TTL > 0 {
		g.TTL = min(g.TTL, a.TTL)
	}
	if a.Duration > 0 {
		g.Duration = min(g.Duration, a.Duration)
	}
	return g
}

// granted is the request as it was granted: what is collected is decided on
// this, and never on what was asked.
func (r *Request) granted() *Request {
	n, g := *r, r.Grant()
	n.Scopes, n.TTL, n.Duration = g.Scopes, g.TTL, g.Duration
	return &n
}

// A Place is how many people of a group are needed, and how many there are.
type ApprovalProgress struct {
	ApprovalNeed
	Have int
}

// seat gives each of the people who said yes one place at most, such that as
// many places as can be are filled: somebody in two groups counts once. It
// says whether all are.
func assignApprovers(needs []ApprovalNeed, votes []Approval) (places []ApprovalProgress, full bool) {
	counts := make([]int, len(needs))
	for i, n := range needs {
		counts[i] = n.Count
	}
	have, full := audit.AssignApprovers(counts, len(votes), func(vote, need int) bool {
		return votes[vote].Approve && slices.Contains(votes[vote].Groups, needs[need].Group)
	})
	for i, n := range needs {
		places = append(places, ApprovalProgress{n, have[i]})
	}
	return places, full
}

// Places says how many of whom have approved, and how many are needed.
func (r *Request) ApprovalProgress() []ApprovalProgress {
	places, _ := assignApprovers(r.Decision.Obligations.Approvals, r.counting(r.Decision.Obligations))
	return places
}

// covered says whether the approvals that the request holds meet what policy
// demands now.
func (r *Request) covered(o Obligations) bool {
	_, full := assignApprovers(o.Approvals, r.counting(o))
	return full
}

// holding is the request with those of its approvals that still hold under the
// rules: none of whoever answers for its requester by now, or is of the team that
// policy excludes by now, as far as that is listed.
func (r *Request) holding(rules *Rules, o Obligations) *Request {
	team, _ := r.team(rules)
	held := *r
	held.Approvals = slices.DeleteFunc(slices.Clone(r.Approvals), func(a Approval) bool {
		return r.conflictOfInterest(rules, a.Person) || o.ExcludeTeam && slices.Contains(team, a.Person)
	})
	return &held
}

// counting are the approvals that are for this request as it is, and given in
// the way that is demanded.
func (r *Request) counting(o Obligations) []Approval {
	return slices.DeleteFunc(slices.Clone(r.Approvals), func(a Approval) bool {
		return a.Digest != r.Digest || o.Signed && !a.Signed || o.Comment && a.Comment == ""
	})
}

// vote puts a person's yes or no to a pending request, and says whether it
// settles it. A person has one voice; a yes may be turned into a no.
func (r *Request) vote(a Approval, now time.Time) error {
	if r.State(now) != RequestPending {
		return &Refusal{Err: ErrNotPending, Detail: "it is no longer waiting for anybody", RequestID: r.ID}
	}
	if a.Digest != r.Digest {
		return &Refusal{Err: ErrStaleDigest, Detail: "this is not the request that you saw: look at it again", RequestID: r.ID}
	}
	i := slices.IndexFunc(r.Approvals, func(b Approval) bool { return b.Person == a.Person })
	if i >= 0 && (a.Approve || !r.Approvals[i].Approve) {
		return &Refusal{Err: ErrAlreadyVoted, Detail: "you have said so already", RequestID: r.ID}
	}
	approvals := slices.Clone(r.Approvals)
	if i >= 0 {
		approvals = slices.Delete(approvals, i, i+1)
	}
	voted := *r
	voted.Approvals = append(approvals, a)
	if len(r.Scopes) > 0 && len(voted.Grant().Scopes) == 0 {
		return &Refusal{Err: ErrInvalidScope, Detail: "together with the others' approvals nothing would be left to grant: deny it instead", RequestID: r.ID}
	}
	*r = voted
	switch {
	case r.denials() >= max(r.Decision.Obligations.Denials, 1):
		r.Status, r.DeniedBy, r.Lapses = RequestDenied, DeniedByPerson, time.Time{}
		r.Version++
	case r.covered(r.Decision.Obligations):
		r.approve(now)
	default:
		r.Version++
	}
	return nil
}

func (r *Request) denials() (n int) {
	for _, a := range r.Approvals {
		if !a.Approve {
			n++
		}
	}
	return n
}
