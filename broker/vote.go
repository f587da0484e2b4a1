package broker

import (
	"slices"
	"time"

	"accessbroker.internal/audit"
)

// An Approval is one person's decision, approval or denial, bound to the digest
// that they saw.
type Approval struct {
	Person   string
	Accounts []string // all accounts of the person who has several, as they are linked now
	Groups   []string // the required groups that the person is in
	Digest   audit.Digest
	Approve  bool
	Comment  string
	Salt     [16]byte // of the comment's commitment
	Scopes   []string // narrowed to these; nil: as requested
	TTL      time.Duration
	Duration time.Duration
	Signed   bool // by a passkey, with user verification
	At       time.Time
}

// A Vote is the input of a decision by a person.
type Vote struct {
	Approve  bool
	Digest   audit.Digest // of the request that the person saw
	Comment  string
	Scopes   []string // narrowed to these; nil: as requested
	TTL      time.Duration
	Duration time.Duration

	Signature *audit.SignatureFacts // of the challenge that PrepareVote returned; nil: unsigned
	Salt      [16]byte              // of the comment, from PrepareVote
}

// salt returns the salt of the comment's commitment: the signed one, or a new
// one.
func (v *Vote) salt() [16]byte {
	switch {
	case v.Comment == "":
		return [16]byte{}
	case v.Signature == nil && v.Salt == [16]byte{}:
		return audit.NewSalt()
	}
	return v.Salt
}

// MaxComment is the maximum length of a comment in bytes.
const MaxComment = 2000

// A Grant is the approved access: the request, narrowed by every approval.
type Grant struct {
	Scopes   []string
	TTL      time.Duration
	Duration time.Duration
}

// Grant returns what the approvals so far would grant, or granted.
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

// granted returns the request as it was granted. Collections are decided on it.
func (r *Request) granted() *Request {
	n, g := *r, r.Grant()
	n.Scopes, n.TTL, n.Duration = g.Scopes, g.TTL, g.Duration
	return &n
}

// ApprovalProgress is how many approvals of a group are needed, and how many
// there are.
type ApprovalProgress struct {
	ApprovalNeed
	Have int
}

// assignApprovers assigns each approval to at most one group, so that as many
// needs as possible are met: a person in two groups, or with two accounts, counts
// once. full reports whether all needs are met.
func assignApprovers(needs []ApprovalNeed, votes []Approval) (progress []ApprovalProgress, full bool) {
	votes = byPerson(votes)
	counts := make([]int, len(needs))
	for i, n := range needs {
		counts[i] = n.Count
	}
	have, full := audit.AssignApprovers(counts, len(votes), func(vote, need int) bool {
		return votes[vote].Approve && slices.Contains(votes[vote].Groups, needs[need].Group)
	})
	for i, n := range needs {
		progress = append(progress, ApprovalProgress{n, have[i]})
	}
	return progress, full
}

// ApprovalProgress returns the progress of the required approvals by group.
func (r *Request) ApprovalProgress() []ApprovalProgress {
	progress, _ := assignApprovers(r.Decision.Obligations.Approvals, r.counting(r.Decision.Obligations))
	return progress
}

// covered reports whether the approvals meet the obligations.
func (r *Request) covered(o Obligations) bool {
	_, full := assignApprovers(o.Approvals, r.counting(o))
	return full
}

// stillApproved returns the request with the approvals that are valid under the
// rules: without those by people who are now accountable for the requester, or
// listed in an excluded team.
func (r *Request) stillApproved(rules *Rules, o Obligations) *Request {
	team, _ := r.team(rules)
	held := *r
	held.Approvals = slices.DeleteFunc(slices.Clone(r.Approvals), func(a Approval) bool {
		return r.conflictOfInterest(rules, a.Person) || o.ExcludeTeam && rules.People.Contains(team, a.Person)
	})
	held.Verdicts = slices.Clone(r.Verdicts)
	held.link(rules.People)
	return &held
}

// counting returns the approvals that are bound to this digest, given in the manner that
// the obligations require, and by people whose access has not ended.
func (r *Request) counting(o Obligations) []Approval {
	return slices.DeleteFunc(slices.Clone(r.Approvals), func(a Approval) bool {
		return a.Digest != r.Digest || slices.Contains(r.Void, a.Person) || o.Signed && !a.Signed || o.Comment && a.Comment == ""
	})
}

// vote adds a decision to a pending request, and settles it if it is the last
// one. A person decides once, except that an approval may be turned into a
// denial.
func (r *Request) vote(a Approval, now time.Time) error {
	if r.State(now) != RequestPending {
		return &Refusal{Err: ErrNotPending, Detail: "it is no longer pending", RequestID: r.ID}
	}
	if a.Digest != r.Digest {
		return &Refusal{Err: ErrStaleDigest, Detail: "this is not the request that you saw: read it again", RequestID: r.ID}
	}
	i := slices.IndexFunc(r.Approvals, func(b Approval) bool { return b.sameVoter(&a) })
	if i >= 0 && (a.Approve || !r.Approvals[i].Approve) {
		return &Refusal{Err: ErrAlreadyVoted, Detail: "you have decided already", RequestID: r.ID}
	}
	approvals := slices.Clone(r.Approvals)
	if i >= 0 {
		approvals = slices.Delete(approvals, i, i+1)
	}
	voted := *r
	voted.Approvals = append(approvals, a)
	if len(r.Scopes) > 0 && len(voted.Grant().Scopes) == 0 {
		return &Refusal{Err: ErrInvalidScope, Detail: "together with the other approvals no scope would be left: deny it instead", RequestID: r.ID}
	}
	*r = voted
	switch {
	case r.denials() >= max(r.Decision.Obligations.Denials, 1):
		r.Status, r.DeniedBy, r.Lapses = RequestDenied, DeniedByPerson, time.Time{}
		r.Version++
	case r.covered(r.Decision.Obligations) && !r.Awaits:
		r.approve(now)
	default:
		r.Version++
	}
	return nil
}

// denials returns the number of people who denied the request.
func (r *Request) denials() int {
	denied := slices.DeleteFunc(slices.Clone(r.Approvals), func(a Approval) bool { return a.Approve })
	return len(byPerson(denied))
}
