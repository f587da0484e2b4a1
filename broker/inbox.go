package broker

import (
	"context"
	"slices"
	"strings"
	"time"
)

// An Inbox has decisions that wait for one person.
type Inbox struct {
	Groups         []InboxGroup // of the page
	Total          int          // the decisions that wait for the person
	Matching       int          // those of them that the query selects
	Rows           int          // the groups of those
	First          int          // the number of groups before the page
	Previous, Next InboxPlace   // Before and After of the neighbouring pages; zero: no such page
	Seen           time.Time    // when the newest request was first seen
	New            int          // see InboxQuery.Seen
	Gone           []RequestID  // see InboxQuery.Shown
	Facets         Facets
	More           bool // more requests are pending than were read
}

// Inbox returns a page of the person's inbox.
func (b *Broker) Inbox(ctx context.Context, caller Caller, q InboxQuery) (*Inbox, error) {
	if err := caller.RequireSession(); err != nil {
		return nil, err
	}
	rules := b.rules.Load()
	list, seen, more, err := b.requestsWaiting(ctx, caller.At)
	if err != nil {
		return nil, err
	}
	v := newVoter(rules, caller.Subject)
	waits := v.waiting(list, caller.At)
	in := &Inbox{Total: len(waits), Seen: seen, More: more, Gone: missing(waits, q.Shown)}
	if q.Facets {
		in.Facets = facetsOf(waits)
	}
	selected := q.filter(rules, waits)
	in.Matching = len(selected)
	for _, r := range selected {
		if !q.Seen.IsZero() && r.seen.After(q.Seen) {
			in.New++
		}
	}
	if q.Counts {
		return in, nil
	}
	groups := q.groups(rules, selected)
	in.Rows = len(groups)
	in.turnTo(groups, &q)
	return in, nil
}

// waiting returns the requests of the list that wait for the person.
func (v *voter) waiting(list []*waitingRequest, now time.Time) (waits []*waitingRequest) {
	for _, r := range list {
		switch {
		case r.Status == RequestPending:
			if now.Before(r.Lapses) && v.mayDecide(r.Request, r.Decision.Obligations.Approvals) && !hasDecided(v.who, r.Approvals) {
				waits = append(waits, r)
			}
		case v.mayDecide(r.Request, r.Decision.Obligations.Review) && !hasDecided(v.who, r.Verdicts):
			waits = append(waits, r)
		}
	}
	return waits
}

// missing returns the ids that are not in the list, which is sorted.
func missing(list []*waitingRequest, ids []RequestID) (gone []RequestID) {
	for _, id := range ids {
		if _, found := slices.BinarySearchFunc(list, id, compareWaiting); !found {
			gone = append(gone, id)
		}
	}
	return gone
}

// filter returns the requests that the query selects.
func (q *InboxQuery) filter(rules *Rules, list []*waitingRequest) (selected []*waitingRequest) {
	words := SearchWords(q.Text)
	alike := ""
	if q.Like != nil {
		alike = alikeKey(q.Like)
	}
	for _, r := range list {
		if q.selects(rules, r.Request, words) && (q.Like == nil || r.alike == alike && r.isLike(q.Like)) {
			selected = append(selected, r)
		}
	}
	return selected
}

// groupsWith reports whether two requests can be decided together.
func (r *waitingRequest) groupsWith(o *waitingRequest) bool {
	return r.alike == o.alike && r.Status == o.Status && r.isLike(o.Request)
}

// groups returns the requests in groups, in the order of the query.
func (q *InboxQuery) groups(rules *Rules, list []*waitingRequest) (groups []*InboxGroup) {
	firsts := map[string][]*waitingRequest{} // by alike: the first requests of its open groups
	of := map[*waitingRequest]*InboxGroup{}
	for _, r := range list {
		first := firsts[r.alike]
		at := -1
		if !q.Single {
			at = slices.IndexFunc(first, r.groupsWith)
		}
		if at >= 0 && len(of[first[at]].Requests) < MaxGroup {
			of[first[at]].Requests = append(of[first[at]].Requests, r.Request)
			continue
		}
		if at >= 0 {
			first = slices.Delete(first, at, at+1) // the group is full
		}
		g := &InboxGroup{Requests: []*Request{r.Request}, Review: r.Status != RequestPending}
		g.Risk, g.Reasons = rules.Risk(r.Request)
		g.place = q.place(g.Risk, r.Request, g.Review)
		groups, of[r], firsts[r.alike] = append(groups, g), g, append(first, r)
	}
	slices.SortFunc(groups, func(x, y *InboxGroup) int { return x.place.compare(y.place) })
	return groups
}

// turnTo fills in the page of the query, and its neighbours.
func (in *Inbox) turnTo(groups []*InboxGroup, q *InboxQuery) {
	limit := pageSize(q.Limit)
	find := func(p InboxPlace) (at int, found bool) {
		return slices.BinarySearchFunc(groups, p, func(g *InboxGroup, p InboxPlace) int { return g.place.compare(p) })
	}
	first := 0
	switch {
	case !q.Before.IsZero():
		at, _ := find(q.Before)
		first = max(at-limit, 0)
	case !q.After.IsZero():
		at, found := find(q.After)
		if first = at; found {
			first++
		}
	}
	if first >= len(groups) { // the page was decided meanwhile: the last one is nearest
		first = max(len(groups)-limit, 0)
	}
	end := min(first+limit, len(groups))
	in.First = first
	for _, g := range groups[first:end] {
		in.Groups = append(in.Groups, *g)
	}
	if first > 0 {
		in.Previous = groups[first].place
	}
	if end < len(groups) {
		in.Next = groups[end-1].place
	}
}

// A voter is a person with their groups under some rules.
type voter struct {
	rules  *Rules
	who    Identity
	groups map[string]bool
	teams  map[string]bool // the groups of all accounts of the person
}

func newVoter(rules *Rules, who Identity) *voter {
	who = rules.WithLabels(who)
	listed, claimed := rules.Policy.Groups(who)
	v := &voter{rules, who, map[string]bool{}, map[string]bool{}}
	for _, g := range append(listed, claimed...) {
		v.groups[g] = true
	}
	for _, g := range rules.GroupsOfPerson(who) {
		v.teams[g] = true
	}
	return v
}

// mayDecide reports whether the person may decide on the request, judging by
// groups alone. The vote itself also checks the forbids of policy and the age
// of the claims.
func (v *voter) mayDecide(r *Request, needs []ApprovalNeed) bool {
	asked := slices.ContainsFunc(needs, func(n ApprovalNeed) bool {
		return v.groups[n.Group] || n.Group == GroupManager && v.rules.People.Contains(r.manager(v.rules), v.who.ID)
	})
	return asked && !(r.Decision.Obligations.ExcludeTeam && v.teams[r.Requester.Team]) && !r.conflictOfInterest(v.rules, v.who.ID)
}

// CanDecide reports whether the person may vote on the request, or review it,
// judging by groups alone. It is false for a person who has decided already.
func (b *Broker) CanDecide(caller Caller, r *Request) (vote, review bool) {
	rules := b.rules.Load()
	if caller.RequireSession() != nil {
		return false, false
	}
	v, o := newVoter(rules, caller.Subject), r.Decision.Obligations
	vote = r.State(caller.At) == RequestPending && v.mayDecide(r, o.Approvals) && !hasDecided(v.who, r.Approvals)
	review = !r.ReviewDue.IsZero() && r.Reviewed.IsZero() && v.mayDecide(r, o.Review) && !hasDecided(v.who, r.Verdicts)
	return vote, review
}

// Effect returns the issuer's description of what a credential of the request
// can do, and the calls that an edge makes with it; empty if there is neither.
func (b *Broker) Effect(ctx context.Context, caller Caller, r *Request) (string, error) {
	if err := b.checkView(ctx, caller, r); err != nil {
		return "", err
	}
	e := b.rules.Load().Catalogue[r.Entitlement]
	if e == nil {
		return "", nil
	}
	var effect string
	if d, ok := b.cfg.Issuers[e.Issuer].(Describer); ok {
		effect = d.Describe(e, r.Scopes, r.Parameters)
	}
	if e.Egress != nil {
		effect = strings.TrimPrefix(effect+"\n"+e.Egress.describe(), "\n")
	}
	return effect, nil
}
