package broker

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// An InboxQuery selects, orders and pages the decisions of an inbox. Zero fields select
// everything.
type InboxQuery struct {
	Entitlement string
	Requester   string // a person, or a SPIFFE ID and all below it; without a slash: a part of either
	Team        string // of the requester
	Risk        Risk
	Text        string   // words that are in the request's texts or names
	Like        *Request // only requests that are identical to this one
	Order       InboxOrder
	After       InboxPlace // the page after this place; zero: the first page
	Before      InboxPlace // the page before this place
	Limit       int        // groups of a page
	Single      bool       // each request is a group of its own

	Seen   time.Time   // Inbox.New counts what was first seen later; zero: nothing
	Shown  []RequestID // Inbox.Gone has those of them that wait no longer
	Facets bool        // fill in Inbox.Facets
	Counts bool        // leave out the page: every page of a viewer counts, and open inboxes do at every change
}

// InboxOrder is the order of an inbox.
type InboxOrder uint8

// The orders. Equals are ordered by age, oldest first.
const (
	ByRisk     InboxOrder = iota // the riskiest first
	ByAge                        // the oldest first
	ByNewest                     // the newest first
	ByDeadline                   // the earliest to lapse, or to be due for review, first
)

// An InboxPlace is the place of a group in an order.
type InboxPlace struct {
	Rank int64
	ID   RequestID // of the group's oldest request; zero: no place
}

// IsZero reports whether it is no place.
func (p InboxPlace) IsZero() bool { return p.ID.IsZero() }

func (p InboxPlace) compare(q InboxPlace) int {
	switch {
	case p.Rank < q.Rank:
		return -1
	case p.Rank > q.Rank:
		return 1
	}
	return compareIDs(p.ID, q.ID)
}

// An InboxGroup has identical requests of one requester, oldest first: they differ only
// in their texts, such as the justification.
type InboxGroup struct {
	Requests []*Request
	Review   bool // they wait for a review, not for approval
	Risk     Risk
	Reasons  []string // what raises the risk
	place    InboxPlace
}

// MaxGroup bounds a group, so that its page and its form stay small.
const MaxGroup = 20

// Has reports whether the group has a request.
func (g *InboxGroup) Has(id RequestID) bool {
	return slices.ContainsFunc(g.Requests, func(r *Request) bool { return r.ID == id })
}

// Deadline returns when the first request of the group lapses or is due for review.
func (g *InboxGroup) Deadline() time.Time {
	first := deadline(g.Requests[0], g.Review)
	for _, r := range g.Requests[1:] {
		if d := deadline(r, g.Review); d.Before(first) {
			first = d
		}
	}
	return first
}

func deadline(r *Request, review bool) time.Time {
	if review {
		return r.ReviewDue
	}
	return r.Lapses
}

// A Facet is a value by which an inbox can be filtered, and how many decisions have it.
type Facet struct {
	Name  string
	Count int
}

// Facets are the values of an inbox, the most frequent first.
type Facets struct{ Entitlements, Teams, Requesters []Facet }

// maxFacets bounds each list of facets.
const maxFacets = 50

func facetsOf(list []*waitingRequest) (f Facets) {
	entitlements, teams, requesters := map[string]int{}, map[string]int{}, map[string]int{}
	for _, r := range list {
		entitlements[r.Entitlement]++
		requesters[r.Requester.ID]++
		if r.Requester.Team != "" {
			teams[r.Requester.Team]++
		}
	}
	return Facets{facets(entitlements), facets(teams), facets(requesters)}
}

func facets(counts map[string]int) []Facet {
	names := slices.SortedFunc(maps.Keys(counts), func(x, y string) int {
		if counts[x] != counts[y] {
			return counts[y] - counts[x]
		}
		return strings.Compare(x, y)
	})
	list := make([]Facet, min(len(names), maxFacets))
	for i := range list {
		list[i] = Facet{names[i], counts[names[i]]}
	}
	return list
}

// selects reports whether the query selects a request.
func (q *InboxQuery) selects(rules *Rules, r *Request, words []string) bool {
	if q.Entitlement != "" && r.Entitlement != q.Entitlement || q.Team != "" && r.Requester.Team != q.Team || q.Requester != "" && !isNamed(r.Requester.ID, q.Requester) {
		return false
	}
	if q.Risk != 0 {
		if risk, _ := rules.Risk(r); risk != q.Risk {
			return false
		}
	}
	return len(words) == 0 || r.Contains(words)
}

// isNamed reports whether a person who types a name into a filter means the ID.
func isNamed(id, name string) bool {
	if strings.Contains(name, "/") {
		return isOrBelow(id, name)
	}
	return strings.Contains(strings.ToLower(id), strings.ToLower(name))
}

// isOrBelow reports whether an ID is the other one, or a SPIFFE ID below it.
func isOrBelow(id, other string) bool {
	rest, ok := strings.CutPrefix(id, strings.TrimSuffix(other, "/"))
	return ok && (rest == "" || rest[0] == '/' && strings.HasPrefix(id, spiffeScheme))
}

// SearchWords returns the words of a search, in lower case.
func SearchWords(text string) []string { return strings.Fields(strings.ToLower(text)) }

// ContainsWords reports whether the texts contain all the words, which are in lower case.
func ContainsWords(words []string, texts ...string) bool {
	text := strings.ToLower(strings.Join(texts, "\n"))
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) })
}

// Contains reports whether the request's names and texts contain all the words, which are
// in lower case.
func (r *Request) Contains(words []string) bool {
	texts := append([]string{r.ID.String(), r.Entitlement, r.Requester.ID, r.subject(), r.Requester.Team, r.Justification, r.Message, r.Ticket}, r.Scopes...)
	return ContainsWords(words, append(texts, r.Requester.Accountable...)...)
}

// isLike reports whether two requests are identical except for their texts. Their
// requester, entitlement and scopes are equal already.
func (r *Request) isLike(o *Request) bool {
	return r.TTL == o.TTL && r.Duration == o.Duration && r.Effect == o.Effect && r.BreakGlass == o.BreakGlass &&
		r.NotBefore.Equal(o.NotBefore) && r.Extends == o.Extends && maps.Equal(r.Parameters, o.Parameters) && EqualDetails(r.Details, o.Details) &&
		r.Requester.Kind == o.Requester.Kind && r.Requester.Team == o.Requester.Team && slices.Equal(r.Requester.Accountable, o.Requester.Accountable) &&
		r.Decision.Obligations.equal(&o.Decision.Obligations) && r.Delegation.isLike(o.Delegation)
}

func (o *Obligations) equal(p *Obligations) bool {
	return o.Denials == p.Denials && o.ExcludeTeam == p.ExcludeTeam && o.Comment == p.Comment && o.SilentDenial == p.SilentDenial && o.Signed == p.Signed &&
		o.LapseAfter == p.LapseAfter && o.ReviewWithin == p.ReviewWithin && o.MaxTTL == p.MaxTTL && o.MaxDuration == p.MaxDuration && o.Justification == p.Justification && o.Supplier == p.Supplier && o.Binding == p.Binding &&
		slices.Equal(o.Approvals, p.Approvals) && slices.Equal(o.Review, p.Review) && slices.Equal(o.Escalations, p.Escalations) &&
		slices.Equal(o.Tickets, p.Tickets) && o.TicketTerms.equal(&p.TicketTerms) && slices.Equal(o.Limits, p.Limits) && slices.Equal(o.MaxActive, p.MaxActive) && o.Delegates == p.Delegates
}

// place returns the place of a group that begins with the request.
func (q *InboxQuery) place(risk Risk, r *Request, review bool) InboxPlace {
	switch q.Order {
	case ByAge:
		return InboxPlace{0, r.ID}
	case ByNewest:
		return InboxPlace{-r.Created.UnixMilli(), r.ID}
	case ByDeadline:
		return InboxPlace{deadline(r, review).UnixMilli(), r.ID}
	}
	return InboxPlace{-int64(risk), r.ID}
}
