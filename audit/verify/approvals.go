package verify

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// A requirement is a number of people of a group who must approve or review.
type requirement struct {
	count int
	group string
}

// Bounds of the verifier's memory of one request. They are far above what policies
// require: the author of a forged log chooses these numbers.
const (
	maxPlaces = 1024
	maxVotes  = 256
)

// parseRequirements parses texts such as "2 of dba". It reports whether all of
// them are valid.
func parseRequirements(texts []string) (list []requirement, ok bool) {
	places := 0
	for _, text := range texts {
		number, group, found := strings.Cut(text, " of ")
		n, err := strconv.Atoi(number)
		if !found || err != nil || n < 1 || n > maxPlaces || group == "" {
			return nil, false
		}
		list, places = append(list, requirement{n, group}), places+n
	}
	return list, places <= maxPlaces
}

// A vote is one person's vote on a request, or verdict on a break-glass use.
type vote struct {
	person        []string // all accounts
	groups        []string
	approves      bool
	signed        bool // with a valid signature of a passkey that counts
	scopes        []string
	ttl, duration time.Duration // narrowed to; zero: as requested
}

// approvals are the approvals and reviews that a request requires, and those that
// it has.
type approvals struct {
	required, reviews []requirement
	signed            bool     // only votes and verdicts with a valid signature count
	excluded          []string // the requester and the people accountable for it
	votes, verdicts   []vote
	granted           []string // scopes that the approvers left
	closed            bool     // the review is complete
}

// accountsOf returns the accounts of a person, beginning with the one that made the record.
func accountsOf(p *audit.Party) []string { return append([]string{p.ID}, p.Accounts...) }

// overlap reports whether two lists have an account in common: they name the same person.
func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(account string) bool { return slices.Contains(b, account) })
}

// addVote adds a vote. A person votes once, except that a no replaces an earlier
// yes. It returns the problem with the vote, if any.
func addVote(votes []vote, v vote) ([]vote, string) {
	i := slices.IndexFunc(votes, func(u vote) bool { return overlap(u.person, v.person) })
	switch {
	case i >= 0 && votes[i].approves && !v.approves:
		votes = slices.Delete(votes, i, i+1)
	case i >= 0:
		return votes, "the same person has already voted"
	case len(votes) == maxVotes:
		return votes, fmt.Sprintf("more than %d people voted on one request", maxVotes)
	}
	return append(votes, v), ""
}

// missingApprovals returns which required approvals are missing, as a problem, or
// "". a may be nil: then there are no votes.
func (a *approvals) missingApprovals(required []requirement, signed bool) string {
	if len(required) == 0 {
		return ""
	}
	var yes []vote
	if a != nil {
		yes = slices.DeleteFunc(slices.Clone(a.votes), func(v vote) bool { return !v.approves })
	}
	return missing("approval", required, yes, signed)
}

// missing returns which requirements the votes do not meet, as a problem, or "".
func missing(what string, required []requirement, votes []vote, signed bool) string {
	how := ""
	if signed {
		how = " with valid signatures"
		votes = slices.DeleteFunc(slices.Clone(votes), func(v vote) bool { return !v.signed })
	}
	counts := make([]int, len(required))
	for i, r := range required {
		counts[i] = r.count
	}
	have, full := audit.AssignApprovers(counts, len(votes), func(person, group int) bool {
		return slices.Contains(votes[person].groups, required[group].group)
	})
	if full {
		return ""
	}
	return fmt.Sprintf("policy requires %s by %s%s, and the log has %s", what, describe(required, counts), how, describe(required, have))
}

// describe formats the groups of the requirements with these counts.
func describe(required []requirement, counts []int) string {
	var texts []string
	for i, r := range required {
		texts = append(texts, fmt.Sprintf("%d of %s", counts[i], r.group))
	}
	return strings.Join(texts, ", ")
}
